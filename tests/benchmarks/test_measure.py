"""Distance of images from Pillow's, turns of peers, and peers that fail."""

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from fiber.benchmarks import measure
from fiber.benchmarks.measure import levels_from_pillow, measure_workload
from fiber.benchmarks.peers import BY_NAME
from fiber.benchmarks.peers.task import FINE_MEAN, FINE_STD, MEAN, STD, PeerTask, fine_size
from fiber.benchmarks.processes import EpochCost, PeerError
from fiber.benchmarks.workloads import Workload
from fiber.data import Tokenizer

WORKLOAD = Workload(kind="boxes", work="boxes", output="float32", title="boxes", per_second=1e6)


def task(work, files=()):
    return PeerTask(
        work=work,
        output="float32",
        variant="",
        batch_size=2,
        threads=1,
        files=tuple(map(str, files)),
    )


class TestSample:
    def check(self, tmp_path, array, work, **more):
        np.save(tmp_path / "sample.npy", array)
        measure.check_sample(tmp_path / "sample.npy", replace(task(work), **more))

    def test_images(self, tmp_path):
        self.check(tmp_path, np.zeros((2, 3, 384, 384), np.float32), "crop")
        self.check(tmp_path, np.zeros((2, 384, 384, 3), np.uint8), "crop", output="uint8")

    @pytest.mark.parametrize(
        ("array", "said"),
        [
            (np.zeros((2, 3, 384, 384)), "dtype float64; expected float32"),
            (np.zeros((2, 3, 384, 380), np.float32), r"shape \(3, 384, 380\); expected"),
            (np.zeros((3, 384, 384), np.float32), r"shape \(384, 384\); expected"),
            (np.full((1, 3, 384, 384), np.nan, np.float32), "NaN or infinity"),
        ],
        ids=["type", "side", "dimensions", "nan"],
    )
    def test_wrong_images(self, array, said, tmp_path):
        with pytest.raises(PeerError, match=said):
            self.check(tmp_path, array, "squash")

    def test_tokens(self, tmp_path):
        Tokenizer.train(["a red star"] * 9, 270).save(tmp_path / "t.json")
        more = {"texts": ("a red star", "no"), "tokenizer": str(tmp_path / "t.json")}
        tokenizer = Tokenizer.from_file(tmp_path / "t.json")
        rows = [tokenizer.encode(text)[0] for text in more["texts"]]
        rows = np.array([row + [1] * (40 - len(row)) for row in rows])
        self.check(tmp_path, rows, "captions", **more)
        rows[1, 2] += 1
        with pytest.raises(PeerError, match=r"tokens of 'no' are .* expected"):
            self.check(tmp_path, rows, "offsets", **more)


def column(values):
    return np.array(values).reshape(3, 1, 1)


class TestLevels:
    @pytest.fixture
    def files(self, tiny_images):
        return sorted(tiny_images.iterdir())[:2]

    @pytest.fixture
    def squashed(self, files):
        """Pillow's own images, (B, 3, H, W) of 0 to 255."""
        resized = [Image.open(f).convert("RGB").resize((384, 384), 3) for f in files]
        return np.stack([np.asarray(one).transpose(2, 0, 1) for one in resized])

    def measured(self, tmp_path, array, work, files):
        np.save(tmp_path / "sample.npy", array)
        return levels_from_pillow(tmp_path / "sample.npy", task(work, files))

    def test_pillow_itself(self, tmp_path, squashed, files):
        normalised = (squashed / 255 - column(MEAN)) / column(STD)
        assert self.measured(tmp_path, squashed, "squash", files) == 0
        rows_first = squashed.transpose(0, 2, 3, 1)
        assert self.measured(tmp_path, rows_first, "squash", files) == 0
        assert self.measured(tmp_path, normalised, "squash", files) < 1e-3

    def test_three_levels_off(self, tmp_path, squashed, files):
        off = squashed.astype(int) // 2 * 2
        off[off == 0] = 3
        wanted = np.abs(off - squashed).mean()
        found = self.measured(tmp_path, off.astype(np.uint8), "squash", files)
        assert found == pytest.approx(wanted) and found > 0.3

    def test_swapped_channels_are_seen(self, tmp_path, squashed, files):
        assert self.measured(tmp_path, squashed[:, ::-1], "squash", files) > 1

    def test_fine_images_may_be_flipped_and_padded(self, tmp_path, files):
        stored = [Image.open(f).convert("RGB") for f in files]
        sizes = [fine_size(one.height, one.width) for one in stored]
        batch = np.zeros((2, 3, 1344, 1344), np.float32)
        for place, one, (height, width) in zip(batch, stored, sizes, strict=True):
            values = np.asarray(one.resize((width, height), 2), float).transpose(2, 0, 1)
            place[:, :height, :width] = (values - column(FINE_MEAN)) / column(FINE_STD)
        height, width = sizes[1]
        batch[1, :, :height, :width] = batch[1, :, :height, :width][:, :, ::-1].copy()
        assert self.measured(tmp_path, batch[:, ::-1], "fine", files) < 1e-3
        assert self.measured(tmp_path, batch, "fine", files) > 1

    @pytest.mark.parametrize("work", ["crop", "captions", "boxes"])
    def test_random_crops_texts_and_boxes_are_not_compared(self, work, tmp_path):
        assert levels_from_pillow(tmp_path / "unread.npy", task(work)) is None


class FakeProcess:
    """A peer whose epoch n costs 4 (n + 1) seconds of CPU time."""

    order: ClassVar[list[tuple[str, int]]] = []
    #: Elapsed seconds.
    now: ClassVar[float] = 0.0

    def __init__(self, peer, own, python, log):
        self.peer, self.task = peer, own
        self.versions = {"it": "1"}
        self.epochs = 0
        if peer.name == "broken":
            raise PeerError("it does not load")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def epoch(self, number, sample=None):
        if sample is not None:
            np.save(sample, np.zeros((2, 4, 4)))
        self.order.append((self.peer.name, number))
        self.epochs += 1
        FakeProcess.now += 2.0
        count = 3 if self.peer.name == "short" and number == 2 else 4
        return EpochCost(count=count, cpu_seconds=4.0 * (number + 1), wall_seconds=2.0)

    def peak_bytes(self):
        return 1000


@pytest.fixture
def fakes(monkeypatch):
    monkeypatch.setattr(measure, "PeerProcess", FakeProcess)
    monkeypatch.setattr(FakeProcess, "order", [])
    monkeypatch.setattr(measure.time, "perf_counter", lambda: FakeProcess.now)
    base = BY_NAME["numpy"]
    return [replace(base, name=name) for name in ("a", "broken", "b", "short")]


def run(peers, tmp_path, rounds=3, turn_seconds=0.0):
    sizes = ((10, 10), (20, 10))
    boxes_task = replace(task("boxes"), sizes=sizes, boxes=((), ()), repeats=2, texts=("a",) * 9)
    return measure_workload(
        WORKLOAD,
        boxes_task,
        peers,
        rounds=rounds,
        turn_seconds=turn_seconds,
        pythons={},
        folder=tmp_path,
    )


def test_peers_run_in_turns_after_a_warmup_round(fakes, tmp_path):
    first, _, second, _ = run(fakes, tmp_path)
    names = ["a", "b", "short"]
    rounds = [FakeProcess.order[at : at + 3] for at in range(0, 9, 3)]
    assert [{name for name, _ in one} for one in rounds] == [set(names)] * 3
    # No peer always follows the same one.
    assert [one[0][0] for one in rounds[1:]] == ["a", "b"]
    # Epochs 1, 2 and 3 cost 2, 3 and 4 seconds for each of four images.
    assert first.costs == [2e6, 3e6, 4e6] == second.costs
    assert first.median == 3e6
    assert first.rates == [2.0, 2.0, 2.0]
    assert (first.peak_bytes, first.versions) == (1000, {"it": "1"})


def test_a_turn_runs_epochs_until_its_minimum_duration(fakes, tmp_path):
    first = run(fakes[:1], tmp_path, rounds=2, turn_seconds=5.0)[0]
    # Of two seconds each, so that three make a turn.
    assert FakeProcess.order == [("a", number) for number in range(7)]
    assert first.costs == [3e6, 6e6]
    assert first.rates == [2.0, 2.0]


def test_a_peer_that_fails_has_a_reason_and_the_others_continue(fakes, tmp_path):
    sides = {side.peer.name: side for side in run(fakes, tmp_path)}
    assert sides["broken"].failure == "it does not load"
    assert sides["short"].failure == "an epoch yielded 3 items; expected 4"
    assert sides["short"].costs == [] == sides["broken"].costs
    assert len(sides["a"].costs) == 3


def test_a_failure_of_fiber_is_an_error(fakes, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "OURS", fakes[1])
    with pytest.raises(PeerError, match="fiber itself failed: it does not load"):
        run(fakes, tmp_path)


def test_no_speed_is_reported_if_images_of_fiber_are_wrong(fakes, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "OURS", fakes[0])
    monkeypatch.setattr(measure, "levels_from_pillow", lambda sample, own: 1.5)
    with pytest.raises(PeerError, match=r"Pillow's by 1\.50 .*no speed is reported"):
        run(fakes, tmp_path)
