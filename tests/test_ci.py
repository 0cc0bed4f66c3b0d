"""How CI runs the tests: what fails again, and only what has changed and fits in the time."""

import ast
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.imports import Dependencies

ROOT = Path(__file__).parents[1]


@pytest.fixture
def groups(monkeypatch, tmp_path):
    """The module `.ci/groups`, with a folder of records of its own."""
    loader = SourceFileLoader("ci_groups", str(ROOT / ".ci" / "groups"))
    spec = importlib.util.spec_from_loader("ci_groups", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "ci_groups", module)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(sys, "path", list(sys.path))
    loader.exec_module(module)
    monkeypatch.setattr(module, "CACHE", tmp_path / "records")
    return module


class TestPytest:
    """`.ci/pytest`, on files of tests of its own."""

    def run(self, folder: Path, source: str) -> subprocess.CompletedProcess:
        shutil.copy(ROOT / "tests" / "conftest.py", folder)
        (folder / "test_some.py").write_text(source)
        own = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST_")}
        return subprocess.run(
            [ROOT / ".ci" / "pytest", sys.executable, "--rootdir", folder, folder],
            cwd=folder, env=own, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def test_what_fails_once_is_unstable(self, tmp_path):
        done = self.run(
            tmp_path,
            "from pathlib import Path\n"
            "def test_good(): pass\n"
            "def test_second():\n"
            "    mark = Path(__file__).with_name('ran')\n"
            "    found, _ = mark.exists(), mark.touch()\n"
            "    assert found\n",
        )
        assert done.returncode == 0, done.stdout
        assert [line for line in done.stdout.splitlines() if line.startswith("unstable: ")] == [
            "unstable: test_some.py::test_second"
        ]
        assert " 1 passed" in done.stdout.splitlines()[-1]

    def test_what_fails_again_fails(self, tmp_path):
        done = self.run(tmp_path, "def test_bad(): assert 0\ndef test_good(): pass\n")
        assert done.returncode == 1
        assert "unstable: " not in done.stdout
        assert "running again" in done.stdout

    def test_an_unexpected_warning_fails_at_once(self, tmp_path):
        source = "import warnings\ndef test_one():\n    warnings.warn('odd')\n    assert 0\n"
        done = self.run(tmp_path, source)
        assert done.returncode == 7, done.stdout
        assert "running again" not in done.stdout


@pytest.fixture
def checkout(groups, monkeypatch, tmp_path):
    """A checkout with a module, which a slow test imports, and another module."""
    sources = {
        "python/fiber/__init__.py": "",
        "python/fiber/used.py": "import filelock\n",
        "python/fiber/other.py": "",
        "tests/__init__.py": "",
        "tests/test_used.py": "import pytest\nfrom fiber import used\n",
    }
    root = tmp_path / "checkout"
    for name, source in sources.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(source)
    subprocess.run(["git", "init", "--quiet", root], check=True)
    monkeypatch.setattr(groups, "ROOT", root)
    return root


def shell(groups, name: str, seconds: float, script: str):
    return groups.Group(name, ("sh", "-c", script), seconds, paths=("pyproject.toml",))


def test_groups_that_fit(groups, checkout, monkeypatch, capsys):
    closing = "echo '=== 3 passed, 2 skipped in 1.50s ==='"
    given = [
        shell(groups, "short", 1, closing),
        shell(groups, "long", 10_000, "exit 9"),
        shell(
            groups, "other", 1, "echo 'unstable: tests/a.py::b'; echo '=== 1 passed in 1.00s ==='"
        ),
    ]
    monkeypatch.setattr(groups, "groups", lambda dependencies: given)
    monkeypatch.setattr(groups, "FIRST", shell(groups, "test", 1000, closing))
    assert groups.main(["--minutes", "40"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == [
        "unstable: tests/a.py::b",
        "not run, out of time: long",
        "7 passed, 0 failed, 4 skipped",
    ]
    # What passed does not run again; what did not run comes first.
    assert groups.main(["--list"]) == 0
    assert capsys.readouterr().out == "long: 10000 s\n"
    monkeypatch.setattr(groups, "FIRST", shell(groups, "test", 1000, "exit 3"))
    assert groups.main(["--minutes", "40", "--since", "2000"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "test: failed, exit code 3 in 0 s" in lines
    assert "passed before on the same files: short, other" in lines
    assert lines[-1] == "0 passed, 1 failed, 0 skipped"


def test_failed_groups(groups, checkout, monkeypatch, capsys):
    failed = "echo 'FAILED tests/a.py::b - odd'; echo '= 1 failed, 2 passed in 1.00s ='; exit 2"
    once = "echo '= 1 failed, 2 passed in 1.00s ='; echo '= 1 passed in 1.00s ='"
    given = [shell(groups, "bad", 1, failed), shell(groups, "once", 1, once)]
    monkeypatch.setattr(groups, "groups", lambda dependencies: given)
    monkeypatch.setattr(groups, "FIRST", shell(groups, "test", 1000, "true"))
    assert groups.main(["--minutes", "40"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "5 passed, 1 failed, 0 skipped"
    assert "bad: failed, exit code 2 in 0 s" in lines
    assert lines.count("FAILED tests/a.py::b - odd") == 2
    assert groups.main(["--list"]) == 0
    assert capsys.readouterr().out == "bad: 1 s\n"


def test_groups_of_the_project(groups):
    found = {group.name: group for group in groups.groups(Dependencies(ROOT))}
    assert {"oldest", "package", "runtime", "interpreter", "kernels-aot", "docs"} < found.keys()
    slow = [
        path for name, group in found.items() if name.startswith("slow ") for path in group.tests
    ]
    marked = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "pytest.mark.slow"
    }
    # Those of the kernels run in the interpreter and the compiler.
    assert set(slow) == {path for path in marked if not path.startswith("tests/kernels/")}
    assert len(slow) == len(set(slow))


def test_what_a_group_depends_on(groups, checkout, monkeypatch):
    """A file that its tests import, and the versions of packages that these import."""
    group = groups.Group("some", ("true",), 1, ("tests/test_used.py",))
    installed = dict.fromkeys(("filelock", "pytest", "numpy"), "1")
    monkeypatch.setattr(
        groups, "versions", lambda names: sorted(f"{n}=={installed[n]}" for n in names)
    )

    def digest():
        return groups.Inputs(Dependencies(checkout)).digest(group)

    before = digest()
    (checkout / "python/fiber/other.py").write_text("x = 1\n")
    installed["numpy"] = "2"
    assert digest() == before
    installed["filelock"] = "2"
    changed = digest()
    assert changed != before
    (checkout / "python/fiber/used.py").write_text("import filelock\nx = 1\n")
    assert digest() != changed


def test_versions_of_what_a_package_requires(groups):
    found = [
        line.partition("==")[0] for line in groups.versions(["pytest-xdist", "no-such-package"])
    ]
    assert {"pytest-xdist", "pytest", "execnet", "pluggy"} <= set(found)
    assert "numpy" not in found


def test_records_survive_damage(groups):
    group = groups.Group("a/b", ("true",), 1)
    groups.remember(group, "digest", 1.25)
    assert groups.record_of(group)["digest"] == "digest"
    (path,) = groups.CACHE.iterdir()
    assert json.loads(path.read_text())["seconds"] == 1.2
    path.write_text("{")
    assert groups.record_of(group) == {}


class TestLock:
    """constraints.txt and constraints-oldest.txt."""

    def test_it_names_a_version_of_everything_and_no_host(self):
        for name in ("constraints.txt", "constraints-oldest.txt"):
            for line in (ROOT / name).read_text().splitlines():
                assert re.fullmatch(r"[a-z0-9-]+==[\w.!+]+( ; .+)?", line), line

    @pytest.mark.skipif(
        Path(sys.prefix) != ROOT / ".venv", reason="not the environment of the Makefile"
    )
    def test_the_environment_has_its_versions(self):
        lines = (ROOT / "constraints.txt").read_text().splitlines()
        locked = {}
        for requirement in map(Requirement, lines):
            if requirement.marker is None or requirement.marker.evaluate():
                locked[requirement.name] = str(requirement.specifier).removeprefix("==")
        found = {
            canonicalize_name(each.metadata["Name"]): each.version
            for each in importlib.metadata.distributions()
        }
        for name in ("fiber-vl", "pip"):
            found.pop(name, None)
        assert found.items() <= locked.items()

    @pytest.mark.package
    def test_pip_installs_from_it_too(self, tmp_path):
        """As in the README; what pip resolves is what is locked."""
        subprocess.run([sys.executable, "-m", "venv", tmp_path], check=True)
        report = tmp_path / "report.json"
        done = subprocess.run(
            [
                *(tmp_path / "bin" / "python", "-m", "pip", "install", "--quiet", "--dry-run"),
                *("--report", report, "--constraint", ROOT / "constraints.txt", f"{ROOT}[demo]"),
            ],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        packages = [each["metadata"] for each in json.loads(report.read_text())["install"]]
        lines = (ROOT / "constraints.txt").read_text()
        for each in packages:
            if each["name"] != "fiber-vl":
                assert f"{canonicalize_name(each['name'])}=={each['version']}" in lines
        assert {"fiber-vl", "torch", "jinja2"} <= {each["name"].lower() for each in packages}
