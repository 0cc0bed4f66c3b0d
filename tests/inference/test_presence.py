"""Presence of phrases and classes, thresholds, negatives and overlaps between labels."""

import json
import shutil

import numpy as np
import pytest
import torch

import fiber
from fiber.cli import main
from fiber.data.prompts.classes import Prompt
from fiber.metrics.presence import PRESENCE_FILE, Calibration, Presence, to_json
from fiber.postprocess import FoundBoxes
from fiber.postprocess.decisions import Decision, ImagePrompts
from fiber.synthetic.scenes import generate
from tests.cli.output import error_line, lines

CURVE = {"slope": 2.0, "intercept": 1.0, "precision": 0.9, "recall": 0.8}
COUNTS = {"present": 100, "absent": 100}


def calibration(**changes):
    return Calibration(**CURVE | COUNTS | {"threshold": 0.05} | changes)


PRESENCE = Presence(
    phrase=calibration(), classes=calibration(threshold=0.1, per_label=0.5), data="x, val"
)
PHRASES = ["a red circle", "the star", "a ring"]


@pytest.fixture
def calibrated(fine, monkeypatch):
    monkeypatch.setattr(fine, "presence", PRESENCE)
    return fine


def every_box(fine, picture, phrases=PHRASES):
    return fine.ground(picture, phrases, score_threshold=0.0)


class TestPresence:
    def test_a_model_without_calibrations_has_none_and_says_so(self, fine, pictures):
        found = fine.ground(pictures[0], PHRASES)
        assert len(found) == 3 and found.presence is None and found.asked is None
        assert "absent" not in found.to_dict() and "presence" not in str(found)
        for ask, what in ((fine.ground, "phrases"), (fine.detect, "classes")):
            with pytest.raises(ValueError, match=f"no presence for {what}: it was not calibrated"):
                ask(pictures[0], PHRASES, presence_threshold=0.5)

    def test_every_phrase_has_one_from_its_best_score(self, fine, pictures, monkeypatch):
        plain = every_box(fine, pictures[0])
        monkeypatch.setattr(fine, "presence", PRESENCE)
        found = fine.ground(pictures[0], PHRASES, score_threshold=1.0)
        assert len(found) == 0 and found.asked == PHRASES
        order = np.argsort(plain.indices)
        expected = PRESENCE.phrase.presence(plain.scores[order])
        np.testing.assert_array_equal(found.presence, expected)
        again = fine.ground(pictures[0], PHRASES, boxes_per_phrase=3, score_threshold=0.0)
        np.testing.assert_array_equal(again.presence, expected)

    def test_classes_of_a_longer_prompt_have_another_map(self, calibrated, pictures):
        names = ["circle", "star", "ring"]
        settings = {"score_threshold": 0.0, "max_detections": 1}
        together = calibrated.detect(pictures[0], names, **settings)
        every = calibrated.detect(pictures[0], names, score_threshold=0.0, max_detections=10**5)
        best = [every.scores[every.indices == label].max() for label in range(3)]
        expected = PRESENCE.classes.presence(np.array(best), 3)
        # Also of classes whose boxes are beyond the limit.
        np.testing.assert_array_equal(together.presence, expected)
        assert len(together) == 1

    def test_default_thresholds_are_those_of_the_kind_of_prompt(self, fine, pictures, monkeypatch):
        plain = every_box(fine, pictures[0])
        middle = float(np.sort(plain.scores)[1])
        own = Presence(phrase=calibration(threshold=middle))
        monkeypatch.setattr(fine, "presence", own)
        assert sorted(fine.ground(pictures[0], PHRASES).scores) == sorted(
            score for score in plain.scores if score >= middle
        )
        # Captions and classes were not calibrated: no presence, and the thresholds as before.
        caption = fine.ground(pictures[0], PHRASES, caption="a red circle, the star, a ring")
        assert len(caption) == 3 and caption.presence is None
        assert fine.detect(pictures[0], ["star"]).presence is None
        with pytest.raises(ValueError, match="phrases of a caption"):
            fine.ground(pictures[0], caption="a star", presence_threshold=0.5)

    def test_a_minimum_drops_phrases_and_lists_them(self, calibrated, pictures):
        found = every_box(calibrated, pictures[0])
        values = found.presence
        least = float(np.sort(values)[1])
        kept = calibrated.ground(
            pictures[0], PHRASES, score_threshold=0.0, presence_threshold=least
        )
        assert set(kept.indices) == set(np.flatnonzero(values >= least))
        result = kept.to_dict()
        absent = [each["index"] for each in result["absent"]]
        assert absent == list(np.flatnonzero(values < least))
        for each in result["detections"] + result["absent"]:
            assert each["presence"] == pytest.approx(values[each["index"]], abs=1e-4)
        assert "(presence 0." in str(kept)

    @pytest.mark.parametrize("least", [-0.1, 1.5, float("nan")])
    def test_a_minimum_is_a_probability(self, calibrated, pictures, least):
        with pytest.raises(ValueError, match="presence_threshold must be between 0 and 1"):
            calibrated.ground(pictures[0], PHRASES, presence_threshold=least)


def boxes(*rows):
    """Boxes of (x, score, label), 10 pixels wide, best first."""
    ordered = sorted(rows, key=lambda row: -row[1])
    places = [[x, 0.0, x + 10.0, 10.0] for x, _, _ in ordered]
    scores, labels = [row[1] for row in ordered], [row[2] for row in ordered]
    return FoundBoxes(torch.tensor(places), torch.tensor(scores), torch.tensor(labels))


def decided(found, asked, labels, **options):
    """The (x, label) of answers, for prompts of one label each."""
    prompts = [Prompt("a", ("a",), (((0, 1),),), number) for number in range(labels)]
    settings = {"kind": "phrase", "presence": None, "score": 0.0} | options
    kept, _, _ = Decision(**settings).decide(found, ImagePrompts(prompts, asked))
    return [
        (float(box[0]), int(label))
        for box, label in zip(kept.boxes_xyxy, kept.label_indices, strict=True)
    ]


class TestNegatives:
    def test_no_box_and_no_negative(self):
        nothing = FoundBoxes(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
        assert decided(nothing, 1, 2) == []
        assert decided(boxes((0.0, 0.5, 0)), 1, 1) == [(0.0, 0)]

    def test_a_region_that_fits_a_negative_better_is_dropped(self):
        found = boxes((0.0, 0.8, 0), (1.0, 0.9, 1), (50.0, 0.3, 0), (51.0, 0.2, 1))
        assert decided(found, 1, 2) == [(50.0, 0)]
        # The next region is the answer, if there may be only one.
        assert decided(found, 1, 2, boxes_per_phrase=1) == [(50.0, 0)]
        apart = boxes((0.0, 0.8, 0), (4.0, 0.9, 1))
        assert decided(apart, 1, 2) == [(0.0, 0)]

    def test_values_of_other_kinds_of_prompts_are_compared_after_calibration(self):
        found = boxes((0.0, 0.5, 0), (0.0, 0.6, 1))
        weak = calibration(intercept=-4.0)
        options = {"kind": "caption", "presence": Presence(phrase=weak, caption=calibration())}
        assert decided(found, 1, 2) == []
        assert decided(found, 1, 2, **options) == [(0.0, 0)]

    def test_a_model_drops_what_a_negative_fits_as_well(self, fine, pictures):
        plain = fine.ground(pictures, [PHRASES] * len(pictures))
        none = fine.ground(pictures, [PHRASES] * len(pictures), negatives=["a purple heart"])
        assert all(set(own.labels) <= set(PHRASES) for own in none)
        assert all(len(own) <= len(other) for own, other in zip(none, plain, strict=True))
        # A phrase and its negative have the same boxes, and none is better.
        same = fine.ground(pictures[0], ["a star"], negatives="a star")
        assert len(same) == 1
        classes = fine.detect(pictures[0], ["star"], negatives=["ring"], score_threshold=0.0)
        assert set(classes.labels) <= {"star"}

    @pytest.mark.parametrize(
        ("given", "error"),
        [([], ValueError), ([["a"]], ValueError), ([""], ValueError), (3, TypeError)],
    )
    def test_negatives_are_texts(self, fine, pictures, given, error):
        for ask in (fine.ground, fine.detect):
            with pytest.raises(error):
                ask(pictures[0], ["a star"], negatives=given)


class TestOverlaps:
    def test_labels_of_the_same_region_are_kept_unless_asked(self):
        found = boxes((0.0, 0.8, 0), (0.5, 0.7, 1), (50.0, 0.6, 1))
        assert decided(found, 2, 2) == [(0.0, 0), (0.5, 1), (50.0, 1)]
        assert decided(found, 2, 2, class_agnostic=True) == [(0.0, 0), (50.0, 1)]
        assert decided(found, 2, 2, class_agnostic=True, nms=0.95) == decided(found, 2, 2)

    def test_the_option_is_true_or_false(self, fine, pictures):
        with pytest.raises(TypeError, match="class_agnostic must be True or False, got 1"):
            fine.ground(pictures[0], ["a star"], class_agnostic=1)


class TestFiles:
    @pytest.fixture
    def folder(self, micro_models, tmp_path):
        copy = shutil.copytree(micro_models["fine"], tmp_path / "model")
        (copy / PRESENCE_FILE).write_text(json.dumps(to_json(PRESENCE)))
        return copy

    def test_calibrations_are_read_and_saved_again(self, folder, tmp_path):
        model = fiber.load(folder, device="cpu")
        assert model.presence == PRESENCE
        model.save(tmp_path / "again")
        assert fiber.load(tmp_path / "again", device="cpu").presence == PRESENCE
        shutil.copytree(folder, tmp_path / "staged" / "fine")
        assert fiber.load(tmp_path / "staged", device="cpu").presence == PRESENCE

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            ("{", "not valid JSON"),
            ("[]", "'fiber presence'"),
            ('{"kind": "fiber presence", "version": 1, "phrase": 3}', "phrase: expected"),
            ('{"kind": "fiber presence", "version": 1, "more": 3}', "unknown field 'more'"),
            (" " * 70_000, "65,?536"),
        ],
    )
    def test_a_damaged_file_is_named(self, folder, content, says):
        (folder / PRESENCE_FILE).write_text(content)
        with pytest.raises(ValueError, match=f"{PRESENCE_FILE}.*{says}"):
            fiber.load(folder, device="cpu")


class TestCommands:
    def test_ground_prints_what_is_not_there(self, micro_models, scene_picture, tmp_path, capsys):
        model = shutil.copytree(micro_models["fine"], tmp_path / "model")
        own = Presence(phrase=calibration(threshold=0.999))
        (model / PRESENCE_FILE).write_text(json.dumps(to_json(own)))
        asked = ["ground", str(scene_picture), "--model", str(model), "--phrases", "a star; a ring"]
        assert main(asked) == 0
        (found,) = lines(capsys)
        assert found["detections"] == [] and len(found["absent"]) == 2
        everything = ["--threshold", "0", "--presence", "0", "--negatives", "a heart"]
        assert main([*asked, *everything, "--class-agnostic"]) == 0
        (found,) = lines(capsys)
        assert all(0 <= each["presence"] <= 1 for each in found["detections"])

    def test_a_minimum_needs_a_calibration(self, micro_models, scene_picture, capsys):
        model = str(micro_models["fine"])
        asked = ["ground", str(scene_picture), "--model", model, "--phrases", "a star"]
        assert main([*asked, "--presence", "0.5"]) == 2
        assert "fiber calibrate" in error_line(capsys)

    def test_a_model_is_calibrated_on_its_data(self, tmp_path, capsys):
        words = fiber.load("scenes/fine", device="cpu").origin.path / "tokenizer.json"
        counts = {"train": 0, "val": 150, "novel": 0}
        data = generate(tmp_path / "data", **counts, varied=True, tokenizer=words)
        asked = ["calibrate", "scenes", "--data", str(data), "--records", "40"]
        assert main([*asked, "--output", str(tmp_path / "out")]) == 0
        metrics = lines(capsys)[0]
        for kind in ("phrase", "caption", "classes"):
            assert metrics[f"{kind}/auroc"] > 0.9, kind
            assert 0 < metrics[f"{kind}/threshold"] < 1
        found = fiber.load(tmp_path / "out", device="cpu")
        assert found.presence.data == "data, val"
        assert found.presence.phrase.threshold == metrics["phrase/threshold"]
        # Without a folder to write to, the package stays as it is.
        assert main([*asked, "--records", "30"]) == 2
        assert "expected --output DIR" in capsys.readouterr().err

    def test_scores_that_tell_nothing_are_not_calibrated(self, micro_models, small_scenes, capsys):
        asked = ["calibrate", str(micro_models["fine"]), "--data", str(small_scenes)]
        assert main([*asked, "--records", "0"]) != 0
        capsys.readouterr()
        assert main([*asked, "--records", "8"]) == 2
        assert "nothing to calibrate on" in capsys.readouterr().err
