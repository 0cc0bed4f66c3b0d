"""The command `fiber`: its table of commands, and what a user sees when one of them fails.

Nothing heavy is imported before a command is known, so that `fiber --help` answers at once and
`fiber doctor` works where torch is missing.

Exit codes: 0 done; 1 the task failed (a metric below its floor, a check that found faults, a loss
that is not finite, a full disk, too little memory); 2 wrong use or bad input; 130 stopped by
Ctrl-C; 141 nobody reads the output any more.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import warnings
from collections.abc import Sequence

import fiber
from fiber.cli import bench, convert, data, pictures, runs, tune

#: Errors of the system that say something about this machine's state, not about the input.
_FAILURES = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOMEM, errno.EROFS}


def parser() -> argparse.ArgumentParser:
    """Build the table of commands."""
    root = argparse.ArgumentParser(
        prog="fiber",
        description="FIBER: one vision-language model for whole pictures and for regions.",
        epilog="`fiber COMMAND --help` explains a command. Start with `fiber demo --fast`.",
    )
    root.add_argument("--version", action="version", version=f"fiber {fiber.__version__}")
    commands = root.add_subparsers(dest="command", metavar="COMMAND", required=True)
    runs.add_commands(commands)
    data.add_commands(commands)
    pictures.add_commands(commands)
    convert.add_commands(commands)
    bench.add_commands(commands)
    tune.add_commands(commands)
    doctor = commands.add_parser(
        "doctor", help="what is installed, which backend runs and why, what is missing"
    )
    doctor.set_defaults(run=_doctor)
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; gives its exit code.

    Args:
        arguments: what stands after `fiber`; the process's own if None.
    """
    # torch's threads spin for milliseconds while they wait for each other. Where other processes or
    # the loader's threads want the same cores, that takes the core from the one waited for, and
    # sleeping at once makes every small operation wait for the scheduler. So: spin briefly, then
    # sleep. Read by GNU OpenMP when torch is first imported; a user's own setting wins.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    options = parser().parse_args(arguments)
    warnings.showwarning = _warn
    try:
        code = options.run(options)
        # What is still buffered may meet a full disk or a closed pipe: here it has its message.
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        hint = getattr(options, "when_stopped", "nothing was left half-written")
        print(f"\nstopped; {hint}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The interpreter flushes once more when it ends, and must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "fiber":
            raise
        _complain(
            f"this needs {package}, which is not installed; `fiber doctor` says how to get it"
        )
        return 1
    except OSError as error:
        _complain(_os_message(error))
        return 1 if error.errno in _FAILURES else 2
    except FloatingPointError as error:
        _complain(str(error))
        return 1
    except MemoryError as error:
        _complain(str(error) or "the memory is full")
        return 1
    except ValueError as error:
        # Also fiber.DecodeError and fiber.MissingHeadError.
        _complain(str(error))
        return 2


def _doctor(options: argparse.Namespace) -> int:
    from fiber import doctor

    return doctor.main()


def _warn(message: Warning | str, *where: object, **more: object) -> None:
    """Print a warning as one line, without the line of code that it came from."""
    print(f"fiber: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _complain(message: str) -> None:
    print(f"fiber: error: {' '.join(message.split())}", file=sys.stderr)


def _os_message(error: OSError) -> str:
    if error.strerror and error.filename is not None:
        return f"{os.fspath(error.filename)}: {error.strerror}"
    return str(error)
