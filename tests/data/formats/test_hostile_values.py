"""Annotation files with other values than expected, in every place of every format."""

import base64
import itertools
import json

import pytest

from fiber.data import sources
from fiber.data.datasets.resolve import open_source
from tests.data.hostile_values import is_refused, mutants
from tests.data.shards import picture, write_tar

SIZE = {"width": 40, "height": 30}
IMAGE = {"id": 1, "file_name": "1.png", **SIZE}
BOX = {"id": 7, "image_id": 1, "category_id": 3, "bbox": [2, 3, 20, 20.5], "area": 9, "iscrowd": 0}
CATEGORY = {"id": 3, "name": "mug", "supercategory": "none", "frequency": "r"}
COCO = {"images": [IMAGE], "annotations": [BOX], "categories": [CATEGORY]}
LVIS = {**COCO, "images": [{**IMAGE, "neg_category_ids": [3], "not_exhaustive_category_ids": []}]}
PHRASE = {**IMAGE, "caption": "a mug", "group": "g", "data_source": "coco"}
PHRASES = {
    "images": [{**PHRASE, "tokens_positive_eval": [[[0, 5]]]}],
    "annotations": [{**BOX, "tokens_positive": [[2, 5]]}],
}
LINE = {"image": "1.png", "id": "x", "split": "train"}
SCORED = {"answers": {"mug": 0.5}, "question": "what?"}
NLVR2 = {"identifier": "train-1-0-0", "label": "True", "sentence": "x", "directory": 5}
KARPATHY = {
    "images": [{"filename": "1.png", "split": "train", "sentences": [{"raw": "x", "sentid": 1}]}]
}
SNLI = {"gold_label": "neutral", "Flickr30K_ID": "1", "sentence2": "x", "pairID": "1#0"}
OBJECTS = {"bbox": [[2, 3, 9, 9.5]], "categories": ["mug"]}
VALUE = {"x": 5, "y": 6, "width": 40, "height": 50, "rectanglelabels": ["mug"]}
RESULT = {"type": "rectanglelabels", "value": VALUE, "original_width": 40, "original_height": 30}
TASK = {"data": {"image": "1.png"}, "annotations": [{"result": [RESULT]}]}
#: (source, name of the file, its content, options); lines if the name ends in jsonl.
FILES = [
    (
        "captions",
        "captions_train.json",
        {
            "images": [IMAGE],
            "annotations": [{"id": 1, "image_id": 1, "caption": "x", "group": "g"}],
        },
        {},
    ),
    ("detection", "instances_train.json", LVIS, {"objects": True}),
    (
        "detection",
        "annotations.json",
        {**COCO, "images": [IMAGE, {**IMAGE, "id": 2, "file_name": "2.png"}]},
        {"shots": 1},
    ),
    ("detection", "val.json", COCO, {"on_error": "skip"}),
    ("phrases", "flickr_train.json", PHRASES, {}),
    ("mixed", "final_mixed_train.json", {**PHRASES, "images": [PHRASE]}, {}),
    ("referring", "refcoco_train.json", PHRASES, {}),
    (
        "questions",
        "vqa_questions_train.json",
        {
            "data_subtype": "train2014",
            "questions": [{"question_id": 5, "image_id": 1, "question": "what?"}],
        },
        {},
    ),
    (
        "questions",
        "vqa_annotations_train.json",
        {"annotations": [{"question_id": 5, "answers": [{"answer": "x"}], "question_type": "t"}]},
        {},
    ),
    ("reasoning", "nlvr2_train.jsonl", NLVR2, {}),
    (
        "reasoning",
        "nlvr2_train.jsonl",
        {**NLVR2, "left_image": "1.png", "right_image": "2.png", "group": "g"},
        {},
    ),
    ("entailment", "snli_ve_train.jsonl", SNLI, {}),
    (
        "swapped",
        "winoground_train.jsonl",
        {
            "id": 1,
            "image_0": "1.png",
            "image_1": "2",
            "caption_0": "a",
            "caption_1": "b",
            "tag": "t",
        },
        {},
    ),
    ("captions", "dataset_coco.json", KARPATHY, {}),
    (
        "captions",
        "region_descriptions.json",
        [{"id": 1, "regions": [{"region_id": 1, "phrase": "x"}]}],
        {},
    ),
    (
        "captions",
        "sbu-captions-all.json",
        {"image_urls": ["http://x/1.png"], "captions": ["x"]},
        {},
    ),
    ("captions", "annot.json", [["1.png", "x"]], {}),
    ("captions", "train.jsonl", {**LINE, "text": "x"}, {}),
    ("captions", "train.json", [{**LINE, "texts": ["x", "y"]}], {}),
    ("questions", "train.jsonl", {**LINE, **SCORED}, {}),
    (
        "questions",
        "train.jsonl",
        {"image": "1.png", "question": "what?", "answers": ["x", "y"]},
        {},
    ),
    (
        "detection",
        "train.jsonl",
        {**LINE, **SIZE, "boxes_xyxy": [[2, 3, 9, 9.5]], "labels": ["mug"]},
        {},
    ),
    (
        "detection",
        "train.jsonl",
        {**LINE, **SIZE, "boxes_xyxy": [[2, 3, 9, 9.5]], "labels": ["mug"]},
        {"on_error": "skip"},
    ),
    ("captions", "metadata.jsonl", {"file_name": "1.png", "text": ["x"]}, {}),
    ("detection", "metadata.jsonl", {"file_name": "1.png", "objects": OBJECTS, **SIZE}, {}),
    ("detection", "export.json", [TASK], {}),
]


@pytest.fixture
def folder(data):
    """Everything that the files name."""
    for name in ("1.png", "2.png", "1.jpg"):
        (data.folder / name).touch()
        (data.folder / "images" / name).touch()
    for name in ("refcoco/train2014", "gqa/images", "flickr30k-images", "train2014"):
        (data.folder / name).mkdir(parents=True)
        (data.folder / name / "1.png").touch()
    return data.folder


def beside(name, folder):
    """Write the other file of a question or answer file."""
    sound = {each[1]: each[2] for each in FILES}
    for other in {"vqa_questions_train.json", "vqa_annotations_train.json"} - {name}:
        if name.startswith("vqa_"):
            (folder / other).write_text(json.dumps(sound[other]))


def check_mutants(path, content, read):
    """Check every mutant of a file; most of them are refused."""
    path.write_text(json.dumps(content))
    assert not is_refused(read, path.parent, path.name)
    refused = []
    for text in mutants(content):
        path.write_text(text)
        refused.append(is_refused(read, path.parent, path.name))
    assert len(refused) / 2 < sum(refused) < len(refused)


@pytest.mark.parametrize(
    ("source", "name", "content", "options"),
    FILES,
    ids=[f"{source}-{name}-{number}" for number, (source, name, *_) in enumerate(FILES)],
)
def test_every_value_of_a_file_is_read_or_refused_by_name(source, name, content, options, folder):
    beside(name, folder)
    asked = folder / name.replace("annotations", "questions") if "vqa" in name else folder / name
    check_mutants(folder / name, content, lambda: open_source(source, asked, "train", **options))


def test_every_value_of_a_divided_file_keeps_its_place(folder):
    """A file without splits, of which images are held out; places are those of the whole file."""
    images = [{**IMAGE, "id": number, "file_name": f"{number}.png"} for number in range(1, 6)]
    boxes = [{**BOX, "id": number, "image_id": number} for number in range(1, 6)]
    path = folder / "annotations.json"
    for key, value in itertools.product(
        ("image_id", "category_id", "bbox"), (10**400, [], None, {}, 2.5)
    ):
        wrong = {**boxes[4], key: value}
        content = {**COCO, "images": images, "annotations": [*boxes[:4], wrong]}
        path.write_text(json.dumps(content))
        refused = [
            is_refused(
                lambda split=split: open_source("detection", folder, split),
                folder,
                "annotations.json: annotations[4] has",
                "annotations.json: annotations entry 5 has",
            )
            for split in ("train", "val")
        ]
        # The image is in one of the splits.
        assert refused == [True, True] if key == "image_id" else sum(refused) == 1


WITHIN = {
    "captions": {"captions": ["x", {"raw": "y"}], "image_id": 3},
    "questions": {
        "questions": ["x"],
        "question_id": [5],
        "answers": [["a"]],
        "answer_scores": [[0.5]],
    },
    "one question": {"question": "x", "question_id": 5, "answers": [{"answer": "a"}]},
    "scored": {"question": "x", "answers": {"a": 0.5}},
    "boxes": {**SIZE, "objects": {"bbox": [[2, 3, 9, 9.5]], "category": ["mug"]}},
    "corners": {**SIZE, "boxes_xyxy": [[2, 3, 9, 9.5]], "labels": ["mug"]},
}
SOURCES = {"captions": "captions", "boxes": "detection", "corners": "detection"}


@pytest.mark.parametrize("kind", WITHIN)
def test_every_value_of_a_sample_of_a_shard_is_read_or_refused_by_name(kind, folder):
    path, source, content = folder / "train.tar", SOURCES.get(kind, "questions"), WITHIN[kind]
    index, refused = folder / "train.tar.index", []

    def read():
        return open_source(source, path, "train")

    for text in (json.dumps(content), *mutants(content)):
        write_tar(path, [("a.png", b""), ("a.json", text.encode())])
        index.unlink(missing_ok=True)
        refused.append(
            is_refused(
                read,
                folder,
                "train.tar: member 'a.json'",
                "train.tar: sample",
                "train.tar: no sample",
            )
        )
    assert not refused[0] and len(refused) / 2 < sum(refused)


TSV = {
    "train.label.tsv": [{"class": "mug", "rect": [1, 2, 9, 9.5], "iscrowd": 0}],
    "train.hw.tsv": [SIZE],
    "map.json": {"label_to_idx": {"mug": 1, "dog": 2}},
}


@pytest.mark.parametrize("name", TSV)
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_every_value_of_the_tsv_files_is_read_or_refused_by_name(name, on_error, tmp_path):
    yaml = {
        "img": "i.tsv",
        "label": "train.label.tsv",
        "hw": "train.hw.tsv",
        "labelmap": "map.json",
    }
    (tmp_path / "a.yaml").write_text("".join(f"{key}: {value}\n" for key, value in yaml.items()))
    (tmp_path / "i.tsv").write_text(f"1\t{base64.b64encode(picture(1)).decode()}\n")
    refused = []
    for text in (json.dumps(TSV[name]), *mutants(TSV[name])):
        for other, content in TSV.items():
            own = text if other == name else json.dumps(content)
            (tmp_path / other).write_text(own if other == "map.json" else f"1\t{own}\n")
        refused.append(
            is_refused(
                lambda: open_source("objects365", tmp_path, "train", on_error=on_error),
                tmp_path,
                name,
                *(("train.label.tsv",) if name == "map.json" else ()),
            )
        )
    assert not refused[0] and len(refused) / 8 < sum(refused) < len(refused)


LONG = 10**400


IDS = ("id", "image_id", "category_id", "sentid", "region_id", "question_id", "pairID")


@pytest.mark.parametrize("value", [LONG, -LONG, 2**63], ids=["long", "below 0", "64 bits"])
@pytest.mark.parametrize(
    "number", [n for n, each in enumerate(FILES) if any(f'"{i}"' in json.dumps(each) for i in IDS)]
)
def test_integers_that_are_ids_fit_in_64_bits(number, value, folder):
    """In the place of every integer; those that refer to each other are all replaced."""
    source, name, content, options = FILES[number]

    def replaced(found):
        if isinstance(found, dict):
            return {k: value if k in IDS else replaced(v) for k, v in found.items()}
        return [replaced(each) for each in found] if isinstance(found, list) else found

    beside(name, folder)
    (folder / name).write_text(json.dumps(replaced(content)))
    with pytest.raises(ValueError, match=rf"{name}.*2\*\*63"):
        open_source(source, folder / name, "train", **options)


@pytest.mark.parametrize("read", [sources.captions, sources.detection, sources.phrases])
@pytest.mark.parametrize("value", [[], {}, None, 1.5, True])
def test_ids_of_other_types_are_named_by_each_reader(read, value, folder):
    wrong = [{**PHRASE, "id": value}]
    for content in ({**PHRASES, "images": wrong}, {**PHRASES, "categories": [], "images": wrong}):
        (folder / "a.json").write_text(json.dumps({"categories": [CATEGORY], **content}))
        with pytest.raises(ValueError, match=r"a\.json: images\[0\] has 'id' "):
            read(folder, "train", annotations=folder / "a.json")


@pytest.mark.parametrize("name", ["", "(x)", "\ud800"])
def test_classes_of_which_prompts_have_nothing_are_named(name, folder):
    (folder / "a.json").write_text(json.dumps({**COCO, "categories": [{"id": 3, "name": name}]}))
    with pytest.raises(ValueError, match=r"a\.json: categories\[0\] has "):
        open_source("detection", folder / "a.json", "train")
    line = {"image": "1.png", "boxes_xyxy": [[2, 3, 9, 9]], "labels": [name]}
    (folder / "a.jsonl").write_text(json.dumps(line))
    with pytest.raises(ValueError, match=r"a\.jsonl: line 1 has "):
        open_source("detection", folder / "a.jsonl", "train")
    for file in ("i.tsv", "l.tsv"):
        (folder / file).write_text("1\t[]\n")
    (folder / "a.yaml").write_text("img: i.tsv\nlabel: l.tsv\nlabelmap: map.json\n")
    (folder / "map.json").write_text(json.dumps({name: 1}))
    with pytest.raises(ValueError, match=r"map\.json"):
        open_source("objects365", folder / "a.yaml", "train")
