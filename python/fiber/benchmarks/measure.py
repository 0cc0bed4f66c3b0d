"""Measure a workload: start and warm up every peer, and then run the peers in turn."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

import fiber
from fiber.benchmarks.peers import OURS, Peer
from fiber.benchmarks.peers import task as tasks
from fiber.benchmarks.peers.task import MAX_TOKENS, PAD_ID, SIZE, PeerTask
from fiber.benchmarks.processes import EpochCost, PeerError, PeerProcess
from fiber.benchmarks.workloads import Workload
from fiber.data import Tokenizer


@dataclass(kw_only=True)
class Side:
    """Measurements of one peer on one workload."""

    peer: Peer
    #: CPU time per image or text in the workload's unit, and images or texts per second of wall
    #: time; one value per round.
    costs: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    #: Sum of the peak resident set sizes of the peer's processes.
    peak_bytes: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    #: Mean difference between the peer's first images and Pillow's, on a scale of 0 to 255; None if
    #: they are not comparable.
    levels: float | None = None
    remark: str = ""
    #: Reason the peer could not be measured, or "".
    failure: str = ""

    @property
    def median(self) -> float:
        """Median of `costs`."""
        return statistics.median(self.costs)


@dataclass(frozen=True, kw_only=True)
class Result:
    """All measurements of a workload."""

    workload: Workload
    #: Description of the images or texts.
    material: str
    sides: tuple[Side, ...]
    #: Peers that support this workload but are not installed.
    absent: tuple[str, ...] = ()
    #: One-minute load average.
    load: float = 0.0

    def side(self, name: str) -> Side | None:
        """Return the measurements of a peer, or None if there are none."""
        return next((s for s in self.sides if s.peer.name == name and s.costs), None)


def measure_workload(
    workload: Workload,
    task: PeerTask,
    peers: Sequence[Peer],
    *,
    rounds: int,
    turn_seconds: float,
    pythons: Mapping[str, str],
    folder: Path,
) -> list[Side]:
    """Measure a workload by running the peers in turn, after one warmup epoch each.

    Each peer has `rounds` turns, each of at least one epoch and at least `turn_seconds`. `pythons`
    maps peers to interpreters other than the current one. Samples, logs and converted files are
    written to `folder`.

    Raises:
        PeerError: if fiber fails, or fiber's images differ too much from Pillow's.
    """
    sides = [Side(peer=peer, remark=peer.remark(task.work)) for peer in peers]
    with ExitStack() as open_processes:
        running = _warm_up(sides, task, pythons, folder, open_processes)
        ours = next((side for side, _ in running if side.peer is OURS), None)
        if ours is not None and (ours.levels or 0) > workload.most_levels:
            raise PeerError(
                f"{workload.name}: images differ from Pillow's by {ours.levels:.2f} (out of 255) on"
                f" average; expected at most {workload.most_levels:g}; no speed is reported"
            )
        for number in range(rounds):
            # Rotate the order, so that no peer always follows the same peer.
            turn = number % max(1, len(running))
            for side, process in [*running[turn:], *running[:turn]]:
                if side.failure:
                    continue
                try:
                    cost = _run_turn(process, task, turn_seconds)
                except PeerError as error:
                    _record_failure(side, error)
                    continue
                side.costs.append(cost.cpu_seconds / cost.count * workload.per_second)
                side.rates.append(cost.count / cost.wall_seconds)
            print(f"  round {number + 1} of {rounds}", file=sys.stderr)
        for side, process in running:
            side.peak_bytes = process.peak_bytes()
    return sides


def _warm_up(
    sides: Sequence[Side],
    task: PeerTask,
    pythons: Mapping[str, str],
    folder: Path,
    open_processes: ExitStack,
) -> list[tuple[Side, PeerProcess]]:
    """Start the peers and run their warmup epochs in parallel."""

    def start(side: Side) -> PeerProcess | None:
        peer = side.peer
        print(f"  {peer.name}: {peer.title}", file=sys.stderr)
        cache, sample = folder / "converted" / peer.name, folder / f"{peer.name}.npy"
        cache.mkdir(parents=True, exist_ok=True)
        own = replace(task, variant=peer.variant, cache=str(cache))
        python = pythons.get(peer.name, sys.executable)
        try:
            process = open_processes.enter_context(
                PeerProcess(peer, own, python, folder / f"{peer.name}.log")
            )
            _check_count(process.epoch(0, sample), task)
            check_sample(sample, task)
            side.levels = levels_from_pillow(sample, task)
        except PeerError as error:
            _record_failure(side, error)
            return None
        # The installed metadata lacks fiber's version if fiber runs from a checkout.
        own_version = {"fiber-vl": fiber.__version__} if peer is OURS else {}
        side.versions = {**own_version, **process.versions}
        return process

    with ThreadPoolExecutor(task.threads) as pool:
        opened = list(zip(sides, pool.map(start, sides), strict=True))
    return [(side, process) for side, process in opened if process is not None]


def _run_turn(process: PeerProcess, task: PeerTask, seconds: float) -> EpochCost:
    """Run epochs for at least `seconds`, and return their total cost."""
    costs: list[EpochCost] = []
    end = time.perf_counter() + seconds
    while not costs or time.perf_counter() < end:
        costs.append(process.epoch(process.epochs))
        _check_count(costs[-1], task)
    return EpochCost(
        count=sum(cost.count for cost in costs),
        cpu_seconds=sum(cost.cpu_seconds for cost in costs),
        wall_seconds=sum(cost.wall_seconds for cost in costs),
    )


def _check_count(cost: EpochCost, task: PeerTask) -> None:
    once = task.sizes if task.work == "boxes" else task.texts
    expected = len(task.files) or len(once) * task.repeats
    if cost.count != expected:
        raise PeerError(f"an epoch yielded {cost.count} items; expected {expected}")


def _record_failure(side: Side, error: PeerError) -> None:
    if side.peer is OURS:
        raise PeerError(f"fiber itself failed: {error}") from error
    side.failure = str(error)
    side.costs.clear()
    print(f"  {side.peer.name} failed: {error}", file=sys.stderr)


def check_sample(sample: Path, task: PeerTask) -> None:
    """Check the first images or tokens of a batch.

    Raises:
        PeerError: if images have the wrong shape or dtype, or tokens differ from fiber's.
    """
    if task.work in ("prompt", "boxes"):
        return
    array = np.load(sample)
    if task.work in ("captions", "offsets"):
        tokenizer = Tokenizer.from_file(task.tokenizer)
        for text, ids in zip(task.texts, array.tolist(), strict=False):
            expected = tokenizer.encode(text, max_tokens=MAX_TOKENS)[0]
            if ids != expected + [PAD_ID] * (MAX_TOKENS - len(expected)):
                raise PeerError(f"tokens of {text!r} are {ids}; expected {expected}")
        return
    if array.dtype != task.output:
        raise PeerError(f"images have dtype {array.dtype}; expected {task.output}")
    sides = array.shape[1:] if task.work == "fine" else (3, SIZE, SIZE)
    if array.ndim != 4 or array.shape[1:] not in (sides, (*sides[1:], sides[0])):
        raise PeerError(f"images have shape {array.shape[1:]}; expected {sides}")
    if not np.isfinite(array).all():
        raise PeerError("images contain NaN or infinity; expected finite values")


def levels_from_pillow(sample: Path, task: PeerTask) -> float | None:
    """Return the mean absolute difference from Pillow's antialiased resize, from 0 to 255.

    Return None for random crops, texts and boxes, which are not comparable.
    """
    if task.work not in ("squash", "fine"):
        return None
    images = np.load(sample)
    fine = task.work == "fine"
    if images.shape[-1] == 3:
        # (B, H, W, 3) -> (B, 3, H, W)
        images = images.transpose(0, 3, 1, 2)
    if images.dtype != np.uint8:
        mean = np.array(tasks.FINE_MEAN[::-1] if fine else tasks.MEAN).reshape(3, 1, 1)
        std = np.array(tasks.FINE_STD[::-1] if fine else tasks.STD).reshape(3, 1, 1)
        images = (images * std + mean) * (1 if fine else 255)
    pairs = zip(images, task.files, strict=False)
    return float(np.mean([_distance(image, path, fine) for image, path in pairs]))


def _distance(image: np.ndarray, path: str, fine: bool) -> float:
    """Return the mean absolute difference of a (3, H, W) image in [0, 255] from Pillow's.

    Fine-stage images may be flipped, so the smaller difference of the two orientations is returned.
    """
    stored = Image.open(path).convert("RGB")
    if not fine:
        expected = np.asarray(stored.resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float32)
        return float(np.abs(image - expected.transpose(2, 0, 1)).mean())
    height, width = tasks.fine_size(stored.height, stored.width)
    expected = np.asarray(stored.resize((width, height), Image.Resampling.BILINEAR), np.float32)
    expected = expected.transpose(2, 0, 1)[::-1]
    # Peers may round a side to a length that differs by one pixel.
    height, width = min(height, image.shape[1]), min(width, image.shape[2])
    return min(
        float(np.abs(image[:, :height, :width] - one[:, :height, :width]).mean())
        for one in (expected, expected[:, :, ::-1])
    )
