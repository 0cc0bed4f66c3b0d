"""Little tokenizers of every kind, made by Hugging Face's package; and texts to try them on."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

TEXTS = [
    f"{start} {size} {color} {shape}'s {side}, {count} of them!"
    for start, size, (color, shape), side, count in itertools.product(
        ("The", "a naïve", "don't"),
        ("small", "LARGE"),
        (("red", "cube"), ("blue", "sphere"), ("grün", "ring")),
        ("left", "right side\n"),
        ("42", "7", "1999"),
    )
]
TEXTS += 3 * [
    "Two people are walking their dogs along the beach; nobody's swimming, is anybody?",
    "a photograph of somebody's kitchen with wooden cupboards, taken in 2004 (or 2005)",
    "Where is the tallest skateboarder looking? Towards the mountains, we'd say...",
    "über den Straßen hängen Lichterketten — 15 °C, naturally",
]
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CLIP = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
BYTES = pre_tokenizers.ByteLevel.alphabet()
WORDS = [
    "the",
    "Dog",
    "'s",
    "don't",
    "'LL",
    "42",
    " ",
    "  ",
    "\n",
    "\r\n",
    "é",
    "e\u0301",
    "ﬁ",
    "İ",
    "\u017f",
]
WORDS += [
    "☕",
    "👨‍👩‍👧",
    "naïve",
    "!!",
    "...",
    "汉字",
    "한국",
    "ǅ",
    "①",
    "\u00a0",
    "\u200b",
    "\u3000",
    "\ufeff",
]
RANGES = [(0x20, 0x7E), (0xA0, 0x24F), (0x300, 0x36F), (0x1F300, 0x1F6FF), (0x4E00, 0x9FFF)]
RANGES += [(0x0, 0x5FF), (0x2000, 0x2BFF), (0xAC00, 0xD7A3), (0xFB00, 0xFFEF)]


def gpt2(*, prefix_space: bool = False, trim: bool = False) -> Tokenizer:
    """GPT-2's: a byte-level BPE with nothing around texts."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=trim)
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=BYTES,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    made.train_from_iterator(TEXTS, trainer)
    return made


def llama3() -> Tokenizer:
    """Llama 3's and Qwen's: another pattern, whole words before merges, one token in front."""
    made = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(LLAMA_3), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=BYTES,
        special_tokens=["<|begin_of_text|>", "<|end_of_text|>"],
        show_progress=False,
    )
    made.train_from_iterator(TEXTS, trainer)
    begin = ("<|begin_of_text|>", 0)
    made.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<|begin_of_text|> $A", pair="$A $B", special_tokens=[begin]
            ),
        ]
    )
    return made


def clip() -> Tokenizer:
    """CLIP's: lower case, and the last token of a word is marked."""
    made = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    space = normalizers.Replace(Regex(r"\s+"), " ")
    made.normalizer = normalizers.Sequence([normalizers.NFC(), space, normalizers.Lowercase()])
    split = pre_tokenizers.Split(Regex(CLIP), "removed", invert=True)
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        initial_alphabet=[*BYTES, *(letter + "</w>" for letter in BYTES)],
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    made.train_from_iterator(TEXTS, trainer)
    made.post_processor = processors.RobertaProcessing(
        ("<|endoftext|>", 1), ("<|startoftext|>", 0), trim_offsets=False, add_prefix_space=False
    )
    return made


def bert(*, template: bool = False) -> Tokenizer:
    """BERT's: WordPiece, in lower case and without accents."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=260,
        special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        show_progress=False,
    )
    made.train_from_iterator(TEXTS, trainer)
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    if template:
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B [SEP]",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
    return made


def t5() -> Tokenizer:
    """T5's: Unigram, one token behind, and numbered ones instead of a mask."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150,
        special_tokens=["<pad>", "</s>", "<unk>", "<extra_id_0>"],
        unk_token="<unk>",
        show_progress=False,
    )
    made.train_from_iterator(TEXTS, trainer)
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return made


def xlm_roberta() -> Tokenizer:
    """XLM-R's: Unigram with RoBERTa's first four tokens, and a mask that takes spaces."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=150,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    made.train_from_iterator(TEXTS, trainer)
    made.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return made


def llama2() -> Tokenizer:
    """Llama 2's: BPE of letters that falls back to bytes, without a pre-tokenizer."""
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    marked = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    made.normalizer = normalizers.Sequence(marked)
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    content = json.loads(made.to_str())
    vocabulary = content["model"]["vocab"]
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    made = Tokenizer.from_str(json.dumps(content))
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return made


def word_level() -> Tokenizer:
    """Whole words, nothing around texts, no special token but the one for unknown words."""
    made = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.train_from_iterator(
        TEXTS, trainers.WordLevelTrainer(special_tokens=["[UNK]"], show_progress=False)
    )
    return made


def twice() -> Tokenizer:
    """A text that comes twice, which no tokenizer in use does."""
    made = bert()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP] $A", pair="$A $B", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return made


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": gpt2,
    "gpt2-trim": lambda: gpt2(trim=True),
    "gpt2-space": lambda: gpt2(prefix_space=True),
    "gpt2-space-trim": lambda: gpt2(prefix_space=True, trim=True),
    "llama3": llama3,
    "clip": clip,
    "bert": bert,
    "bert-template": lambda: bert(template=True),
    "t5": t5,
    "xlm-roberta": xlm_roberta,
    "llama2": llama2,
    "word-level": word_level,
    "twice": twice,
}


def random_text(rng: random.Random, specials: list[str]) -> str:
    """Unicode of every plane, or words, marks, spaces and the tokenizer's own special tokens."""
    count = rng.randint(0, 25)
    if rng.random() < 0.4:
        return "".join(chr(rng.randint(*rng.choice(RANGES))) for _ in range(count))
    parts = [*WORDS, *specials, *rng.choice(TEXTS).split()]
    return rng.choice(("", " ")).join(rng.choice(parts) for _ in range(count))
