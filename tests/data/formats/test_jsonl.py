"""A user's own lines: every form of them, and errors that name file, line and field."""

import json

import pytest

from fiber.data.datasets.resolve import open_source
from fiber.data.formats.jsonl import jsonl_boxes, jsonl_captions, jsonl_questions

CAPTION = {"image": "1.png", "text": "a dog"}
QUESTION = {"image": "1.png", "question": "what is it?", "answer": "dog"}


class Lines:
    """A folder with two pictures, and files of lines beside them."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "images").mkdir()
        (folder / "1.png").touch()
        (folder / "images" / "2.png").touch()

    def __call__(self, *entries, name="mine.jsonl"):
        path = self.folder / name
        path.write_text("".join(e if isinstance(e, str) else json.dumps(e) + "\n" for e in entries))
        return path


@pytest.fixture
def lines(tmp_path):
    return Lines(tmp_path)


def captions(path, split="train"):
    return jsonl_captions(path.parent, split, annotations=path)


def questions(path, split="train"):
    return jsonl_questions(path.parent, split, annotations=path)


# ---- what is read


def test_images_are_beside_the_file_or_in_images(lines):
    found = captions(lines(CAPTION, "\n", {"image": "2.png", "texts": ["a cat", "a pet"]}))
    assert [r.text for r in found] == ["a dog", "a cat", "a pet"]
    assert [r.key for r in found] == ["mine/1", "mine/3-0", "mine/3-1"]
    folder = lines.folder
    paths = [f"{folder}/1.png", *[f"{folder}/images/2.png"] * 2]
    assert [r.images for r in found] == [(path,) for path in paths]
    assert [r.image_id for r in found] == paths
    absolute = {"image": f"{folder}/1.png", "text": "a dog"}
    assert captions(lines(absolute))[0].images == (f"{folder}/1.png",)


def test_another_folder_of_images(lines):
    path = lines({"image": "2.png", "text": "a cat"})
    folder = lines.folder / "images"
    (record,) = jsonl_captions("unused", "train", annotations=path, images=folder)
    assert record.images == (f"{folder}/2.png",)
    with pytest.raises(FileNotFoundError, match=r"'1\.png'.*images/1\.png"):
        jsonl_captions("unused", "train", annotations=lines(CAPTION), images=folder)


def test_answers_in_every_form(lines):
    ten = ["down"] * 4 + ["at table"] * 3 + ["skateboard"] * 2 + ["table"]
    base = {"image": "1.png", "question": "where?"}
    forms = [
        ({"answer": "dog"}, {"dog": 1.0}),
        ({"answers": {"dog": 1, "pet": 0.5, "cat": 0}}, {"dog": 1.0, "pet": 0.5, "cat": 0.0}),
        # As VQAv2 scores ten people.
        ({"answers": ten}, {"down": 1.0, "at table": 0.9, "skateboard": 0.6, "table": 0.3}),
        # One of two is five of ten, one of five is two of ten.
        ({"answers": ["red", "crimson"]}, {"red": 1.0, "crimson": 1.0}),
        ({"answers": ["a", "a", "a", "a", "b"]}, {"a": 1.0, "b": 0.6}),
    ]
    found = questions(lines(*[base | form for form, _ in forms]))
    assert [r.answers for r in found] == [scores for _, scores in forms]
    # Lists alone tell what each person said.
    lists = [form["answers"] for form, _ in forms[2:]]
    assert [r.human_answers for r in found] == [(), (), *map(tuple, lists)]


def test_questions_of_a_test_need_no_answers(lines):
    path = lines({"image": "1.png", "question": "where?", "id": 17})
    (record,) = questions(path, "test")
    assert (record.answers, record.key) == (None, "mine/17")
    with pytest.raises(ValueError, match=r"mine\.jsonl: line 1.*'answer'.*'answers'"):
        questions(path, "val")


def test_splits_are_a_field_or_files(lines):
    texts = [("train", "one"), ("val", "two"), ("train", "three")]
    split = lines(*[CAPTION | {"split": s, "text": text} for s, text in texts])
    assert [r.text for r in captions(split, "train")] == ["one", "three"]
    assert [r.key for r in captions(split, "val")] == ["mine/2"]
    with pytest.raises(ValueError, match=r"split 'test'.*: train, val"):
        captions(split, "test")
    assert [r.text for r in captions(split, "test+train+val")] == ["one", "two", "three"]
    # Without the field all lines are those of any split.
    assert len(captions(lines(CAPTION, CAPTION | {"text": "a cat"}), "val")) == 2
    lines(CAPTION, name="val.jsonl")
    assert len(open_source("captions", lines.folder, "val")) == 1


def test_images_of_other_splits_need_not_be_there(lines):
    path = lines(CAPTION | {"split": "train"}, {"image": "no.png", "text": "x", "split": "val"})
    assert len(captions(path)) == 1
    with pytest.raises(FileNotFoundError, match="line 2"):
        captions(path, "val")


def test_one_file_may_hold_captions_and_questions(lines):
    path = lines(CAPTION, QUESTION, QUESTION)
    found = captions(path)
    assert (len(found), found.counts) == (1, {"lines with questions": 2})
    found = questions(path)
    assert (len(found), found.counts) == (2, {"lines with captions": 1})


def test_a_text_that_an_image_has_twice_is_counted(lines):
    both = {"image": "1.png", "texts": ["a cat", "a dog", "a cat"]}
    # Another picture may say the same, and a question may be asked twice.
    found = captions(lines(CAPTION, both, CAPTION | {"image": "2.png"}))
    assert [(r.key, r.text) for r in found] == [
        ("mine/1", "a dog"),
        ("mine/2-0", "a cat"),
        ("mine/3", "a dog"),
    ]
    assert found.counts == {"repeated captions": 2}
    assert len(questions(lines(QUESTION, QUESTION))) == 2


def test_separators_of_lines_inside_of_texts(lines):
    text = "one\u2028two\x85three\x0bfour"
    path = lines()
    path.write_text(
        "\ufeff" + json.dumps(CAPTION | {"text": text}, ensure_ascii=False) + "\r\n",
        encoding="utf-8",
        newline="",
    )
    assert [r.text for r in captions(path)] == [text]


# ---- what is refused


@pytest.mark.parametrize("content", ["", "\n \n"], ids=["nothing", "blank lines"])
def test_an_empty_file_is_named(lines, content):
    path = lines(content)
    with pytest.raises(ValueError, match=rf"{path}.*JSON"):
        captions(path)


def test_a_missing_file_is_answered_with_an_example(lines):
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl.*\"image\""):
        captions(lines.folder / "none.jsonl")


def test_a_file_with_other_encodings_is_named(lines):
    path = lines()
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"mine\.jsonl.*text"):
        captions(path)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", "is not valid JSON"),
        ("[1]\n", r"must be a JSON object, got \[1\]"),
        (CAPTION | {"caption": "x"}, r"field 'caption'.*mean 'text'"),
        (CAPTION | {"captions": ["x"]}, r"field 'captions'.*mean 'texts'"),
        ({"img": "1.png", "text": "x"}, r"field 'img'.*mean 'image'"),
        ({"image_path": "1.png"}, r"field 'image_path'.*mean 'image'"),
        ({"file_name": "1.png"}, r"field 'file_name'.*mean 'image'"),
        ({"image": "1.png", "txt": "x"}, r"unknown field 'txt'.*text"),
        ({"text": "x"}, "has no 'image'"),
        (CAPTION | {"image": 3}, "'image' 3"),
        (CAPTION | {"image": ""}, "empty 'image'"),
        ({"image": "1.png"}, r"'image'.*'image'.*'text'.*'texts'"),
        (
            CAPTION | {"question": "x"},
            r"'text'.*'question'",
        ),
        (
            CAPTION | {"boxes_xyxy": [[1, 2, 3, 4]], "labels": ["dog"]},
            r"has 'text' and 'boxes_xyxy'; .*captions or boxes",
        ),
        (
            CAPTION | {"text": "a \ud83d dog"},
            r"'text'.*.ud83d",
        ),
        (CAPTION | {"text": "a \udc36"}, r"surrogate.*'text'"),
        (CAPTION | {"text": " \n"}, "empty 'text'"),
        (CAPTION | {"text": None}, "'text' None"),
        (CAPTION | {"texts": ["x"]}, r"'text'.*'texts'"),
        ({"image": "1.png", "texts": []}, r"'texts' \[\]"),
        ({"image": "1.png", "texts": "x"}, "'texts' 'x'"),
        ({"image": "1.png", "texts": ["x", ""]}, r"empty 'texts\[1\]'"),
        (CAPTION | {"id": 1.5}, r"'id' 1\.5.*string.*integer"),
        (CAPTION | {"id": 1}, "has duplicate 'id' 1"),
        (CAPTION | {"split": "train"}, r"line 2.*'split'.*line 1"),
    ],
)
def test_captions_that_do_not_fit_are_named(lines, bad, message):
    path = lines(CAPTION, bad)
    with pytest.raises(ValueError, match=rf"{path}: line 2.*{message}"):
        captions(path)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"question": " "}, "empty 'question'"),
        ({"answer": ""}, "empty 'answer'"),
        ({"answer": 3}, "'answer' 3"),
        ({"answers": ["x"]}, r"'answer'.*'answers'"),
        ({"answer": "DROP", "answers": []}, r"'answers' \[\]"),
        ({"answer": "DROP", "answers": {}}, r"'answers' \{\}"),
        ({"answer": "DROP", "answers": "dog"}, "'answers' 'dog'"),
        ({"answer": "DROP", "answers": ["dog", 3]}, "'answers' 3"),
        ({"answer": "DROP", "answers": {"": 1}}, "empty 'answers'"),
        ({"answer": "DROP", "answers": {"dog": 1.5}}, r"score 1.5.*answer 'dog'"),
        ({"answer": "DROP", "answers": {"dog": True}}, r"score True.*answer 'dog'"),
        ({"answer": "DROP", "answers": {"dog": float("nan")}}, r"score nan.*answer"),
        ({"answer": "DROP"}, r"'answer'.*'answers'"),
        ({"question": "DROP"}, "has no 'question'"),
    ],
)
def test_questions_that_do_not_fit_are_named(lines, bad, message):
    entry = {key: value for key, value in (QUESTION | bad).items() if value != "DROP"}
    path = lines(QUESTION, entry)
    with pytest.raises(ValueError, match=rf"{path}: line 2.*{message}"):
        questions(path)


def test_whole_surrogate_pairs_are_characters(lines):
    # Escaped, as json.dumps writes them.
    path = lines(CAPTION | {"text": "a \U0001f436"}, QUESTION | {"question": "\U0001f436?"})
    assert "ud83d" in path.read_text()
    assert [record.text for record in captions(path)] == ["a \U0001f436"]
    bad = lines({"image": "1.png", "boxes_xyxy": [], "labels": ["\ud83d"]}, name="boxes.jsonl")
    with pytest.raises(ValueError, match=rf"{bad}: line 1.*'labels'"):
        jsonl_boxes(lines.folder, "train", annotations=bad)


def test_a_first_image_that_is_missing_is_named(lines):
    path = lines(CAPTION | {"image": "3.png"}, CAPTION)
    with pytest.raises(FileNotFoundError) as error:
        captions(path)
    folder = lines.folder
    assert str(error.value).startswith(
        f"{path}: line 1: image '3.png' not found; tried {folder}/3.png and {folder}/images/3.png; "
    )


def test_a_later_image_that_is_missing_is_for_who_loads_it(lines):
    path = lines(CAPTION, CAPTION | {"image": "3.png"})
    found = captions(path)
    assert [record.images for record in found] == [
        (f"{lines.folder}/1.png",),
        (f"{lines.folder}/3.png",),
    ]


@pytest.mark.parametrize("bad", ["[" * 100_000, '{"image": ' + "9" * 5000 + "}"])
def test_malicious_json_is_an_error_with_its_line(lines, bad):
    path = lines(CAPTION)
    path.write_text(f"{path.read_text()}{bad}\n")
    with pytest.raises(ValueError, match=rf"{path}: line 2.*JSON"):
        captions(path)


def test_a_file_of_the_other_kind_is_refused(lines):
    path = lines(QUESTION)
    with pytest.raises(ValueError) as error:
        captions(path)
    assert str(error.value) == (f"{path} has only questions; expected lines with 'text' or 'texts'")
    lines(CAPTION)
    with pytest.raises(ValueError) as error:
        questions(path)
    assert str(error.value) == (
        f"{path} has only captions; expected lines with 'question' and 'answer' or 'answers'"
    )


class TestListsAndTables:
    """The same objects in a .json list, and one text or answer a line in a .csv table."""

    @pytest.fixture
    def folder(self, data):
        for name in ("1.png", "2.png"):
            (data.folder / "images" / name).touch()
        return data

    def test_a_list(self, folder):
        entries = [
            {"image": "1.png", "texts": ["a", "b"], "id": "x"},
            {"image": "2.png", "text": "c"},
        ]
        path = folder("train.json", json.dumps(entries))
        folder("val.json", json.dumps(entries[1:]))
        for found in (
            jsonl_captions(folder.folder, "train", annotations=path),
            open_source("captions", folder.folder, "train"),
        ):
            assert [(r.key, r.text) for r in found] == [
                ("train/x-0", "a"),
                ("train/x-1", "b"),
                ("train/2", "c"),
            ]
        lines = folder("again.jsonl", entries)
        again = jsonl_captions(folder.folder, "train", annotations=lines)
        assert [r.text for r in again] == [r.text for r in found]

    def test_a_table(self, folder):
        path = folder(
            "mine.csv",
            'image,text,question,answer,split\n1.png,"a dog, ""Rex""\non grass",,,train\n'
            "2.png,,what?,cat,val\n",
        )
        (record,) = jsonl_captions(folder.folder, "train", annotations=path)
        assert (record.key, record.text) == ("mine/3", 'a dog, "Rex"\non grass')
        (asked,) = jsonl_questions(folder.folder, "val", annotations=path)
        assert (asked.text, asked.answers) == ("what?", {"cat": 1.0})

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("a.json", '{"image": "1.png"}', r"a\.json must contain a JSON array, got .*'image'"),
            ("a.json", "[1", r"a\.json.*JSON"),
            ("a.json", "[1]", r"a\.json: entry 1 must be a JSON object, got 1"),
            ("a.json", '[{"image": "1.png", "txt": "a"}]', r"entry 1.*field 'txt'"),
            (
                "a.json",
                r'[{"image": "1.png", "text": "\ud83d"}]',
                r"a\.json: entry 1.*'text'",
            ),
            ("a.json", "[]", r"a\.json.*JSON"),
            ("a.csv", "", r"a\.csv.*empty"),
            ("a.csv", "image,texts\n1.png,a\n", r"line 1.*field 'texts'.*'text'"),
            ("a.csv", "image,text,text\n1.png,a,b\n", r"line 1.*column 'text'"),
            ("a.csv", "image,text\n1.png,a,b\n", r"line 2.*cells"),
            ("a.csv", 'image,text\n1.png,"a\n', r"line 2.*CSV"),
            ("a.csv", "image,text\n1.png,\n", r"line 2.*'image'.*'image'.*'text'"),
            ("a.csv", "picture,text\n1.png,a\n", r"line 1.*field 'picture'.*'image'"),
        ],
    )
    def test_what_does_not_fit_is_named(self, name, content, message, folder):
        with pytest.raises(ValueError, match=message):
            jsonl_captions(folder.folder, "train", annotations=folder(name, content))

    def test_boxes(self, folder):
        box = {"image": "1.png", "boxes_xyxy": [[1, 2, 30, 20.5]], "labels": ["mug"]}
        none = {"image": "2.png", "boxes_xyxy": [], "labels": [], "id": "x"}
        entries = [box, none, {"image": "1.png", "text": "a"}]
        for path in (folder("train.jsonl", entries), folder("train.json", json.dumps(entries))):
            first, second = records = open_source("detection", path, "train")
            assert records.classes == ("mug",) and first.text == "mug"
            assert (first.key, second.key) == ("train/1", "train/x")
            assert first.boxes_xyxy == ((1, 2, 30, 20.5),) and first.box_labels == (0,)
            assert list(first.images) == [f"{folder.images}/1.png"] == [first.image_id]
            assert records.counts == {"lines with captions": 1}
            assert [r.text for r in open_source("captions", path, "train")] == ["a"]
        (folder.folder / "train.json").unlink()
        assert len(open_source("detection", folder.folder, "train")) == 1
        assert len(open_source("detection", folder.folder, "train+val")) == 2
        sized = {**box, "width": 20, "height": 30}
        path = folder("train.jsonl", [box, sized])
        with pytest.raises(ValueError, match=r"train\.jsonl: line 2.*box 0.*10"):
            open_source("detection", path, "train")
        cut = open_source("detection", path, "train", on_error="skip")
        assert cut[1].boxes_xyxy == ((1, 2, 20, 20.5),) and cut[1].image_size == (30, 20)
        path = folder("train.jsonl", [{**box, "labels": []}])
        with pytest.raises(ValueError, match=r"line 1.*boxes.*box"):
            open_source("detection", path, "train")

    def test_boxes_in_another_form_are_named(self, folder):
        """Those that end before they begin: x, y, width and height, most often."""
        box = {"image": "1.png", "boxes_xyxy": [[1, 2, 9, 9], [30, 20, 8, 25]], "labels": ["a"] * 2}
        low = {**box, "boxes_xyxy": [[1, 9, 9, 2], [5, 5, 5, 9]]}
        entries = [{**box, "boxes_xyxy": [[1, 2, 1, 9], [1, 2, 9, 9]]}, box, low]
        lines = ("train.jsonl", entries), ("train.json", json.dumps(entries))
        for path, place in zip((folder(*of) for of in lines), ("line 2", "entry 2"), strict=True):
            with pytest.raises(ValueError) as error:
                open_source("detection", path, "train")
            said = " has box 1, (x0, y0, x1, y1) = (30.0, 20.0, 8.0, 25.0); expected x0 <= x1 and"
            assert f"{path}: {place}{said}" in str(error.value)
            records = open_source("detection", path, "train", on_error="skip")
            assert [len(record.boxes_xyxy) for record in records] == [1, 1, 0]
            # Those of no area are lines, in whatever form.
            assert records.counts == {"empty boxes": 2, "reversed boxes": 2}

    def test_a_missing_image_is_named_with_its_place(self, folder):
        path = folder("a.json", '[{"image": "9.png", "text": "a"}]')
        with pytest.raises(FileNotFoundError, match=r"a\.json: entry 1.*image '9\.png'"):
            jsonl_captions(folder.folder, "train", annotations=path)
