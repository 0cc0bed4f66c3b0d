"""Limits on tokenizer.json: hostile files are refused with a reason, published kinds are not."""

import base64
import json
import os
import struct

import pytest

from fiber.data import Tokenizer
from tests import hostile_cases

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
    "backtracking": 'the normalizer can turn the added token "a{40}" into 4000 bytes; .* most 64',
    "large pattern": "'normalizer' has a regular expression with 1000000 repetitions; expected at",
    "many patterns": "60 regular expressions; expected at most 16",
    "charsmap of 4 GB": "'normalizer' has an invalid precompiled_charsmap",
    "charsmap with long texts": "'normalizer' can turn one byte into 1000000 bytes",
    "empty charsmap": "Precompiled|panicked",
    "long added tokens": "'added_tokens' has a string of 900000 bytes; expected at most 4096",
    "template of 8,000 tokens": "'post_processor' has more than 10000 values",
    "template of 2,700,000 tokens": "'post_processor' adds 2700000 tokens to a text; .* most 1024",
    "nested steps": "'normalizer' has nested deeper than 16 levels",
    "wide words": "'model' has a string of 1900000 bytes; expected at most 4096",
    "unigram of one long word": "'model' has a string of 1900000 bytes",
    "unigram of many words": "'model' has 5000 tokens of .* bytes in all; expected at most 24",
}
ACCEPTED = {
    *("intact", "backtracking in many tokens", "14,000 added tokens", "largest ids"),
    "padding to 10^9",
}


def test_every_case_is_listed():
    assert REASONS.keys() | ACCEPTED == hostile_cases.tokenizers(WHOLE).keys()


@pytest.mark.parametrize("name", REASONS)
def test_hostile_tokenizers_are_refused(name, tmp_path, capfd):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(hostile_cases.tokenizers(WHOLE)[name]))
    with pytest.raises(ValueError, match=rf"tokenizer\.json: .*({REASONS[name]})"):
        Tokenizer.from_file(path)


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
