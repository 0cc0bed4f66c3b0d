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
import warnings
from collections.abc import Sequence

import fiber
from fiber.cli import bench, convert, data, images, launched, plan, runs, tune
from fiber.cli.arguments import CommandParser
from fiber.data.storage.remote import RemoteError

#: Errors of files that are caused by the input, which exit with code 2. Others, such as those of a
#: full disk or of a network file system, may be gone at the next start.
_BAD_INPUT = {
    *(errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EINVAL),
    *(errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO, errno.EXDEV),
}


def parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    root = CommandParser(
        prog="fiber",
        description="FIBER: a vision-language model for image-level and region-level tasks.",
        epilog="`fiber COMMAND --help` describes a command. Start with `fiber demo --fast`.",
    )
    root.add_argument("--version", action="version", version=f"fiber {fiber.__version__}")
    commands = root.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in (runs, plan, data, images, convert, bench, tune):
        module.add_commands(commands)
    doctor = commands.add_parser(
        "doctor", help="report installed packages, kernel backend and devices"
    )
    doctor.set_defaults(run=_doctor)
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, by default the one in `sys.argv`, and return its exit code."""
    # torch's idle OpenMP threads spin for milliseconds, which takes cores from other processes and
    # the loader's threads, but sleeping at once slows down small operations. Therefore, spin only
    # briefly. GNU OpenMP reads this when torch is first imported. The user's own setting takes
    # precedence.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    options = parser().parse_args(arguments)
    options.arguments = list(sys.argv[1:] if arguments is None else arguments)
    warnings.showwarning = _warn
    if (code := launched.final_code()) is not None:
        return code
    return launched.keep_code(_run(options))


def _run(options: argparse.Namespace) -> int:
    """Run the command; print its error as one line."""
    try:
        code = options.run(options)
        # Flush here, so that a full disk or a closed pipe is handled below.
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        hint = getattr(options, "when_stopped", "no partial file was left")
        print(f"\nstopped; {hint}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The interpreter flushes again at exit, which must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "fiber":
            raise
        hint = f"{package} is not installed; `fiber doctor` prints how to install it"
        # Errors of fiber itself name the extra.
        _print_error(str(error) if "'fiber-vl[" in str(error) else hint)
        return 1
    except (ConnectionError, ChildProcessError) as error:
        _print_error(str(error))
        return 1
    except OSError as error:
        message = str(error)
        if error.strerror and error.filename is not None:
            message = f"{os.fspath(error.filename)}: {error.strerror}"
        _print_error(message)
        return 2 if error.errno is None or error.errno in _BAD_INPUT else 1
    except (FloatingPointError, MemoryError, RemoteError) as error:
        _print_error(str(error) or "out of memory")
        return 1
    except ValueError as error:
        # Includes fiber.DecodeError and fiber.MissingHeadError.
        _print_error(str(error))
        return 2


def _doctor(options: argparse.Namespace) -> int:
    from fiber import doctor

    return doctor.main()


def _warn(message: Warning | str, *where: object, **more: object) -> None:
    """Print a warning as one line, without its source line."""
    text = f"fiber: warning: {' '.join(str(message).split())}"
    if launched.is_new(text):
        print(text, file=sys.stderr)


def _print_error(message: str) -> None:
    text = f"fiber: error: {' '.join(message.split())}"
    if launched.is_new(text):
        print(text, file=sys.stderr)
