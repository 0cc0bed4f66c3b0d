"""Notes between the processes that `fiber train --processes` starts on one node."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from fiber.bad_input import EXIT_CODE


def is_launched() -> bool:
    """Check whether this process was started by `fiber train --processes`."""
    return _notes() is not None


def final_code() -> int | None:
    """Return the exit code if an earlier start has found bad input, so that this one can end."""
    folder = _notes()
    return EXIT_CODE if folder is not None and (folder / "bad-input").exists() else None


def keep_code(code: int) -> int:
    """Note an exit code that a restart would not change; return it."""
    folder = _notes()
    if folder is not None and code == EXIT_CODE:
        (folder / "bad-input").touch()
    return code


def keep_error(message: str) -> None:
    """Note the error of this process, for the last sentence of the launcher."""
    if (folder := _notes()) is not None:
        (folder / f"error-{os.getpid()}").write_text(message)


def is_new(message: str) -> bool:
    """Check that no other process on this node has printed this message."""
    folder = _notes()
    if folder is None:
        return True
    try:
        (folder / hashlib.sha256(message.encode()).hexdigest()).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _notes() -> Path | None:
    # The name is that of `fiber.training.distributed.launch.NOTES`, which imports torch.
    folder = os.environ.get("FIBER_LAUNCH_DIR")
    return Path(folder) if folder and Path(folder).is_dir() else None
