"""Which images are shown: the first ones in file order, by rules."""

import dataclasses
import json

import pytest

from fiber.checkpoints.model_dir import load_model
from fiber.data import sources
from fiber.data.record import Record
from fiber.demo import examples
from fiber.demo.examples import (
    Example,
    PredictedBox,
    find_examples,
    from_json,
    split_by_score,
    to_json,
    two_targets,
)

RIGHT = PredictedBox(text="a", box_xyxy=(0, 0, 10, 10), truths_xyxy=[(0, 0, 10, 9)])
WRONG = PredictedBox(text="a", box_xyxy=(0, 0, 10, 10), truths_xyxy=[(20, 20, 30, 30)])


class TestPredictedBox:
    def test_no_box(self):
        assert PredictedBox(text="a", box_xyxy=None, truths_xyxy=[(0, 0, 1, 1)]).iou == 0

    def test_the_nearest_of_several(self):
        truths = [(50, 50, 60, 60), (0, 0, 10, 5), (0, 0, 10, 9)]
        box = PredictedBox(text="a", box_xyxy=(0, 0, 10, 10), truths_xyxy=truths)
        assert box.iou == pytest.approx(0.9)

    def test_found(self):
        assert RIGHT.is_found
        assert not WRONG.is_found


class TestExample:
    def test_everything_must_be_right(self):
        example = Example(image="a", split="val", boxes=[RIGHT, RIGHT], answer="no", truth="no")
        assert example.is_right
        assert not dataclasses.replace(example, boxes=[RIGHT, WRONG]).is_right
        assert not dataclasses.replace(example, answer="yes").is_right

    def test_hits_and_misses_keep_their_order(self):
        assert split_by_score([]) == ([], [])
        shown = [
            Example(image=str(i), split="val", boxes=[RIGHT if i in (1, 3, 5, 6) else WRONG])
            for i in range(8)
        ]
        hits, misses = split_by_score(shown, 3)
        assert [example.image for example in hits] == ["1", "3", "5"]
        assert [example.image for example in misses] == ["0", "2", "4"]


def expression(text, box):
    return Record(key=text, images=("a.jpg",), text=text, boxes_xyxy=(box,))


class TestTwoTargets:
    def test_one_target(self):
        assert two_targets([expression("a", (0, 0, 1, 1))]) is None
        same = [expression("a", (0, 0, 1, 1)), expression("b", (0, 0, 1, 1))]
        assert two_targets(same) is None

    def test_the_first_other_target(self):
        first, same = expression("a", (0, 0, 1, 1)), expression("b", (0, 0, 1, 1))
        other, third = expression("c", (5, 5, 6, 6)), expression("d", (7, 7, 9, 9))
        assert two_targets([first, same, other, third]) == (first, other)


@pytest.fixture(scope="module")
def found(finished):
    models = {stage: load_model(finished / stage) for stage in ("coarse", "fine")}
    return find_examples(finished / "data", **models)


class TestFindExamples:
    @pytest.mark.slow
    def test_images_are_asked_twice_in_file_order(self, found, finished):
        for own in found.twice:
            images = {}
            for record in sources.referring(finished / "data", own.split):
                images.setdefault(record.image_id, []).append(record)
            pairs = [pair for pair in map(two_targets, images.values()) if pair]
            assert own.count == len(pairs) > 0
            related = [[r for r in records if r.group == "relation"] for records in images.values()]
            relations = [pair for pair in map(two_targets, filter(None, related)) if pair][:2]
            assert len(own.shown) == min(2, len(pairs))
            assert len(own.relations) == len(relations)
            both = zip(own.relations, relations, strict=True)
            shown = [*zip(own.shown, pairs, strict=False), *both]
            for example, pair in shown:
                assert str(finished / "data" / example.image) == pair[0].images[0]
                assert [box.text for box in example.boxes] == [record.text for record in pair]
                truths = [list(box.truths_xyxy[0]) for box in example.boxes]
                assert truths == [list(record.boxes_xyxy[0]) for record in pair]
                assert truths[0] != truths[1]

    def test_chance_to_find_both(self, found):
        """There are two or three objects, so picking any finds both in a quarter or a ninth."""
        for own in found.twice:
            assert own.count / 9 <= own.by_chance <= own.count / 4
            assert 0 <= own.both_found <= own.count

    def test_hits_and_misses(self, found):
        scored = found.scored
        assert scored.split == "novel"
        assert scored.count == 20
        assert len(scored.hits) == min(scored.right, 4)
        assert len(scored.misses) == min(scored.count - scored.right, 4)
        assert all(example.is_right for example in scored.hits)
        assert not any(example.is_right for example in scored.misses)
        shown = [example.image for example in scored.misses]
        assert shown == sorted(shown)

    def test_not_more_images_than_stated(self, finished, monkeypatch):
        monkeypatch.setattr(examples, "LOOKED_AT", 2)
        models = {stage: load_model(finished / stage) for stage in ("coarse", "fine")}
        found = find_examples(finished / "data", **models)
        assert [own.count for own in found.twice] == [2, 2]
        assert found.scored.count == 2

    def test_json(self, found):
        assert from_json(json.loads(json.dumps(to_json(found)))) == found
