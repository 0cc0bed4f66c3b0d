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
    # Of other scripts, tables and programs.
    "a circle\u3002the square": ("\u3002", ["a circle", "the square"]),
    "\u732b\u3002\u72d7\u3002": ("\u3002", ["\u732b", "\u72d7"]),
    "a circle\uff0ethe square": ("\uff0e", ["a circle", "the square"]),
    "\u092c\u093f\u0932\u094d\u0932\u0940\u0964 \u0915\u0941\u0924\u094d\u0924\u093e": (
        "\u0964",
        ["\u092c\u093f\u0932\u094d\u0932\u0940", "\u0915\u0941\u0924\u094d\u0924\u093e"],
    ),
    "\u0642\u0637\u060c \u0643\u0644\u0628": ("\u060c", ["\u0642\u0637", "\u0643\u0644\u0628"]),
    "a circle\tthe square": ("\t", ["a circle", "the square"]),
    "a circle\u2028square": ("\u2028", ["a circle", "square"]),
    "a circle\r\nthe square": ("\r\n", ["a circle", "the square"]),
    "; a cat | the dog; a bird": ("|", ["a cat", "the dog", "a bird"]),
    '"a circle", "the square"': (",", ["a circle", "the square"]),
    "'left cup', 'red hat' and 'bow',": (",", ["left cup", "red hat", "bow"]),
    '("a circle", "the square")': (",", ["a circle", "the square"]),
    '"a circle" "the square"': ('"', ["a circle", "the square"]),
    '"a circle"; "the square"': (";", ["a circle", "the square"]),
    "\u201ca circle\u201d and \u201cthe square\u201d": ("\u201c", ["a circle", "the square"]),
    "a circle.the square": (".", ["a circle", "the square"]),
    "a circle.the square. a star.": (".", ["a circle", "the square", "a star"]),
    "cat.dog": (".", ["cat", "dog"]),
    "red circle.blue square": (".", ["red circle", "blue square"]),
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
    "a 3.5 inch disk",
    "a disk of 13.5 inch",
    "a dog, e.g. a poodle",
    "e.g. a dog",
    "a black/white dog",
    "a sign of google.com",
    "node.js",
    "St.Bernard",
    "the Dr.Pepper can",
    "photo.jpg",
    # The same object once more, one full stop, and quotation marks of a sign.
    "the cup. the left one",
    "the cup.the left one",
    "\u732b\u3002",
    "a circle\t",
    'the "stop" and "go" signs',
    '"a circle, red"',
    "the dog's and the cat's bowl",
    "'tis the dogs'",
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
        '"a" ',
        '"a",   ',
        "'",
        "cat.",
        "a. ",
        "\t",
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
