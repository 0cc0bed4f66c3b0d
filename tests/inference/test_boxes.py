import numpy as np
import pytest
import torch
from PIL import Image

import fiber
from fiber.data.prompts.classes import class_prompts
from fiber.postprocess import ground_phrases

from .by_hand import tensors

pytestmark = pytest.mark.oldest


class TestGround:
    def test_no_picture(self, fine):
        assert fine.ground([], ["dog"]) == []

    def test_equals_the_model_itself(self, fine, pictures):
        texts = ["a red circle", "the square"]
        found = fine.ground(pictures[1], texts, boxes_per_phrase=3)
        for number, text in enumerate(texts):
            images, ids, mask, size, offsets = tensors(fine, pictures[1], text)
            with torch.no_grad():
                output = fine.network(images, ids, mask)
            # <s> and </s> have empty spans.
            tokens = [[i for i, (start, end) in enumerate(offsets) if end > start]]
            (expected,) = ground_phrases(
                output, [tokens], [size], [(70, 90)], boxes_per_phrase=3, score_threshold=0.0
            )
            mine = found.indices == number
            assert mine.sum() == len(expected.scores) > 1
            # Two orders of the same float32 sums.
            np.testing.assert_allclose(found.boxes_xyxy[mine], expected.boxes_xyxy, atol=1e-3)
            np.testing.assert_allclose(found.scores[mine], expected.scores, atol=1e-5)
        assert list(found.scores) == sorted(found.scores, reverse=True)
        assert found.image_size == (70, 90)

    def test_a_list_gives_what_single_pictures_give(self, fine, pictures):
        together = fine.ground(pictures, ["a red circle", "dog"])
        assert isinstance(together, list)
        for picture, found in zip(pictures, together, strict=True):
            alone = fine.ground(picture, ["a red circle", "dog"])
            assert found.labels == alone.labels
            assert found.image_size == picture.shape[:2]
            np.testing.assert_allclose(found.boxes_xyxy, alone.boxes_xyxy, atol=1e-3)

    def test_a_phrase_does_not_depend_on_the_others(self, fine, pictures):
        alone = fine.ground(pictures[0], "the square")
        among = fine.ground(pictures[0], ["dog", "the square", "circle"])
        place = among.labels.index("the square")
        assert among.indices[place] == 1
        np.testing.assert_allclose(among.scores[place], alone.scores[0], atol=1e-5)

    def test_a_description_is_scored_by_the_thing_it_describes(self, fine, pictures):
        text = "dog left of the cup"
        found = fine.ground(pictures[0], text)
        assert found.labels == [text]
        images, ids, mask, size, offsets = tensors(fine, pictures[0], text)
        with torch.no_grad():
            output = fine.network(images, ids, mask)
        dog = [i for i, (start, end) in enumerate(offsets) if start < end <= len("dog")]
        (expected,) = ground_phrases(output, [[dog]], [size], [(64, 64)])
        assert found.scores[0] == pytest.approx(expected.scores[0].item(), abs=1e-5)

    def test_a_list_of_phrases_for_each_picture(self, fine, pictures):
        first, second = fine.ground(pictures[:2], [["dog"], ["circle", "square"]])
        assert first.labels == ["dog"]
        assert sorted(second.labels) == ["circle", "square"]

    def test_a_caption(self, fine, pictures):
        found = fine.ground(pictures[0], caption="a dog on a cup")
        assert sorted(zip(found.indices, found.labels, strict=True)) == [(0, "a dog"), (1, "a cup")]
        found = fine.ground(pictures[0], ["cup"], caption="a dog on a cup")
        assert found.labels == ["cup"]

    def test_pictures_of_every_kind_are_the_same(self, fine, pictures, tmp_path):
        path = tmp_path / "picture.png"
        Image.fromarray(pictures[0]).save(path)
        opened = Image.open(path)
        kinds = [path, str(path), path.read_bytes(), opened, opened.convert("RGBA"), pictures[0]]
        found = fine.ground(kinds, "dog")
        for each in found[1:]:
            np.testing.assert_array_equal(each.boxes_xyxy, found[0].boxes_xyxy)

    def test_saved_picture_shows_the_boxes(self, fine, pictures, tmp_path):
        fine.ground(pictures[1], ["dog"]).save(tmp_path / "annotated.png")
        drawn = np.asarray(Image.open(tmp_path / "annotated.png"))
        assert drawn.shape[0] % 70 == drawn.shape[1] % 90 == 0

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({}, "expected phrases, a caption or both"),
            ({"phrases": []}, "expected a list of one or more"),
            ({"phrases": ["dog", " "]}, r"phrase 1.*empty"),
            ({"phrases": ["dog"], "spans": [(0, 1)]}, "spans.*caption.*without phrases"),
            ({"spans": [(0, 1)]}, "spans.*caption.*without phrases"),
            ({"caption": "a dog", "phrases": ["dog"], "spans": [(0, 1)]}, "spans.*without phrases"),
            ({"caption": ""}, r"caption 0.*empty"),
            ({"caption": "of the"}, "no noun phrase"),
            ({"phrases": ["cat"], "caption": "a dog"}, "'cat'"),
            ({"phrases": ["cat"], "score_threshold": -0.1}, "score_threshold.*-0.1"),
            ({"phrases": ["cat"], "boxes_per_phrase": 0}, "boxes_per_phrase"),
            ({"phrases": ["cat"], "max_detections": 0}, "max_detections"),
        ],
    )
    def test_wrong_arguments(self, fine, pictures, arguments, message):
        with pytest.raises(ValueError, match=message):
            fine.ground(pictures[0], **arguments)

    def test_wrong_pictures(self, fine, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"none\.jpg"):
            fine.ground(tmp_path / "none.jpg", "dog")
        (tmp_path / "words.jpg").write_text("words")
        with pytest.raises(fiber.DecodeError, match=r"words\.jpg"):
            fine.ground([tmp_path / "words.jpg"], "dog")
        with pytest.raises(ValueError, match=r"\(4, 4, 3\).*float64"):
            fine.ground(np.zeros((4, 4, 3)), "dog")

    def test_a_text_that_is_too_long_is_named(self, fine, pictures):
        with pytest.warns(UserWarning, match="16 tokens"):
            fine.ground(pictures[0], "a dog " * 30)


class TestDetect:
    def test_no_picture(self, fine):
        assert fine.detect([], ["dog"]) == []

    def test_nothing_above_the_threshold(self, fine, pictures):
        found = fine.detect(pictures[0], ["dog"], score_threshold=1)
        assert len(found) == 0
        assert found.boxes_xyxy.shape == (0, 4)

    def test_classes_beyond_the_longest_text(self, fine, pictures):
        names = [f"{color} {shape}" for color in ("red", "blue", "zinc") for shape in "abcdef"]
        found = fine.detect(pictures[0], names, score_threshold=0, max_detections=10_000)
        assert set(found.indices) == set(range(len(names)))
        assert all(names[i] == label for i, label in zip(found.indices, found.labels, strict=True))
        # What does not fit goes into a text of its own, and is found as if it were alone.
        *_, last = class_prompts(names, fine.tokenizer, fine.config.max_tokens)
        assert last.first_label > 0
        alone = fine.detect(pictures[0], list(last.labels), score_threshold=0, max_detections=5000)
        behind = found.indices >= last.first_label
        np.testing.assert_allclose(found.scores[behind], alone.scores, atol=1e-5)

    def test_the_threshold_and_the_count(self, fine, pictures):
        every = fine.detect(pictures[0], ["dog", "cat"], score_threshold=0, max_detections=1000)
        assert list(every.scores) == sorted(every.scores, reverse=True)
        middle = float(np.median(every.scores))
        above = fine.detect(pictures[0], ["dog", "cat"], score_threshold=middle)
        assert len(above) == min(100, (every.scores >= middle).sum())
        few = fine.detect(pictures[0], ["dog", "cat"], score_threshold=0, max_detections=3)
        np.testing.assert_allclose(few.scores, every.scores[:3], atol=1e-6)


def test_a_real_photograph(fine):
    data = pytest.importorskip("skimage.data")
    found = fine.ground(data.astronaut(), ["the flag", "the helmet"])
    assert sorted(found.labels) == ["the flag", "the helmet"]
    assert found.image_size == (512, 512)


@pytest.mark.parametrize(
    ("option", "value", "error", "message"),
    [
        ("score_threshold", "high", TypeError, r"score_threshold.*0.*1"),
        ("nms_threshold", 1.5, ValueError, r"nms_threshold.*0.*1.*1.5"),
        ("nms_threshold", float("nan"), ValueError, r"nms_threshold.*0.*1.*nan"),
        ("max_detections", 1.5, TypeError, r"max_detections.*1.5"),
        ("max_detections", 0, ValueError, r"max_detections.*1.*0"),
        ("boxes_per_phrase", "2", TypeError, r"boxes_per_phrase.*integer"),
    ],
)
def test_wrong_limits_are_named(fine, pictures, option, value, error, message):
    with pytest.raises(error, match=message):
        fine.ground(pictures[0], ["a dog"], **{option: value})
