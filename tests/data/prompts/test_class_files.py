"""Files that list classes."""

import json

import pytest

from fiber.data import ClassName
from fiber.data.prompts.classes import read_classes


def test_a_byte_order_mark_is_no_part_of_a_class(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("dog\r\ncat\r\n", encoding="utf-8-sig", newline="")
    assert [one.name for one in read_classes(path)] == ["dog", "cat"]


def test_names_line_by_line(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("mug\n\n  traffic light, red \nhot_dog\n", encoding="utf-8")
    assert read_classes(path) == [
        ClassName("mug"),
        ClassName("traffic light, red"),
        ClassName("hot_dog"),
    ]


def test_names_with_words_around_them(tmp_path):
    path = tmp_path / "classes.JSON"
    entries = [
        "mug",
        {"prefix": " ", "name": "fish", "suffix": ""},
        {"name": "puffin", "suffix": " with orange beaks "},
    ]
    path.write_text(json.dumps(entries))
    assert read_classes(path) == [
        ClassName("mug"),
        ClassName("fish", " "),
        ClassName("puffin", suffix=" with orange beaks "),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", " \n\n", r"a\.txt.*empty"),
        ("a.json", "[]", r"a\.json.*empty"),
        ("a.json", '{"name": "mug"}', r"a\.json contains a dict; expected a list"),
        ("a.json", "mug", r"a\.json.*valid JSON"),
        ("a.json", '["mug", 3]', r"a\.json: class 1.*int 3"),
        ("a.json", '[{"title": "mug"}]', r"a\.json: class 0.*keys 'title'.*'name'"),
        ("a.json", '[{"name": "a", "pre": ""}]', r"class 0.*keys 'name'.*'pre'"),
        ("a.json", "[{}]", r"class 0.*keys"),
        ("a.json", '[{"name": "a", "prefix": null}]', r"class 'a'.*NoneType None"),
        ("a.json", '["mug", "(all)"]', r"a\.json: class 1 has an empty name \('\(all\)'\)"),
    ],
)
def test_what_is_no_list_of_classes(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_classes(tmp_path / name)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_classes(tmp_path / "none.txt")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"a\.txt.*text"):
        read_classes(tmp_path / "a.txt")
