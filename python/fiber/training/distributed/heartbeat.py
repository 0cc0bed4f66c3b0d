"""Life signs of all ranks, so that the end of a job names the rank that caused it.

A collective that fails says that a connection was closed or that time is up, not which rank died or
hangs. Each rank therefore counts up a key in the job's store, from a thread, and says where the
thread is that trains. When a collective fails, the counters that stand still are those of dead or
stopped processes. If none does, a rank that is not in a function of PyTorch is one that hangs.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import torch.distributed as dist

from fiber.bad_input import is_bad_input

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

#: Seconds between two life signs of a rank.
INTERVAL_SECONDS = 1.0
#: A rank without a life sign for this many intervals is dead or stopped.
MISSED = 4


@dataclass(frozen=True)
class LostRank:
    """Another rank."""

    rank: int
    host: str
    pid: int
    #: Error that ended it, if it could report one.
    error: str = ""
    #: File, line and function where it is, if it lives but does not take part.
    location: str = ""
    #: Whether the error is one of its input.
    is_bad_input: bool = False

    def __str__(self) -> str:
        where = f"rank {self.rank} (process {self.pid} on {self.host})"
        if self.error:
            return f"{where} failed: {self.error}"
        return f"{where} hangs in {self.location}" if self.location else f"{where} died or hangs"


class Heartbeat:
    """Context manager that reports the life of this rank and reads that of the others.

    The thread that enters it is the one that trains.

    Args:
        store: store of the job, with a connection that nobody else uses.
        rank: rank of this process.
        world_size: number of ranks.
        timeout_seconds: a rank that others wait for in `barrier` hangs if it has been at the same
            line for that long.
    """

    def __init__(
        self, store: Store, rank: int, world_size: int, *, timeout_seconds: float = 600.0
    ) -> None:
        self._store, self._rank, self._world_size = store, rank, world_size
        self._timeout = timeout_seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._lock = threading.Lock()
        #: The thread that trains.
        self._worker = 0
        #: Number of barriers that this rank has reached.
        self._barriers = 0

    def __enter__(self) -> Self:
        self._worker = threading.get_ident()
        self._write(0)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def report(self, error: BaseException) -> None:
        """Tell the other ranks why this one ends."""
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        with suppress(RuntimeError), self._lock:
            self._store.set(f"error/{self._rank}", json.dumps([text[:2000], is_bad_input(error)]))

    def explain(self, error: BaseException) -> LostRankError:
        """Name the ranks that failed, died or hang, after an error of a collective."""
        try:
            peers = self._lost_peers()
        except RuntimeError:
            where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            return LostRankError([], f"the process that hosts the job's store at {where} is gone")
        if not peers:
            reason = " ".join(str(error).split())
            return LostRankError([], f"a collective failed, but every rank lives ({reason:.300})")
        return LostRankError(peers)

    def _lost_peers(self) -> list[LostRank]:
        """Find ranks that failed, died or hang.

        This takes `MISSED` intervals for the first rank that asks. The others get its answer, since
        they may ask when that rank has ended, too.
        """
        if not (known := self._get("lost")):
            known = json.dumps([asdict(peer) for peer in self._find_lost()])
            with self._lock:
                # The first answer counts.
                known = self._store.compare_set("lost", "", known).decode()
        return [LostRank(**fields) for fields in json.loads(known)]

    def _find_lost(self) -> list[LostRank]:
        ranks = [rank for rank in range(self._world_size) if rank != self._rank]
        before = self._read(ranks)
        deadline = time.monotonic() + MISSED * INTERVAL_SECONDS
        while time.monotonic() < deadline:
            time.sleep(INTERVAL_SECONDS / 4)
            failed = [rank for rank in ranks if self._has(f"error/{rank}")]
            if failed:
                return self._peers(failed)
        after = self._read(ranks)
        silent = [rank for rank in ranks if before[rank] == after[rank]]
        return self._peers(silent) or self._peers(ranks, only_hung=True)

    def barrier(self) -> None:
        """Wait until all ranks call this, however long their work takes, as long as they live.

        Raises:
            LostRankError: if a rank fails, dies, is stopped or hangs meanwhile.
        """
        self._barriers += 1
        with self._lock:
            self._store.set(f"barrier/{self._rank}", str(self._barriers))
        for rank in range(self._world_size):
            self._wait_for(rank)

    def _wait_for(self, rank: int) -> None:
        """Wait until a rank is at this barrier, or at the next one."""
        last_beat, last_location, pause = "", "", INTERVAL_SECONDS / 64
        beat_at = moved_at = time.monotonic()
        while int(self._get(f"barrier/{rank}") or 0) < self._barriers:
            if self._has(f"error/{rank}"):
                raise LostRankError(self._peers([rank]))
            beat, now = self._read([rank])[rank], time.monotonic()
            if beat != last_beat:
                location = json.loads(beat)[3]
                if location != last_location:
                    last_location, moved_at = location, now
                last_beat, beat_at = beat, now
            if now - beat_at > 4 * MISSED * INTERVAL_SECONDS:
                raise LostRankError(self._peers([rank]))
            if now - moved_at > self._timeout and (hung := self._peers([rank], only_hung=True)):
                raise LostRankError(hung)
            time.sleep(pause)
            pause = min(2 * pause, INTERVAL_SECONDS / 4)

    def _beat(self) -> None:
        number = 0
        # The store is gone when its host is; the next collective then fails.
        with suppress(RuntimeError):
            while not self._stopped.wait(INTERVAL_SECONDS):
                number += 1
                self._write(number)

    def _write(self, number: int) -> None:
        entry = [number, socket.gethostname(), os.getpid(), *_location(self._worker)]
        with self._lock:
            self._store.set(f"alive/{self._rank}", json.dumps(entry))

    def _has(self, key: str) -> bool:
        with self._lock:
            return self._store.check([key])

    def _get(self, key: str) -> str:
        if not self._has(key):
            return ""
        with self._lock:
            return self._store.get(key).decode()

    def _read(self, ranks: Sequence[int]) -> dict[int, str]:
        return {rank: self._get(f"alive/{rank}") for rank in ranks}

    def _peers(self, ranks: Sequence[int], *, only_hung: bool = False) -> list[LostRank]:
        """Describe ranks; with `only_hung`, those of them that live, but take part in nothing."""
        peers = []
        for rank in ranks:
            entry = self._get(f"alive/{rank}") or '[0, "", 0, "", true]'
            _, host, pid, location, may_wait = json.loads(entry)
            if not only_hung:
                error, is_input = json.loads(self._get(f"error/{rank}") or '["", false]')
                peers.append(LostRank(rank, host, pid, error, is_bad_input=is_input))
            elif not may_wait:
                peers.append(LostRank(rank, host, pid, location=location))
        return peers


def _location(thread: int) -> tuple[str, bool]:
    """Return where a thread is, and whether it may wait for other ranks there."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return "", True
    path, name = Path(frame.f_code.co_filename), frame.f_code.co_name
    may_wait = "torch" in path.parts or path == Path(__file__)
    return f"{path.name}:{frame.f_lineno} ({name})", may_wait


class LostRankError(ConnectionError):
    """Raised when other ranks failed, died or hang."""

    def __init__(self, peers: Sequence[LostRank], message: str = "") -> None:
        more = f"; and {len(peers) - 4} more ranks" if len(peers) > 4 else ""
        super().__init__(message or "; ".join(map(str, peers[:4])) + more)
        self.peers = tuple(peers)
        #: Whether a rank failed for bad input, as it will again; see `fiber.bad_input`.
        self.is_bad_input = any(peer.is_bad_input for peer in peers)


def is_collective_error(error: BaseException) -> bool:
    """Check whether an error comes from a collective, so that another rank is its cause."""
    # gloo raises plain RuntimeErrors that name its source files.
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error)
    )


def kill_hung_at_exit(peers: Sequence[LostRank]) -> None:
    """Kill hung processes of this job on this host when the main thread of this process ends.

    A stopped process does not react to the agent's SIGTERM, and the agent waits for it. It is not
    killed earlier, since the agent then ends this process, maybe before its error is printed.
    """
    hung = [p for p in peers if p.host == socket.gethostname() and p.pid and not p.error]
    # The interpreter waits for this thread. Unlike functions of `atexit`, it also runs in children
    # of multiprocessing.
    threading.Thread(target=_kill_after_main, args=(hung,), name="kill-hung").start()


def _kill_after_main(peers: Sequence[LostRank]) -> None:
    threading.main_thread().join()
    for peer in peers:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(peer.pid, signal.SIGKILL)
