"""The loader with other tokenizers than RoBERTa's; and where they are refused for the models."""

import pickle

import numpy as np
import pytest
import torch

from fiber.data import Collator, ImageTransform, Tokenizer
from fiber.synthetic.scenes import generate
from tests.data.loader_records import CROP, RECORDS, make

pytest.importorskip("tokenizers")

from ..rust.tokenizer.tokenizer_kinds import KINDS

READ = "fiber's models .*RoBERTa.* tokenizer: "
REFUSED = {
    "bert": ".* model is not a BPE; expected a byte-level BPE",
    "gpt2": r"<s> has no id; expected 0 in a vocabulary of \d+",
    "clip": r"<s> has no id; expected 0 in a vocabulary of \d+",
    "xlm-roberta": ".* model is not a BPE",
}


@pytest.mark.parametrize("name", ["bert", "t5", "clip", "gpt2", "gpt2-trim", "llama3", "twice"])
def test_texts_and_positive_maps_are_those_of_tokenizers(name):
    theirs = KINDS[name]()
    tokenizer = Tokenizer.from_json(theirs.to_str())
    theirs.enable_padding(pad_id=tokenizer.pad_id)
    theirs.enable_truncation(9)
    collate = Collator(
        "grounding", tokenizer=tokenizer, transform=ImageTransform.squash(16), max_tokens=9
    )
    # The boxes of "the": the first word of every text.
    records = RECORDS[:9]
    batch = pickle.loads(pickle.dumps(collate))(records)
    encoded = theirs.encode_batch([record.text for record in records])
    assert batch.token_ids.tolist() == [row.ids for row in encoded]
    assert batch.text_mask.int().tolist() == [row.attention_mask for row in encoded]
    expected = [[start < min(end, 3) for start, end in row.offsets] for row in encoded]
    assert batch.boxes_per_image.tolist() == [1] * 9
    assert batch.positive_map.tolist() == expected and batch.positive_map.any(1).all()


def test_masked_words():
    tokenizer = Tokenizer.from_json(KINDS["bert"]().to_str())
    for batch in make(tokenizer, mlm_probability=1):
        words = batch.text_mask & ~torch.isin(batch.token_ids, torch.tensor(tokenizer.special_ids))
        assert torch.equal(batch.mlm_labels != -100, words)
        assert (batch.masked_ids == tokenizer.mask_id).any()
        assert (batch.masked_ids[~batch.text_mask] == tokenizer.pad_id).all()


def test_masking_needs_a_mask_token():
    json = KINDS["t5"]().to_str()
    tokenizer = Tokenizer.from_json(json)
    message = r"mlm_probability: 0\.15; expected 0 with a tokenizer that has no .*mask token"
    with pytest.raises(ValueError, match=message):
        make(tokenizer)
    with pytest.raises(ValueError, match=message):
        Collator("image_text", tokenizer=tokenizer, transform=CROP, max_tokens=12)
    for batch in make(tokenizer, mlm_probability=0):
        assert torch.equal(batch.masked_ids, batch.token_ids)
    for batch_type in ("question", "grounding"):
        assert len(list(make(tokenizer, batch_type=batch_type, transform=ImageTransform.squash(8))))
    named = Tokenizer.from_json(json, mask_token="<extra_id_0>")
    seen = torch.cat([batch.masked_ids.flatten() for batch in make(named, mlm_probability=0.5)])
    assert (seen == named.mask_id).any()


def test_max_tokens_must_hold_what_stands_around_texts():
    tokenizer = Tokenizer.from_json(KINDS["bert"]().to_str())
    with pytest.raises(ValueError, match=r"max_tokens: 1.*2.*\[CLS\].*\[SEP\]"):
        make(tokenizer, max_tokens=1)
    one = Tokenizer.from_json(KINDS["llama3"]().to_str())
    batch = next(iter(make(one, max_tokens=1, mlm_probability=0)))
    assert np.array_equal(batch.token_ids, [[0]] * 4)


@pytest.mark.parametrize("name", REFUSED)
def test_what_models_cannot_read_is_refused(name, tmp_path):
    tokenizer = Tokenizer.from_json(KINDS[name]().to_str())
    with pytest.raises(ValueError, match=f"^{READ}{REFUSED[name]}"):
        tokenizer.check_for_models()
    with pytest.raises(ValueError, match=REFUSED[name]):
        tokenizer.encode_masked_batch(
            [], mlm_unit="word", mlm_probability=0.0, seed=0, epoch=0, indices=[]
        )
    tokenizer.save(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match=REFUSED[name]):
        generate(tmp_path / "scenes", train=1, val=0, novel=0, tokenizer=tmp_path)
