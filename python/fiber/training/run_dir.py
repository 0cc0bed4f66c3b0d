"""Read and write the output folder of a training run."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import socket
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from fiber.atomic_io import (
    DISK_FULL,
    explain_write_errors,
    read_json,
    remove_parts,
    write_file,
    write_json,
)
from fiber.checkpoints.provenance import DATA_PATH, values_of
from fiber.checkpoints.transformers_files import (
    CONFIG_FIELDS,
    config_fields,
    write_transformers_files,
)
from fiber.checkpoints.vocabulary.files import (
    MAX_JSON_BYTES,
    VOCABULARY_FILES,
    Vocabulary,
    read_vocabulary,
    write_vocabulary,
)
from fiber.config_io import from_dict, to_dict
from fiber.data.formats.json_values import file_name_problem
from fiber.env import provenance
from fiber.messages import printable, shown
from fiber.training.checkpoint.folder import newest_checkpoint, newest_intact, sha256
from fiber.training.config.run import RunConfig, differences
from fiber.training.distributed.processes import launch_id, restart_count
from fiber.training.metrics_file import draw_curves, read_metrics
from fiber.training.tracking.goodput import Attempt, begin_attempt

#: Field of config.json with the fingerprint of the initial weights, of a run that trains adapters.
BASE_SHA256 = "base_sha256"
#: What to do with a run whose configuration differs.
_SAME_FIELDS = "; resume with the recipe and the fields of the run, or choose another output folder"
#: Error numbers of a file system without locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
#: Maximum number of characters of the owner of a lock.
_MAX_OWNER = 400
#: Number of tries to lock a folder, and the pause after each.
_LOCK_TRIES, _LOCK_WAIT_SECONDS = 10, 0.02
#: Seconds in which the lock of a process that died on another node is released by its file system.
_LOST_LOCK_SECONDS = 120


def read_run_config(path: Path) -> RunConfig:
    """Read a configuration: what `fiber train --print-config` prints, or config.json of a run.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it has none, or one with an unknown field or a wrong value.
    """
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "No such configuration; check the path", str(path))
    values = read_json(path, MAX_JSON_BYTES)
    if not isinstance(values, dict) or "tasks" not in values:
        raise ValueError(
            f"{path} is no configuration of a run; expected what `fiber train RECIPE --data DATA"
            " --print-config` prints, or config.json in the folder of a run"
        )
    return _read_config(values, path)


def _read_config(values: dict[str, Any], path: Path) -> RunConfig:
    """Read the fields of a RunConfig from config.json, without those of where it comes from."""
    others = ("fiber_version", "commit", "init", BASE_SHA256, DATA_PATH, *CONFIG_FIELDS)
    own = {name: value for name, value in values.items() if name not in others}
    with values_of(path, values):
        return from_dict(RunConfig, own)


class RunFolder:
    """Output folder of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        #: The RunConfig, plus fiber's version and commit.
        self.config_file = path / "config.json"
        #: One JSON object per line.
        self.metrics_file = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        #: Weights of the finished model.
        self.model_file = path / "model.safetensors"
        #: Adapters of a run with LoRA, beside the model into which they are merged.
        self.adapter = path / "adapter"
        #: Job under torchrun that trains here, or did last; see `launch_id`.
        self.launch_file = path / ".launch"
        self._lock_file = path / ".lock"

    @property
    def is_finished(self) -> bool:
        """True if the finished model exists."""
        return self.model_file.is_file()

    def stored_config(self) -> RunConfig | None:
        """Read the run's configuration, or return None if the folder contains no run.

        Raises:
            ValueError: if config.json belongs to a saved model.
        """
        if not self.config_file.exists():
            return None
        values = self._stored_values()
        if "tasks" not in values:
            raise ValueError(
                f"{self.path} contains a model, not a run; choose another output folder"
            )
        return _read_config(values, self.config_file)

    def stored_init(self) -> str | None:
        """Read the path of the run's initial weights, or return None if there are none."""
        init = self._stored_values().get("init") if self.config_file.exists() else None
        if init is None:
            return None
        # A path of our own exists; that of another machine may not.
        is_path = isinstance(init, str) and file_name_problem(init) is None
        if not is_path or not (init.isprintable() or Path(init).exists()):
            raise ValueError(f"{self.config_file}: init: expected a path, got {shown(init)}")
        return init

    def check_base(self, base: str, sha256: str) -> None:
        """Check that the base of the run's adapters is the one that the run started from.

        `sha256` is its fingerprint now. Without a run, nothing is checked.

        Raises:
            ValueError: if it has changed.
        """
        stored = self._stored_values().get(BASE_SHA256) if self.config_file.exists() else None
        if stored not in (None, sha256):
            raise ValueError(
                f"{base}, the base of the adapters of {self.path}, has changed since the run"
                f" started: its fingerprint is {sha256[:12]}, expected {shown(stored)[1:13]};"
                " restore it, or start a new run in another folder"
            )

    def data_path(self) -> str | None:
        """Read the path of the run's data, or return None if they are records of the caller."""
        return self._stored_values().get(DATA_PATH)

    def _stored_values(self) -> dict[str, Any]:
        values = read_json(self.config_file, MAX_JSON_BYTES)
        if not isinstance(values, dict):
            raise ValueError(f"{self.config_file}: expected a JSON object, got {shown(values)}")
        return values

    def check(self, config: RunConfig, *, resume: bool) -> None:
        """Check that a run with this configuration may write here.

        Raises:
            FileExistsError: if the folder contains a run and `resume` is False.
            ValueError: if the stored configuration differs; the message lists the fields.
        """
        stored = self.stored_config()
        if stored is None:
            if self.is_finished or (self.path.exists() and not self.path.is_dir()):
                raise FileExistsError(
                    f"{self.path} exists but is not a run; choose another output folder"
                )
            return
        has_trained = self.is_finished or newest_checkpoint(self.checkpoints) is not None
        hint = "" if has_trained else "; the run has no checkpoint: delete the folder to start over"
        if not resume:
            raise FileExistsError(
                f"{self.path} already contains a run; resume it (resume=True, --resume)"
                f" or choose another output folder{hint}"
            )
        changed = differences(stored, config)
        if changed:
            raise ValueError(
                f"{self.path} was trained with a different configuration (stored -> requested):"
                f" {'; '.join(changed)}{hint or _SAME_FIELDS}"
            )

    def is_restart(self) -> bool:
        """Check whether the agent of torchrun restarts processes that have trained here."""
        own = launch_id()
        if not own or not self.launch_file.is_file():
            return False
        return self.launch_file.read_bytes() == own.encode()

    def check_unlocked(self) -> None:
        """Fail early if another process is training here; only `locked` keeps others out.

        Raises:
            FileExistsError: see `locked`.
        """
        missing = suppress(FileNotFoundError, NotADirectoryError)
        with missing, self._lock_file.open("r", encoding="utf-8") as file:
            self._lock(file, fcntl.LOCK_SH)

    def _lock(self, file: IO[str], kind: int) -> None:
        """Lock the open file; see `locked` for errors and warnings."""
        tries = _LOCK_TRIES
        if restart_count() > 0:
            tries = round(_LOST_LOCK_SECONDS / _LOCK_WAIT_SECONDS)
        for _ in range(tries):
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                # `check_unlocked` of another process holds the lock for a moment.
                time.sleep(_LOCK_WAIT_SECONDS)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                warnings.warn(
                    f"{self.path} cannot be locked ({error.strerror}), so a second run in it is"
                    " not noticed",
                    RuntimeWarning,
                    stacklevel=2,
                )
                return
        file.seek(0)
        owner = printable(file.read(_MAX_OWNER).strip(), _MAX_OWNER) or "another process"
        raise FileExistsError(
            f"{self.path} is already used for training by {owner}; choose another output folder"
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder. The lock is always released when the process ends.

        If the file system has no locks, this is a no-op with a warning.

        Raises:
            FileExistsError: if another process is training here; the message gives its process id
                and host.
        """
        path, file = self._lock_file, None
        while file is None:
            self.path.mkdir(parents=True, exist_ok=True)
            file = path.open("a+", encoding="utf-8")
            try:
                self._lock(file, fcntl.LOCK_EX)
            except BaseException:
                file.close()
                raise
            if not path.exists() or not os.path.samestat(path.stat(), os.fstat(file.fileno())):
                # The previous owner has removed the file that was opened.
                file.close()
                file = None
        with file:
            try:
                with explain_write_errors(path, DISK_FULL):
                    file.truncate(0)
                    # Without a buffer, which would be written again when the file is closed.
                    owner = f"process {os.getpid()} on {socket.gethostname()}\n"
                    os.write(file.fileno(), owner.encode())
                yield
            finally:
                path.unlink(missing_ok=True)
                if not any(self.path.iterdir()):
                    # No run was started.
                    self.path.rmdir()

    def vocabulary(self) -> Vocabulary | None:
        """Read the run's tokenizer, answers and classes; None if the folder contains no run."""
        stored = self.stored_config()
        return None if stored is None else read_vocabulary(self.path, stored.model)

    def vocabulary_sha256(self) -> str:
        """Return a SHA-256 checksum of the run's tokenizer, answers and classes."""
        files = [self.path / name for name in VOCABULARY_FILES]
        lines = [f"{sha256(file)}  {file.name}\n" for file in files if file.is_file()]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def check_vocabulary(self, stored: str, checkpoint: Path) -> None:
        """Check that the vocabulary is the one of a checkpoint, which has its checksum `stored`.

        Raises:
            ValueError: if it has changed.
        """
        if stored != self.vocabulary_sha256():
            raise ValueError(
                f"{' or '.join(VOCABULARY_FILES)} in {self.path} has changed since {checkpoint}"
                " was saved; restore it, or start a new run in another folder"
            )

    def check_newest_vocabulary(self) -> None:
        """Check that the vocabulary is that of the newest checkpoint, if there is one.

        Raises:
            ValueError: if it has changed.
        """
        newest = newest_checkpoint(self.checkpoints)
        if newest is None:
            return
        try:
            stored = newest.read_position().vocabulary_sha256
        except (OSError, ValueError):
            # Damaged; it is set aside when the run resumes.
            return
        self.check_vocabulary(stored, newest.folder)

    def open(
        self,
        config: RunConfig,
        vocabulary: Vocabulary,
        init: str | None = None,
        data_path: str | None = None,
        *,
        started: float | None = None,
        base_sha256: str | None = None,
    ) -> Attempt:
        """Create the folder of a new run, or prepare it for resuming.

        Metrics after the newest checkpoint are dropped, since those steps will be rerun, and the
        start is added to attempts.jsonl.

        Args:
            config: run configuration, stored in config.json.
            vocabulary: tokenizer, answers and classes, stored next to config.json.
            init: path of the initial weights, if any.
            data_path: absolute path of the data; None for records passed by the caller.
            started: seconds since the epoch when the start began; default: now.
            base_sha256: fingerprint of the initial weights, if adapters of them are trained.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        remove_parts(self.path)
        if own := launch_id():
            self.launch_file.write_text(own, encoding="utf-8")
        else:
            self.launch_file.unlink(missing_ok=True)
        if not self.config_file.exists():
            # config.json is written last, so a folder that contains it has all other files.
            write_vocabulary(self.path, vocabulary)
            origin: dict[str, Any] = {"init": init, DATA_PATH: data_path}
            if base_sha256 is not None:
                origin[BASE_SHA256] = base_sha256
            write_transformers_files(self.path, config.model, vocabulary.tokenizer)
            origin |= config_fields(config.model)
            write_json(self.config_file, provenance() | origin | to_dict(config))
        self.checkpoints.mkdir(exist_ok=True)
        remove_parts(self.checkpoints)
        newest = newest_intact(self.checkpoints)
        step = newest.step if newest else 0
        entries = read_metrics(self.metrics_file)
        kept = [entry for entry in entries if entry["step"] <= step]
        began = time.time() if started is None else started
        # Before lines are dropped, since they tell how long the last start ran.
        attempt = begin_attempt(self.path, entries, len(kept), started=began)
        text = "".join(json.dumps(entry) + "\n" for entry in kept)
        write_file(self.metrics_file, lambda part: part.write_text(text, encoding="utf-8"))
        return attempt

    def add_metrics(self, entry: dict[str, Any]) -> None:
        """Append a line to the metrics file."""
        # If a crash leaves a partial last line, `read_metrics` drops it.
        with (
            explain_write_errors(self.metrics_file),
            self.metrics_file.open("a", encoding="utf-8") as file,
        ):
            file.write(json.dumps(entry) + "\n")

    def draw(self, priors: Mapping[str, float]) -> None:
        """Plot the metrics to curves.png. `priors` are as in `draw_curves`."""
        draw_curves(read_metrics(self.metrics_file), self.path / "curves.png", priors)
