"""Files for which a reader once took time or memory that grows faster than they do.

Each file is large enough that such a reader would not end while anybody waits.
"""

from pathlib import Path

import pytest

from fiber.data import sources
from fiber.data.char_spans import whole_characters
from fiber.data.datasets.resolve import open_source
from fiber.data.formats.json_values import id_key
from fiber.data.prompts.classes import clean_class_name
from fiber.data.tools.discover import parts_of
from fiber.data.tools.pack import pack

MANY = 200_000
SIZE = {"width": 40, "height": 30}


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (",".join(["image", "text", *(f"c{n}" for n in range(MANY))]), "field 'c0'"),
        (",".join(["image", "text", *["text"] * MANY]), "column 'text'"),
        ("image,text" + "," * MANY, "field ''.*index=False"),
        ("image," + "t" * 100_000, "field 't"),
    ],
    ids=["many", "duplicates", "no names", "long"],
)
def test_columns_of_a_table(data, header, said):
    path = data("mine.csv", header + "\n" + "1.png,a\n" * MANY)
    with pytest.raises(ValueError, match=rf"mine\.csv: line 1 has .*{said}") as error:
        open_source("captions", path, "train")
    assert len(str(error.value)) < 500 + len(str(path))


def test_names_of_many_keys(data):
    keys = {f"key {n} {'x' * 50}": 1 for n in range(MANY // 10)}
    for name, content in (
        ("mine.jsonl", [{"image": "1.png", **keys}]),
        ("captions_train.json", keys),
        ("captions_train.json", {"images": [{"id": 1, **keys}], "annotations": []}),
    ):
        path = data(name, content)
        with pytest.raises(ValueError, match=rf"{name}.*key 0 x") as error:
            open_source("captions", path, "train")
        assert len(str(error.value)) < 1500


def test_names_of_splits(data):
    (data.folder / "1.png").touch()
    lines = [{"image": "1.png", "text": "a", "split": f"s{n}"} for n in range(100)]
    # Each split is read from the whole file.
    with pytest.raises(ValueError, match=r"mine\.jsonl: line 65 has split 's64', after 64 other"):
        parts_of(data("mine.jsonl", lines))
    images = [{"filename": "1.png", "split": f"s{n}", "sentences": []} for n in range(100)]
    with pytest.raises(ValueError, match=r"dataset_coco\.json has 100 splits; expected at most 64"):
        parts_of(data("dataset_coco.json", {"images": images}))


@pytest.mark.parametrize("split", ["../../x", "/x", "a/b", "x" * 101, "a\nb", "\x1b[2J"])
def test_a_split_that_leads_out_of_the_folder_is_not_packed(data, split):
    (data.folder / "1.png").touch()
    path = data("mine.jsonl", [{"image": "1.png", "text": "a", "split": split}])
    karpathy = [{"filename": "1.png", "split": split, "sentences": [{"raw": "x", "sentid": 1}]}]
    before = {path, data("dataset_coco.json", {"images": karpathy}), *data.folder.rglob("*")}
    for source in (path, data.folder / "dataset_coco.json"):
        with pytest.raises(ValueError, match=rf"{source.name}.* split '.*expected a name") as error:
            pack(source, data.folder / "made" / "packed")
        assert str(error.value).isprintable()
    assert set(data.folder.rglob("*")) == before


def test_captions_share_the_path_of_their_image(data):
    name = "x" * 4000
    content = {
        "images": [{"id": "i" * 900, "file_name": name}],
        "annotations": [{"id": n, "image_id": "i" * 900, "caption": "a"} for n in range(100)],
    }
    records = open_source("captions", data("captions_train.json", content), "train")
    assert records[0].images[0].endswith(name)
    assert all(record.images[0] is records[0].images[0] is record.image_id for record in records)
    content["images"][0]["file_name"] = "x" * 4097
    with pytest.raises(ValueError, match=r"images\[0\] has 'file_name' 'x+'.*4,096 characters"):
        open_source("captions", data("captions_train.json", content), "train")


def test_ids_that_are_part_of_many_keys_are_short(data):
    (data.folder / "1.png").touch()
    line = {"image": "1.png", "texts": ["a", "b"], "id": "x" * 1000}
    assert len(open_source("captions", data("mine.jsonl", [line]), "train")) == 2
    with pytest.raises(ValueError, match=r"line 1 has 'id' 'x+'.*1000 characters"):
        open_source("captions", data("mine.jsonl", [{**line, "id": "x" * 1001}]), "train")


def test_integers_that_are_ids_have_keys_of_unknown_hashes():
    numbers = [0, 5, 2**14 - 1, 2**14, 2**63 - 1, -1, -(2**63) + 1]
    keys = [id_key(number) for number in numbers]
    assert len(set(keys)) == len(numbers)
    assert [type(key) for key in keys] == [int] * 3 + [bytes] * 4
    assert id_key("5") == "5" != id_key(5) and id_key("-1") != id_key(-1)


def test_images_and_annotations_refer_by_any_id(data):
    ids = [1, "1", 2**14, str(2**14), -1, 2**62]
    images = [{"id": own, "file_name": f"{n}.png", **SIZE} for n, own in enumerate(ids)]
    box = {"category_id": 2**40, "bbox": [1, 2, 9, 9]}
    content = {
        "images": images,
        "annotations": [{"id": n, "image_id": own, **box} for n, own in enumerate(ids)],
        "categories": [{"id": 2**40, "name": "mug"}, {"id": -7, "name": "dog"}],
    }
    found = sources.detection(data.folder, "val", annotations=data("a.json", content))
    assert [len(record.boxes_xyxy) for record in found] == [1] * 6
    assert found[0].label_ids == (-7, 2**40) and found[0].box_labels == (1,)


def test_spans_of_a_caption_of_many_boxes(data):
    """Each box has a phrase of its own, and each caption's labels are those of its boxes."""
    text = "a b " * 200
    spans = [[start, start + width] for start in range(700) for width in range(1, 21)]
    image = {"id": 1, "file_name": "1.png", "caption": text, **SIZE}
    content = {
        "images": [image],
        "annotations": [
            {"id": n, "image_id": 1, "bbox": [1, 2, 9, 9], "tokens_positive": [span]}
            for n, span in enumerate(spans)
        ],
    }
    (record,) = sources.phrases(data.folder, "train", annotations=data("a.json", content))
    assert len(record.labels) == len(spans) == 14_000
    assert record.box_labels == tuple(range(len(spans)))
    evaluated = {**image, "tokens_positive_eval": [[[0, 1], [5, 6]], [[0, 1]]]}
    content |= {"images": [evaluated], "annotations": content["annotations"][:3]}
    content["annotations"][1] |= {"tokens_positive": [[5, 6], [0, 1]]}
    (record,) = sources.phrases(data.folder, "train", annotations=data("a.json", content))
    # The first phrase that has a span of the box, and a new one if there is none.
    assert record.box_labels == (0, 0, 2) and len(record.labels) == 3
    content["annotations"] = [
        {"id": n, "image_id": 1, "bbox": [1, 2, 9, 9], "tokens_positive": [[n, 799]]}
        for n in range(700)
    ]
    image["caption"] = "a b " * 1000
    content |= {"images": [image]}
    for n, entry in enumerate(content["annotations"]):
        entry["tokens_positive"] = [[n, 3999]]
    with pytest.raises(ValueError, match=r"images entry 1 has phrases of 2,\d+,\d+ characters"):
        sources.phrases(data.folder, "train", annotations=data("a.json", content))


def test_spans_within_a_character_of_many_accents():
    text = "e" + "\u0301" * MANY
    assert all(
        whole_characters(text, (place, place + 1)) == (place - 256, place + 257)
        for place in range(1000, 3000)
    )
    flags = "\U0001f1eb" * MANY
    assert [whole_characters(flags, (n, n + 1)) for n in (0, 1)] == [(0, 2), (0, 2)]
    assert all(whole_characters(flags, (n, n + 1)) for n in range(MANY - 2000, MANY))


def test_parentheses_of_a_class_that_are_not_closed():
    assert clean_class_name("(" * MANY) == "(" * MANY
    assert clean_class_name(")" * MANY + "(" * MANY) == ")" * MANY + "(" * MANY
    assert clean_class_name("a_(b)_(c) d)\n(e") == "a \n(e"


def test_classes_of_all_records_are_checked_once(data):
    count = 3000
    content = {
        "images": [{"id": n, "file_name": f"{n}.png", **SIZE} for n in range(count)],
        "annotations": [],
        "categories": [{"id": n, "name": f"class {n}"} for n in range(count)],
    }
    records = sources.detection(data.folder, "val", annotations=data("a.json", content))
    spans = records[0].label_spans
    assert all(record.label_spans is spans for record in records)
    assert spans.checked_text is records[0].text is records[-1].text
    line = {"image": "1.png", "boxes_xyxy": [[1, 2, 9, 9]]}
    (data.folder / "1.png").touch()
    lines = [{**line, "labels": [f"class {n}"]} for n in range(count)]
    found = open_source("detection", data("mine.jsonl", lines), "train")
    assert found[0].label_spans is found[count - 1].label_spans
    assert found[0].label_spans.checked_text is found[count - 1].text
    packed = pack(data.folder / "mine.jsonl", data.folder / "packed")
    assert len(packed["parts"][0]["shared"]) == 1
    after = open_source("detection", data.folder / "packed", "train")
    assert after[0] == after[0] and after[0].label_spans is after[1].label_spans
    assert after[0].label_spans.checked_text is after[1].text


def test_folders_of_images_are_listed_once_under_all_of_their_names(data, monkeypatch):
    listed = []
    iterdir = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: listed.append(path) or iterdir(path))
    (data.folder / "a").mkdir()
    (data.folder / "a" / "1.png").touch()
    pairs = [["a/../" * n + "a/1.png", "x"] for n in range(300)]
    found = open_source("sbu", data("annot.json", pairs), "train")
    assert len(found) == 300 and len(listed) < 10


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("Annotations/1.xml", "<a>" * MANY, r"1\.xml is not valid XML"),
        ("Annotations/1.xml", f"<!DOCTYPE a SYSTEM 'b'><a>&{'x' * MANY};</a>", "undefined entity"),
        ("Annotations/1.xml", f"<a>{'<object/>' * 1001}</a>", "1,001 objects"),
        ("Sentences/1.txt", "a\n" * 1001, "1,001 captions"),
        ("Sentences/1.txt", "[/EN#1/x a] " * 1001, "1,001 phrases"),
        ("Sentences/1.txt", f"[/{'x' * MANY} a]", "expected a phrase"),
        ("train.txt", "1\n1\n", "image id '1' twice"),
        ("train.txt", "../1\n", "image id '../1'"),
        ("train.txt", "x" * MANY, "image id 'x+'"),
    ],
    ids=range(9),
)
def test_files_of_flickr30k_entities(data, name, content, said):
    for folder in ("Annotations", "Sentences"):
        (data.folder / folder).mkdir()
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    data("Annotations/1.xml", f"<a><object><name>1</name>{box}</object></a>")
    data("Sentences/1.txt", "[/EN#1/people A man] sits .\n")
    path = data("train.txt", "1\n")
    assert [r.labels for r in open_source("phrases", path, "train")] == [("A man",)]
    data(name, content)
    with pytest.raises(ValueError, match=rf"{Path(name).name}.*{said}|{said}") as error:
        open_source("phrases", path, "train")
    assert len(str(error.value)) < 1000 and Path(name).name in str(error.value)


@pytest.mark.parametrize("side", ["inf", "nan", "1e400", "9" * 400, "1e16", "-", ""])
def test_sides_of_an_xml_box_that_are_no_numbers(data, side):
    (data.folder / "Annotations").mkdir()
    box = f"<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>{side}</xmax><ymax>9</ymax></bndbox>"
    data("Annotations/1.xml", f"<a><object><name>1</name>{box}</object></a>")
    path = data("train.txt", "1\n")
    with pytest.raises(ValueError, match=r"1\.xml: object 0 has names 1 and corners \['1', '2', "):
        open_source("phrases", path, "train")
