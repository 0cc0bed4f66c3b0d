"""`fiber doctor`: report installed packages, kernel backend, devices, and how to install the rest.

Works with nothing but fiber's own wheel: packages are looked up in the installed metadata, and
imported only if present.
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

#: Purpose of each extra, in listing order.
EXTRAS = {
    "train": "progress bars and curves while training",
    "demo": "`fiber demo` and its report",
    "eval": "empty: evaluation needs no extra package",
    "phrases": "noun phrases of captions by spaCy (needs a spaCy pipeline for English)",
    "hf": "comparison with the transformers library",
    "arrow": "Parquet and Arrow files",
    "bench": "loaders that `fiber bench` and `benches/` compare with",
    "dev": "building, testing and linting fiber itself",
}


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """One requirement of the installed metadata."""

    #: Distribution name.
    name: str
    #: Oldest tested version; empty: any.
    minimum: str
    #: Extra that requires it; empty: always required.
    extra: str

    def state(self) -> tuple[str, bool]:
        """Look up the installed version; return a text to print and whether it is recent enough."""
        try:
            version = importlib.metadata.version(self.name)
        except importlib.metadata.PackageNotFoundError:
            return "not installed", False
        if self.minimum and _numbers(version) < _numbers(self.minimum):
            return f"{version}, older than the tested {self.minimum}", False
        return version, True


def requirements() -> list[Requirement]:
    """Read fiber's requirements from its installed metadata."""
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
        # An extra of fiber that refers to other extras adds no package.
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
    """Print the report; return the exit code: 0 if all requirements are met, else 1."""
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
    _row("rust core", f"{profile} build" + (" (many times slower)" if profile == "debug" else ""))

    _section("required packages")
    for name, (text, fits) in states.items():
        _row(name, text, fits)
    if not required:
        problems.append("fiber-vl: no installed metadata; install it with pip")

    _section("devices")
    problem = _torch_rows() if "torch" in states and states["torch"][1] else None
    if problem:
        problems.append(problem)
    elif "torch" not in states or not states["torch"][1]:
        _row("torch", "not installed, so no model runs; data can still be read", False)

    _section("extras")
    _extra_rows()

    _section("result")
    if not problems:
        _row("ok", "all requirements are met")
        return 0
    for text in problems:
        _row("missing", text, False)
    _row("to install", "pip install --upgrade " + _quoted(required))
    return 1


def _torch_rows() -> str | None:
    """Print devices and the attention kernel backend; return a problem, or None."""
    try:
        torch = importlib.import_module("torch")
        kernels = importlib.import_module("fiber.kernels")
        importlib.import_module("torchvision")
    except (ImportError, OSError, RuntimeError) as error:
        # A torch that does not match its CUDA libraries or torchvision raises any of these.
        _row("torch", f"fails to import: {error}", False)
        return f"torch or torchvision is installed but fails to import: {error}"
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
        _row("GPU", "none available to torch")
    try:
        _row("triton", importlib.metadata.version("triton"))
    except importlib.metadata.PackageNotFoundError:
        _row("triton", "not installed")
    name, reason = kernels.active_backend(torch.zeros(1, device="cuda" if cuda else "cpu"))
    _row("kernels", f"{name}: {reason}")
    return _tile_row(torch.device("cuda" if cuda else "cpu"))


def _tile_row(device: Any) -> str | None:
    """Print which tile size table the kernels use; return a problem, or None."""
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
    # `demo` is an alias of `train`.
    by_extra.setdefault("demo", by_extra.get("train", []))
    for extra, purpose in EXTRAS.items():
        missing = [r.name for r in by_extra.get(extra, []) if not r.state()[1]]
        if not missing:
            _row(extra, f"complete ({purpose})")
        else:
            _row(extra, f"missing {', '.join(missing)} ({purpose})", False)
            _row("", f"pip install 'fiber-vl[{extra}]'")


def _cores() -> str:
    total = os.cpu_count() or 1
    usable = usable_cores()
    return str(total) if usable == total else f"{usable} of {total} usable by this process"


def _quoted(required: list[Requirement]) -> str:
    """Return the unmet requirements as arguments for pip."""
    unfit = [r for r in required if not r.state()[1]]
    return " ".join(f"'{r.name}>={r.minimum}'" for r in unfit) or "fiber-vl"


def _numbers(version: str) -> tuple[int, ...]:
    """Parse the leading numbers of a version: "2.13.0+cpu" -> (2, 13, 0)."""
    match = re.match(r"[0-9.]*", version)
    return tuple(int(part) for part in (match.group() if match else "").split(".") if part)


def _section(title: str) -> None:
    print(f"\n{title}" if title != "this machine" else title)


def _row(name: str, text: str, fits: bool = True) -> None:
    print(f"  {'' if fits else '! '}{name:<{14 if fits else 12}} {text}")
    # Show each line at once: importing torch takes seconds.
    sys.stdout.flush()
