"""The order in which parts may import one another, read from the source itself."""

from pathlib import Path

import pytest

from tests.imports import KERNELS, PACKAGE, ROOT, Import, imports_of, module_name

# A file may import from its own part and from those to its left.
PARTS = """
_core distributions bad_input messages inert_pickle config_io atomic_io terminal progress env config
ops kernels metrics data tasks visualize synthetic models checkpoints losses
postprocess evaluation inference hf runtime export bulk serve web training task_parts recipes demo
benchmarks doctor cli task_commands __main__
"""
ORDER = PARTS.split()
# What `fiber/__init__.py` hands on under a shorter name.
PUBLIC = {"DecodeError": "_core", "__version__": "_core"}
# A recipe is looked up by its module's name when it is asked for, as `Annotator`, a public name
# of `fiber.inference`, is: the imports to the right.
BY_NAME = {("training", "recipes"), ("inference", "bulk")}


def part_of(module: str) -> str:
    """`fiber.ops.boxes` -> `ops`; a name of the public face -> the part where it lives.

    A task has three places: its options, what trains and evaluates it, `task_parts`, and its
    commands, `task_commands`, which use what `cli` shares. Only names in text lead to the last two.
    """
    name, *inner = module.split(".")[1:]
    if name == "tasks" and len(inner) > 1 and (PACKAGE / "tasks" / inner[0]).is_dir():
        return {"fields": name, "command": "task_commands"}.get(inner[1], "task_parts")
    return PUBLIC.get(name, name)


def wrong_imports(imports: list[Import], module: str) -> list[Import]:
    """Pick the imports that go against the order."""
    own = ORDER.index(part_of(module))
    wrong = []
    for one in imports:
        if not one.module.startswith("fiber."):
            continue
        part = part_of(one.module)
        if part not in ORDER or (
            ORDER.index(part) > own and (part_of(module), part) not in BY_NAME
        ):
            wrong.append(one)
    return wrong


def package_files() -> list[Path]:
    """Every module of the package but its face; the kernels' link leads to their own folder."""
    return sorted(
        path
        for path in PACKAGE.rglob("*.py")
        if path != PACKAGE / "__init__.py" and "kernels" not in path.relative_to(PACKAGE).parts
    )


def read(path: Path) -> list[Import]:
    return imports_of(path.read_text(), module_name(path), path.name == "__init__.py", path)


def test_every_part_has_its_place():
    parts = {part_of(module_name(path)) for path in package_files()}
    assert parts <= set(ORDER), f"give {parts - set(ORDER)} a place here and in CONTRIBUTING.md"
    assert len(parts) > 5


def test_no_file_imports_to_its_right():
    wrong = [
        str(one) for path in package_files() for one in wrong_imports(read(path), module_name(path))
    ]
    assert not wrong, "\n".join(wrong)


def test_kernels_stand_alone():
    files = sorted(KERNELS.rglob("*.py"))
    assert files
    wrong = []
    for path in files:
        module = module_name(path, KERNELS).replace("fiber", "fiber.kernels", 1)
        for one in imports_of(path.read_text(), module, path.name == "__init__.py", path):
            ours = one.module.split(".")[0] in ("fiber", "triton_kernels")
            # The extension's attention is one of the ways to run an operation; it knows no Python.
            if ours and not one.module.startswith(("fiber.kernels", "fiber._core")):
                wrong.append(str(one))
    assert not wrong, "\n".join(wrong)


def test_nothing_imports_the_kernels_under_another_name():
    folders = [PACKAGE, ROOT / "tests", ROOT / "benches", ROOT / "examples"]
    wrong = []
    for path in (p for folder in folders for p in folder.rglob("*.py")):
        for one in imports_of(path.read_text(), "outside", False, path):
            if one.module.split(".")[0] == "triton_kernels":
                wrong.append(str(one))
    assert not wrong, "\n".join(wrong)


def test_there_is_no_cycle():
    modules = {module_name(path): path for path in package_files()}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        targets = set()
        for one in read(path):
            name = one.module
            while name and name not in modules:
                name = name.rpartition(".")[0]
            if name and name != module:
                targets.add(name)
        graph[module] = targets

    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> None:
        assert module not in trail, " -> ".join([*trail[trail.index(module) :], module])
        if module not in done:
            for target in sorted(graph[module]):
                visit(target, [*trail, module])
            done.add(module)

    for module in sorted(graph):
        visit(module, [])


@pytest.mark.parametrize(
    ("source", "module", "wrong"),
    [
        ("", "fiber.config", 0),
        ("from fiber.models import swin", "fiber.ops.boxes", 1),
        ("from fiber import models", "fiber.ops.boxes", 1),
        ("import fiber.cli", "fiber.inference", 1),
        ("def f():\n    from ..training import loop", "fiber.models.build", 1),
        ("from . import boxes", "fiber.ops.anchors", 0),
        (
            "import importlib\nimportlib.import_module('fiber.demo.run')",
            "fiber.training.train",
            1,
        ),
        ("import importlib\nimportlib.import_module(f'fiber.recipes.{n}')", "fiber.training.l", 0),
        ("from fiber import DecodeError\nimport torch", "fiber.data.loader", 0),
        ("from fiber.unheard_of import thing", "fiber.cli", 1),
        ("from fiber.tasks.caption.fields import CaptionTask", "fiber.training.config.run", 0),
        ("from fiber.tasks.caption.branches import caption_losses", "fiber.training.train", 1),
        ("from fiber.training.train import train", "fiber.tasks.caption.train", 0),
        ("from fiber.cli.arguments import pick", "fiber.tasks.caption.command", 0),
        ("from fiber.cli.arguments import pick", "fiber.tasks.caption.train", 1),
        ("from fiber.tasks.caption.command import add_command", "fiber.cli", 1),
        ("from fiber.models import heads", "fiber.tasks.caption.fields", 1),
    ],
)
def test_the_check_itself(source, module, wrong):
    imports = imports_of(source, module, False, Path("made-up.py"))
    assert len(wrong_imports(imports, module)) == wrong
