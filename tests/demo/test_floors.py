"""Floors: what they are computed from, who passes, and what makes a demo fail."""

import dataclasses
import json
from pathlib import Path

import pytest

from fiber.demo import floors
from fiber.demo.floors import (
    REQUIRED,
    MetricRow,
    Seeds,
    failures,
    floor_of,
    judge,
    load_floors,
    permuted_survivors,
)


def row(metric="vqa/accuracy", split="val", **values):
    values = {"model": 0.6, "chance": 0.1, "blind": 0.3, **values}
    return MetricRow(metric=metric, name=metric, split=split, **values)


#: One metric of each group that the default mode needs, with a floor.
ENOUGH = [
    row(metric, floor=0.5, verdict="ok", permuted=0.2)
    for metric in ("matching/accuracy", "vqa/accuracy", "referring/accuracy_at_1")
]


class TestFloorOf:
    @pytest.mark.parametrize("values", [[], [0.5], [0.5, 0.6]])
    def test_too_few_seeds(self, values):
        with pytest.raises(ValueError, match=f"three seeds, got {len(values)}"):
            floor_of(values, 0.1)

    def test_worst_minus_two_deviations(self):
        # The deviation of a sample of three: sqrt(((-.1)^2 + 0 + .1^2) / 2) = .1.
        assert floor_of([0.7, 0.6, 0.8], 0.1) == pytest.approx(0.6 - 0.2)

    def test_never_below_blind(self):
        assert floor_of([0.7, 0.6, 0.8], 0.45) == pytest.approx(0.45)

    def test_equal_seeds_leave_room_for_the_sampling_error(self):
        assert floor_of([0.7, 0.7, 0.7], 0.45) == pytest.approx(0.64)

    @pytest.mark.parametrize("blind", [0.6, 0.9])
    def test_not_learned_if_the_worst_is_no_better_than_blind(self, blind):
        assert floor_of([0.7, 0.6, 0.8], blind) is None

    @pytest.mark.parametrize("permuted", [[0.1, 0.45, 0.1], [0.1, 0.1, 0.9]])
    def test_not_learned_if_permuted_pictures_reach_the_floor(self, permuted):
        assert floor_of([0.7, 0.6, 0.8], 0.45, permuted) is None

    def test_permuted_pictures_below_the_floor_change_nothing(self):
        assert floor_of([0.7, 0.6, 0.8], 0.45, [0.44, 0.1, 0.1]) == pytest.approx(0.45)

    def test_without_a_blind_guess(self):
        assert floor_of([0.7, 0.6, 0.8], None) == pytest.approx(0.4)


class TestJudge:
    def test_nothing(self):
        assert judge([], {}) == []

    def test_each_verdict(self):
        recorded = {
            "vqa/accuracy/val": Seeds(values=[0.6, 0.6, 0.6], permuted=[0.53, 0.3, 0.3]),
            "vqa/accuracy/novel": Seeds(values=[0.7, 0.7, 0.7]),
            "matching/accuracy/val": Seeds(values=[0.3, 0.5, 0.6]),
            "masked_words/accuracy/val": Seeds(values=[0.6] * 3, permuted=[0.6, 0.1, 0.1]),
        }
        judged = judge(
            [
                row(),
                row(split="novel"),
                row("matching/accuracy"),
                row("masked_words/accuracy"),
                row("detection/ap50"),
            ],
            recorded,
        )
        floors = [None if r.floor is None else round(r.floor, 6) for r in judged]
        assert list(zip(floors, [r.verdict for r in judged], strict=True)) == [
            (0.54, "ok"),
            (0.64, "FELL"),
            (None, "not learned"),
            (None, "not from the image"),
            (None, "no seeds recorded"),
        ]

    def test_a_number_that_is_none_falls(self):
        judged = judge(
            [row(model=float("nan"))], {"vqa/accuracy/val": Seeds(values=[0.6, 0.6, 0.6])}
        )
        assert judged[0].verdict == "FELL"

    def test_this_runs_own_blind_guess_counts(self):
        judged = judge([row(blind=0.55)], {"vqa/accuracy/val": Seeds(values=[0.6, 0.7, 0.8])})
        assert judged[0].floor == pytest.approx(0.55)


class TestFailures:
    def test_enough(self):
        assert failures(ENOUGH, "scenes", "default") == []
        assert failures(ENOUGH[::2], "scenes", "fast") == []
        assert failures(ENOUGH[2:], "stamps", "default") == []

    @pytest.mark.parametrize(("data", "mode"), list(REQUIRED))
    def test_nothing_at_all(self, data, mode):
        assert len(failures([], data, mode)) == len(REQUIRED[data, mode])

    @pytest.mark.parametrize("missing", range(3))
    def test_each_group_is_needed(self, missing):
        rest = [r for i, r in enumerate(ENOUGH) if i != missing]
        unlearned = dataclasses.replace(ENOUGH[missing], floor=None, verdict="not learned")
        problems = failures([*rest, unlearned], "scenes", "default")
        assert len(problems) == 1
        assert unlearned.metric.split("/")[0] in problems[0]
        assert "nothing was learned" in problems[0]

    def test_nothing_recorded_is_said_once(self):
        judged = judge([row(), row("detection/ap50")], {})
        (problem,) = failures(judged, "scenes", "default")
        assert problem.startswith("no seeds are recorded")

    def test_fast_does_not_need_questions(self):
        assert failures([ENOUGH[0], ENOUGH[2]], "scenes", "fast") == []
        assert failures([ENOUGH[0], ENOUGH[2]], "scenes", "default") != []

    def test_stamps_need_boxes(self):
        for mode in ("default", "fast"):
            (problem,) = failures(ENOUGH[:2], "stamps", mode)
            assert problem.startswith("no metric of phrases or referring or detection has a floor")

    def test_what_fell_is_named(self):
        fell = row("detection/ap50", "novel", model=0.1234, floor=0.5, verdict="FELL")
        problems = failures([*ENOUGH, fell], "scenes", "default")
        assert problems == ["detection/ap50 on novel fell below its floor: 0.123 < 0.500"]


class TestPermutedSurvivors:
    def test_none(self):
        assert permuted_survivors([]) == []
        assert permuted_survivors(ENOUGH) == []
        assert permuted_survivors([row(permuted=0.9), row(floor=0.5)]) == []

    @pytest.mark.parametrize("permuted", [0.5, 0.7])
    def test_named(self, permuted):
        found = permuted_survivors([*ENOUGH, row(split="novel", floor=0.5, permuted=permuted)])
        assert found == [
            f"vqa/accuracy on novel reaches its floor with permuted images: {permuted:.3f} >= 0.500"
        ]


class TestRecordedFile:
    @pytest.fixture(autouse=True)
    def own_file(self, tmp_path, monkeypatch):
        monkeypatch.setattr(floors, "FLOORS_FILE", tmp_path / "floors.json")

    @pytest.fixture
    def runs(self, tmp_path):
        """Folders of four runs that differ in seed, the last one of another kind."""
        for seed, mode in enumerate(["fast", "fast", "fast", "default"]):
            folder = tmp_path / str(seed)
            folder.mkdir()
            entry = {"data": "scenes", "mode": mode, "seed": seed, "commit": "c", "machine": {}}
            entry["plan"] = {"train_images": 1}
            entry["rows"] = [dataclasses.asdict(row(model=seed / 10, permuted=0.05))]
            (folder / "rows.json").write_text(json.dumps(entry))
        return [str(tmp_path / str(seed)) for seed in range(4)]

    def test_absent(self):
        assert load_floors("scenes", "fast") == {}

    def test_written_and_read(self, runs):
        assert floors.main(runs[:3]) == 0
        assert load_floors("scenes", "fast") == {
            "vqa/accuracy/val": Seeds(values=[0.0, 0.1, 0.2], permuted=[0.05, 0.05, 0.05])
        }
        assert load_floors("scenes", "default") == {}
        assert load_floors("stamps", "fast") == {}

    def test_runs_of_another_machine_are_added(self, runs):
        assert floors.main(runs[:3]) == 0
        assert floors.main(["--add", *runs[:3]]) == 0
        seeds = load_floors("scenes", "fast")["vqa/accuracy/val"]
        assert seeds.values == [0.0, 0.1, 0.2] * 2
        assert seeds.permuted == [0.05] * 6
        entry = json.loads(floors.FLOORS_FILE.read_text())["scenes/fast"]
        assert [run["seed"] for run in entry["runs"]] == [0, 1, 2] * 2
        assert entry["plan"] == {"train_images": 1}
        assert floors.main(runs[:3]) == 0
        assert load_floors("scenes", "fast")["vqa/accuracy/val"].values == [0.0, 0.1, 0.2]

    @pytest.mark.parametrize("arguments", [[], ["--add"]])
    def test_runs_of_another_plan_are_refused(self, runs, arguments, capsys):
        assert floors.main(runs[:3]) == 0
        before = floors.FLOORS_FILE.read_text()
        path = Path(runs[2], "rows.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | {"plan": {"train_images": 2}}))
        assert floors.main([*arguments, *runs[:3]]) == 2
        assert capsys.readouterr().err == (
            f"{runs[2]}: expected the plan {{'train_images': 1}}, got {{'train_images': 2}}\n"
        )
        assert floors.FLOORS_FILE.read_text() == before

    def test_other_kinds_are_kept(self, runs):
        known = {"stamps/fast": {"values": {"a": [1.0]}}}
        floors.FLOORS_FILE.write_text(json.dumps(known))
        assert floors.main(runs[:3]) == 0
        assert load_floors("stamps", "fast") == {"a": Seeds(values=[1.0])}

    @pytest.mark.parametrize("which", [(0, 1), (0, 1, 1), (1, 2, 3)])
    def test_wrong_runs(self, runs, which, capsys):
        assert floors.main([runs[i] for i in which]) == 2
        assert "expected runs" in capsys.readouterr().err
        assert not floors.FLOORS_FILE.exists()


#: What every recorded run of the demo on scenes reached on val, by mode. Retrieval is among 500
#: pictures.
REACHED = {
    "default": {
        "phrases/any_recall_at_1": 0.85,
        "referring/accuracy_at_1": 0.68,
        "detection/ap50": 0.55,
        "matching/accuracy": 0.68,
        "retrieval/text_to_image_recall_at_10": 0.4,
        "vqa/accuracy": 0.38,
    },
    "fast": {"phrases/any_recall_at_1": 0.5, "referring/accuracy_at_1": 0.42},
}


class TestRecordedRunsOnScenes:
    @pytest.fixture(autouse=True)
    def real_file(self, monkeypatch):
        file = Path(floors.__file__).with_name("floors.json")
        monkeypatch.setattr(floors, "FLOORS_FILE", file)

    @pytest.mark.parametrize(
        ("mode", "metric"), [(mode, metric) for mode in REACHED for metric in REACHED[mode]]
    )
    def test_every_run_reached_it(self, mode, metric):
        values = load_floors("scenes", mode)[f"{metric}/val"].values
        assert len(values) >= 3
        assert min(values) >= REACHED[mode][metric]

    @pytest.mark.parametrize("metric", REACHED["default"])
    def test_new_combinations_cost_at_most_a_tenth(self, metric):
        recorded = load_floors("scenes", "default")
        val, novel = (recorded[f"{metric}/{split}"].values for split in ("val", "novel"))
        assert max(a - b for a, b in zip(val, novel, strict=True)) <= 0.1
