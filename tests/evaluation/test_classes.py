import json

import pytest

from fiber.data.prompts.classes import ClassName
from fiber.evaluation.classes import classes_of_sets, listed_classes

FISH = ["fish", {"name": "puffin", "suffix": " with orange beaks "}]


def test_nothing_given_is_nothing():
    assert listed_classes(None) is None and classes_of_sets(None) is None


def test_a_list_or_a_file(tmp_path):
    expected = [ClassName("fish"), ClassName("puffin", suffix=" with orange beaks ")]
    assert listed_classes(FISH) == expected
    (tmp_path / "a.json").write_text(json.dumps(FISH))
    assert listed_classes(tmp_path / "a.json") == expected
    with pytest.raises(TypeError, match="classes: got a mapping; expected a list"):
        listed_classes({"a": FISH})
    with pytest.raises(ValueError, match=r"class 1.*keys 'nam'"):
        listed_classes(["fish", {"nam": "ray"}])


def test_lists_of_several_sets(tmp_path):
    expected = [ClassName("fish"), ClassName("puffin", suffix=" with orange beaks ")]
    assert classes_of_sets({"Aquarium": FISH}) == {"Aquarium": expected}
    (tmp_path / "Aquarium.json").write_text(json.dumps(FISH))
    (tmp_path / "pothole.json").write_text('["hole"]')
    found = classes_of_sets(str(tmp_path))
    assert found == {"Aquarium": expected, "pothole": [ClassName("hole")]}
    with pytest.raises(TypeError, match="classes: got list; expected a dict of class lists"):
        classes_of_sets(FISH)
    with pytest.raises(FileNotFoundError, match=r"is not a folder of class files; .* NAME.json"):
        classes_of_sets(tmp_path / "Aquarium.json")
