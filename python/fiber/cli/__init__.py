"""The `fiber` command line: table of commands, error messages and exit codes.

Heavy modules are imported by the command that needs them, so `fiber --help` is fast and
`fiber doctor` works without torch.

Exit codes: 0 success; 1 failure (a metric below its floor, faults found by a check, a non-finite
loss, a full disk, out of memory, an unreachable URL, a rank that died); 2 usage error or bad input;
75 a run that a signal stopped and that can be resumed; 130 Ctrl-C; 141 closed output pipe.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import fiber
from fiber.atomic_io import full_disk_advice
from fiber.bad_input import EXIT_CODE, is_bad_input
from fiber.cli import bench, bulk, convert, data, export, launched, plan, runs, segment, serve, tune
from fiber.cli.arguments import MAX_MESSAGE, CommandParser
from fiber.data.storage.remote import RemoteError
from fiber.messages import printable
from fiber.tasks import TASKS, find_task, installed_tasks
from fiber.tasks.lazy import load
from fiber.terminal import STDOUT, escaping

#: Maximum number of characters of the name of a file in an error, which also says what is wrong.
_MAX_NAME = 1000
#: Commands of tasks in the order of the help; those that are not listed follow.
_TASK_COMMANDS = (
    *("ground", "detect", "segment", "answer", "caption", "match", "reason", "entail", "search"),
)


def parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    root = CommandParser(
        prog="fiber",
        description="FIBER: a vision-language model for image-level and region-level tasks.",
        epilog="`fiber COMMAND --help` describes a command. Start with `fiber demo --fast`.",
    )
    root.set_defaults(example="`fiber demo --fast`; `fiber --help` lists the commands")
    root.add_argument("--version", action="version", version=f"fiber {fiber.__version__}")
    commands = root.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in (runs, plan, data):
        module.add_commands(commands)
    _add_task_commands(commands)
    for module in (bulk, serve, convert, export, bench, tune):
        module.add_commands(commands)
    doctor = commands.add_parser(
        "doctor", help="report installed packages, kernel backend and devices"
    )
    doctor.set_defaults(run=_doctor)
    _add_commands_of_others(commands)
    return root


def _add_task_commands(commands: argparse._SubParsersAction) -> None:
    """Add the commands of this package's tasks to the end of the table."""
    earlier = list(commands.choices)
    segment.add_command(commands)
    for name in TASKS:
        if (path := find_task(name).command) is not None:
            load(path)(commands)

    def place(name: str) -> int:
        if name in earlier:
            return -1
        return _TASK_COMMANDS.index(name) if name in _TASK_COMMANDS else len(_TASK_COMMANDS)

    # The help lists these, and an error about an unknown command lists `choices`.
    commands._choices_actions.sort(key=lambda action: place(action.dest))
    parsers = sorted(commands.choices.items(), key=lambda item: place(item[0]))
    commands.choices.clear()
    commands.choices.update(parsers)


def _add_commands_of_others(commands: argparse._SubParsersAction) -> None:
    """Add the commands of tasks of other packages; warn of those that cannot be used.

    A name that is taken, by a command of this package or of another task, is an error of argparse.
    """
    for each in installed_tasks():
        if each.task is None or each.task.command is None:
            continue
        before = set(commands.choices)
        try:
            load(each.task.command)(commands)
        # Code of another package may fail in any way, and must not end other commands.
        except (Exception, SystemExit) as error:
            _remove_commands(commands, set(commands.choices) - before)
            text = printable(f"{type(error).__name__}: {error}", MAX_MESSAGE)
            warnings.warn(
                f"the command of the task {each} is skipped: {text}", RuntimeWarning, stacklevel=2
            )


def _remove_commands(commands: argparse._SubParsersAction, names: set[str]) -> None:
    for name in names:
        del commands.choices[name]
    # What `--help` lists.
    listed = commands._choices_actions
    listed[:] = [each for each in listed if each.dest not in names]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, by default the one in `sys.argv`, and return its exit code."""
    # torch's idle OpenMP threads spin for milliseconds, which takes cores from other processes and
    # the loader's threads, but sleeping at once slows down small operations, most of all where it
    # takes long to wake a thread. Therefore, spin only briefly (benches/bench_demo_pace.py). GNU
    # OpenMP reads this when torch is first imported. The user's own setting takes precedence.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    warnings.showwarning, sys.excepthook = _warn, _print_traceback
    try:
        options = parser().parse_args(arguments)
    except OSError as error:
        # What `--help` prints cannot be written.
        return _failed_in_system(error)
    options.arguments = list(sys.argv[1:] if arguments is None else arguments)
    if (code := launched.final_code()) is not None:
        return code
    with escaping():
        return launched.keep_code(_run(options))


def _run(options: argparse.Namespace) -> int:
    """Run the command; print its error as one line."""
    try:
        code = options.run(options)
        # Flush here, so that a full disk or a closed pipe is handled below.
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        if launched.is_launched():
            # The process that has started this one prints the hint.
            return 130
        hint = getattr(options, "when_stopped", "no partial file was left")
        print(f"\nstopped; {hint}", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "fiber":
            raise
        hint = f"{package} is not installed; `fiber doctor` prints how to install it"
        # Errors of fiber itself name the extra or the distribution.
        _print_error(str(error) if "pip install" in str(error) else hint)
        return EXIT_CODE
    except OSError as error:
        return _failed_in_system(error)
    except (ValueError, FloatingPointError, MemoryError, RemoteError) as error:
        # ValueErrors include fiber.DecodeError and fiber.MissingHeadError.
        unnamed = "out of memory" if isinstance(error, MemoryError) else type(error).__name__
        _print_error(str(error) or unnamed)
        return EXIT_CODE if is_bad_input(error) else 1


def _failed_in_system(error: OSError) -> int:
    """Print an error of the system, such as of a file, and return the exit code."""
    if isinstance(error, BrokenPipeError):
        _close_output()
        return 141
    # Most errors of this package give the whole text as that of the system's error.
    message = error.strerror or str(error)
    if error.strerror and error.filename is not None:
        name = os.fsdecode(error.filename)
        advice = full_disk_advice(error, Path(name))
        if error.errno == errno.ENAMETOOLONG:
            advice = "; pass the path of a file or folder"
        elif isinstance(error, FileNotFoundError) and "; " not in error.strerror:
            advice = "; check the path"
        message = f"{printable(name, _MAX_NAME)}: {error.strerror}{advice}"
    if message.startswith(STDOUT):
        _close_output()
    # A rank that failed for bad input on this node has printed it.
    if not (isinstance(error, ConnectionError) and launched.final_code()):
        _print_error(message)
    return EXIT_CODE if is_bad_input(error) else 1


def _close_output() -> None:
    """Drop what is still buffered: the interpreter flushes at exit, which must not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _doctor(options: argparse.Namespace) -> int:
    from fiber import doctor

    return doctor.main()


def _warn(message: Warning | str, category: type[Warning], *where: object, **more: object) -> None:
    """Print a warning as one line, without its source line.

    Warnings for the developers of other packages, such as of what is deprecated, are dropped.
    """
    if issubclass(category, (DeprecationWarning, FutureWarning, PendingDeprecationWarning)):
        return
    text = f"fiber: warning: {_one_line(str(message))}"
    if launched.is_new(text):
        print(text, file=sys.stderr)


def _print_error(message: str) -> None:
    message = _one_line(message)
    text = f"fiber: error: {message}"
    launched.keep_error(message)
    if launched.is_new(text):
        print(text, file=sys.stderr)


def _print_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print the traceback of an error that no command expects, whose text may be from a file."""
    for line in "".join(traceback.format_exception(kind, error, trace)).splitlines():
        print(printable(line, MAX_MESSAGE), file=sys.stderr)


def _one_line(message: str) -> str:
    return printable(" ".join(message.split()), MAX_MESSAGE)
