"""Sizes that memory does not hold: a MemoryError that says what for, no end of the process."""

import re

import pytest

from tests.limited_memory import run_limited

#: Does something with 48 MiB left, and once more with all memory.
SCRIPT = """
import io, sys
import numpy as np
from PIL import Image
from fiber import _core
from fiber.data import ImageTransform, Tokenizer

def encoded(mode, form, side=6000, **options):
    stream = io.BytesIO()
    Image.new(mode, (side, side)).save(stream, form, **options)
    return stream.getvalue()

def decoding(mode, form, **options):
    data = encoded(mode, form, **options)
    return lambda: _core.decode_image(data)

def reduced(data):
    return lambda: _core.decode_jpeg(data, divisor=8)

small = np.zeros((2, 2, 3), np.uint8)
tokenizer = Tokenizer.train(["a cup"], 270)
large = ImageTransform.squash(6000)
many = ["a"] * 4_000_000
cases = {
    "png": lambda: decoding("L", "PNG"),
    "bmp": lambda: decoding("L", "BMP"),
    "gif": lambda: decoding("L", "GIF"),
    "tiff": lambda: decoding("L", "TIFF"),
    "webp": lambda: decoding("RGB", "WEBP", quality=0, method=0),
    "jpeg": lambda: decoding("L", "JPEG"),
    "progressive": lambda: reduced(encoded("RGB", "JPEG", progressive=True)),
    "resize": lambda: lambda: _core.resize_image(small, 6000, 6000),
    "transform": lambda: lambda: _core.apply_transform(small, large),
    "list": lambda: lambda: tokenizer.encode_batch(many),
    "texts": lambda: lambda: tokenizer.encode_batch(["a"] * 6000, pad_to=6000),
    "masks": lambda: lambda: tokenizer.encode_masked_batch(
        ["a"] * 2000, pad_to=6000, mlm_probability=0.1, seed=0, epoch=0, indices=range(2000)
    ),
}
run = cases[sys.argv[1]]()
with memory_left(48 << 20):
    try:
        run()
    except MemoryError as error:
        print(error)
run()
print("done")
"""


@pytest.mark.parametrize(
    ("case", "what"),
    [
        *((form, "6000 x 6000 pixels") for form in ("png", "bmp", "gif", "tiff", "webp", "jpeg")),
        ("progressive", "the coefficients of a multi-scan JPEG"),
        ("resize", "6000 x 6000 pixels"),
        ("transform", "6000 x 6000 pixels"),
        ("list", "4000000 texts"),
        ("texts", "6000 texts of 6000 tokens"),
        ("masks", "2000 texts of 6000 tokens"),
    ],
)
def test_what_memory_does_not_hold_is_an_error(case, what):
    ended = run_limited(SCRIPT, case)
    assert ended.returncode == 0, ended.stderr
    problem, done = ended.stdout.splitlines()
    assert (
        problem.startswith("out of memory: ")
        and what in problem
        and re.search("; (use|pass) ", problem)
    )
    assert done == "done"


LONG = """
from fiber.data import Tokenizer

tokenizer = Tokenizer.train(["a cup"], 270)
text = "a" * 4_000_000
with memory_left(48 << 20):
    try:
        tokenizer.encode_batch(text)
    except TypeError as error:
        print(error)
"""


def test_a_long_text_in_the_place_of_a_list_is_named():
    """Its characters are no texts that memory is asked for."""
    ended = run_limited(LONG)
    assert ended.stdout == "texts is of type str; expected a sequence of str\n", ended.stderr
