import json
import random
import zlib
from pathlib import Path

import pytest
import torch

from fiber.data import ImageTextBatch, Tokenizer
from fiber.data.masking import WholeWords

#: Outputs of the first implementation, in Python with numpy's Philox: numbers, masked ids, labels.
RECORDED = json.loads(Path(__file__).with_name("whole_words.json").read_text())

TEXT = "a small circle, isn't it 1024px wide? na\u00efve caf\u00e9 \u6771\u4eac!"
WORDS = ["a", "small", "circle", ",", "isn't", "it", "1024", "px", "wide", "?"]
WORDS += ["na\u00efve", "caf\u00e9", "\u6771\u4eac", "!"]


@pytest.fixture(scope="module", params=[261, 300, 400], ids=["bytes", "parts", "words"])
def tokenizer(request):
    return Tokenizer.train([TEXT] * 20, request.param)


def whole_words(tokenizer, probability=0.5, seed=0):
    return WholeWords(tokenizer, probability=probability, seed=seed)


def batch_of(tokenizer, texts, max_tokens=None):
    rows = [tokenizer.encode(text, max_tokens=max_tokens)[0] for text in texts]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [1] * (longest - len(row)) for row in rows])
    count = len(texts)
    sizes = torch.ones(count, 2, dtype=torch.int64)
    return ImageTextBatch(
        keys=tuple(map(str, range(count))),
        images=torch.zeros(count, 3, 1, 1),
        image_sizes=sizes,
        original_sizes=sizes,
        token_ids=ids,
        text_mask=ids != 1,
        image_ids=torch.arange(count),
        masked_ids=ids,
        mlm_labels=torch.full_like(ids, -100),
    )


@pytest.mark.parametrize("text", ["", "   "], ids=["empty", "spaces"])
def test_a_text_without_words_loses_nothing(tokenizer, text):
    batch = batch_of(tokenizer, [text])
    assert (whole_words(tokenizer).word_numbers(batch.token_ids)[:, [0, -1]] == -1).all()
    masked = whole_words(tokenizer, 1.0).mask(batch_of(tokenizer, [""]), first_sample=0)
    assert torch.equal(masked.masked_ids, masked.token_ids)
    assert (masked.mlm_labels == -100).all()


def test_words_are_found_however_finely_they_are_cut(tokenizer):
    ids = batch_of(tokenizer, [TEXT]).token_ids
    numbers = whole_words(tokenizer).word_numbers(ids)[0].tolist()
    assert numbers[0] == numbers[-1] == -1
    words = {}
    for token, number in zip(ids[0, 1:-1].tolist(), numbers[1:-1], strict=True):
        words.setdefault(number, []).append(token)
    found = [tokenizer.decode(tokens).strip() for tokens in words.values()]
    # A lone space that was not joined to its word is a token of its own.
    assert [word for word in found if word] == WORDS


def test_a_word_is_picked_whole_and_padding_never(tokenizer):
    words = whole_words(tokenizer)
    batch = batch_of(tokenizer, [TEXT, "a small circle", TEXT])
    numbers = words.word_numbers(batch.token_ids)
    masked = words.mask(batch, first_sample=5)
    picked = masked.mlm_labels != -100
    assert picked.any() and not picked.all()
    assert not picked[numbers == -1].any()
    for row in range(3):
        for word in set(numbers[row].tolist()):
            assert len(set(picked[row][numbers[row] == word].tolist())) == 1
    assert torch.equal(masked.mlm_labels[picked], batch.token_ids[picked])
    assert torch.equal(masked.masked_ids[~picked], batch.token_ids[~picked])


def test_draws_depend_on_the_sample_and_the_seed_alone():
    tokenizer = Tokenizer.train([TEXT] * 20, 300)
    batch = batch_of(tokenizer, [TEXT] * 4)
    words = whole_words(tokenizer)
    masked = words.mask(batch, first_sample=8)
    later = words.mask(batch_of(tokenizer, [TEXT] * 2), first_sample=10)
    assert torch.equal(masked.masked_ids[2:], later.masked_ids)
    assert not torch.equal(masked.masked_ids[0], masked.masked_ids[1])
    other = whole_words(tokenizer, seed=1).mask(batch, first_sample=8)
    assert not torch.equal(masked.mlm_labels, other.mlm_labels)


def test_proportions():
    tokenizer = Tokenizer.train([TEXT] * 20, 300)
    batch = batch_of(tokenizer, [TEXT] * 800)
    words = whole_words(tokenizer, 0.15)
    masked = words.mask(batch, first_sample=0)
    numbers = words.word_numbers(batch.token_ids)
    count = len(set(numbers[0].tolist())) - 1
    picked = masked.mlm_labels != -100
    starts = numbers.diff(dim=1, prepend=torch.full((800, 1), -2)) != 0
    share = (picked & starts & (numbers >= 0)).sum() / (800 * count)
    # Three standard deviations of a binomial share.
    assert abs(share - 0.15) < 3 * (0.15 * 0.85 / (800 * count)) ** 0.5
    seen = (masked.masked_ids == tokenizer.mask_id)[picked].float().mean()
    assert abs(seen - 0.8) < 3 * (0.8 * 0.2 / int(picked.sum())) ** 0.5
    same = (masked.masked_ids == batch.token_ids)[picked].float().mean()
    # A token drawn at random is the original one once in a vocabulary.
    assert abs(same - 0.1) < 3 * (0.1 * 0.9 / int(picked.sum())) ** 0.5 + 1 / 300


def test_a_wrong_probability_is_named():
    tokenizer = Tokenizer.train([TEXT], 261)
    with pytest.raises(ValueError, match=r"probability.*1.5.*0.*1"):
        whole_words(tokenizer, 1.5)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_named(seed):
    with pytest.raises(ValueError, match=f"seed is {seed}; expected"):
        whole_words(Tokenizer.train([TEXT], 261), seed=seed)


def crc(tensor):
    return zlib.crc32(tensor.numpy().astype("<i8").tobytes())


@pytest.mark.parametrize("size", [261, 300, 400])
def test_recorded_outputs_of_many_seeds(size):
    tokenizer = Tokenizer.train([TEXT] * 20, size)
    few, many = (batch_of(tokenizer, RECORDED["texts"] * times) for times in (1, 40))
    numbers = whole_words(tokenizer).word_numbers(few.token_ids)
    assert numbers.tolist() == RECORDED["numbers"][str(size)]
    masked = whole_words(tokenizer, seed=3).mask(few, first_sample=11)
    (expected,) = (rows for of, *rows in RECORDED["rows"] if of == size)
    assert [masked.masked_ids.tolist(), masked.mlm_labels.tolist()] == expected
    cases = [case for of, *case in RECORDED["sums"] if of == size]
    assert len(cases) == 48
    for probability, seed, first, *sums in cases:
        masked = whole_words(tokenizer, probability, seed).mask(many, first_sample=first)
        assert [crc(masked.masked_ids), crc(masked.mlm_labels)] == sums, (probability, seed, first)


def test_recorded_outputs_of_random_texts():
    words = ["left", "cup", "dogs", "it's", "2024", "x-ray", "na\u00efve", "\u6771\u4eac", "..."]
    words += ["(a)", "b/c", "don't", "e\u0301", "\U0001f600"]
    draw = random.Random(0)
    texts = [" ".join(draw.choices(words, k=draw.randrange(0, 30))) for _ in range(300)]
    tokenizer = Tokenizer.train(texts, 500)
    batch = batch_of(tokenizer, texts, max_tokens=40)
    masking = whole_words(tokenizer, 0.3, 9)
    masked = masking.mask(batch, first_sample=123456)
    found = [masking.word_numbers(batch.token_ids), masked.masked_ids, masked.mlm_labels]
    assert [crc(tensor) for tensor in found] == RECORDED["random"]


def test_ids_outside_the_vocabulary_are_refused(tokenizer):
    batch = batch_of(tokenizer, ["a"])
    for wrong in (-1, tokenizer.vocab_size):
        batch.token_ids[0, 1] = wrong
        with pytest.raises(ValueError, match=f"token_ids: {wrong}; expected 0 to"):
            whole_words(tokenizer).mask(batch, first_sample=0)
