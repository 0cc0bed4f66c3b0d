"""Python processes that start with torch imported.

`import torch` takes seconds of processor time, more than most of what tests start. A server imports
it once for each test process, and forks. Tests of the start itself (what is imported, limits of
memory, the exit code of the interpreter) use `subprocess`.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

#: What a run of the package imports that takes long.
PRELOADED = ["torch", "torchvision", "matplotlib.pyplot", "rich.progress"]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOADED)


def start_server() -> None:
    """Start the server of this process, unless it runs: what multiprocessing calls "forkserver"."""
    with pytest.MonkeyPatch.context() as patch:
        # torch reads it once, when the server imports it.
        patch.setenv("OMP_NUM_THREADS", "1")
        forkserver.ensure_running()


def start_python(
    arguments: Sequence[object],
    *,
    folder: Path | str = ".",
    environment: Mapping[str, str] | None = None,
    prepare: Callable[[], object] | None = None,
    output: Path | None = None,
    errors: Path | None = None,
) -> BaseProcess:
    """Start `python ARGUMENTS...`, on one thread.

    Args:
        arguments: `-m MODULE ...` or `SCRIPT ...`.
        folder: Working directory.
        environment: Variables over those of this process; torch has read its own already.
        prepare: Function of a test module that the new process calls first.
        output: File for what is printed; this process's own by default.
        errors: The same for the standard error.

    Returns:
        The process: `join`, `exitcode`, `kill`.
    """
    start_server()
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    words = [os.fspath(word) if isinstance(word, Path) else str(word) for word in arguments]
    process = _context.Process(
        target=_run, args=(words, os.fspath(folder), variables, prepare, output, errors)
    )
    process.start()
    return process


def run_python(
    arguments: Sequence[object],
    *,
    folder: Path | str = ".",
    environment: Mapping[str, str] | None = None,
    prepare: Callable[[], object] | None = None,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS...` to its end; how it ended and what it printed.

    Args:
        arguments: `-m MODULE ...` or `SCRIPT ...`.
        folder: Working directory.
        environment: Variables over those of this process.
        prepare: Function of a test module that the new process calls first.
        timeout: Longest run, in seconds.

    Raises:
        subprocess.TimeoutExpired: if it takes longer than `timeout` seconds.
    """
    if environment and "TRITON_INTERPRET" in environment:
        # Triton, which the server has imported, reads it when it is imported.
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=folder,
            env=os.environ | dict(environment),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    with tempfile.TemporaryDirectory() as printed:
        output, errors = Path(printed, "out"), Path(printed, "err")
        process = start_python(
            arguments,
            folder=folder,
            environment=environment,
            prepare=prepare,
            output=output,
            errors=errors,
        )
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(list(map(str, arguments)), timeout)
        return subprocess.CompletedProcess(
            list(map(str, arguments)), process.exitcode, output.read_text(), errors.read_text()
        )


def _run(
    arguments: list[str],
    folder: str,
    environment: dict[str, str],
    prepare: Callable[[], object] | None,
    output: Path | None,
    errors: Path | None,
) -> None:
    """Be `python ARGUMENTS...` in a process that was just forked."""
    for descriptor, path in ((1, output), (2, errors)):
        if path is not None:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            os.dup2(file, descriptor)
            os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    # `nohup` ignores it, and hands that down to all processes.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # The start method of a new interpreter, not that of the server.
    multiprocessing.set_start_method(None, force=True)
    # What starts in another copy of the repository imports that copy's tests.
    own = __name__.partition(".")[0]
    for name in [name for name in sys.modules if name.partition(".")[0] == own]:
        del sys.modules[name]
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    if prepare is not None:
        prepare()
    if arguments[0] == "-m":
        sys.path.insert(0, "")
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        # Whole, since processes that it starts look for it from where the server was started.
        script = Path(arguments[0]).resolve()
        sys.path.insert(0, str(script.parent))
        sys.argv = arguments
        runpy.run_path(str(script), run_name="__main__")
