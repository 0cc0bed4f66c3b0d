"""Interrupt and damage small runs; each must end like the run that nothing happened to.

    python -m tests.kill_runs --kills 50 --terms 20 --flips 200 --pairs 20 --seed 0

SIGKILL and SIGTERM arrive at random moments, from the start of the process on. A random bit of a
random file of the newest checkpoint is flipped. Two processes start in one folder. Weights and
metrics are then compared bit by bit. Prints counts; the exit code is 1 if anything fails.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

import torch

from fiber.training import trainer
from fiber.training.checkpoint.folder import checkpoints_in
from fiber.training.checkpoint.layout import CHECKSUMS
from fiber.training.distributed.preemption import EXIT_CODE
from fiber.training.metrics_file import read_metrics
from fiber.training.run_dir import RunFolder
from tests.processes import start_python
from tests.training import micro_runs
from tests.training.micro_runs import coarse_config, fine_config, make_data, with_dropout
from tests.training.test_trainer import numbers, weights_equal

#: Options of the runs that get signals; every feature with a state in the checkpoint is on.
CHANGES = {
    "coarse": {
        "train__steps": 30,
        "train__checkpoint_every": 4,
        "train__ema_decay": 0.9,
        "validation__task": "vqa",
    },
    "fine": {"train__steps": 20, "train__checkpoint_every": 3, "train__ema_decay": 0.9},
    # Several tasks in each step.
    "together": {
        **{f"tasks__{name}__share": 0 for name in ("reasoning", "caption")},
        "tasks__image_text__share": 1,
        "tasks__together": True,
        "tasks__question__batch_size": 2,
        "train__steps": 20,
        "train__checkpoint_every": 3,
    },
}
#: The run whose checkpoints are damaged: the last step is never reached before the damage.
SHORT = {"train__steps": 3, "train__checkpoint_every": 1, "train__ema_decay": 0.9}
#: The runs of which two start in one folder must last until the second one is there.
LONG = {"train__steps": 50, "train__checkpoint_every": 20}
#: Signals to one run and its successors, before it may finish.
_SIGNALS_PER_RUN = 7


@dataclass
class Outcome:
    """What was tried, how often, and what failed."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def check(self, is_right: bool, failure: str) -> None:
        """Keep the failure unless it is right."""
        if not is_right:
            self.failures.append(failure)
            print(f"FAILED: {failure}", flush=True)


@dataclass(frozen=True)
class Whole:
    """A finished run that nothing happened to, and how long its process took."""

    stage: str
    changes: dict
    data: Path
    folder: Path
    seconds: float

    @classmethod
    def train(cls, stage: str, changes: dict, data: Path, folder: Path) -> Whole:
        """Train it in a process of its own."""
        whole = cls(stage, changes, data, folder, 0.0)
        began = time.monotonic()
        process = whole.start(folder)
        process.join()
        assert process.exitcode == 0, f"an undisturbed run ended with {process.exitcode}"
        return cls(stage, changes, data, folder, time.monotonic() - began)

    def start(self, folder: Path, errors: Path | None = None) -> BaseProcess:
        """Start or resume the same run elsewhere."""
        settings = {"stage": self.stage, "data": str(self.data), "output": str(folder)}
        settings |= {"resume": True, "changes": self.changes, "dropout": 0.1}
        return start_python([micro_runs.__file__, json.dumps(settings)], errors=errors)

    def equals(self, folder: Path) -> bool:
        """Whether another folder has the same weights and the same lines of metrics."""
        return _are_equal(self.folder, folder)


def _are_equal(whole: Path, other: Path) -> bool:
    if not RunFolder(other).is_finished:
        return False
    return weights_equal(whole, other) and numbers(whole) == numbers(other)


def interrupt(
    whole: Whole, work: Path, kind: signal.Signals, count: int, chance: random.Random
) -> Outcome:
    """Send `count` signals to runs at random moments, and compare each run in the end."""
    out, sent, number = Outcome(), 0, 0
    while sent < count:
        number += 1
        folder = work / f"{whole.stage}-{kind.name}-{number}"
        until = min(count, sent + _SIGNALS_PER_RUN)
        while sent < until:
            before = _last_step(folder)
            process = whole.start(folder)
            process.join(chance.uniform(0, whole.seconds))
            if process.exitcode is not None:
                out.counts["finished before the signal"] += 1
                break
            assert process.pid is not None
            os.kill(process.pid, kind)
            process.join()
            sent += 1
            out.counts[_moment(folder, before)] += 1
            if kind == signal.SIGTERM:
                _check_term(out, folder, process.exitcode)
        if not RunFolder(folder).is_finished:
            process = whole.start(folder)
            process.join()
            code = process.exitcode
            out.check(code == 0, f"{folder.name}: the last process ended with exit code {code}")
        out.counts["runs"] += 1
        out.check(whole.equals(folder), f"{folder.name}: other weights or metrics")
        out.check(not list(folder.rglob(".part-*")), f"{folder.name}: temporary files are left")
        shutil.rmtree(folder)
    return out


def _check_term(out: Outcome, folder: Path, code: int | None) -> None:
    """Every step that SIGTERM finds finished must be in a checkpoint or in the finished model."""
    out.counts[f"exit code {code}"] += 1
    out.check(code in (0, EXIT_CODE, -signal.SIGTERM), f"{folder.name}: SIGTERM, exit code {code}")
    saved = max((each.step for each in checkpoints_in(folder / "checkpoints")), default=0)
    is_whole = RunFolder(folder).is_finished or saved == _last_step(folder)
    out.check(is_whole, f"{folder.name}: step {saved} of {_last_step(folder)} was saved")


def _last_step(folder: Path) -> int:
    entries = read_metrics(folder / "metrics.jsonl")
    return entries[-1]["step"] if entries else 0


def _moment(folder: Path, before: int) -> str:
    """Name what a process did when it was interrupted."""
    if list(folder.rglob(".part-*")):
        return "while a file was written"
    return "while training" if _last_step(folder) > before else "before a first step"


def flip_bits(stage: str, data: Path, work: Path, count: int, chance: random.Random) -> Outcome:
    """Flip `count` bits of the newest of two checkpoints; the run goes on from the other one."""
    out, stopped, whole = Outcome(), work / f"{stage}-stopped", work / f"{stage}-short"
    tasks = {name: value for name, value in CHANGES[stage].items() if name.startswith("tasks")}
    build = fine_config if stage == "fine" else coarse_config
    config = with_dropout(build(**tasks | SHORT))
    micro_runs.run(config, data, whole)
    with mock.patch.object(trainer, "lr_factor", _stop_at(2)), contextlib.suppress(_StopError):
        micro_runs.run(config, data, stopped)
    steps = [each.step for each in checkpoints_in(stopped / "checkpoints")]
    assert steps == [1, 2], steps
    for number in range(count):
        files = [*checkpoints_in(stopped / "checkpoints")[-1].files(), CHECKSUMS]
        name = files[number % len(files)]
        folder = work / f"{stage}-flipped"
        shutil.copytree(stopped, folder)
        path = folder / "checkpoints" / "step-00000002" / name
        content = bytearray(path.read_bytes())
        place, bit = chance.randrange(len(content)), chance.randrange(8)
        content[place] ^= 1 << bit
        path.write_bytes(content)
        where = f"{stage}: {name}, byte {place}, bit {bit}"
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            try:
                micro_runs.run(config, data, folder, resume=True)
            except Exception as error:
                out.check(False, f"{where}: {error!r}")
        texts = [str(each.message) for each in found]
        is_told = any(
            name in text and "step-00000002" in text and "after step 1 " in text for text in texts
        )
        out.check(is_told, f"{where}: not noticed ({texts})")
        out.check(_are_equal(whole, folder), f"{where}: other weights or metrics")
        out.counts[name] += 1
        shutil.rmtree(folder)
    return out


class _StopError(Exception):
    """Stands for whatever ends a process."""


def _stop_at(step: int):
    real = trainer.lr_factor

    def factor(now, *rest):
        if now == step:
            raise _StopError
        return real(now, *rest)

    return factor


def start_pairs(whole: Whole, work: Path, count: int, chance: random.Random) -> Outcome:
    """Start two processes in one folder, `count` times; one trains, the other names it."""
    out, in_folder, in_all = Outcome(), [], []
    while out.counts["pairs"] < count:
        folder, errors = work / "pair", [work / "first.txt", work / "second.txt"]
        processes, began = [], []
        for path in errors:
            began.append(time.monotonic())
            processes.append(whole.start(folder, path))
            time.sleep(chance.uniform(0, whole.seconds / 4))
        ended = dict(_ends(processes))
        codes = [process.exitcode for process in processes]
        if codes == [0, 0]:
            # The first one was finished before the second one was there.
            out.counts["pairs too far apart, tried again"] += 1
            shutil.rmtree(folder)
            continue
        out.counts["pairs"] += 1
        number = out.counts["pairs"]
        out.check(0 in codes, f"pair {number}: exit codes {codes}")
        if 0 in codes:
            trained = codes.index(0)
            refused = 1 - trained
            out.counts[f"{('first', 'second')[refused]} refused"] += 1
            text = errors[refused].read_text()
            named = f"used for training by process {processes[trained].pid} on "
            out.check(named in text, f"pair {number}: {named!r} is not in {text[-300:]!r}")
            seconds = re.search(r"after ([\d.]+) s", text)
            in_folder.append(float(seconds[1]) if seconds else float("inf"))
            in_all.append(ended[refused] - began[refused])
        out.check(whole.equals(folder), f"pair {number}: other weights or metrics")
        shutil.rmtree(folder)
    if in_folder:
        print(
            f"refused {max(in_folder):.2f} s after reaching the folder at the latest,"
            f" {max(in_all):.2f} s after the start of the process"
        )
    return out


def _ends(processes: list[BaseProcess]) -> Iterator[tuple[int, float]]:
    """Yield the number of each process, and when it ended."""
    waiting = {process.sentinel: number for number, process in enumerate(processes)}
    while waiting:
        for sentinel in wait(list(waiting)):
            yield waiting.pop(sentinel), time.monotonic()  # type: ignore[arg-type]
    for process in processes:
        process.join()


def run_all(
    work: Path, *, kills: int, terms: int, flips: int, pairs: int, seed: int = 0
) -> list[str]:
    """Run all of it in a folder, the same number of each kind per stage; return the failures."""
    chance, failures = random.Random(seed), []
    torch.set_num_threads(1)
    make_data(data := work / "data")
    # The first process waits until the server of `tests.processes` has imported torch.
    start_python(["-m", "platform"], output=work / "platform.txt").join()

    def report(what: str, began: float, out: Outcome) -> None:
        counts = ", ".join(f"{name} {number}" for name, number in sorted(out.counts.items()))
        took = time.monotonic() - began
        print(f"{what}: {counts or 'none'}; {len(out.failures)} failed ({took:.0f} s)", flush=True)
        failures.extend(out.failures)

    for share, (stage, changes) in enumerate(CHANGES.items()):
        last = len(CHANGES) - 1
        counts = [(number + last - share) // (last + 1) for number in (kills, terms, flips)]
        if counts[0] or counts[1]:
            whole = Whole.train(stage, changes, data, work / f"{stage}-whole")
            for kind, count in zip((signal.SIGKILL, signal.SIGTERM), counts, strict=False):
                began = time.monotonic()
                out = interrupt(whole, work, kind, count, chance)
                report(f"{stage}, {count} x {kind.name}", began, out)
        if counts[2]:
            began = time.monotonic()
            # Curves take longer than a run.
            with mock.patch.object(RunFolder, "draw", lambda folder, priors: None):
                out = flip_bits(stage, data, work, counts[2], chance)
            report(f"{stage}, {counts[2]} flipped bits", began, out)
    if pairs:
        whole = Whole.train("coarse", LONG, data, work / "long")
        began = time.monotonic()
        report(f"{pairs} pairs", began, start_pairs(whole, work, pairs, chance))
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name, number in (("kills", 50), ("terms", 20), ("flips", 200), ("pairs", 20), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=number)
    with tempfile.TemporaryDirectory() as work:
        failures = run_all(Path(work), **vars(parser.parse_args()))
    print(f"{len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
