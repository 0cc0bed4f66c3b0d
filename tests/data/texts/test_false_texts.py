"""Texts of other images, drawn for every sample."""

import collections
import dataclasses

import pytest
import torch

from fiber.data import Record, Tokenizer
from fiber.data.texts.false_texts import FalseTexts
from tests.data.loader_records import make, png, take

#: Two captions of each of five images.
RECORDS = [
    Record(
        key=f"r{i}", images=(png(i // 2),), image_id=f"{i // 2}.png", text=f"text {i} " * (i + 1)
    )
    for i in range(10)
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([record.text for record in RECORDS], 300)


def test_no_records():
    assert len(FalseTexts([], count=3)) == 0


@pytest.mark.parametrize(
    ("records", "count", "named"),
    [
        (RECORDS[:4], 3, r"'r0' has 2 false texts; expected 3.* the 4 texts.*'0\.png'"),
        (RECORDS[:2], 1, "'r0' has 0 false texts; expected 1"),
        # Another image with the same text is no false text.
        (
            [*RECORDS[:3], dataclasses.replace(RECORDS[4], text=RECORDS[0].text)],
            2,
            "'r0' has 1 false texts; expected 2",
        ),
    ],
    ids=["few", "one image", "same texts"],
)
def test_too_few_texts_are_an_error(records, count, named):
    with pytest.raises(ValueError, match=named):
        FalseTexts(records, count=count)


def test_texts_are_of_other_images_and_distinct_and_uniform():
    texts, drawn = FalseTexts(RECORDS, count=3), collections.Counter()
    for epoch in range(400):
        chosen = texts.indices(epoch, 5)
        assert len(set(chosen)) == 3 and not {4, 5}.intersection(chosen)
        drawn.update(chosen)
    # 3 of 8; four standard deviations of a binomial count.
    assert len(drawn) == 8
    assert all(abs(n - 150) < 4 * (400 * 3 / 8 * 5 / 8) ** 0.5 for n in drawn.values())
    whole = FalseTexts(RECORDS, count=8)
    assert sorted(whole.indices(0, 5)) == [0, 1, 2, 3, 6, 7, 8, 9]


def test_a_draw_depends_on_the_seed_the_epoch_and_the_record():
    texts = FalseTexts(RECORDS, count=3, seed=1)
    assert texts.indices(7, 2) == FalseTexts(RECORDS, count=3, seed=1).indices(7, 2)
    others = [FalseTexts(RECORDS, count=3, seed=2).indices(7, 2), texts.indices(8, 2)]
    assert texts.indices(7, 2) not in others
    # The same numbers would give neighbors the same order.
    assert texts.indices(7, 2) != texts.indices(7, 3)


def test_batches_have_the_drawn_texts(tokenizer):
    texts = FalseTexts(RECORDS, count=3, seed=1)
    for batch in take(make(tokenizer, RECORDS, shuffle=True).stream(), 4):
        ranked = texts.add(batch, tokenizer, max_tokens=12)
        assert torch.equal(ranked.images, batch.images) and ranked.keys == batch.keys
        assert ranked.false_ids.shape == ranked.false_mask.shape
        assert ranked.false_ids.shape == (4, 3, ranked.token_ids.shape[1])
        assert (ranked.false_ids[~ranked.false_mask] == tokenizer.pad_id).all()
        for row, (epoch, index) in enumerate(batch.samples):
            assert batch.keys[row] == f"r{index}"
            expected = [RECORDS[other].text for other in texts.indices(epoch, index)]
            for ids, mask, text in zip(
                ranked.false_ids[row], ranked.false_mask[row], expected, strict=True
            ):
                assert ids[mask].tolist() == tokenizer.encode(text, max_tokens=12)[0]
            # Its own text is padded to the longest.
            own = ranked.token_ids[row][ranked.text_mask[row]].tolist()
            assert own == tokenizer.encode(RECORDS[index].text, max_tokens=12)[0]
            labels = ranked.mlm_labels[row][~ranked.text_mask[row]]
            assert (labels == -100).all()


def test_an_empty_batch(tokenizer):
    batch = take(make(tokenizer, RECORDS).stream(), 1)[0]
    tensors = {name: value[:0] for name, value in vars(batch).items() if torch.is_tensor(value)}
    empty = dataclasses.replace(batch, keys=(), samples=(), **tensors)
    ranked = FalseTexts(RECORDS, count=3).add(empty, tokenizer, max_tokens=12)
    assert ranked.false_ids.shape == (0, 3, ranked.token_ids.shape[1])
