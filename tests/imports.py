"""What a module imports, read from its source, and all that a test file depends on.

Every import counts, wherever it stands: at the top, in a function, under TYPE_CHECKING, or a call
of importlib with a written name. So does text that names a module, such as "fiber.cli.runs" or
"fiber.tasks.caption.train:CaptionTraining", by which much is imported late.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "python" / "fiber"
KERNELS = ROOT / "triton_kernels"

#: Text that names a module of ours, and maybe a name in it.
_NAMED = re.compile(r"((?:fiber|tests|benches)(?:\.\w+)+)(?::[\w.]+)?")
#: Functions that import a module by its name.
_IMPORTERS = ("import_module", "__import__")
#: Modules that start other programs: what these import is not known from the source.
_STARTERS = ("subprocess", "runpy", "tests.processes")
#: What every test depends on: the extension, versions, and how tests are run.
_ALWAYS = ("rust/", "Cargo.", "pyproject.toml", "Makefile", ".ci/pytest")


@dataclass(frozen=True)
class Import:
    """One import: where it stands and the dotted module that it names."""

    file: Path
    line: int
    module: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def module_name(path: Path, package: Path = PACKAGE) -> str:
    """`python/fiber/ops/boxes.py` -> `fiber.ops.boxes`."""
    parts = list(path.relative_to(package).with_suffix("").parts)
    return ".".join(["fiber", *(parts[:-1] if parts[-1] == "__init__" else parts)])


def _last_name(node: ast.expr) -> str:
    return getattr(node, "attr", "") or getattr(node, "id", "")


def imports_of(source: str, module: str, is_package: bool, file: Path) -> list[Import]:
    """List what a source file imports, relative names resolved."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                keep = len(parts) - node.level + (1 if is_package else 0)
                base = ".".join([*parts[:keep], *([node.module] if node.module else [])])
            # `from fiber import data` names the module fiber.data, `from fiber.data import Record`
            # may name a module or something in one: the longer name settles the part either way.
            names = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and _last_name(node.func) in _IMPORTERS and node.args:
            target = node.args[0]
            if isinstance(target, ast.JoinedStr) and target.values:
                target = target.values[0]
            if isinstance(target, ast.Constant) and isinstance(target.value, str):
                names = [target.value.rstrip(".")]
        found += [Import(file, getattr(node, "lineno", 0), name) for name in names]
    return found


class Dependencies:
    """The files of a checkout on which each of its test files depends.

    A test depends on the modules that it reaches by imports and by names in text, on the data
    beside the test modules among them, and on the folders and files that one of these names from
    the root, such as "docs". If one of these starts programs, it depends on the whole package.
    """

    def __init__(self, root: Path = ROOT) -> None:
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=root, check=True, capture_output=True, text=True,
        )  # fmt: skip
        self.root = root
        #: Paths from the root, with / between folders.
        self.files = sorted(path for path in listed.stdout.splitlines() if (root / path).is_file())
        self._modules = {name: path for path in self.files if (name := _module(path))}
        self._names = {path: name for name, path in self._modules.items()}
        self._direct: dict[str, set[str]] = {}
        self._below: dict[str, set[str]] = {}
        for path in self.files:
            for folder in (path, *map(str, PurePosixPath(path).parents)):
                self._below.setdefault(folder, set()).add(path)
        del self._below["."]
        #: Module of each name that `fiber` itself has.
        self._public = _homes_in((root / "python/fiber/__init__.py").read_text(encoding="utf-8"))

    def of(self, test: str) -> set[str]:
        """Return the paths on which a test file depends, itself among them."""
        folders = {str(folder) for folder in PurePosixPath(test).parents}
        conftests = {f"{folder}/conftest.py" for folder in folders}.intersection(self.files)
        needed, todo = {path for path in self.files if path.startswith(_ALWAYS)}, {test, *conftests}
        while todo:
            path = todo.pop()
            needed.add(path)
            todo |= self._direct_of(path) - needed
        return needed

    def _direct_of(self, path: str) -> set[str]:
        if path not in self._direct:
            is_read = path in self._names
            self._direct[path] = set(self._read(path)) - {path} if is_read else set()
        return self._direct[path]

    def _read(self, path: str) -> Iterator[str]:
        """Yield the paths that a module names, by imports or in text."""
        source, file, name = (self.root / path).read_text(), self.root / path, self._names[path]
        is_test = path.startswith("tests/")
        if path == "python/fiber/__init__.py":
            return
        for one in imports_of(source, name, path.endswith("/__init__.py"), file):
            if is_test and one.module.startswith(_STARTERS):
                yield from self._below["python"]
            yield from self._home(one.module)
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "fiber":
                yield from self._home(f"fiber.{node.attr}")
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                if match := _NAMED.fullmatch(node.value):
                    yield from self._home(match[1])
                if is_test:
                    yield from self._below.get(node.value.rstrip("/"), ())
        folder = str(PurePosixPath(path).parent)
        if is_test and folder != "tests":
            yield from (each for each in self._below[folder] if not each.endswith(".py"))

    def _home(self, module: str) -> Iterator[str]:
        """Yield the file of a module, or of the one that has a name."""
        module = self._public.get(module, module)
        while module and module not in self._modules:
            module = module.rpartition(".")[0]
        if module:
            yield self._modules[module]


def _homes_in(source: str) -> dict[str, str]:
    """Read the modules of public names from `fiber/__init__.py`: "fiber.load" -> its module."""
    homes = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(value, ast.Constant):
                    homes[f"fiber.{key.value}"] = str(value.value)
    return homes


def _module(path: str) -> str:
    """Return the name of a Python file as a module, or "" for other files."""
    parts = PurePosixPath(path).with_suffix("").parts
    if not path.endswith(".py"):
        return ""
    if parts[0] == "triton_kernels":
        parts = ("fiber", "kernels", *parts[1:])
    elif parts[0] == "python":
        parts = parts[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
