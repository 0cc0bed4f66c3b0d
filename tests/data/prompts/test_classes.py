import itertools
import json

import pytest

from fiber.data.prompts.classes import (
    ClassName,
    Prompt,
    caption_prompt,
    class_prompt,
    class_prompts,
    clean_class_name,
)
from tests.data.words import Words
from tests.golden import FINE
from tests.parity.recorded_tokens import recorded_tokens

RECORDED = FINE / "data_text.json"


def named(prompt):
    """The characters of each label."""
    return [[prompt.text[start:end] for start, end in spans] for spans in prompt.spans]


def test_no_labels_make_an_empty_text():
    assert class_prompt([]) == Prompt("", (), ())
    assert class_prompts([], Words(), 8) == []
    assert caption_prompt("A mug.", []).spans == ()


def test_classes_are_joined_by_points():
    prompt = class_prompt(["mug", "traffic_light", "bow_(ribbon)", "x"])
    assert prompt.text == "mug. traffic light. bow . x"
    assert prompt.labels == ("mug", "traffic_light", "bow_(ribbon)", "x")
    assert named(prompt) == [["mug"], ["traffic light"], ["bow "], ["x"]]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hot_dog", "hot dog"),
        ("dog_(animal)", "dog "),
        ("a_(b)_c_(d)", "a "),
        ("two  spaces", "two spaces"),
        ("plain", "plain"),
    ],
)
def test_class_names_are_cleaned(name, expected):
    assert clean_class_name(name) == expected


def test_classes_of_one_name_have_different_labels():
    stars = [
        ClassName("star", prefix="red "),
        "ring",
        {"name": "star", "prefix": "wooden ", "suffix": " left"},
        ClassName("star"),
        ClassName("ring_(toy)", prefix="red "),
    ]
    labels = ("red star", "ring", "wooden star left", "star", "ring_(toy)")
    prompt = class_prompt(stars)
    assert prompt.labels == labels
    assert prompt.text == "red star. ring. wooden star left. star. red ring "
    # The name alone says how a box scores, and splitting the list changes no label.
    assert [prompt.text[slice(*spans[0])] for spans in prompt.spans][:4] == [
        *("star", "ring", "star", "star")
    ]
    split = class_prompts(stars, Words(), 99, max_classes=1)
    assert [each.labels for each in split] == [(label,) for label in labels]


def test_words_around_a_name_are_no_part_of_its_span():
    puffin = {"name": "puffin", "prefix": "", "suffix": " with orange beaks "}
    prompt = class_prompt([ClassName("fish", prefix=" "), puffin, "hot_dog", ClassName("sea_ray")])
    assert prompt.text == " fish. puffin with orange beaks . hot dog. sea ray"
    assert prompt.labels == ("fish", "puffin", "hot_dog", "sea_ray")
    assert named(prompt) == [["fish"], ["puffin"], ["hot dog"], ["sea ray"]]


@pytest.mark.parametrize("max_classes", [1, 3, 4, 100])
def test_blocks_of_classes(max_classes):
    names = [f"class{number}" for number in range(10)]
    prompts = class_prompts(names, Words(), 100, max_classes=max_classes)
    starts = list(range(0, 10, max_classes))
    assert [prompt.first_label for prompt in prompts] == starts
    assert [prompt.labels for prompt in prompts] == [
        tuple(names[start : start + max_classes]) for start in starts
    ]


def test_a_block_that_does_not_fit_is_split_and_the_others_stay():
    names = [f"class{number}" for number in range(10)]
    # Two tokens a class, <s> and </s>, and no point behind the last one: three classes fit.
    prompts = class_prompts(names, Words(), 7, max_classes=4)
    assert [prompt.first_label for prompt in prompts] == [0, 3, 4, 7, 8]
    with pytest.raises(ValueError, match=r"classes.*1.*0"):
        class_prompts(names, Words(), 7, max_classes=0)


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_label_is_named(empty):
    with pytest.raises(ValueError, match=rf"class 1.*{empty!r}"):
        class_prompt(["mug", empty])


def test_a_class_of_which_cleaning_leaves_nothing_is_named():
    with pytest.raises(ValueError, match=r"class 0.*'\(all\)'"):
        class_prompts(["(all)"], Words(), 8)


def test_tokens_of_labels():
    prompt = class_prompt(["mug", "traffic light"])
    _, offsets = Words().encode(prompt.text)
    assert prompt.token_map(offsets) == [[1], [3, 4]]
    # A text that was cut has no tokens for what is gone.
    assert prompt.token_map(offsets[:2]) == [[1], []]


def test_a_token_of_several_characters_belongs_to_every_span_it_touches():
    prompt = Prompt("abcd", ("x", "y"), (((0, 1),), ((2, 4), (0, 2))))
    assert prompt.token_map([(0, 0), (0, 3), (3, 4), (0, 0)]) == [[1], [1, 2]]


@pytest.mark.parametrize("max_tokens", [4, 5, 9, 100])
def test_many_classes_are_split_in_order_into_texts_that_fit(max_tokens):
    names = [f"class{number}" if number % 3 else f"a{number}_b" for number in range(17)]
    prompts = class_prompts(names, Words(), max_tokens)
    assert [label for prompt in prompts for label in prompt.labels] == names
    assert [prompt.first_label for prompt in prompts] == [
        names.index(prompt.labels[0]) for prompt in prompts
    ]
    lengths = [len(Words().encode(prompt.text)[0]) for prompt in prompts]
    assert max(lengths) <= max_tokens
    # No text could take the next name as well.
    for prompt, following in itertools.pairwise(prompts):
        longer = f"{prompt.text}. {clean_class_name(following.labels[0])}"
        assert len(Words().encode(longer)[0]) > max_tokens
    for prompt in prompts:
        cleaned = [[clean_class_name(label)] for label in prompt.labels]
        assert named(prompt) == cleaned


def test_a_class_that_does_not_fit_alone_is_named():
    with pytest.raises(ValueError, match=r"class 1.*'a b c'.*4.*5"):
        class_prompts(["mug", "a b c"], Words(), 4)


def test_phrases_are_found_in_order():
    caption = "A red mug next to the mug of the red-haired man."
    prompt = caption_prompt(caption, ["a red mug", "the mug", "man", "red"])
    assert prompt.text == caption
    assert named(prompt) == [["A red mug"], ["the mug"], ["man"], ["red"]]
    # The last one stands behind no other occurrence of itself: it is looked for from the start.
    assert prompt.spans[3] == ((2, 5),)


def test_a_repeated_phrase_is_the_next_occurrence():
    prompt = caption_prompt("a dog and a dog", ["a dog", "a dog"])
    assert prompt.spans == (((0, 5),), ((10, 15),))


def test_whole_words_come_before_parts_of_words():
    prompt = caption_prompt("hundred red reds", ["red", "reds", "hund"])
    assert prompt.spans == (((8, 11),), ((12, 16),), ((0, 4),))


def test_characters_outside_the_basic_plane_count_once():
    caption = "🐶 a dog (ö) sits"
    assert named(caption_prompt(caption, ["a dog (ö)"])) == [["a dog (ö)"]]


@pytest.mark.parametrize(("phrase", "message"), [("cat", "'cat'"), (" ", "empty")])
def test_a_phrase_that_does_not_occur_is_named(phrase, message):
    with pytest.raises(ValueError, match=rf"phrase 1.*{message}"):
        caption_prompt("a dog", ["dog", phrase])


@pytest.fixture(scope="module")
def recorded():
    return json.loads(RECORDED.read_text())


def test_detection_texts_are_the_published_ones(recorded):
    compared = 0
    for case in recorded["detection_queries"]:
        prompt = class_prompt(case.get("prompt", case["names"]))
        assert prompt.text == case["caption"], case["name"]
        assert list(prompt.labels) == case["names"]
        compared += 1
    assert compared > 3


def test_names_of_published_prompts_are_the_same_tokens(recorded):
    tokenizer = recorded_tokens()
    for case in recorded["detection_queries"]:
        prompt = class_prompt(case.get("prompt", case["names"]))
        _, offsets = tokenizer.encode(prompt.text)
        # Labels count from 1, or are ids of their own in the order of the names.
        assert prompt.token_map(offsets) == list(case["label_to_tokens"].values()), case["name"]


def test_spans_of_classes_are_the_published_ones(recorded):
    compared = 0
    for case in recorded["od_to_grounding"]:
        if case["fn"] != "simple" or "annotations" not in case:
            continue
        pieces = case["caption"].split(". ")
        prompt = class_prompt(pieces)
        assert prompt.text == case["caption"]
        for annotation in case["annotations"]:
            (span,) = annotation["tokens_positive"]
            assert (tuple(span),) in prompt.spans
            compared += 1
    assert compared > 0


def test_token_maps_are_the_published_ones(recorded):
    """char_to_token of the record gives the tokens' offsets back."""
    for case in recorded["positive_map"]["cases"]:
        if "char_to_token" not in case:
            continue
        offsets = [(0, 0)] * len(case["input_ids"])
        for character, token in enumerate(case["char_to_token"]):
            if token is not None:
                start = offsets[token][0] if offsets[token][1] else character
                offsets[token] = (start, character + 1)
        spans = tuple(tuple((start, end) for start, end in each) for each in case["spans"])
        prompt = Prompt(case["caption"], ("x",) * len(spans), spans)
        for ours, theirs in zip(prompt.token_map(offsets), case["positive_tokens"], strict=True):
            # The published search gives up at three blanks in a row, ours does not.
            assert ours == theirs or (not theirs and "   " in case["caption"]), case["caption"]
