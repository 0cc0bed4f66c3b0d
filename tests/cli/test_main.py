"""The table of commands, and what a process of its own shows."""

import argparse
import os
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

import fiber
from fiber import recipes
from fiber.cli import main, parser

TABLE = """
demo train recipes eval plan data
ground detect segment answer caption match reason entail search calibrate
map index serve web convert merge export bench tune doctor
"""
COMMANDS = TABLE.split()


def subcommands(root: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield root
    for action in root._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from subcommands(each)


class TestTable:
    def test_no_command(self, capsys):
        with pytest.raises(SystemExit) as stopped:
            main([])
        assert stopped.value.code == 2
        assert "COMMAND" in capsys.readouterr().err

    def test_every_command_is_there(self, capsys):
        listed = re.findall(r"^    (\w+)(?: |$)", parser().format_help(), re.MULTILINE)
        assert listed == COMMANDS
        with pytest.raises(SystemExit):
            main(["zzz"])
        assert f"expected one of {', '.join(COMMANDS)}\n" in capsys.readouterr().err

    @pytest.mark.parametrize("command", COMMANDS)
    def test_help(self, command, capsys):
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help"])
        assert stopped.value.code == 0
        assert f"usage: fiber {command}" in capsys.readouterr().out

    def test_examples(self, capsys):
        """A command without its arguments shows a command line that can be parsed."""
        shown = 0
        for command in subcommands(parser()):
            if command.prog.endswith("bench data"):
                continue
            try:
                command.parse_args([])
            except SystemExit:
                said = capsys.readouterr().err
                examples = re.findall(r"`fiber ([^`]+)`", said.partition("for example, ")[2])
                assert examples, said
                for example in examples:
                    if example != "--help":
                        parser().parse_args(shlex.split(example))
                shown += 1
        assert shown > 20

    def test_recipes_of_the_example(self, capsys):
        with pytest.raises(SystemExit):
            main(["train"])
        said = capsys.readouterr().err.partition("for example, ")[2]
        found = re.findall(r"(?:small|own|scenes)_\w+", said)
        assert len(found) > 3 and set(found) <= set(recipes.names())

    def test_version(self, capsys):
        with pytest.raises(SystemExit):
            main(["--version"])
        assert capsys.readouterr().out == f"fiber {fiber.__version__}\n"

    def test_recipes(self, capsys):
        assert main(["recipes"]) == 0
        out = capsys.readouterr().out
        assert "scenes_coarse " in out
        assert "scenes_fine " in out
        assert main(["recipes", "refcoco"]) == 0
        assert "train refcoco --data DIR" in capsys.readouterr().out
        assert main(["recipes", "refcocoo"]) == 2
        assert "did you mean refcoco" in capsys.readouterr().err

    def test_help_needs_no_torch(self):
        code = "import sys; sys.modules['torch'] = None; from fiber.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0

    @pytest.mark.parametrize(
        ("own", "wanted"),
        [
            ({}, "3000"),
            ({"GOMP_SPINCOUNT": "7"}, "7"),
            ({"OMP_WAIT_POLICY": "active"}, None),
        ],
    )
    def test_waiting_threads_leave_the_cores_unless_told_otherwise(self, monkeypatch, own, wanted):
        for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
            # Set first, so that the variable is taken back to what it was after the test.
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)
        for name, value in own.items():
            monkeypatch.setenv(name, value)
        assert main(["recipes"]) == 0
        assert os.environ.get("GOMP_SPINCOUNT") == wanted


def test_warnings_for_developers_of_other_packages_are_dropped(monkeypatch, capsys):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    assert main(["recipes"]) == 0
    capsys.readouterr()
    for category in (UserWarning, RuntimeWarning, FutureWarning, DeprecationWarning):
        warnings.showwarning("text", category, "a.py", 1)
    assert capsys.readouterr().err == "fiber: warning: text\n" * 2


@pytest.mark.parametrize(
    "arguments", [["caption", "LONG"], ["data", "inspect", "LONG"], ["recipes", "LONG"]]
)
def test_a_long_argument_hides_no_error(arguments, capsys):
    assert main([each.replace("LONG", "x" * 5000) for each in arguments]) == 2
    said = capsys.readouterr().err
    assert len(said) < 1500
    assert "File name too long" in said or "expected one of" in said


class TestProcess:
    """What only a process of its own shows."""

    def test_nobody_reads_the_output(self):
        process = subprocess.Popen(
            [sys.executable, "-m", "fiber.cli", "recipes"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(timeout=600) == 141
        assert process.stderr is not None
        assert process.stderr.read() == b""
        process.stderr.close()

    @pytest.mark.parametrize("arguments", [["recipes"], ["--help"], ["train", "--help"]])
    @pytest.mark.parametrize("unbuffered", ["", "1"])
    def test_a_full_disk(self, arguments, unbuffered):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "fiber", *arguments],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
                env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
            )
        said = "could not be written (No space left on device); free some space"
        assert done.stderr.startswith(f"fiber: error: standard output {said}")
        assert len(done.stderr.splitlines()) == 1
        # Neither that of bad input, nor that of Python, which fails to flush at exit.
        assert done.returncode == 1

    @pytest.mark.parametrize("module", ["fiber", "fiber.cli"])
    def test_module(self, module):
        done = subprocess.run(
            [sys.executable, "-m", module, "answer", "none.jpg", "why?"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert done.stderr.startswith("fiber: error: none.jpg: no such image file or folder; ")
