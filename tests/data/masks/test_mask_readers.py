"""Readers of masks: COCO panoptic, instances and expressions, ADE20K; packs, reports, sheets."""

import copy
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from fiber.cli import main
from fiber.data import (
    DataLoader,
    IdMap,
    ImageTransform,
    Polygons,
    Rle,
    Tokenizer,
    decode_masks,
    open_source,
    pack,
)
from fiber.data.fingerprint import fingerprint_of
from fiber.data.storage.record_entry import from_entry, to_entry
from fiber.data.tools.discover import parts_of
from fiber.data.tools.inspect import inspect
from tests.data.masks.generated_masks import KINDS, png, records

SIZE = {"height": 12, "width": 16}
IMAGES = [{"id": n, "file_name": f"{n}.png", **SIZE} for n in (1, 2, 3)]
CATEGORIES = [
    {"id": 7, "name": "dog", "isthing": 1},
    {"id": 4, "name": "sky", "isthing": 0},
    {"id": 9, "name": "cat", "isthing": 1},
]
RLE = {"counts": [0, 24, 168], "size": [12, 16]}
RING = [2, 3, 9.5, 3, 9, 8.5]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for entry in IMAGES:
        pixels = np.random.default_rng(entry["id"]).integers(0, 256, (12, 16, 3))
        (tmp_path / "images" / entry["file_name"]).write_bytes(png(pixels.astype(np.uint8)))
    return tmp_path


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def ids_png(ids):
    return png(np.stack([ids % 256, ids // 256, ids * 0], -1).astype(np.uint8))


def panoptic_content():
    def segment(number, category, **more):
        return {"id": number, "category_id": category, "iscrowd": 0, **more}

    return {
        "images": IMAGES,
        "categories": CATEGORIES,
        "annotations": [
            {
                "image_id": 1,
                "file_name": "1.png",
                "segments_info": [segment(300, 7), segment(5, 4), segment(8, 9, iscrowd=1)],
            },
            {"image_id": 2, "file_name": "2.png", "segments_info": []},
        ],
    }


@pytest.fixture
def panoptic(folder):
    write(folder / "panoptic_train.json", panoptic_content())
    (folder / "panoptic_train").mkdir()
    ids = np.zeros((12, 16), int)
    ids[2:5, 3:9], ids[6:, :], ids[0, 0] = 300, 5, 8
    (folder / "panoptic_train" / "1.png").write_bytes(ids_png(ids))
    (folder / "panoptic_train" / "2.png").write_bytes(ids_png(ids * 0))
    return folder


def test_panoptic(panoptic):
    found = open_source("panoptic", panoptic, "train")
    assert found.counts == {"pictures without segments": 1}
    first, second = found
    # By id.
    assert first.labels == found.classes == ("sky", "dog", "cat")
    assert first.label_ids == (4, 7, 9) and first.label_groups == ("stuff", "thing", "thing")
    assert first.key == "panoptic_train/1" and first.image_size == (12, 16)
    assert first.masks == IdMap(str(panoptic / "panoptic_train" / "1.png"), (300, 5, 8))
    assert first.mask_labels == (1, 0, 2) and first.mask_crowd == (False, False, True)
    assert second.masks.ids == () and second.mask_crowd == ()
    assert decode_masks(first.masks, 12, 16).sum((1, 2)).tolist() == [18, 96, 1]
    loader = DataLoader(
        found,
        "segmentation",
        tokenizer=Tokenizer.train(["a"], 262),
        transform=ImageTransform.squash(12),
        batch_size=2,
        max_tokens=8,
    )
    (batch,) = loader.epoch()
    assert batch.masks_per_image.tolist() == [2, 0] and batch.mask_labels.tolist() == [1, 0]
    # COCO's own layout.
    for name in ("panoptic_train.json", "panoptic_train"):
        year = name.replace("train", "train2017")
        (panoptic / "annotations").mkdir(exist_ok=True)
        (panoptic / name).rename(panoptic / "annotations" / year)
    (panoptic / "images").rename(panoptic / "train2017")
    again = open_source("panoptic", panoptic, "train")
    assert again[0].key == "panoptic_train2017/1" and len(again) == 2
    path = panoptic / "annotations" / "panoptic_train2017.json"
    assert [part.source for part in parts_of(path)] == ["panoptic"]
    assert open_source("panoptic", path, "train")[0].masks == again[0].masks


def change(content, *keys, value):
    content = copy.deepcopy(content)
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    return content


FIRST = ("annotations", 0, "segments_info", 0)


@pytest.mark.parametrize(
    ("keys", "value", "problem"),
    [
        ((*FIRST, "id"), 0, r"annotations\[0\] has a segment with id 0"),
        ((*FIRST, "id"), 2**24, "segment with id 16777216; expected 1 to"),
        ((*FIRST, "id"), 5, "two segments with id 5"),
        ((*FIRST, "category_id"), 3, "category_id 3, which is not in 'categories'"),
        (("annotations", 0, "segments_info"), [3], "has 3 in 'segments_info'"),
        (("annotations", 0, "image_id"), 9, "image_id 9, which is not in 'images'"),
        (("annotations", 1, "image_id"), 1, r"annotations\[1\] has image_id 1, as"),
        (("annotations", 0, "file_name"), "a\0b", "NUL"),
        (("categories", 0, "isthing"), 2, "'isthing' 2; expected 1"),
    ],
)
def test_bad_panoptic_files(panoptic, keys, value, problem):
    path = write(panoptic / "panoptic_train.json", change(panoptic_content(), *keys, value=value))
    with pytest.raises(ValueError, match=problem) as caught:
        open_source("panoptic", panoptic, "train")
    assert str(path) in str(caught.value)


def test_a_missing_folder_of_maps(panoptic):
    (panoptic / "panoptic_train").rename(panoptic / "maps")
    with pytest.raises(FileNotFoundError, match=r"the 2 maps, such as '1\.png'"):
        open_source("panoptic", panoptic, "train")


def instances_content():
    def box(number, image, **more):
        own = {"bbox": [2, 3, 8, 6], "area": 9, "iscrowd": 0, "category_id": 7}
        return {"id": number, "image_id": image, **own, **more}

    return {
        "images": IMAGES,
        "categories": CATEGORIES,
        "annotations": [
            box(1, 1, segmentation=[RING]),
            box(2, 1, segmentation=RLE, iscrowd=1, category_id=9),
            box(3, 2, segmentation={"counts": "0h0X5", "size": [12, 16]}),
            box(4, 2, segmentation=[]),
        ],
    }


def test_instances(folder):
    write(folder / "instances_train.json", instances_content())
    first, second, third = found = open_source("instances", folder, "train")
    assert found.counts == {"crowd boxes": 1, "objects without a mask": 1}
    assert first.masks == (Polygons((tuple(map(float, RING)),)), Rle((0, 24, 168), (12, 16)))
    assert first.mask_labels == (1, 2) and first.mask_crowd == (False, True)
    assert len(first.boxes_xyxy) == 1 and third.masks == ()
    assert second.masks == (Rle("0h0X5", (12, 16)),)
    # Boxes alone do not read masks.
    plain = open_source("detection", folder, "train")
    assert plain[0].masks == () and plain[0].boxes_xyxy == first.boxes_xyxy
    assert "objects without a mask" not in plain.counts


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("a", "'segmentation' 'a'; expected polygons"),
        ([3], "a polygon 3; expected a list of numbers"),
        ([["a"]], "a polygon .*'a'"),
        ([[10**400]], "a polygon"),
        ({"counts": [1]}, "'segmentation'"),
        ({"counts": [1], "size": [1]}, "'segmentation'"),
        ({"counts": [1.5], "size": [1, 1]}, "'counts'"),
        ({"counts": 3, "size": [1, 1]}, "'segmentation'"),
    ],
)
def test_bad_segmentations(folder, value, problem):
    content = change(instances_content(), "annotations", 1, "segmentation", value=value)
    path = write(folder / "instances_train.json", content)
    with pytest.raises(ValueError, match=rf"annotations\[1\] has .*{problem}") as caught:
        open_source("instances", folder, "train")
    assert str(path) in str(caught.value)
    assert len(open_source("detection", folder, "train")) == 3


def expressions_content():
    content = instances_content()
    first, second, third, _ = content["annotations"]
    first["sentences"] = [{"sent_id": 3, "sent": "the dog"}, {"raw": "two pets"}]
    second["sentences"] = [{"sent_id": 3, "sent": "the dog"}, {"sent_id": 4, "sent": "the dog"}]
    third["sentences"] = []
    return content


def test_masks_of_expressions(folder):
    write(folder / "expression_masks_train.json", expressions_content())
    (record,) = found = open_source("expression_masks", folder, "train")
    assert found.counts == {"pictures without phrases": 2}
    assert record.phrases == ("the dog", "two pets", "the dog")
    assert record.phrase_masks == ((0, 1), (0,), (1,)) and len(record.masks) == 2
    content = expressions_content()
    content["annotations"][0]["segmentation"] = []
    write(folder / "expression_masks_train.json", content)
    with pytest.raises(ValueError, match=r"annotations\[0\] has 'sentences' but no"):
        open_source("expression_masks", folder, "train")
    write(
        folder / "expression_masks_train.json",
        change(expressions_content(), "annotations", 0, "sentences", 0, value={"sent": " "}),
    )
    with pytest.raises(ValueError, match=r"annotations\[0\] has an empty 'sent'"):
        open_source("expression_masks", folder, "train")


def references_content():
    """REFER's references of three objects, which `instances_content` has: two splits."""
    return [
        {"ann_id": 1, "split": "train", "sentences": [{"sent": "the dog", "raw": "The dog."}]},
        {"ann_id": 2, "split": "testA", "sentences": [{"sent": "left"}, {"raw": "the cat"}]},
        {"ann_id": 3, "split": "train", "sentences": [{"sent": "a dog", "sent_id": 5}]},
    ]


def write_references(folder, content, protocol=0):
    write(folder / "instances.json", instances_content())
    path = folder / "refs(unc).p"
    path.write_bytes(pickle.dumps(content, protocol))
    return path


# The published files have protocol 0.
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_files_of_refer(folder, protocol):
    path = write_references(folder, references_content(), protocol)
    for data in (folder, path):
        first, second = open_source("expression_masks", data, "train")
        assert (first.phrases, second.phrases) == (("the dog",), ("a dog",))
        assert first.phrase_masks == ((0,),)
        assert first.masks == (Polygons((tuple(map(float, RING)),)),)
        (other,) = open_source("expression_masks", data, "testA")
        assert other.phrases == ("left", "the cat") and other.phrase_masks == ((0,), (0,))
        assert other.masks == (Rle((0, 24, 168), (12, 16)),)
        found = {(part.source, part.split) for part in parts_of(data)}
        assert {("expression_masks", "train"), ("expression_masks", "testA")} <= found
    with pytest.raises(FileNotFoundError, match=r"for split 'val'; available.*testA, train"):
        open_source("expression_masks", path, "val")


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [
        ((0, "ann_id"), 9, r"refs\(unc\)\.p: .*train name the objects 9, which .*instances\.json"),
        ((0, "ann_id"), "1", r"references\[0\] has 'ann_id' '1'; expected int"),
        ((1, "split"), "a/b", r"references\[1\] has split 'a/b'"),
        ((1, "sentences"), "left", r"references\[1\] has 'sentences' 'left'; expected list"),
        ((1, "sentences", 0), "left", r"references\[1\] has 'left' in 'sentences'"),
        ((1, "sentences", 0, "sent"), " ", r"references\[1\] has an empty 'sent'"),
        ((1, "sentences", 0, "sent"), "a" * 5000, r"'sent' of 5,000 characters"),
        ((1, "sentences"), [{"sent": "a"}] * 1001, r"1,001 'sentences'"),
        ((2,), 3, r"references\[2\] must be a JSON object, got 3"),
    ],
)
def test_bad_references(folder, place, value, problem):
    write_references(folder, change(references_content(), *place, value=value))
    with pytest.raises(ValueError, match=problem):
        open_source("expression_masks", folder, "train")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"cposix\nsystem\n(S'true'\ntR.", "tries to run code when loaded"),
        (b"(lp0", r"refs\(unc\)\.p is no pickle"),
        (b"I3\n.", r"refs\(unc\)\.p has 3; expected a list"),
        (b"(l.", r"refs\(unc\)\.p has \[\]; expected a list"),
    ],
)
def test_pickles_that_are_no_references(folder, content, problem):
    write_references(folder, []).write_bytes(content)
    with pytest.raises(ValueError, match=problem):
        open_source("expression_masks", folder, "train")


TABLE = "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t.2\t9\t9\t1\twall\n2\t.1\t9\t9\t0\tlamp, light\n"


@pytest.fixture
def ade(tmp_path):
    (tmp_path / "objectInfo150.txt").write_text(TABLE)
    for name in ("images", "annotations"):
        (tmp_path / name / "training").mkdir(parents=True)
    Image.new("RGB", (6, 4)).save(tmp_path / "images" / "training" / "a.jpg")
    labels = np.array([[0, 0, 1, 1, 1, 1]] * 4, np.uint8)
    (tmp_path / "annotations" / "training" / "a.png").write_bytes(png(labels))
    return tmp_path


def test_ade20k(ade):
    (record,) = open_source("label_maps", ade, "train")
    assert record.labels == ("wall", "lamp") and record.label_groups == ("stuff", "thing")
    assert record.masks.may_lack and record.masks.ids == (1, 2) == record.label_ids
    assert [part[:2] for part in parts_of(ade)] == [("label_maps", "train"), ("label_maps", "val")]
    (ade / "annotations" / "training" / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.png does not exist"):
        open_source("label_maps", ade, "train")
    with pytest.raises(FileNotFoundError, match="validation does not exist"):
        open_source("label_maps", ade, "val")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "begins with ''"),
        ("Idx\tRatio\n", "expected columns Idx and Name"),
        ("Name\tIdx\nwall\n", "line 2 has Idx '' and Name 'wall'"),
        ("Idx\tName\n0\ta\n", "line 2 has Idx '0'"),
        ("Idx\tName\n256\ta\n", "line 2 has Idx '256'"),
        ("Idx\tName\n1\t \n", "Name ''"),
        ("Idx\tName\n1\ta\n1\tb\n", "line 3 has duplicate Idx 1"),
    ],
)
def test_bad_tables_of_classes(ade, text, problem):
    (ade / "objectInfo150.txt").write_text(text)
    with pytest.raises(ValueError, match=rf"objectInfo150\.txt.*{problem}"):
        open_source("label_maps", ade, "train")


def masks_are_equal(one, other):
    if not isinstance(one, IdMap):
        return one == other
    return one[1:] == other[1:] and np.array_equal(
        decode_masks(one, 12, 16), decode_masks(other, 12, 16)
    )


def test_packs_carry_masks(panoptic, tmp_path):
    write(panoptic / "instances_train.json", instances_content())
    write(panoptic / "expression_masks_train.json", expressions_content())
    packed = panoptic / "packed"
    pack(panoptic, packed)
    fields = ("masks", "mask_labels", "mask_crowd", "phrases", "phrase_masks", "label_groups")
    for source in ("panoptic", "instances", "expression_masks"):
        own, stored = (open_source(source, place, "train") for place in (panoptic, packed))
        assert len(own) == len(stored)
        for one, other in zip(own, stored, strict=True):
            assert masks_are_equal(one.masks, other.masks)
            for name in fields[1:]:
                assert getattr(one, name) == getattr(other, name)
    assert open_source("detection", packed, "train")[0].masks == ()
    assert fingerprint_of(open_source("panoptic", packed, "train"))
    pack(packed, panoptic / "again")
    assert open_source("panoptic", panoptic / "again", "train")[0].masks.ids == (300, 5, 8)
    (panoptic / "panoptic_train" / "1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"record 'panoptic_train/1': .*1\.png"):
        pack(panoptic, panoptic / "third")


def test_entries_of_all_kinds_of_masks():
    for record in records(len(KINDS)):
        entry = json.loads(json.dumps(to_entry(record)))
        again = from_entry(entry, record.images)
        expected = decode_masks(record.masks, *record.image_size)
        assert np.array_equal(decode_masks(again.masks, *record.image_size), expected)
        assert (again.phrases, again.phrase_masks) == (record.phrases, record.phrase_masks)


@pytest.mark.parametrize(
    ("masks", "problem"),
    [
        (3, "masks is 3"),
        ([3], "masks have 3; expected"),
        ([{"counts": "a"}], "expected counts, rings or bits"),
        ([{"counts": 3, "size": [1, 1]}], "masks.counts is 3"),
        ([{"bits": "?", "size": [1, 1]}], "masks.bits is no base64"),
        ([{"rings": [["a"]]}], "masks.rings is"),
        ({"ids": [-1]}, "masks.ids is"),
        ({"png": ""}, "masks have no ids"),
        ({"ids": [1], "png": "?"}, "masks.png is no base64"),
        ({"other": 1}, "unknown field masks.'other'"),
        ({"ids": [1]}, "masks have no png"),
    ],
)
def test_bad_entries(masks, problem):
    entry = {"key": "a", "text": "", "labels": ["a"], "mask_labels": [0], "masks": masks}
    with pytest.raises(ValueError, match=problem):
        from_entry(entry, (b"",))


def test_masks_are_part_of_the_fingerprint():
    one, other = records(len(KINDS)), records(len(KINDS), seed=1)
    prints = {fingerprint_of([record]) for record in one}
    assert len(prints) == len(KINDS)
    for record, changed in zip(one, other, strict=True):
        import dataclasses

        for name in ("masks", "phrase_masks", "mask_labels"):
            new = dataclasses.replace(record, **{name: getattr(changed, name)})
            if getattr(new, name) != getattr(record, name):
                assert fingerprint_of([new]) != fingerprint_of([record]), name


def test_inspect_counts_checks_and_draws_masks(panoptic, capsys):
    report = inspect(panoptic)
    (part,) = report.parts
    assert part.masks == 3 and part.classes == {"sky": 1, "dog": 1, "cat": 1}
    assert not report.faults and report.to_dict()["parts"][0]["masks"] == 3
    sheet = panoptic / "sheet.png"
    assert main(["data", "inspect", str(panoptic), "--sheet", str(sheet)]) == 0
    assert "3 masks" in capsys.readouterr().out
    with_masks = np.asarray(Image.open(sheet).convert("RGB"), int)
    (panoptic / "panoptic_train" / "1.png").write_bytes(ids_png(np.full((12, 16), 4)))
    (fault,) = inspect(panoptic).faults
    assert "panoptic_train/1" in fault and "has id 4" in fault
    main(["data", "inspect", str(panoptic), "--sheet", str(sheet)])
    without = np.asarray(Image.open(sheet).convert("RGB"), int)
    assert (with_masks != without).any()
