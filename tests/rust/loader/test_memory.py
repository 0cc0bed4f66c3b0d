"""Batches that memory does not hold: an error of that batch, after which the next one comes."""

import pytest

from tests.limited_memory import run_limited

#: The first batch is as high as one picture and as wide as another: 60 GB.
OTHER_POLICIES = [pytest.param(each, marks=pytest.mark.slow) for each in ("skip", "resample")]

SCRIPT = """
import io, sys
from PIL import Image
from fiber.data import Collator, DataLoader, ImageTransform, Record, Tokenizer

def record(key, height, width, boxes=1):
    stream = io.BytesIO()
    Image.new("L", (width, height)).save(stream, "PNG")
    return Record(
        key=key,
        images=(stream.getvalue(),),
        text="a cup " * 2000,
        boxes_xyxy=((0.0, 0.0, 1.0, 1.0),) * boxes,
        char_spans=(((2, 5),),) * boxes,
    )

cases = {
    "pictures": [record("tall", 50_000, 1), record("wide", 1, 50_000)],
    # Rows of 5,000 tokens.
    "boxes": [record("full", 3, 3, boxes=300_000)],
}
small = [record("small", 3, 3), record("other", 3, 3)]
options = {
    "tokenizer": Tokenizer.train(["a cup"], 270),
    "transform": ImageTransform.shorter_side([1], 50_000),
    "max_tokens": 5000,
    "threads": 2,
}
records = cases[sys.argv[1]]
with DataLoader(records, "grounding", batch_size=2, on_error=sys.argv[2], **options) as loader:
    collate = Collator("grounding", **options)
    collate(small)
    with memory_left(1 << 28):
        for make in (lambda: list(loader), lambda: collate(records)):
            try:
                make()
            except MemoryError as error:
                print(error)
        print(loader.skipped)
        records[:] = small
        print([batch.keys for batch in loader], collate(small).keys)
"""


@pytest.mark.parametrize("policy", ["raise", *OTHER_POLICIES])
@pytest.mark.parametrize(
    ("case", "what"),
    [
        ("pictures", "[2, 3, 50016, 50016] values of float32; "),
        ("boxes", "300000 boxes "),
    ],
)
def test_a_batch_too_large_is_an_error_and_the_next_one_comes(case, what, policy):
    ended = run_limited(SCRIPT, case, policy)
    assert ended.returncode == 0, ended.stderr
    *problems, skipped, keys = ended.stdout.splitlines()
    assert len(problems) == 2
    for problem in problems:
        assert "out of memory: " in problem and what in problem
    # Too little memory is no fault of a record.
    assert skipped == "[]"
    assert keys == "[('small', 'other')] ('small', 'other')"
