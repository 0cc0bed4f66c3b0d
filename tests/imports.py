"""What a module imports, read from its source, and all that a test file depends on.

Every import counts, wherever it stands: at the top, in a function, under TYPE_CHECKING, or a call
of importlib with a written name. So does text that names a module, such as "fiber.cli.runs" or
"fiber.tasks.caption.train:CaptionTraining", by which much is imported late.
"""

from __future__ import annotations

import ast
import itertools
import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "python" / "fiber"
KERNELS = ROOT / "triton_kernels"

#: Text that names a module of ours, and maybe a name in it.
_NAMED = re.compile(r"((?:fiber|tests|benches)(?:\.\w+)+)(?::[\w.]+)?")
#: Functions that import a module by its name.
_IMPORTERS = ("import_module", "__import__")
#: Modules that start other programs: what these import is not known from the source.
_STARTERS = ("subprocess", "runpy", "tests.processes")
#: Test modules that start what others name.
_RUNNERS = ("tests/processes.py", "tests/limited_memory.py")
#: Module of the command `fiber`, and calls that add commands to it.
_CLI, _ADDERS = "python/fiber/cli/__init__.py", ("add_parser", "add_asking_command")
#: Modules and imports in text that is code, or may be.
_IN_CODE = re.compile(r"\b(?:fiber|tests|benches)(?:\.\w+)+")
_FROM_IN_CODE = re.compile(r"\bfrom\s+((?:fiber|tests|benches)[\w.]*)\s+import\s+\(?([\w\s,]+)")
#: The command `fiber` in a text.
_PROGRAM = re.compile(r"(?<![\w.])(?<!from )(?<!import )fiber(?![\w.:])")
#: What may surround a word of a text.
_AROUND = "`'\"()[]{},;:."
#: Text files in which commands may be.
_TEXTS = (".txt", ".md")
#: Steps to a file from a module that names its folder, or that starts programs of any kind.
_LISTED_STEPS = 4
#: The part of a module that runs when it is imported.
_TOP = "(top)"
#: What every test depends on: the extension, versions, and how tests are run.
_ALWAYS = ("rust/", "Cargo.", "pyproject.toml", ".ci/pytest")


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
    return _imports_in(ast.walk(ast.parse(source)), module, is_package, file)


def _imports_in(
    nodes: Iterable[ast.AST], module: str, is_package: bool, file: Path
) -> list[Import]:
    found = []
    for node in nodes:
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


class _Direct(NamedTuple):
    """What a module names: files, and folders by the files in them."""

    named: set[str]
    listed: set[str]


class _Content(NamedTuple):
    """What stands in a module, or in a part of one."""

    imports: list[str]
    #: Names in `fiber`, as load of `fiber.load`.
    attributes: set[str]
    #: Constant strings.
    texts: set[str]
    #: Identifiers, and texts that may be.
    names: set[str]
    #: Words of the texts.
    words: set[str]


class Dependencies:
    """The files of a checkout on which each of its test files depends.

    A test depends on the modules that it reaches by imports and by names in text, on the data
    beside the test modules among them, and on the folders and files that one of these names from
    the root, such as "docs". Of a conftest.py, it depends on the fixtures that these name.

    If one of these starts programs, it depends on the whole package. With `by_command`, it depends
    on what the text of the test modules names instead, if that is anything: modules, those that
    code in text imports, as of `python -c`, and the modules of the commands of `fiber` whose names
    are words of the text.

    What cannot be seen: names of modules, commands and fixtures that are put together when a test
    runs, data that code of the package finds beside itself, and entry points of other packages.
    """

    def __init__(
        self, root: Path = ROOT, *, by_command: bool = False, removed: Iterable[str] = ()
    ) -> None:
        """Read the names of all files.

        Args:
            root: folder of the checkout.
            by_command: see above.
            removed: paths of files that there were. Modules that name them depend on them.
        """
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=root, check=True, capture_output=True, text=True,
        )  # fmt: skip
        self.root = root
        #: Paths from the root, with / between folders.
        self.files = sorted(path for path in listed.stdout.splitlines() if (root / path).is_file())
        self._removed = set(removed).difference(self.files)
        known = sorted(self._removed.union(self.files))
        self._modules = {name: path for path in known if (name := _module(path))}
        self._names = {
            path: name for name, path in self._modules.items() if path not in self._removed
        }
        self._below: dict[str, set[str]] = {}
        for path in known:
            for folder in (path, *map(str, PurePosixPath(path).parents)):
                self._below.setdefault(folder, set()).add(path)
        del self._below["."]
        #: Module of each name that `fiber` itself has.
        self._public = _homes_in((root / "python/fiber/__init__.py").read_text(encoding="utf-8"))
        self._by_command = by_command
        self._trees: dict[str, list[ast.stmt]] = {}
        self._direct: dict[str, _Direct] = {}
        self._parts: dict[str, dict[str, ast.stmt]] = {}
        self._contents: dict[str, _Content] = {}
        self._words: dict[str, set[str]] = {}
        #: Text files beside tests by their names.
        self._texts: dict[str, list[str]] = {}
        for path in self.files:
            if path.startswith("tests/") and path.endswith(_TEXTS):
                self._texts.setdefault(PurePosixPath(path).name, []).append(path)
        #: Modules that add each command of `fiber`, by its name.
        self._commands = self._find_commands() if by_command else {}
        self._command_modules = set[str]().union(*self._commands.values())

    def of(self, test: str) -> set[str]:
        """Return the paths on which a test file depends, itself among them."""
        always = (path for path in self.files if path.startswith(_ALWAYS))
        return {*always, *self.distances(test)}

    def distances(self, test: str) -> dict[str, int]:
        """Return the paths that a test file reaches, each with the least number of steps to it.

        What every test depends on, such as the extension, is not among them.
        """
        folders = PurePosixPath(test).parents
        conftests = {f"{folder}/conftest.py" for folder in folders}.intersection(self.files)
        found: dict[str, int] = {}
        #: What is reached by each number of steps.
        reached = {0: {test, *conftests}}
        words, commands = set[str](), set[str]()
        while reached:
            distance = min(reached)
            level = reached.pop(distance) - found.keys()
            found |= dict.fromkeys(level, distance)
            conftests = conftests.union(filter(_is_conftest, level))
            near, far = set[str](), set[str]()
            for node in level:
                words |= self._words_of(node)[0]
                commands |= self._words_of(node)[1] & self._commands.keys()
                direct = self._direct_of(node)
                near |= direct.named
                far |= direct.listed
            for path in conftests:
                near |= {f"{path}::{name}" for name in words & self._functions(path).keys()}
            if _CLI in found:
                near = near.union(*(self._commands[name] for name in commands))
            for steps, nodes in ((distance + 1, near), (distance + _LISTED_STEPS, far)):
                if not nodes <= found.keys():
                    reached[steps] = reached.get(steps, set()) | nodes
        return {path: steps for path, steps in found.items() if "::" not in path}

    def _direct_of(self, node: str) -> _Direct:
        """Return what a path, or a part `path::part` of a module, names itself."""
        if node not in self._direct:
            self._direct[node] = found = _Direct(set(), set())
            if node.partition("::")[0] in self._names:
                found.named.update(self._read(node, found.listed))
        return self._direct[node]

    def _words_of(self, node: str) -> tuple[set[str], set[str]]:
        """Return names that may be fixtures, and words that may be commands, of a test module.

        Words of a text file that is not beside tests count, too: commands of a page of the docs.
        """
        path = node.partition("::")[0]
        if path.startswith("tests/") and path in self._names:
            content = self._content(node)
            return content.names, content.words
        if not path.endswith(_TEXTS) or path.startswith("tests/") or path in self._removed:
            return set(), set()
        return set(), self._words_in(path)

    def _words_in(self, path: str) -> set[str]:
        if path not in self._words:
            self._words[path] = _words((self.root / path).read_text(encoding="utf-8"))
        return self._words[path]

    def _content(self, node: str) -> _Content:
        if node not in self._contents:
            path = node.partition("::")[0]
            nodes = list(ast.walk(ast.Module(body=self._tree(node), type_ignores=[])))
            is_package = path.endswith("/__init__.py")
            imports = _imports_in(nodes, self._names[path], is_package, self.root / path)
            found = _Content([each.module for each in imports], set(), set(), set(), set())
            for each in nodes:
                if isinstance(each, ast.Constant):
                    if isinstance(each.value, str):
                        found.texts.add(each.value)
                    continue
                if isinstance(each, ast.Attribute) and getattr(each.value, "id", "") == "fiber":
                    found.attributes.add(each.attr)
                for name in ("id", "arg", "attr", "name"):
                    if isinstance(part := getattr(each, name, None), str):
                        found.names.add(part)
            if path.startswith("tests/"):
                found.names.update(found.texts)
                for text in found.texts:
                    found.words.update(_words(text))
                    found.words.update(*map(self._words_in, self._texts.get(text, ())))
            self._contents[node] = found
        return self._contents[node]

    def _module(self, path: str) -> list[ast.stmt]:
        if path not in self._trees:
            self._trees[path] = ast.parse((self.root / path).read_text(encoding="utf-8")).body
        return self._trees[path]

    def _tree(self, node: str) -> list[ast.stmt]:
        """Return the statements of a module, its imports, or a part of a conftest.py."""
        path, _, part = node.partition("::")
        module = self._module(path)
        if part == _TOP:
            return [each for each in module if isinstance(each, ast.Import | ast.ImportFrom)]
        if not _is_conftest(path):
            return module
        functions = self._functions(path)
        return [functions[part]] if part else [e for e in module if e not in functions.values()]

    def _functions(self, path: str) -> dict[str, ast.stmt]:
        """Return the functions of a conftest.py that run only if they are named."""
        if path not in self._parts:
            functions = (each for each in self._module(path) if isinstance(each, ast.FunctionDef))
            self._parts[path] = {each.name: each for each in functions if not _runs_always(each)}
        return self._parts[path]

    def _find_commands(self) -> dict[str, set[str]]:
        """Find the modules that add commands, by the commands' names."""
        found: dict[str, set[str]] = {}
        for path in self._names:
            in_cli = path.startswith("python/fiber/cli/") and path != _CLI
            if not in_cli and not path.endswith("/command.py"):
                continue
            for each in ast.walk(ast.Module(body=self._module(path), type_ignores=[])):
                if isinstance(each, ast.Call) and _last_name(each.func) in _ADDERS:
                    texts = (a.value for a in each.args[:2] if isinstance(a, ast.Constant))
                    for name in itertools.islice((t for t in texts if isinstance(t, str)), 1):
                        found.setdefault(name, set()).add(path)
        return found

    def _read(self, node: str, listed: set[str]) -> Iterator[str]:
        """Yield what a module, or a part of one, names by imports or in text.

        Files of folders that it names are added to `listed`.
        """
        path = node.partition("::")[0]
        if path == "python/fiber/__init__.py":
            return
        is_test, content = path.startswith("tests/"), self._content(node)
        starts_programs, names_them = False, path in _RUNNERS
        for module in content.imports:
            starts_programs |= is_test and module.startswith(_STARTERS)
            yield from self._home(module, path)
        for name in content.attributes:
            yield from self._home(f"fiber.{name}", path)
        for text in content.texts:
            named = [match[1]] if (match := _NAMED.fullmatch(text)) else []
            if is_test:
                listed |= self._below.get(text.rstrip("/"), set())
            if is_test and self._by_command:
                named += _modules_in(text)
            for module in named:
                names_them = True
                yield from self._home(module, path)
        if starts_programs and self._by_command and any(map(_PROGRAM.search, content.texts)):
            names_them = True
            yield _CLI
        if starts_programs and not (self._by_command and names_them):
            listed |= self._below["python"]
        folder = str(PurePosixPath(path).parent)
        if is_test and folder != "tests":
            yield from (other for other in self._below[folder] if not other.endswith(".py"))

    def _home(self, module: str, user: str) -> Iterator[str]:
        """Yield the file of a module, or of the one that has a name."""
        module = self._public.get(module, module)
        while module and module not in self._modules:
            module = module.rpartition(".")[0]
        if module:
            path = self._modules[module]
            # The table of commands imports their modules, and runs the command that is named.
            in_table = user == _CLI or user.endswith("/fields.py")
            has_command = path in self._command_modules
            yield f"{path}::{_TOP}" if in_table and has_command else path


def _is_conftest(path: str) -> bool:
    return path.startswith("tests/") and path.endswith("/conftest.py")


def _runs_always(function: ast.FunctionDef) -> bool:
    """Tell whether a function of a conftest.py is a hook, or a fixture that every test has."""
    calls = (each for each in function.decorator_list if isinstance(each, ast.Call))
    is_for_all = any(keyword.arg == "autouse" for call in calls for keyword in call.keywords)
    return is_for_all or function.name.startswith("pytest_")


def _words(text: str) -> set[str]:
    return {word.strip(_AROUND) for word in text.split()}


def _modules_in(text: str) -> list[str]:
    """List the modules, or names in modules, that code in a text may import."""
    found = _IN_CODE.findall(text)
    for module, names in _FROM_IN_CODE.findall(text):
        found += [f"{module}.{name.split()[0]}" for name in names.split(",") if name.split()]
    return found


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
