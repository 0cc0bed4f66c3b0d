"""Which tests `make affected` runs for a change."""

import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

from tests.imports import Dependencies

SCRIPT = Path(__file__).parents[1] / ".ci/affected"
FILES = {
    "pyproject.toml": "",
    "README.md": "",
    "rust/lib.rs": "",
    "docs/page.md": "`fiber train`",
    "python/fiber/__init__.py": "_HOMES = {'load': 'fiber.loading'}",
    "python/fiber/loading.py": "from fiber import boxes",
    "python/fiber/boxes.py": "",
    "python/fiber/masks.py": "",
    "python/fiber/training.py": "",
    "python/fiber/losses/itc.py": "",
    "python/fiber/cli/__init__.py": "from fiber.cli import runs, serve\nimport fiber.table",
    "python/fiber/cli/runs.py": """
def add(commands):
    commands.add_parser("train")

def train():
    import fiber.training
""",
    "python/fiber/cli/serve.py": """
from fiber import masks

def add(commands):
    commands.add_parser("serve", help="")

def serve():
    from fiber.losses import itc
""",
    "python/fiber/table.py": "",
    "tests/conftest.py": "",
    "tests/losses/conftest.py": """
import pytest

@pytest.fixture
def model():
    made()

def made():
    import fiber.boxes

@pytest.fixture(autouse=True)
def seeded():
    import fiber.masks
""",
    "tests/losses/test_itc.py": "from fiber.losses import itc",
    "tests/losses/test_model.py": "def test(model):\n    pass",
    "tests/test_boxes.py": "import fiber\nfiber.load",
    "tests/test_code.py": """
import subprocess
CODE = "from fiber import (boxes)\\nimport fiber.table"
""",
    "tests/test_docs.py": """
import subprocess
PAGE, COMMAND = ROOT / "docs/page.md", ["fiber", *words]
""",
    "tests/test_serve.py": "import subprocess\nCOMMAND = ['-m', 'fiber.cli', 'serve']",
    "tests/test_train.py": "from tests.running import run\nrun('train --steps 3')",
    "tests/test_any.py": "import subprocess\nCOMMAND = [script]",
    "tests/running.py": "import subprocess\n\ndef run(line):\n    ['fiber', *line.split()]",
}


@pytest.fixture(scope="module")
def affected():
    loader = SourceFileLoader("affected", str(SCRIPT))
    spec = spec_from_loader("affected", loader)
    assert spec is not None
    module = module_from_spec(spec)
    sys.modules["affected"] = module
    # No compiled file beside the script.
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    loader.exec_module(module)
    sys.dont_write_bytecode = written
    return module


def git(root, *arguments):
    own = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    command = ["git", *own, *arguments]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def root(tmp_path):
    for path, source in FILES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(source)
    git(tmp_path, "init", "--quiet", "--initial-branch", "main")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "all")
    return tmp_path


def reached(affected, root, since="HEAD"):
    return affected.find_reached(root, affected.changes(root, affected.resolve(root, since)))


def names(found):
    return {Path(path).stem.removeprefix("test_") for path in found.tests}


@pytest.mark.parametrize(
    ("path", "tests"),
    [
        ("python/fiber/boxes.py", {"boxes", "model", "code", "any"}),
        ("python/fiber/losses/itc.py", {"itc", "serve", "any"}),
        ("python/fiber/training.py", {"train", "docs", "any"}),
        # Imported when any command starts.
        ("python/fiber/masks.py", {"itc", "model", "serve", "train", "docs", "any"}),
        ("python/fiber/table.py", {"code", "serve", "train", "docs", "any"}),
        ("docs/page.md", {"docs"}),
        ("tests/running.py", {"train"}),
        ("tests/test_code.py", {"code"}),
    ],
)
def test_a_change_reaches_the_tests_that_name_it(affected, root, path, tests):
    (root / path).write_text(FILES[path] + "\n#")
    found = reached(affected, root)
    assert names(found) == tests and found.total == 8
    assert not found.everything and not found.unseen


@pytest.mark.parametrize("path", ["rust/lib.rs", "Cargo.lock", "tests/conftest.py"])
def test_some_files_reach_every_test(affected, root, path):
    (root / path).write_text("changed")
    found = reached(affected, root)
    assert len(found.tests) == found.total == 8 and found.everything == [path]


def test_files_that_no_test_names_are_listed(affected, root):
    (root / "README.md").write_text("changed")
    assert reached(affected, root) == affected.Reached(8, [], [], ["README.md"])


def test_without_changes_nothing_is_reached(affected, root):
    assert reached(affected, root) == affected.Reached(8, [], [], [])


def test_new_files_count(affected, root):
    (root / "tests/test_new.py").write_text("import fiber.new")
    (root / "python/fiber/new.py").write_text("")
    found = reached(affected, root)
    assert names(found) == {"new", "any"} and not found.unseen
    (root / ".gitignore").write_text("new.py\ntest_new.py\n")
    assert affected.changes(root, "HEAD") == [".gitignore"]


def test_a_module_that_is_removed_counts(affected, root):
    (root / "python/fiber/losses/itc.py").unlink()
    assert names(reached(affected, root)) == {"itc", "serve", "any"}


def test_a_renamed_module_counts_by_both_names(affected, root):
    git(root, "mv", "python/fiber/boxes.py", "python/fiber/squares.py")
    (root / "tests/test_squares.py").write_text("import fiber.squares")
    old, new = "python/fiber/boxes.py", "python/fiber/squares.py"
    assert affected.changes(root, "HEAD") == [old, new, "tests/test_squares.py"]
    assert names(reached(affected, root)) == {"boxes", "model", "code", "any", "squares"}


def test_a_removed_test_is_not_run(affected, root):
    git(root, "rm", "--quiet", "tests/test_boxes.py")
    found = reached(affected, root)
    assert not found.tests and found.unseen == ["tests/test_boxes.py"]


def test_the_nearest_tests_come_first(affected, root):
    (root / "tests/losses/test_sum.py").write_text("import fiber.total")
    (root / "tests/test_a.py").write_text("import fiber.total")
    (root / "python/fiber/total.py").write_text("from fiber.losses import itc")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message", "more")
    (root / "python/fiber/losses/itc.py").write_text("changed = 1")
    order = [Path(path).name for path in reached(affected, root).tests]
    assert order == ["test_itc.py", "test_sum.py", "test_a.py", "test_serve.py", "test_any.py"]


def test_the_default_is_where_the_branch_left_main(affected, root, tmp_path_factory):
    assert affected.resolve(root, None) == git(root, "rev-parse", "HEAD").strip()
    clone = tmp_path_factory.mktemp("clone") / "own"
    git(root, "clone", "--quiet", ".", str(clone))
    (clone / "python/fiber/boxes.py").write_text("changed = 1")
    git(clone, "commit", "--quiet", "--all", "--message", "boxes")
    (clone / "python/fiber/masks.py").write_text("changed = 1")
    since = affected.resolve(clone, None)
    assert since == git(root, "rev-parse", "HEAD").strip()
    assert affected.changes(clone, since) == ["python/fiber/boxes.py", "python/fiber/masks.py"]
    assert affected.changes(clone, "HEAD") == ["python/fiber/masks.py"]


@pytest.mark.parametrize("since", ["nowhere", "", "--all", "HEAD:README.md"])
def test_an_unknown_commit_is_named(affected, root, monkeypatch, capsys, since):
    monkeypatch.setattr(affected, "ROOT", root)
    assert affected.main([f"--since={since}"]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and repr(since) in printed.err and not printed.out


def test_nothing_reached_is_success(affected, root, monkeypatch, capsys):
    monkeypatch.setattr(affected, "ROOT", root)
    monkeypatch.setattr(affected.subprocess, "call", None)
    assert affected.main([]) == 0
    assert ": 0 files" in capsys.readouterr().out
    (root / "README.md").write_text("changed")
    assert affected.main([]) == 0
    printed = capsys.readouterr().out
    assert "no test depends on\n  README.md" in printed and "reached: 0 of 8" in printed


RUN = {
    "tests/test_boxes.py": "import fiber\n\ndef test_one():\n    pass\n\ndef test_two():\n    pass",
    "tests/losses/test_model.py": "def test():\n    assert not 'run'",
    "tests/losses/conftest.py": "",
    "tests/deadline.py": (SCRIPT.parents[1] / "tests/deadline.py").read_text(),
}


@pytest.mark.parametrize(
    ("until", "code", "left"),
    [
        (None, 1, ""),
        (2.0**40, 1, ""),
        (1.0, 0, "  tests: test_boxes.py\n  tests/losses: test_model.py"),
    ],
)
def test_after_the_deadline_no_test_begins(affected, root, monkeypatch, capfd, until, code, left):
    for path, source in RUN.items():
        (root / path).write_text(source)
    monkeypatch.setattr(affected, "ROOT", root)
    monkeypatch.setattr(affected.time, "time", lambda: 0.0)
    tests = ["tests/losses/test_model.py", "tests/test_boxes.py"]
    assert affected.run(tests, ["-n", "0", "-c", "/dev/null", "--rootdir", "."], until) == code
    printed = capfd.readouterr().out
    assert ("1 failed, 2 passed" in printed) == bool(code)
    assert ("not run, or not to the end: 2 of 2" in printed) == bool(left) and left in printed


def test_dependencies_of_slow_tests_need_no_commands(root):
    """`.ci/slow-tests` skips tests by them, so one that starts programs has the whole package."""
    assert "python/fiber/losses/itc.py" in Dependencies(root).of("tests/test_train.py")
