"""What is measured on which records, and how often."""

import shutil
from collections import Counter

import pytest

from fiber.data.record import Record
from fiber.demo import measures
from fiber.demo.abilities import EXPRESSIONS, PAIRS, QUESTIONS
from fiber.demo.folder import DemoFolder
from fiber.demo.measures import SHOWN, Evaluator, Measures, sample
from fiber.tasks import find_evaluation

from .micro_demo import MICRO


def records(count):
    return [Record(key=str(i), images=("a.jpg",), text="a") for i in range(count)]


class TestSample:
    @pytest.mark.parametrize(("count", "limit"), [(0, 5), (1, 5), (5, 5), (6, 5), (1000, 7)])
    def test_size_and_order(self, count, limit):
        keys = [int(record.key) for record in sample(records(count), limit)]
        assert len(keys) == min(count, limit)
        assert keys == sorted(set(keys))

    def test_the_same_ones_every_time(self):
        assert sample(records(100), 10) == sample(records(100), 10)

    def test_no_position_is_left_out(self):
        # Two records a picture, four pictures apart: a regular step would only meet even places.
        places = {int(record.key) % 8 for record in sample(records(800), 100)}
        assert places == set(range(8))


def test_every_line_has_a_task_that_its_stage_can_do():
    heads = {"coarse": {"itc", "itm", "mlm", "vqa"}, "fine": {"grounding"}}
    for shown in SHOWN:
        assert find_evaluation(shown.task).heads[0] in heads[shown.stage]
    assert len({shown.metric for shown in SHOWN}) == len(SHOWN)


class TestMeasures:
    @pytest.fixture
    def asked(self, monkeypatch):
        """What the models are asked, by a stand-in that answers 0.5."""
        asked = []

        def evaluate(model, task, *, data, permute_images, rerank):
            asked.append((task, len(data), permute_images))
            return {shown.key: 0.5 for shown in SHOWN if shown.task == task}

        monkeypatch.setattr(measures, "evaluate", evaluate)
        return asked

    @pytest.fixture
    def opened(self, finished, tmp_path):
        """Measurements of the finished demo's models, none of them made."""
        folder = DemoFolder(tmp_path / "own", {})
        shutil.copytree(finished / "data", folder.data)
        models = {stage: tmp_path / stage for stage in ("coarse", "fine")}
        for stage, path in models.items():
            shutil.copytree(finished / stage, path)
        return lambda: Measures(DemoFolder(folder.path, {}), Evaluator(folder.data, MICRO, models))

    def test_each_task_is_asked_once_in_every_way(self, opened, asked):
        opened().rows()
        times = Counter((task, permuted) for task, _, permuted in asked)
        assert times == {(task, permuted): 2 for task in MICRO.records for permuted in (0, 1)}

    def test_nothing_is_asked_twice(self, opened, asked):
        rows = opened().rows()
        count = len(asked)
        assert opened().rows() == rows
        assert len(asked) == count

    @pytest.mark.slow
    def test_two_processes_measure_what_one_does(self, opened, asked, monkeypatch):
        monkeypatch.undo()
        measured = opened()
        measured.measure(2)
        monkeypatch.setattr(measures, "evaluate", None)
        found = measured.rows()
        assert measured.throughput()[1] > 0
        monkeypatch.undo()
        file = measured.folder.path / "measured.json"
        file.unlink()
        again = opened()
        again.measure(1)
        assert not file.exists()
        assert again.rows() == found

    def test_a_new_model_is_asked_again(self, opened, asked, tmp_path):
        opened().rows()
        asked.clear()
        weights = tmp_path / "fine" / "model.safetensors"
        content = weights.read_bytes()
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        opened().rows()
        assert {task for task, *_ in asked} == {"refcoco", "flickr", "coco"}

    def test_another_version_measures_again(self, opened, asked, monkeypatch):
        opened().rows()
        count = len(asked)
        monkeypatch.setattr(measures, "provenance", lambda: {"commit": "other"})
        opened().rows()
        assert len(asked) == 2 * count

    def test_fewer_records_with_permuted_images(self, opened, asked, monkeypatch):
        monkeypatch.setattr(measures, "PERMUTED_RECORDS", 5)
        opened().rows()
        assert {count for _, count, permuted in asked if permuted} == {5}
        assert min(count for _, count, permuted in asked if not permuted) > 5

    def test_throughput(self, opened, asked):
        measured = opened()
        measured.rows()
        pictures, seconds = measured.throughput()
        assert pictures == sum(count for _, count, _ in asked)
        assert seconds > 0

    def test_exchanged_pictures_take_the_models_place(self, opened, monkeypatch):
        monkeypatch.setattr(
            measures,
            "evaluate",
            lambda model, task, *, data, permute_images, rerank: {
                shown.key: 0.25 if permute_images else 0.5 for shown in SHOWN
            },
        )
        first = opened().rows()[4]
        assert (first.metric, first.split) == ("matching/accuracy", "val")
        assert (first.model, first.permuted) == (0.5, 0.25)
        assert {row.model for row in opened().rows(permute_images=True)} == {0.25}

    def test_abilities_have_the_numbers_of_their_groups(self, opened, monkeypatch):
        def evaluate(model, task, *, data, permute_images, rerank):
            key = next(shown.key for shown in SHOWN if shown.task == task)
            groups = Counter(record.group for record in data)
            counts = {f"{group}/{key}": count / 100 for group, count in groups.items()}
            return {shown.key: 0.5 for shown in SHOWN if shown.task == task} | counts

        monkeypatch.setattr(measures, "evaluate", evaluate)
        found = opened().abilities()
        grouped = [ability for ability in found if ability.task != PAIRS]
        assert all(ability.model == ability.count / 100 for ability in grouped)
        assert all(0 <= ability.guess <= 1 for ability in grouped)
        assert {ability.task for ability in grouped} == {EXPRESSIONS, QUESTIONS}
        for split in ("val", "novel"):
            own = {a.group: a for a in found if a.split == split}
            assert own["relation"].example
            assert own["noun"].name == "shape"
            # Each caption is matched with its own image and with another one.
            assert own["matching"].count == 48
            assert own["retrieval"].count == 24
