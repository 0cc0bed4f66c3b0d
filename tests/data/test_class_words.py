import json

import pytest

from fiber.data import Tokenizer
from fiber.data.class_words import ClassWords, given_class_words, words_prompts

FISH = [
    "fish",
    {"name": "puffin", "suffix": " with orange beaks "},
    {"prefix": "a ", "name": "ray"},
]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["a puffin with orange beaks and a fish"] * 10, 300)


def test_no_class_has_no_prompt(tokenizer):
    assert words_prompts([], tokenizer, 20) == []


def test_the_name_alone_is_marked(tokenizer):
    words = given_class_words(FISH, "coco")
    assert words == [
        ClassWords("fish"),
        ClassWords("puffin", suffix=" with orange beaks "),
        ClassWords("ray", prefix="a "),
    ]
    (prompt,) = words_prompts(words, tokenizer, 100)
    assert prompt.text == "fish. puffin with orange beaks . a ray"
    assert prompt.labels == ("fish", "puffin", "ray")
    assert [prompt.text[a:b] for ((a, b),) in prompt.spans] == ["fish", "puffin", "ray"]


def test_names_are_cleaned_as_in_other_prompts(tokenizer):
    (prompt,) = words_prompts([ClassWords("hot_dog (food)", suffix="!")], tokenizer, 100)
    assert prompt.text == "hot dog !" and prompt.spans == (((0, 8),),)


def test_prompts_are_split_where_they_do_not_fit(tokenizer):
    words = [ClassWords(f"fish {number}") for number in range(9)]
    limit = len(tokenizer.encode("fish 0. fish 1. fish 2. fish 3")[0])
    prompts = words_prompts(words, tokenizer, limit)
    assert [prompt.first_label for prompt in prompts] == [0, 4, 8]
    assert sum((prompt.labels for prompt in prompts), ()) == tuple(w.name for w in words)
    firsts = [p.first_label for p in words_prompts(words, tokenizer, limit, max_classes=2)]
    assert firsts == [0, 2, 4, 6, 8]
    with pytest.raises(ValueError, match=r"class 0 \('fish 0'\) does not fit into 3 tokens"):
        words_prompts(words, tokenizer, 3)


def test_a_file_of_one_set_or_of_several(tmp_path):
    path = tmp_path / "words.json"
    path.write_text(json.dumps(FISH))
    assert given_class_words(path, "lvis")[1].suffix == " with orange beaks "
    with pytest.raises(ValueError, match=r"words.json: expected lists by the names of data sets"):
        given_class_words(path, "odinw")
    path.write_text(json.dumps({"Aquarium": FISH}))
    assert given_class_words(str(path), "odinw")["Aquarium"][0] == ClassWords("fish")
    with pytest.raises(ValueError, match=r"words.json: expected one list of classes for task 'co"):
        given_class_words(path, "coco")
    assert given_class_words(None, "coco") is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nothing", "is not JSON"),
        ('"fish"', "is a str; expected a list of classes"),
        ('[["fish"]]', r"class 0 is .* expected a name, or an object with 'name'"),
        ('["fish", {"name": "a", "sufix": "b"}]', r"class 1 is .*sufix.*expected a name, or"),
        ('[{"name": 3}]', "class 0 is .*expected texts"),
        ('[{"prefix": "a"}]', "class 0 has no name"),
        ('["(food)"]', "class 0 has no name"),
        ('{"Aquarium": ["fish", 7]}', "'Aquarium': class 1 is '7'"),
    ],
)
def test_wrong_files_are_refused(tmp_path, given, message):
    path = tmp_path / "words.json"
    path.write_text(given)
    with pytest.raises(ValueError, match=message):
        given_class_words(path, "odinw" if "Aquarium" in given else "coco")
    with pytest.raises(FileNotFoundError, match=r"gone.json does not exist; expected a JSON list"):
        given_class_words(tmp_path / "gone.json", "coco")
