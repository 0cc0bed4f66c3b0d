"""Phrases that are lists by their look, and those that are not."""

import warnings

import pytest

from fiber.cli import main
from fiber.inference.phrase_lists import find_separator, warn_of_lists

LISTS = {
    "a red circle; the square": (";", ["a red circle", "the square"]),
    "cat;dog": (";", ["cat", "dog"]),
    "a cat\na dog\n": ("\n", ["a cat", "a dog"]),
    "cat|dog": ("|", ["cat", "dog"]),
    "a red circle. the square. the triangle.": (
        ".",
        ["a red circle", "the square", "the triangle"],
    ),
    "cat . dog . remote control .": (".", ["cat", "dog", "remote control"]),
    "red mug. blue mug": (".", ["red mug", "blue mug"]),
    "a circle, the square, the triangle": (",", ["a circle", "the square", "the triangle"]),
    "a circle ,the square": (",", ["a circle", "the square"]),
    "a mug, a laptop and the mouse": (",", ["a mug", "a laptop", "the mouse"]),
    "a mug, a laptop, and  the mouse": (",", ["a mug", "a laptop", "the mouse"]),
    "two dogs, the man in a hat": (",", ["two dogs", "the man in a hat"]),
    "cat, dog, person": (",", ["cat", "dog", "person"]),
    "circle, square": (",", ["circle", "square"]),
    "red circle, blue square": (",", ["red circle", "blue square"]),
    "red circle, blue square and green star": (",", ["red circle", "blue square", "green star"]),
    "a red circle, square": (",", ["a red circle", "square"]),
    "big red apples, a pear": (",", ["big red apples", "a pear"]),
    "red hat, blue hat": (",", ["red hat", "blue hat"]),
    "red circle / blue square": ("/", ["red circle", "blue square"]),
    "a circle/the square": ("/", ["a circle", "the square"]),
    "cat/dog": ("/", ["cat", "dog"]),
    "ring, building": (",", ["ring", "building"]),
    "circle\u3001square": ("\u3001", ["circle", "square"]),
    "the red circle\u3001on the left": ("\u3001", ["the red circle", "on the left"]),
    "a circle\uff0cthe square": ("\uff0c", ["a circle", "the square"]),
    "cat\uff1bdog": ("\uff1b", ["cat", "dog"]),
    '["a mug", "the cup"]': (",", ["a mug", "the cup"]),
}
PHRASES = [
    "",
    ", . ;",
    "a circle",
    "a circle;",
    "a circle.",
    "a red, round circle",
    "a big, red, round circle",
    "tall, dark, handsome man",
    "the star left of the ring",
    "a circle and the square",
    # Of referring expressions.
    "man, left",
    "woman in red, right side",
    "left guy, blue shirt",
    "the dog, the black one",
    "the cup, the top right corner",
    "a woman in a dress, the second from left",
    "the man, who waits",
    "the girl, with a hat, on the left",
    "the man in red. he holds a ball",
    "the cup. on the left",
    "left, front",
    "the man in the red, torn shirt",
    "a black and white dog, sitting",
    "dog, sitting",
    "girl, blonde",
    "sitting, smiling woman",
    "blue shirt, red hat",
    "black shirt, white hat",
    "brown horse, white tail",
    "white car, black roof",
    "old man, red tie",
    "red bowl, green apples",
    "a big, red car",
    "left car, red car",
    "red car, left",
    "white, black and brown dog",
    "black, white cat",
    "red, red",
    "the black/white cat",
    "black/white",
    "left/right",
    "w/ hat",
    "man w/o hat",
    "the on/off button",
    "man/woman in red",
    "a 1/2 full glass",
    "50/50",
    "red shirt\uff0cglasses on",
    # Abbreviations and numbers.
    "the St. Bernard on the left",
    "a no. 5 jersey",
    "the U.S. flag",
    "a 2.5 l bottle",
    "J. R. R. Tolkien",
]


@pytest.mark.parametrize("phrase", LISTS)
def test_lists(phrase):
    assert find_separator(phrase) == LISTS[phrase]


@pytest.mark.parametrize("phrase", PHRASES)
def test_phrases(phrase):
    assert find_separator(phrase) is None


def test_long_texts_take_linear_time():
    """Every kind of repetition that a pattern could try again and again."""
    for part in (
        " ",
        ",",
        ".",
        "a.",
        "the ",
        " and ",
        "left",
        "a, ",
        "a ",
        "red ",
        "cat/",
        "red cat, ",
        " and cat",
    ):
        warn = find_separator(part * 100_000)
        assert warn is None or len(warn[1]) > 1


def test_the_warning_says_what_to_write():
    with pytest.warns(UserWarning) as caught:
        warn_of_lists(["a dog", "a; b\x1b; c; d;" * 1000, "a cat; a dog"], "phrase")
    (text,) = [str(each.message) for each in caught]
    assert "is taken as one phrase, although ';' seems to separate 4000" in text
    assert '"a; b\\x1b; c; ..."' in text
    assert len(text) < 400 and "\x1b" not in text


@pytest.mark.filterwarnings("ignore:text .* is truncated:UserWarning")
def test_one_warning_per_call_at_the_line_of_the_caller(fine, pictures):
    text = "a circle, the square, the triangle"
    for given in (text, [text], [["a dog", text], ["a. b. c. d"]]):
        with pytest.warns(UserWarning, match="taken as one phrase") as caught:
            found = fine.ground(pictures[:2], given, boxes_per_phrase=1)
        assert [each.filename for each in caught] == [__file__]
        assert len(found) == 2
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".* is taken as one")
        # A caption is a sentence, and its phrases occur in it.
        fine.ground(pictures[0], caption="a dog. a cat, the man")
        fine.ground(pictures[0], ["a dog. a cat"], caption="a dog. a cat, the man")
        fine.ground(pictures[0], ["a dog", "a cat"])
        fine.detect(pictures[0], ["cat, dog, bird", "bow"])
        fine.detect(pictures[0], "cabinet/shelf")


def test_one_class_that_is_a_list(fine, pictures):
    for given in ("cat; dog", ["cat, dog, bird"], [["cat. dog"], ["bird"]], "red mug, blue mug"):
        with pytest.warns(UserWarning, match="taken as one class") as caught:
            fine.detect(pictures[:2], given)
        assert [each.filename for each in caught] == [__file__]


def test_on_the_command_line(micro_models, scene_picture, capsys):
    model = ["--model", str(micro_models["fine"])]
    assert main(["ground", str(scene_picture), "--phrases", "a circle, the square", *model]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fiber: warning: 'a circle, the square' is taken as one phrase")
    assert line.endswith('or on the command line "a circle; the square"')
