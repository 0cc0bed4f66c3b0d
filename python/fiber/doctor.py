"""`fiber doctor`: report packages, kernel backend and devices, and how to install what is missing.

This command requires only fiber's own wheel. Other packages are looked up in the installed
metadata, and imported only if present.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import fiber
from fiber import _core, tasks
from fiber.distributions import DISTRIBUTIONS, TWO_DISTRIBUTIONS
from fiber.env import usable_cores
from fiber.messages import printable
from fiber.models import registry
from fiber.tasks.lazy import package_of

#: Purpose of each extra, in listing order.
EXTRAS = {
    "train": "progress bars and training curves",
    "demo": "`fiber demo` and its report",
    "eval": "empty: evaluation needs no extra packages",
    "phrases": "noun phrases in captions with spaCy (requires an English spaCy pipeline)",
    "hf": "`fiber.hf`: Auto classes, Trainer and pipelines of transformers",
    "hub": "models on the Hugging Face Hub",
    "arrow": "Parquet and Arrow files",
    "video": "frames of videos, as of `fiber ground clip.mp4 --every 10` (requires FFmpeg)",
    "serve": "`fiber serve`",
    "web": "`fiber web`",
    "lora": "`fiber train --lora`, and adapters in `fiber.load`",
    "onnx": "`fiber export --to onnx`, and running its graphs",
    "openvino": "`fiber export --to openvino`, and running its graphs",
    "remote": "packed data at URLs: http, s3, gs, hf",
    "tensorboard": "`fiber train --track tensorboard`",
    "trackio": "`fiber train --track trackio`",
    "wandb": "`fiber train --track wandb`",
    "mlflow": "`fiber train --track mlflow`",
    "bench": "loaders that `fiber bench` and `benches/` compare against",
    "docs": "the site of `make docs`",
    "test": "what fiber's tests need, at the oldest versions too",
    "dev": "every extra; building, testing and linting fiber itself",
}


class Requirement(NamedTuple):
    """A requirement from the installed metadata."""

    #: Distribution name.
    name: str
    #: Oldest tested version, or "" for any.
    minimum: str
    #: Extra that requires it, or "" if it is always required.
    extra: str

    def state(self) -> tuple[str, bool]:
        """Return a description of the installed version, and True if this version is supported."""
        try:
            version = importlib.metadata.version(self.name)
        except importlib.metadata.PackageNotFoundError:
            return "not installed", False
        if self.minimum and _numbers(version) < _numbers(self.minimum):
            return f"{version}, older than the tested {self.minimum}", False
        return version, True


def distributions() -> list[str]:
    """Return the installed distributions of this package: fiber-vl, fiber-vl-runtime, or both."""
    return [name for name in DISTRIBUTIONS if any(importlib.metadata.distributions(name=name))]


def requirements() -> list[Requirement]:
    """Read fiber's requirements from its installed metadata."""
    try:
        lines = importlib.metadata.requires((distributions() or ["fiber-vl"])[0]) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = []
    for line in lines:
        requirement, _, marker = line.partition(";")
        name = re.match(r"[A-Za-z0-9._-]+", requirement.strip())
        minimum = re.search(r">=\s*([0-9.]+)", requirement)
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", marker)
        # An extra that refers to other extras of fiber adds no packages.
        if name and name[0] != "fiber-vl":
            fields = (match[1] if match else "" for match in (minimum, extra))
            found.append(Requirement(name[0], *fields))
    return found


def main() -> int:
    """Print the report; return exit code 0 if all requirements are met, else 1."""
    required = [r for r in requirements() if not r.extra]
    states = {r.name: r.state() for r in required}
    problems = [f"{name}: {text}" for name, (text, fits) in states.items() if not fits]
    is_doubled = len(distributions()) > 1
    if is_doubled:
        problems.append(TWO_DISTRIBUTIONS)

    print("this machine")
    _row("system", f"{platform.system()} {platform.machine()}, Python {platform.python_version()}")
    total, usable = os.cpu_count() or 1, usable_cores()
    all_usable = usable == total
    _row("cores", str(total) if all_usable else f"{usable} of {total} usable by this process")
    free_gib = shutil.disk_usage(Path.cwd()).free / 2**30
    _row("free disk", f"{free_gib:.1f} GiB in {Path.cwd()}")

    print("\nfiber")
    _row("version", f"{fiber.__version__} in {Path(fiber.__file__).parent}")
    profile = _core.build_profile
    _row("rust core", f"{profile} build" + (" (many times slower)" if profile == "debug" else ""))

    print("\nrequired packages")
    for name, (text, fits) in states.items():
        _row(name, text, fits)
    if not required:
        problems.append("fiber-vl: no package metadata found; install it with pip")

    print("\ndevices")
    if states.get("torch", ("", False))[1]:
        problems += filter(None, [_torch_rows()])
    elif "torch" not in states and required:
        _row("cpu", "exported graphs run on onnxruntime (fiber-vl-runtime needs no torch)")
    else:
        _row("torch", "not installed; data can be read, but models cannot run", False)

    print("\nmodel families")
    problems += _family_rows()

    print("\ntasks")
    problems += _task_rows()

    if distributions() != ["fiber-vl-runtime"]:
        print("\nextras")
        _extra_rows()

    print("\nresult")
    if not problems:
        _row("ok", "all requirements are met")
        return 0
    for text in problems:
        _row("missing", text, False)
    if is_doubled:
        _row("to repair", f"{TWO_DISTRIBUTIONS.partition(': ')[2]}")
        return 1
    unmet = [f"'{r.name}>={r.minimum}'" for r in required if not states[r.name][1]]
    _row("to install", "pip install --upgrade " + (" ".join(unmet) or "fiber-vl"))
    return 1


def _torch_rows() -> str | None:
    """Print devices and the attention kernel backend; return a problem description, or None."""
    try:
        torch = importlib.import_module("torch")
        kernels = importlib.import_module("fiber.kernels")
        importlib.import_module("torchvision")
    except (ImportError, OSError, RuntimeError) as error:
        # A torch build that does not match CUDA or torchvision may raise any of these.
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
    dispatch = importlib.import_module("fiber.kernels.runtime.dispatch")
    untested = dispatch.untested_triton()
    _row("triton", f"{untested}; GPUs use PyTorch" if untested else dispatch.triton_version())
    device = torch.device("cuda" if cuda else "cpu")
    name, reason = kernels.active_backend(torch.zeros(1, device=device))
    _row("kernels", f"{name}: {reason}")
    tiles = importlib.import_module("fiber.kernels.runtime.tiles")
    try:
        _row("tile sizes", tiles.describe_tables(device))
    except ValueError as error:
        _row("tile sizes", str(error), False)
        return str(error)
    return None


def _family_rows() -> list[str]:
    """Print the model families, and describe those of other packages that cannot be used."""
    _row("built in", ", ".join(registry.FAMILIES))
    if "torch" not in sys.modules:
        for entry in registry.entry_points():
            package, target = package_of(entry), printable(entry.value, 200)
            _row(printable(entry.name, 60), f"{package} ({target}), not imported without torch")
        return []
    with warnings.catch_warnings():
        # The rows name what the warnings do.
        warnings.simplefilter("ignore", RuntimeWarning)
        found = registry.installed_families()
    for each in found:
        text = f"{each.package} ({each.target}){f': {each.error}' if each.error else ''}"
        _row(printable(each.name, 60), text, not each.error)
    return [f"model family {each}: {each.error}" for each in found if each.error]


def _task_rows() -> list[str]:
    """Print the tasks, and describe those of other packages that cannot be used."""
    _row("built in", ", ".join(tasks.TASKS))
    found = tasks.installed_tasks()
    for each in found:
        text = f"{each.package} ({each.target}){f': {each.error}' if each.error else ''}"
        _row(printable(each.name, 60), text, not each.error)
    return [f"task {each}: {each.error}" for each in found if each.error]


def _extra_rows() -> None:
    for extra, purpose in EXTRAS.items():
        # The extra `demo` is an alias for `train`.
        own = {extra, "train"} if extra == "demo" else {extra}
        missing = [r.name for r in requirements() if r.extra in own and not r.state()[1]]
        if not missing:
            _row(extra, f"complete ({purpose})")
        else:
            _row(extra, f"missing {', '.join(missing)} ({purpose})", False)
            _row("", f"pip install 'fiber-vl[{extra}]'")


def _numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version, such as (2, 13, 0) for "2.13.0+cpu"."""
    return tuple(map(int, re.findall(r"\d+", re.sub(r"[^0-9.].*", "", version))))


def _row(name: str, text: str, fits: bool = True) -> None:
    print(f"  {'' if fits else '! '}{name:<{14 if fits else 12}} {text}")
    # Flush each line: importing torch takes seconds.
    sys.stdout.flush()
