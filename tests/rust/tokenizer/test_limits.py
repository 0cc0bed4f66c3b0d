"""Limits on tokenizer.json: hostile files are refused with a reason, published kinds are not."""

import base64
import json
import os
import struct

import pytest

from fiber.data import Tokenizer
from tests import hostile_cases
from tests.rust.tokenizer import tokenizer_kinds

WHOLE = json.loads(Tokenizer.train(["a red cup", "the red cups"] * 9, 300).to_json())

REASONS = {
    "34 doubling rules": "'normalizer' can turn one byte into 17179869184 bytes; expected at most",
    "doubling rules without types": "'normalizer' can turn one byte into ",
    "prefix of 2 MB": "'normalizer' has a string of 1900000 bytes; expected at most 1024",
    "replacement of 1 MB": "'normalizer' has a string of 1000000 bytes",
    "empty pattern": "'normalizer' can turn one byte into ",
    "growth undone": "the normalizer can turn the added token ",
    "Unicode growth": "'normalizer' can turn one byte into 1771561 bytes",
    "bytes of bytes": "'pre_tokenizer' can turn one byte into ",
    "growth while decoding": "'decoder' can turn one byte into ",
    "backtracking": "the normalizer can turn the added token 'a{40}' into 4000 bytes; .* most 64",
    "large pattern": "'normalizer' has a regular expression with 1000000 repetitions; expected at",
    "many patterns": "60 regular expressions; expected at most 16",
    "charsmap of 4 GB": "'normalizer' has an invalid precompiled_charsmap",
    "charsmap with long texts": "'normalizer' can turn one byte into 1000000 bytes",
    "empty charsmap": "'normalizer' has an invalid precompiled_charsmap",
    "long added tokens": "'added_tokens' has a string of 900000 bytes; expected at most 4096",
    "template of 8,000 tokens": "'post_processor' has more than 10000 values",
    "template of 2,700,000 tokens": "'post_processor' adds 2700000 tokens to a text; .* most 1024",
    "nested steps": "'normalizer' has nested deeper than 16 levels",
    "wide words": "'model' has a string of 1900000 bytes; expected at most 4096",
    "largest ids": "'model' has id 4294967295 in a vocabulary of 2 tokens; .* at most 1048578",
    "unigram of one long word": "'model' has a string of 1900000 bytes",
    "unigram of many words": "'model' has 5000 tokens of .* bytes in all; expected at most 24",
}
ACCEPTED = {
    *("intact", "backtracking in many tokens", "14,000 added tokens", "padding to 10^9"),
}


def test_every_case_is_listed():
    assert REASONS.keys() | ACCEPTED == hostile_cases.tokenizers(WHOLE).keys()


@pytest.mark.parametrize("name", REASONS)
def test_hostile_tokenizers_are_refused(name, tmp_path, capfd):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(hostile_cases.tokenizers(WHOLE)[name]))
    with pytest.raises(ValueError, match=rf"tokenizer\.json: .*({REASONS[name]})"):
        Tokenizer.from_file(path)


WORDS = {"type": "WordLevel", "vocab": {"<unk>": 0, "a": 1}, "unk_token": "<unk>"}
#: What costs much in few bytes, besides the cases that are read with limits: the changed parts, and
#: the reason.
COSTLY = {
    "an id far beyond a BPE": (
        {"model": WHOLE["model"] | {"vocab": WHOLE["model"]["vocab"] | {"x": 4_000_000_000}}},
        "'model' has id 4000000000 in a vocabulary of",
    ),
    "words without bound": (
        {"model": WORDS | {"type": "WordPiece", "max_input_chars_per_word": 10**9}},
        "max_input_chars_per_word 1000000000; expected at most 256",
    ),
    "a long token of a Unigram": (
        {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0], ["a" * 513, -1]]}},
        "'model' has a token of 513 bytes; expected at most 512",
    ),
    "spaces that take spaces": (
        {"added_tokens": [hostile_cases.added(" ") | {"rstrip": True}]},
        "the added token ' ' is of spaces",
    ),
    "spaces after normalization": (
        {
            "normalizer": hostile_cases.replace({"String": "_"}, " "),
            "added_tokens": [hostile_cases.added("_") | {"normalized": True, "lstrip": True}],
        },
        "the added token '_' is of spaces",
    ),
    "nothing after normalization": (
        {
            "normalizer": hostile_cases.replace({"String": "_"}, ""),
            "added_tokens": [hostile_cases.added("__") | {"normalized": True}],
        },
        "the added token '__' is normalized to nothing",
    ),
    "pieces of no characters": (
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
        "'pre_tokenizer' has a FixedLength of 0; expected 1 or more",
    ),
}


@pytest.mark.parametrize("name", COSTLY)
def test_what_costs_much_is_refused(name):
    changes, reason = COSTLY[name]
    with pytest.raises(ValueError, match=reason):
        Tokenizer.from_json(json.dumps(WHOLE | {"post_processor": None} | changes))


def split(pattern):
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"model": WORDS, "pre_tokenizer": step, "added_tokens": [], "post_processor": None}


@pytest.mark.parametrize("growth", [1, 7])
def test_texts_for_unknown_regular_expressions_are_bounded(growth, tmp_path):
    """At each letter, this one looks at all that follow."""
    path, normalizer = tmp_path / "tokenizer.json", None
    if growth > 1:
        normalizer = hostile_cases.replace({"String": "_"}, "b" * growth)
    path.write_text(json.dumps(WHOLE | split("A(?=A*$)") | {"normalizer": normalizer}))
    tokenizer, most = Tokenizer.from_file(path), 32_768 // growth
    assert len(tokenizer.encode("b" * most)[0]) == 1
    for max_tokens in (None, 8):
        found = rf"tokenizer\.json: .* {most + 1} bytes; expected at most {most}, .*'A\(\?=A"
        with pytest.raises(ValueError, match=found):
            tokenizer.encode("b" * (most + 1), max_tokens=max_tokens)


@pytest.mark.parametrize("pattern", [tokenizer_kinds.LLAMA_3, tokenizer_kinds.CLIP, r"\s+"])
def test_texts_for_published_regular_expressions_are_not(pattern):
    tokenizer = Tokenizer.from_json(json.dumps(WHOLE | split(pattern)))
    assert len(tokenizer.encode("A" * 200_000)[0]) == 1


def test_ids_with_gaps_are_read():
    vocabulary = {"<unk>": 0, "a": 7, "b": 1_000_000}
    model = WORDS | {"vocab": vocabulary}
    parts = {"model": model, "added_tokens": [], "post_processor": None, "decoder": None}
    tokenizer = Tokenizer.from_json(json.dumps(WHOLE | parts | {"pre_tokenizer": None}))
    assert tokenizer.encode("b")[0] == [1_000_000]
    assert json.loads(tokenizer.to_json())["model"]["vocab"] == vocabulary


def test_a_post_processor_adds_ids_of_tokens(tmp_path):
    path = tmp_path / "tokenizer.json"
    processor = WHOLE["post_processor"]
    assert processor["type"] == "RobertaProcessing"
    path.write_text(json.dumps(WHOLE | {"post_processor": processor | {"sep": ["</s>", 2**31]}}))
    with pytest.raises(ValueError, match=rf"^{path}: .*adds id {2**31}, which no token has"):
        Tokenizer.from_file(path)


def test_a_model_has_a_row_for_each_id():
    """A tokenizer whose ids have gaps is one, but not of a model."""
    vocabulary = dict(WHOLE["model"]["vocab"])
    vocabulary["b"] = 2 * len(vocabulary)
    tokenizer = Tokenizer.from_json(
        json.dumps(WHOLE | {"model": WHOLE["model"] | {"vocab": vocabulary}})
    )
    last = tokenizer.vocab_size - 1
    with pytest.raises(ValueError, match=rf"no token has id \d+; expected ids 0 to {last} in a"):
        tokenizer.check_for_models()


def test_ids_of_a_vocabulary_and_merges_are_bounded(tmp_path):
    vocabulary, merges = tmp_path / "vocab.json", tmp_path / "merges.txt"
    vocabulary.write_text(json.dumps(WHOLE["model"]["vocab"] | {"x": 4_000_000_000}))
    merges.write_text("#version: 0.2\n")
    with pytest.raises(ValueError, match=r"vocab\.json .*merges\.txt: .* id 4000000000"):
        Tokenizer.from_vocabulary(vocabulary, merges)


@pytest.mark.parametrize("part", ["model", "normalizer", "added_tokens"])
def test_a_part_may_occur_only_once(part):
    json_text = json.dumps(WHOLE)
    again = json_text[:-1] + f', "{part}": {json.dumps(WHOLE[part])}}}'
    with pytest.raises(ValueError, match=f"duplicate or extra '{part}'"):
        Tokenizer.from_json(again)


def test_many_added_tokens_are_refused():
    tokens = [hostile_cases.added(f"<{number}>") for number in range(100_001)]
    with pytest.raises(ValueError, match="100001 added tokens; expected at most 100000"):
        Tokenizer.from_json(json.dumps(WHOLE | {"added_tokens": tokens}))


#: Normalizers of published tokenizers.
CHARSMAP = base64.b64encode(struct.pack("<I", 4096) + bytes(4096) + "ﷺ".encode() + b"\0").decode()
PUBLISHED = {
    "BERT": {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": True,
    },
    "CLIP": hostile_cases.sequence(
        {"type": "NFC"},
        hostile_cases.replace({"Regex": r"\s+"}, " "),
        {"type": "Lowercase"},
    ),
    "Llama": hostile_cases.sequence(
        {"type": "Prepend", "prepend": "▁"}, hostile_cases.replace({"String": " "}, "▁")
    ),
    "ALBERT": hostile_cases.sequence(
        hostile_cases.replace({"String": "``"}, '"'),
        hostile_cases.replace({"String": "''"}, '"'),
        {"type": "NFKD"},
        {"type": "StripAccents"},
        {"type": "Lowercase"},
        {"type": "Precompiled", "precompiled_charsmap": CHARSMAP},
        hostile_cases.replace({"Regex": " {2,}"}, " "),
    ),
    "lookbehind": hostile_cases.replace({"Regex": r"(?<!\n)^"}, "▁"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_normalizers_are_read(name):
    tokens = [token | {"normalized": True} for token in WHOLE["added_tokens"]]
    changed = WHOLE | {"normalizer": PUBLISHED[name], "added_tokens": tokens}
    tokenizer = Tokenizer.from_json(json.dumps(changed))
    assert tokenizer.vocab_size == Tokenizer.from_json(json.dumps(WHOLE)).vocab_size


def test_pipes_and_large_files_are_refused(tmp_path):
    pipe, large = tmp_path / "pipe.json", tmp_path / "large.json"
    os.mkfifo(pipe)
    with large.open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(OSError, match="not a regular file"):
        Tokenizer.from_file(pipe)
    with pytest.raises(OSError, match="not a regular file"):
        Tokenizer.from_vocabulary(pipe, pipe)
    with pytest.raises(OSError, match="1073741824 bytes; expected at most 67108864"):
        Tokenizer.from_file(large)
