"""Tokenizers made of random parts, and texts for them.

Mutants of bytes rarely stay a tokenizer. These have every kind of model, normalizer, pre-tokenizer,
post-processor and decoder, with sound and with odd options.
"""

from __future__ import annotations

import random
from typing import Any

Part = dict[str, Any]

WORDS = (
    *(
        "a",
        "b",
        "c",
        "ab",
        "bc",
        "abc",
        "the",
        "##a",
        "##b",
        "##ab",
        " ",
        "  ",
        "▁",
        "▁a",
        "Ġ",
        "Ġa",
    ),
    *(
        "é",
        "e\u0301",
        "中",
        "\U0001f468",
        "\u200d",
        "\0",
        "<unk>",
        "[UNK]",
        "<s>",
        "</s>",
        "<mask>",
    ),
    *("<pad>", "<0x00>", "<0x61>", "<0xE4>", "ﷺ", "İ", "ß", "\ufeff", "a</w>", "b</w>", "''", "1"),
)
#: Lengths, ids and other counts: small ones, ends of ranges, and of another type.
NUMBERS = (0, 0, 1, 1, 2, 3, 5, 100, 2**31, 2**32 - 1, 2**32 - 2, 2**32, 2**63, 2**64 - 1, -1, 0.5)
PATTERNS = (
    *(
        r"\s+",
        r"\w+|[^\w\s]+",
        "",
        "a*",
        "(?=a)",
        r"(?<!\n)^",
        r"\p{L}+",
        "(a|b)\\1",
        "a{3,}",
        "(",
        ".",
    ),
    r"'s|'t| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
)
TEXTS = (
    *(
        "",
        " ",
        "a",
        "abc abc",
        "the red cat's  mat\né中 <mask>",
        "\0\0",
        "\U0001f468\u200d\U0001f469",
    ),
    *(
        "ab" * 60,
        "e\u0301" * 9,
        "   a   ",
        "<s></s><mask> <pad>",
        "ﷺİß",
        "1 22 333,.!",
        "\u3000a\u00a0",
    ),
    *("\u0301", "a\u0300\u0301\u0302", "▁a▁b", "x" * 300, "\ufeff", "\u2028\u2029\x1f"),
)


class Source:
    """Draws parts of a tokenizer.json."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)

    def one(self, *of: Any) -> Any:
        return self.draw.choice(of)

    def flag(self) -> bool:
        return self.draw.random() < 0.5

    def number(self) -> Any:
        return self.draw.choice(NUMBERS)

    def word(self) -> str:
        return self.draw.choice(WORDS)

    def character(self) -> str:
        return self.draw.choice(("▁", " ", "a", "", "ab", "é", "\U0001f468", "\0"))

    def pattern(self) -> Part:
        if self.flag():
            return {"Regex": self.draw.choice(PATTERNS)}
        return {"String": self.draw.choice(("", *WORDS))}

    def few(self, make: Any, most: int = 3) -> list[Any]:
        return [make() for _ in range(self.draw.randrange(most + 1))]

    def vocabulary(self) -> dict[str, Any]:
        words = self.draw.sample(WORDS, self.draw.randrange(len(WORDS) + 1))
        ids: list[Any] = list(range(len(words)))
        if self.draw.random() < 0.3:
            self.draw.shuffle(ids)
        for _ in range(self.draw.choice((0, 0, 0, 0, 1, 3))):
            if ids:
                ids[self.draw.randrange(len(ids))] = self.number()
        return dict(zip(words, ids, strict=True))

    def model(self) -> Part:
        kind = self.one("BPE", "BPE", "WordPiece", "WordLevel", "Unigram")
        vocabulary, unknown = self.vocabulary(), self.one("<unk>", "[UNK]", "absent", "")
        if kind == "Unigram":
            scores = (0, -1.5, 3, 1e308, -1e308, 1e-320)
            words = [[word, self.draw.choice(scores)] for word in vocabulary]
            made = {"vocab": words, "unk_id": self.one(None, 0, 1, self.number())}
            return {"type": kind, "byte_fallback": self.flag()} | made
        if kind == "WordLevel":
            return {"type": kind, "vocab": vocabulary, "unk_token": unknown}
        if kind == "WordPiece":
            prefix, most = self.one("##", "", "é"), self.one(100, 100, self.number())
            made = {"continuing_subword_prefix": prefix, "max_input_chars_per_word": most}
            return {"type": kind, "vocab": vocabulary, "unk_token": unknown} | made
        merges = []
        for left in self.draw.sample(WORDS, 12):
            for right in self.draw.sample(WORDS, 12):
                if left + right in vocabulary and {left, right} <= vocabulary.keys():
                    merges.append([left, right])
        merges += self.few(lambda: [self.word(), self.word()], self.one(0, 0, 0, 2))
        return {
            "type": kind,
            "dropout": self.one(None, None, None, 0, 0.5, 1.0, 2),
            "unk_token": self.one(None, unknown),
            "continuing_subword_prefix": self.one(None, None, "", "##", "é"),
            "end_of_word_suffix": self.one(None, None, "", "</w>"),
            "fuse_unk": self.flag(),
            "byte_fallback": self.flag(),
            "ignore_merges": self.flag(),
            "vocab": vocabulary,
            "merges": merges,
        }

    def normalizer(self, depth: int = 0) -> Part:
        kinds = ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt", "ByteLevel")
        made = self.one(
            "plain", "Replace", "Prepend", "Strip", "BertNormalizer", "Precompiled", "Sequence"
        )
        if made == "Replace":
            return {"type": made, "pattern": self.pattern(), "content": self.one("", *WORDS)}
        if made == "Prepend":
            return {"type": made, "prepend": self.one("", *WORDS)}
        if made == "Strip":
            return {"type": made, "strip_left": self.flag(), "strip_right": self.flag()}
        if made == "BertNormalizer":
            names = ("clean_text", "handle_chinese_chars", "strip_accents", "lowercase")
            return {"type": made} | {name: self.flag() for name in names}
        if made == "Precompiled":
            return {
                "type": made,
                "precompiled_charsmap": self.one("", "AAAAAA==", "AAAAAP8=", "BAAAAAAAAABhAA=="),
            }
        if made == "Sequence" and depth < 2:
            return {"type": made, "normalizers": self.few(lambda: self.normalizer(depth + 1))}
        return {"type": self.draw.choice(kinds)}

    def pre_tokenizer(self, depth: int = 0) -> Part:
        made = self.one(
            "plain",
            "Split",
            "Metaspace",
            "ByteLevel",
            "Digits",
            "FixedLength",
            "Punctuation",
            "CharDelimiterSplit",
            "Sequence",
        )
        behavior = self.one(
            "Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"
        )
        if made == "Split":
            return {
                "type": made,
                "pattern": self.pattern(),
                "behavior": behavior,
                "invert": self.flag(),
            }
        if made == "Metaspace":
            scheme = self.one("always", "first", "never")
            return {
                "type": made,
                "replacement": self.character(),
                "prepend_scheme": scheme,
                "split": self.flag(),
            }
        if made == "ByteLevel":
            names = ("add_prefix_space", "trim_offsets", "use_regex")
            return {"type": made} | {name: self.flag() for name in names}
        if made == "Digits":
            return {"type": made, "individual_digits": self.flag()}
        if made == "FixedLength":
            return {"type": made, "length": self.number()}
        if made == "Punctuation":
            return {"type": made, "behavior": behavior}
        if made == "CharDelimiterSplit":
            return {"type": made, "delimiter": self.character()}
        if made == "Sequence" and depth < 2:
            return {"type": made, "pretokenizers": self.few(lambda: self.pre_tokenizer(depth + 1))}
        return {
            "type": self.one("BertPreTokenizer", "Whitespace", "WhitespaceSplit", "UnicodeScripts")
        }

    def post_processor(self, depth: int = 0) -> Part:
        made = self.one(
            "BertProcessing", "RobertaProcessing", "ByteLevel", "TemplateProcessing", "Sequence"
        )
        trim = {"trim_offsets": self.flag(), "add_prefix_space": self.flag()}
        ends = {name: [self.word(), self.one(0, 1, 2, self.number())] for name in ("sep", "cls")}
        if made == "BertProcessing":
            return {"type": made} | ends
        if made == "RobertaProcessing":
            return {"type": made} | ends | trim
        if made == "TemplateProcessing":
            return {"type": made} | self.template()
        if made == "Sequence" and depth < 2:
            return {"type": made, "processors": self.few(lambda: self.post_processor(depth + 1))}
        return {"type": "ByteLevel", "use_regex": self.flag()} | trim

    def template(self) -> Part:
        def piece() -> Part:
            kind = {"type_id": self.one(0, 1, self.number())}
            if self.flag():
                return {"Sequence": {"id": self.one("A", "A", "A", "B")} | kind}
            return {"SpecialToken": {"id": self.one("<s>", "</s>")} | kind}

        def special(name: str) -> Part:
            count = self.one(1, 1, 1, 0, 2)
            ids = [self.one(0, 1, 2, self.number()) for _ in range(count)]
            return {"id": name, "ids": ids, "tokens": [name] * self.one(count, 1)}

        names = self.one(("<s>", "</s>"), ("<s>", "</s>"), ("<s>",), ())
        both = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
        return {
            "single": self.few(piece, 4),
            "pair": self.one(both, both, self.few(piece)),
            "special_tokens": {name: special(name) for name in names},
        }

    def decoder(self, depth: int = 0) -> Part:
        made = self.one(
            "plain", "Metaspace", "WordPiece", "CTC", "BPEDecoder", "Strip", "Replace", "Sequence"
        )
        if made == "Metaspace":
            return {
                "type": made,
                "replacement": self.character(),
                "prepend_scheme": "always",
                "split": True,
            }
        if made == "WordPiece":
            return {"type": made, "prefix": self.one("##", ""), "cleanup": self.flag()}
        if made == "CTC":
            return {
                "type": made,
                "pad_token": self.word(),
                "word_delimiter_token": self.word(),
                "cleanup": self.flag(),
            }
        if made == "BPEDecoder":
            return {"type": made, "suffix": self.one("</w>", "", "a")}
        if made == "Strip":
            return {
                "type": made,
                "content": self.character(),
                "start": self.number(),
                "stop": self.number(),
            }
        if made == "Replace":
            return {"type": made, "pattern": self.pattern(), "content": self.word()}
        if made == "Sequence" and depth < 2:
            return {"type": made, "decoders": self.few(lambda: self.decoder(depth + 1))}
        return {"type": self.one("Fuse", "ByteFallback", "ByteLevel")}

    def added_token(self) -> Part:
        names = ("single_word", "lstrip", "rstrip", "normalized", "special")
        return {
            "id": self.one(0, 1, 2, 3, 40, 41, self.number()),
            "content": self.one("", "<new>", *WORDS),
        } | {name: self.flag() for name in names}

    def tokenizer(self) -> Part:
        """A whole tokenizer.json; parts are often left out, so that many are sound."""

        def maybe(make: Any) -> Part | None:
            return make() if self.draw.random() < 0.6 else None

        truncation = {"max_length": self.number(), "stride": self.number()}
        padding = {"pad_id": self.number(), "pad_type_id": 0, "pad_token": self.word()}
        directions = {"direction": self.one("Left", "Right")}
        return {
            "version": "1.0",
            "truncation": maybe(lambda: truncation | directions | {"strategy": "LongestFirst"})
            if self.draw.random() < 0.2
            else None,
            "padding": maybe(
                lambda: (
                    padding
                    | directions
                    | {"strategy": self.one("BatchLongest", {"Fixed": self.number()})}
                    | {"pad_to_multiple_of": self.one(None, self.number())}
                )
            )
            if self.draw.random() < 0.2
            else None,
            "added_tokens": self.few(self.added_token, 4) if self.flag() else [],
            "normalizer": maybe(self.normalizer),
            "pre_tokenizer": maybe(self.pre_tokenizer),
            "post_processor": maybe(self.post_processor),
            "decoder": maybe(self.decoder),
            "model": self.model(),
        }

    def text(self) -> str:
        """A text of a few pieces of known trouble."""
        return "".join(self.draw.choice(TEXTS) for _ in range(self.draw.randrange(1, 5)))
