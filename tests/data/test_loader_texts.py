"""Texts of the loader: what it counts of them, and how it numbers them for masking."""

import numpy as np
import pytest

from fiber.data import ImageTransform, Tokenizer
from tests.data.loader_records import TEXT, make, record, take


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT] * 3, 300)


def test_texts_that_are_truncated_or_have_no_words_are_counted(tokenizer):
    count = len(tokenizer.encode(TEXT)[0])
    texts = [TEXT, "", "<mask>", TEXT + " a", TEXT + "?", "the"]
    no_boxes = {"boxes_xyxy": (), "char_spans": ()}
    records = [record(index, text=text, **no_boxes) for index, text in enumerate(texts)]
    for batch_type in ("image_text", "question", "grounding"):
        options = {"max_tokens": count, "transform": ImageTransform.squash(8)}
        loader = make(tokenizer, records, batch_type, **options)
        batches = loader.epoch()
        assert (loader.truncated_texts, loader.wordless_texts) == (0, 0)
        assert next(batches).text_mask.sum(1).tolist() == [count, 2, 3, count]
        # A text that just fits is not truncated, and a batch is counted once it is returned.
        assert (loader.truncated_texts, loader.wordless_texts) == (1, 2)
        assert len(next(batches)) == 2
        assert (loader.truncated_texts, loader.wordless_texts) == (2, 2)
        batches.close()


def test_words_are_masked_by_the_record_or_by_the_position_in_the_stream(tokenizer):
    options = {"mlm_unit": "word", "mlm_probability": 0.5, "mlm_seed": 3, "batch_size": 3}
    records = [record(index, text=TEXT) for index in range(6)]
    masking = {"mlm_unit": "word", "mlm_probability": 0.5, "seed": 3, "max_tokens": 12}

    def expected(epoch, numbers):
        batch = tokenizer.encode_masked_batch(
            [TEXT] * len(numbers), epoch=epoch, indices=numbers, **masking
        )
        return np.asarray(batch["masked_ids"]).tolist()

    loader = make(tokenizer, records, transform=ImageTransform.squash(8), seed=8, **options)
    for epoch in range(2):
        numbers = [[0, 1, 2], [3, 4, 5]]
        assert [batch.masked_ids.tolist() for batch in loader] == [
            expected(epoch, rows) for rows in numbers
        ]
    streamed = take(loader.stream(start=2), 3)
    assert [batch.masked_ids.tolist() for batch in streamed] == [
        expected(0, [2 + 3 * step + row for row in range(3)]) for step in range(3)
    ]


def test_boxes_without_tokens_are_counted(tokenizer):
    boxed = record(0, text=TEXT, boxes_xyxy=((0, 0, 9, 9),) * 2,
                   char_spans=(((0, 3),), ((34, 37),)))  # fmt: skip
    loader = make(
        tokenizer, [boxed], "grounding", max_tokens=4, transform=ImageTransform.squash(16)
    )
    (batch,) = loader.epoch()
    assert batch.boxes_per_image.tolist() == [1] and batch.positive_map.any(1).all()
    assert (loader.truncated_boxes, loader.cropped_boxes) == (1, 0)
