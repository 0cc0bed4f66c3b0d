"""Masks of boxes: readers, sampled prompts, packs, and the batches of the loader."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from fiber.data import (
    DataLoader,
    GroundingMasksBatch,
    ImageTransform,
    Record,
    Tokenizer,
    decode_masks,
    open_source,
    pack,
)
from fiber.data.fingerprint import fingerprint_of
from fiber.data.prompts.rules import PromptRules
from fiber.data.prompts.sampling import SampledPrompts
from fiber.data.storage.record_entry import from_entry, to_entry
from tests.data.masks.generated_masks import KINDS, png, records

TEXT = "a cat and the right dog"


def boxed(record: Record) -> Record:
    """Four boxes of which the second has no mask, and phrases that name the same masks."""
    height, width = record.image_size
    return dataclasses.replace(
        record,
        text=TEXT,
        boxes_xyxy=((0, 0, width, height), (2, 3, 20, 20), (5, 5, 9, 9), (1, 1, 21, 19)),
        char_spans=(((0, 5),), ((0, 5),), ((10, 23),), ((10, 23),)),
        box_labels=(0, 0, 1, 1),
        box_masks=(2, -1, 0, 2),
        phrases=("cat",) * 4,
        phrase_masks=((2,), (), (0,), (2,)),
    )


RECORDS = [boxed(record) for record in records(4 * len(KINDS))]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the left dog", TEXT] * 3, 300)


@pytest.mark.parametrize(
    "transform",
    [
        ImageTransform.squash(64),
        ImageTransform.shorter_side([30, 47], 90, flip_probability=0.5, divisor=16),
    ],
    ids=["squash", "shorter_side"],
)
def test_masks_of_boxes_are_those_of_phrases(tokenizer, transform):
    options = {"tokenizer": tokenizer, "transform": transform, "batch_size": 7, "max_tokens": 16}
    loaders = (DataLoader(RECORDS, kind, **options) for kind in ("grounding_masks", "segmentation"))
    for found, expected in zip(*loaders, strict=True):
        assert type(found) is GroundingMasksBatch
        assert torch.equal(found.images, expected.images)
        assert found.boxes_per_image.tolist() == [4] * len(found)
        assert torch.equal(found.box_masks, expected.phrase_masks)
        assert not found.box_masks[1::4].any()
        last = found.rows(slice(1, 3))
        assert torch.equal(last.box_masks, found.box_masks[4:12])


def test_a_box_without_tokens_takes_its_mask_along(tokenizer):
    transform = ImageTransform.squash(64)
    options = {"tokenizer": tokenizer, "transform": transform, "batch_size": 4}
    whole, cut = (
        next(iter(DataLoader(RECORDS, "grounding_masks", max_tokens=tokens, **options)))
        for tokens in (16, 5)
    )
    assert cut.boxes_per_image.tolist() == [2] * 4
    kept = [index for index in range(16) if index % 4 < 2]
    assert torch.equal(cut.box_masks, whole.box_masks[kept])


def test_records_without_masks_have_empty_ones(tokenizer):
    names = ("masks", "mask_labels", "mask_crowd", "box_masks", "phrases", "phrase_masks")
    own = [dataclasses.replace(record, **dict.fromkeys(names, ())) for record in RECORDS[:3]]
    transform = ImageTransform.squash(30)
    loader = DataLoader(
        own, "grounding_masks", tokenizer=tokenizer, transform=transform, batch_size=3, max_tokens=9
    )
    (batch,) = loader
    assert batch.box_masks.shape == (len(batch.boxes_xyxy), 30, 4)
    assert not batch.box_masks.any()


@pytest.mark.parametrize(
    ("box_masks", "message"),
    [
        ((0,), "box_masks has 1 entries for 4 boxes"),
        ((0, -2, 0, 0), "box_masks has -2; expected indices of"),
        ((0, 99, 0, 0), "box_masks has 99; expected indices of"),
    ],
)
def test_wrong_masks_of_boxes_are_named(box_masks, message):
    with pytest.raises(ValueError, match=rf"record '0'.*{message}"):
        dataclasses.replace(RECORDS[0], box_masks=box_masks)


def test_records_are_stored_and_told_apart():
    for record in RECORDS[: len(KINDS)]:
        entry = json.loads(json.dumps(to_entry(record)))
        assert from_entry(entry, record.images).box_masks == record.box_masks
    changed = dataclasses.replace(RECORDS[0], box_masks=(2, 0, 0, 2))
    assert fingerprint_of([changed]) != fingerprint_of(RECORDS[:1])


def test_sampled_prompts_keep_the_masks_of_their_boxes(tokenizer):
    own = []
    for record in RECORDS[: len(KINDS)]:
        fields = {"phrases": (), "phrase_masks": (), "labels": ("cat", "dog", "cup")}
        spans = {"label_spans": (((0, 3),), ((5, 8),), ((10, 13),)), "text": "cat. dog. cup"}
        spans["char_spans"] = tuple(spans["label_spans"][label] for label in record.box_labels)
        own.append(dataclasses.replace(record, **fields, **spans))
    rules = PromptRules(negative_chances=(0.0, 0.0, 0.0, 1.0))
    sampled = SampledPrompts(own, tokenizer, max_tokens=16, rules=rules)
    is_dropped = 0
    for epoch in range(6):
        for index, record in enumerate(own):
            found = sampled.in_epoch(epoch, index)
            is_dropped += len(found.boxes_xyxy) < len(record.boxes_xyxy)
            height, width = record.image_size
            before = decode_masks(record.masks, height, width)
            after = decode_masks(found.masks, height, width)
            assert len(found.box_masks) == len(found.boxes_xyxy)
            for box, mask in zip(found.boxes_xyxy, found.box_masks, strict=True):
                expected = record.box_masks[record.boxes_xyxy.index(box)]
                assert (mask == -1) == (expected == -1)
                if mask != -1:
                    assert (after[mask] == before[expected]).all()
                    # A mask of two boxes has the label of the first.
                    of_mask = [box for box, own in enumerate(found.box_masks) if own == mask]
                    assert found.mask_labels[mask] == found.box_labels[of_mask[0]]
    assert is_dropped


@pytest.fixture(scope="module")
def packed_scenes(small_scenes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pack") / "pack"
    pack(small_scenes, folder, splits=("train",))
    return folder


@pytest.mark.parametrize("source", ["referring", "phrases", "detection"])
def test_generated_scenes_have_masks_of_boxes(small_scenes, packed_scenes, source):
    found = open_source(source, small_scenes, "train", masks=True)
    without = open_source(source, small_scenes, "train")
    checked = 0
    for record, plain in zip(found, without, strict=True):
        assert not plain.masks
        assert not plain.box_masks
        fields = {"masks": (), "mask_labels": (), "mask_crowd": (), "box_masks": ()}
        assert dataclasses.replace(record, **fields) == plain
        masks = decode_masks(record.masks, *record.image_size)
        for (x0, y0, x1, y1), mask in zip(
            record.boxes_xyxy, record.box_masks or (-1,) * len(record.boxes_xyxy), strict=True
        ):
            if mask == -1:
                continue
            rows, columns = np.nonzero(masks[mask])
            # The visible part of what the box is around.
            assert x0 <= columns.min() <= columns.max() < x1
            assert y0 <= rows.min() <= rows.max() < y1
            checked += 1
    assert checked > 30
    packed = open_source(source, packed_scenes, "train", masks=True)
    assert [each.box_masks for each in packed] == [each.box_masks for each in found]
    assert [each.masks for each in packed] == [each.masks for each in found]
    assert not any(each.box_masks for each in open_source(source, packed_scenes, "train"))


def test_boxes_without_a_mask_are_counted(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(png(np.zeros((12, 16, 3), np.uint8)))
    entry = {"image_id": 1, "category_id": 1, "iscrowd": 0, "tokens_positive": [[0, 3]]}
    boxes = [
        {**entry, "id": 1, "bbox": [2, 3, 5, 5], "segmentation": [[2, 3, 7, 3, 7, 8]]},
        {**entry, "id": 2, "bbox": [1, 1, 4, 4]},
    ]
    image = {"id": 1, "file_name": "1.png", "height": 12, "width": 16, "caption": "dogs"}
    content = {
        "images": [{**image, "tokens_positive_eval": [[[0, 4]]]}],
        "annotations": boxes,
        "categories": [{"id": 1, "name": "object"}],
    }
    (tmp_path / "flickr_train.json").write_text(json.dumps(content))
    found = open_source("phrases", tmp_path, "train", masks=True)
    assert found[0].box_masks == (0, -1)
    assert found.counts == {"boxes without a mask": 1}
    boxes[0]["segmentation"] = "all"
    (tmp_path / "flickr_train.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="'segmentation' 'all'"):
        open_source("phrases", tmp_path, "train", masks=True)
    assert len(open_source("phrases", tmp_path, "train")) == 1
