"""Interrupt `fiber map`; its rows must be those of a run that nothing happened to.

    python -m tests.kill_map --kills 20 --full-disks 10 --seed 0

SIGKILL arrives at random moments, from the start of the process on, at one process or at one or all
of two ranks, until a run is finished. Files are limited to a random size (RLIMIT_FSIZE), as on a
full disk. Rows and errors are then compared bit by bit. Prints counts; the exit code is 1 if
anything fails.
"""

from __future__ import annotations

import argparse
import random
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import pyarrow
import pyarrow.dataset
import pyarrow.parquet

from fiber.atomic_io import PART
from fiber.bulk import sources
from tests.bulk.conftest import save_images
from tests.conftest import save_micro_models
from tests.processes import start_python

#: Images of the source, broken ones not counted, and records of a unit.
IMAGES, UNIT = 240, 6
#: Kills of one run before it may finish.
_KILLS_PER_RUN = 5


def small_units() -> None:
    """Make the units of a process small, so that a run has many."""
    sources.UNIT_RECORDS = UNIT


def limited_files() -> None:
    """Limit the size of files to what the environment says."""
    import os

    small_units()
    limit = int(os.environ["TEST_FILE_BYTES"])
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


class Runs:
    """Runs of `fiber map` over the same images.

    Args:
        folder: empty folder.
        images: number of images.
    """

    def __init__(self, folder: Path, images: int = IMAGES) -> None:
        self.folder, self.images = folder, folder / "images"
        save_images(self.images, images)
        save_micro_models(folder)
        self.number = 0
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self.expected = self._whole()
        began = time.monotonic()
        self._whole()
        #: Latest moment of a kill: about the duration of a run that nothing happens to.
        self.seconds = time.monotonic() - began

    def _whole(self) -> tuple[pyarrow.Table, pyarrow.Table]:
        output = self._output()
        (process,) = self.start(output, 1)
        process.join()
        assert process.exitcode == 0, (self.folder / "err-0").read_text()
        return tables(output)

    def _output(self) -> Path:
        self.number += 1
        return self.folder / f"out-{self.number}"

    def start(self, output: Path, ranks: int, limit: int = 0) -> list[BaseProcess]:
        """Start one process, or two ranks, with a limit on the size of files in bytes."""
        given = ("--task", "embed", "--batch-size", 4, "--threads", 2, "--device", "cpu")
        command = ("-m", "fiber.cli", "map", self.images, *given, "--output", output)
        return [
            start_python(
                (*command, "--model", self.folder / "coarse"),
                environment={
                    **({"RANK": str(rank), "WORLD_SIZE": str(ranks)} if ranks > 1 else {}),
                    "TEST_FILE_BYTES": str(limit),
                },
                prepare=limited_files if limit else small_units,
                output=self.folder / f"out-log-{rank}",
                errors=self.folder / f"err-{rank}",
            )
            for rank in range(ranks)
        ]

    def finish(self, output: Path, ranks: int, name: str) -> None:
        """Let a run finish, and compare it."""
        processes = self.start(output, ranks)
        for process in processes:
            process.join()
        self.counts[name] += 1
        codes = [process.exitcode for process in processes]
        if any(codes):
            said = [(self.folder / f"err-{rank}").read_text()[-500:] for rank in range(ranks)]
            self.failures.append(f"{output}: exit codes {codes}: {said}")
            return
        for kind, found, expected in zip(
            ("rows", "errors"), tables(output), self.expected, strict=True
        ):
            if found != expected:
                self.failures.append(f"{output}: {kind} differ ({len(found)} of {len(expected)})")
        if left := [str(path) for path in output.rglob(f"*{PART}*")]:
            self.failures.append(f"{output}: left behind: {left}")
        shutil.rmtree(output)

    def kill(self, draws: random.Random, ranks: int, kills: int) -> None:
        """Kill one run several times at random moments, then finish it."""
        output = self._output()
        for _ in range(kills):
            processes = self.start(output, ranks)
            time.sleep(draws.uniform(0, self.seconds))
            # All, as when a machine is switched off, or one of them.
            dying = processes if draws.random() < 0.5 else processes[:1]
            is_late = processes[0].exitcode is not None
            self.counts["too late" if is_late else "kills"] += 1
            # Other programs make the machine faster and slower.
            self.seconds *= 0.8 if is_late else 1.05
            for process in dying:
                process.kill()
            for process in processes:
                process.join()
            self._check_partial(output)
        self.finish(output, ranks, f"runs of {ranks} that were killed")

    def _check_partial(self, output: Path) -> None:
        """Check that what a killed run left is whole, and only that."""
        for path in output.glob("rows/[0-9]*.parquet"):
            rows = pyarrow.parquet.read_table(path)
            numbers = rows["record"].to_pylist()
            if not set(numbers) <= set(self.expected[0]["record"].to_pylist()):
                self.failures.append(f"{path}: records {numbers}")

    def fill_disk(self, draws: random.Random) -> None:
        """Run with files of limited size, then without the limit."""
        output = self._output()
        # What is printed must fit, too.
        (process,) = self.start(output, 1, draws.randrange(800, 6000))
        process.join()
        said = (self.folder / "err-0").read_text()
        self.counts["full disks" if process.exitcode else "disks that sufficed"] += 1
        if process.exitcode not in (0, 1) or (process.exitcode and "ulimit -f" not in said):
            self.failures.append(f"{output}: exit code {process.exitcode}: {said[-500:]}")
        self._check_partial(output)
        self.finish(output, 1, "runs on a full disk")


def tables(output: Path) -> tuple[pyarrow.Table, pyarrow.Table]:
    """Return all rows in order, and the errors, of a folder of `fiber map`."""
    rows = pyarrow.dataset.dataset(output / "rows").to_table().sort_by("record")
    errors = pyarrow.parquet.read_table(output / "errors.parquet").sort_by("record")
    return rows.combine_chunks(), errors.combine_chunks()


def try_kills(folder: Path, kills: int, full_disks: int, seed: int, images: int = IMAGES) -> Runs:
    """Kill runs until `kills` signals were sent; return what happened."""
    draws, runs = random.Random(seed), Runs(folder, images)
    ranks = 1
    while (left := kills - runs.counts["kills"]) > 0:
        runs.kill(draws, ranks, min(left, draws.randint(1, _KILLS_PER_RUN)))
        ranks = 3 - ranks
    for _ in range(full_disks):
        runs.fill_disk(draws)
    return runs


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--full-disks", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        runs = try_kills(Path(temporary), options.kills, options.full_disks, options.seed)
    for name, count in sorted(runs.counts.items()):
        print(f"{count:4} {name}")
    for failure in runs.failures:
        print(f"FAILED {failure}")
    print(f"{len(runs.failures)} failures")
    return bool(runs.failures)


if __name__ == "__main__":
    sys.exit(main())
