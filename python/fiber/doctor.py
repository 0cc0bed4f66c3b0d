"""`fiber doctor`: what is installed, which backend runs and why, what is missing and how to get it.

It works where nothing but fiber's own wheel is installed: a package is looked up in the
installed metadata and imported only if it is there.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fiber
from fiber import _core
from fiber.env import usable_cores

#: What each extra is for, in the order in which they are listed.
EXTRAS = {
    "train": "progress bars and curves while training",
    "demo": "`fiber demo` and its report",
    "eval": "empty: evaluation needs no extra package",
    "phrases": "noun phrases of captions by spaCy, with a pipeline for English of its own releases",
    "hf": "comparison with the transformers library",
    "arrow": "the published Arrow files",
    "bench": "the peers that `fiber bench` and `benches/` time fiber against",
    "dev": "building, testing and linting fiber itself",
}


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """One line of the installed metadata's list of requirements."""

    #: Name of the distribution.
    name: str
    #: Oldest version that fiber was tested with; empty if any will do.
    minimum: str
    #: Extra that asks for it; empty for what fiber always needs.
    extra: str

    def state(self) -> tuple[str, bool]:
        """Look the package up; gives what to print and whether it will do."""
        try:
            version = importlib.metadata.version(self.name)
        except importlib.metadata.PackageNotFoundError:
            return "not installed", False
        if self.minimum and _numbers(version) < _numbers(self.minimum):
            return f"{version}, older than the tested {self.minimum}", False
        return version, True


def requirements() -> list[Requirement]:
    """Read fiber's own requirements from its installed metadata."""
    try:
        lines = importlib.metadata.requires("fiber-vl") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = []
    for line in lines:
        requirement, _, marker = line.partition(";")
        name = re.match(r"[A-Za-z0-9._-]+", requirement.strip())
        minimum = re.search(r">=\s*([0-9.]+)", requirement)
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", marker)
        # An extra that names other extras of ours brings no package by itself.
        if name and name.group() != "fiber-vl":
            found.append(
                Requirement(
                    name=name.group(),
                    minimum=minimum.group(1) if minimum else "",
                    extra=extra.group(1) if extra else "",
                )
            )
    return found


def main() -> int:
    """Print the report; gives the exit code: 0 if all that fiber needs is there, else 1."""
    required = [r for r in requirements() if not r.extra]
    states = {r.name: r.state() for r in required}
    problems = [f"{name}: {text}" for name, (text, fits) in states.items() if not fits]

    _section("this machine")
    _row("system", f"{platform.system()} {platform.machine()}, Python {platform.python_version()}")
    _row("cores", _cores())
    free_gib = shutil.disk_usage(Path.cwd()).free / 2**30
    _row("free disk", f"{free_gib:.1f} GiB in {Path.cwd()}")

    _section("fiber")
    _row("version", f"{fiber.__version__} in {Path(fiber.__file__).parent}")
    profile = _core.build_profile
    _row("rust core", f"{profile} build" + (", many times slower" if profile == "debug" else ""))

    _section("required packages")
    for name, (text, fits) in states.items():
        _row(name, text, fits)
    if not required:
        problems.append("fiber-vl: no installed metadata; install it with pip")

    _section("where models run")
    problem = _torch_rows() if "torch" in states and states["torch"][1] else None
    if problem:
        problems.append(problem)
    elif "torch" not in states or not states["torch"][1]:
        _row("torch", "missing, so no model runs; data and records can still be read", False)

    _section("extras")
    _extra_rows()

    _section("result")
    if not problems:
        _row("ok", "everything that fiber needs is here")
        return 0
    for text in problems:
        _row("missing", text, False)
    _row("to get it", "pip install --upgrade " + _quoted(required))
    return 1


def _torch_rows() -> str | None:
    """Print devices and the backend of the attention kernels; gives what is broken, if anything."""
    try:
        torch = importlib.import_module("torch")
        kernels = importlib.import_module("fiber.kernels")
        importlib.import_module("torchvision")
    except (ImportError, OSError, RuntimeError) as error:
        # Torch that does not fit its CUDA libraries or its torchvision fails in any of these ways.
        _row("torch", f"does not load: {error}", False)
        return f"torch or torchvision is installed but does not load: {error}"
    cuda = torch.cuda.is_available()
    built_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    _row("torch build", f"{built_for}, {torch.get_num_threads()} CPU threads")
    for index in range(torch.cuda.device_count() if cuda else 0):
        gpu = torch.cuda.get_device_properties(index)
        _row(
            f"GPU {index}",
            f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, compute {gpu.major}.{gpu.minor}",
        )
    if not cuda:
        _row("GPU", "none that torch can use")
    try:
        _row("triton", importlib.metadata.version("triton"))
    except importlib.metadata.PackageNotFoundError:
        _row("triton", "not installed")
    name, reason = kernels.active_backend(torch.zeros(1, device="cuda" if cuda else "cpu"))
    _row("kernels", f"{name}: {reason}")
    return _tile_row(torch.device("cuda" if cuda else "cpu"))


def _tile_row(device: Any) -> str | None:
    """Print which table of tile sizes the kernels read; gives what is broken, if anything."""
    tiles = importlib.import_module("fiber.kernels.runtime.tiles")
    try:
        _row("tile sizes", tiles.describe_tables(device))
    except ValueError as error:
        _row("tile sizes", str(error), False)
        return str(error)
    return None


def _extra_rows() -> None:
    by_extra: dict[str, list[Requirement]] = {}
    for requirement in requirements():
        if requirement.extra:
            by_extra.setdefault(requirement.extra, []).append(requirement)
    # `demo` asks for nothing of its own: it is `train` under the name that a newcomer looks for.
    by_extra.setdefault("demo", by_extra.get("train", []))
    for extra, purpose in EXTRAS.items():
        missing = [r.name for r in by_extra.get(extra, []) if not r.state()[1]]
        if not missing:
            _row(extra, f"complete ({purpose})")
        else:
            _row(extra, f"lacks {', '.join(missing)} ({purpose})", False)
            _row("", f"pip install 'fiber-vl[{extra}]'")


def _cores() -> str:
    total = os.cpu_count() or 1
    usable = usable_cores()
    return str(total) if usable == total else f"{usable} of {total} usable by this process"


def _quoted(required: list[Requirement]) -> str:
    """Give the packages that do not fit, as pip wants them."""
    unfit = [r for r in required if not r.state()[1]]
    return " ".join(f"'{r.name}>={r.minimum}'" for r in unfit) or "fiber-vl"


def _numbers(version: str) -> tuple[int, ...]:
    """Read the leading numbers of a version: "2.13.0+cpu" -> (2, 13, 0)."""
    match = re.match(r"[0-9.]*", version)
    return tuple(int(part) for part in (match.group() if match else "").split(".") if part)


def _section(title: str) -> None:
    print(f"\n{title}" if title != "this machine" else title)


def _row(name: str, text: str, fits: bool = True) -> None:
    print(f"  {'' if fits else '! '}{name:<{14 if fits else 12}} {text}")
    # Each line is seen at once, before torch takes its seconds to load.
    sys.stdout.flush()
