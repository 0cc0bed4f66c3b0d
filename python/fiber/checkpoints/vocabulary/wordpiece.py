"""BERT's WordPiece tokenizer from its vocab.txt.

Source: BERT (Devlin et al. 2019).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fiber.atomic_io import check_regular_file, read_json
from fiber.data import Tokenizer
from fiber.messages import shown

#: File of BERT's vocabulary: a token a line, in the order of ids.
VOCAB_TXT = "vocab.txt"
#: Special tokens of a BERT vocabulary, which may be anywhere in it.
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

#: Maximum size in bytes of the two files.
_MAX_BYTES = 64 << 20


def read_vocab_txt(path: Path) -> Tokenizer:
    """Read the tokenizer of a BERT vocabulary.

    Whether texts are lowercased and their accents removed is `do_lower_case` of
    tokenizer_config.json in the same folder. Without it, texts are lowercased if no word of the
    vocabulary has an uppercase letter.

    Raises:
        ValueError: if the file is not UTF-8 or too large, lacks a special token, or lists a token
            twice.
    """
    check_regular_file(path, _MAX_BYTES)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); expected a token a line") from None
    tokens = [line.rstrip("\r") for line in (lines if lines[-1] else lines[:-1])]
    ids = {token: number for number, token in enumerate(tokens)}
    missing = [token for token in SPECIALS if token not in ids]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; expected the vocabulary of a BERT")
    if len(ids) < len(tokens):
        twice = next(token for number, token in enumerate(tokens) if ids[token] != number)
        raise ValueError(f"{path}: duplicate token {shown(twice)}")
    return Tokenizer.from_json(json.dumps(_content(ids, lowercase=_is_lowercase(path, ids))))


def _is_lowercase(path: Path, ids: dict[str, int]) -> bool:
    config = path.with_name("tokenizer_config.json")
    stored = read_json(config, _MAX_BYTES) if config.exists() else {}
    stated = stored.get("do_lower_case") if isinstance(stored, dict) else None
    if isinstance(stated, bool):
        return stated
    return not any(token != token.lower() for token in ids if not token.startswith("["))


def _content(ids: dict[str, int], *, lowercase: bool) -> dict[str, Any]:
    """Build the contents of a tokenizer.json."""
    added = [
        {
            "id": ids[token],
            "content": token,
            "special": True,
            **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
        }
        for token in sorted(SPECIALS, key=ids.__getitem__)
    ]
    template = [
        {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
    ]
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": lowercase,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": template,
            "pair": template,
            "special_tokens": {
                token: {"id": token, "ids": [ids[token]], "tokens": [token]}
                for token in ("[CLS]", "[SEP]")
            },
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": ids,
        },
    }
