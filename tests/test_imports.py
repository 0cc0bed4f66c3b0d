"""What a test file depends on: `.ci/groups` runs those of which something has changed."""

import subprocess

import pytest

from tests.imports import Dependencies

FILES = {
    "pyproject.toml": "",
    "rust/lib.rs": "",
    "python/fiber/__init__.py": "_HOMES = {'load': 'fiber.loading'}",
    "python/fiber/loading.py": "def load():\n    from fiber.tasks import find",
    "python/fiber/tasks/__init__.py": "TASKS = {'caption': 'fiber.tasks.caption:TASK'}",
    "python/fiber/tasks/caption.py": "",
    "python/fiber/boxes.py": "",
    "triton_kernels/op.py": "from . import naive",
    "triton_kernels/naive.py": "",
    "docs/page.md": "",
    "tests/conftest.py": "",
    "tests/helper.py": "from fiber import boxes",
    "tests/golden/sizes.json": "",
    "tests/golden/case.py": "",
    "tests/test_boxes.py": "from .helper import boxes",
    "tests/test_load.py": "import fiber\nfiber.load()",
    "tests/test_golden.py": "from tests.golden.case import sizes",
    "tests/test_kernels.py": "import fiber.kernels.op",
    "tests/test_docs.py": "PAGES = ROOT / 'docs'",
    "tests/test_command.py": "import subprocess",
}
ALWAYS = {"pyproject.toml", "rust/lib.rs", "tests/conftest.py"}


@pytest.fixture(scope="module")
def dependencies(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkout")
    for path, source in FILES.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(source)
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    return Dependencies(root)


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        ("boxes", {"tests/helper.py", "python/fiber/boxes.py", "python/fiber/__init__.py"}),
        (
            "load",
            {f"python/fiber/{name}.py" for name in ("loading", "tasks/__init__", "tasks/caption")},
        ),
        ("golden", {"tests/golden/case.py", "tests/golden/sizes.json"}),
        ("kernels", {"triton_kernels/op.py", "triton_kernels/naive.py"}),
        ("docs", {"docs/page.md"}),
        ("command", {path for path in FILES if path.startswith("python/")}),
    ],
)
def test_what_a_test_depends_on(dependencies, test, expected):
    own = f"tests/test_{test}.py"
    found = dependencies.of(own) - {own} - ALWAYS
    # The module `fiber` itself comes with `import fiber`.
    assert found - {"python/fiber/__init__.py"} == expected - {"python/fiber/__init__.py"}
    assert dependencies.of(own) >= ALWAYS
