"""Tokenize captions and a detector's prompt.

Command: python benches/bench_tokenizer.py [--vocabulary DIR]
Peers: Hugging Face tokenizers (`encode_batch` with offsets, `encode_batch_fast` without), and
gigatoken, fastokens and tiktoken if they are installed. Their outputs differ: padded arrays from
gigatoken and fiber, int64 with a mask; flat bytes from fastokens; lists from the others. Captions
are random words of the vocabulary, frequent ones more often. DIR has RoBERTa's vocab.json and
merges.txt; by default a vocabulary is trained. Times are CPU time of all threads in microseconds.
Ids and positive maps of all sides are compared first.

The prompt is COCO's 80 class names, which a detector gets with every image: `tokenizers` encodes it
and computes the positive map of 16 boxes; fiber keeps the encoded text.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rows import interleave, refuse_debug_build, report

from fiber._core import Tokenizer

SHARED = Path(__file__).parents[1] / "../shared/assets/roberta-base"
PEER = "tokenizers, offsets"
LENGTH, BOXES = 40, 16
WORDS, CAPTION_WORDS = 3000, 9
COCO = """person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant
stop_sign parking_meter bench bird cat dog horse sheep cow elephant bear zebra giraffe backpack
umbrella handbag tie suitcase frisbee skis snowboard sports_ball kite baseball_bat baseball_glove
skateboard surfboard tennis_racket bottle wine_glass cup fork knife spoon bowl banana apple sandwich
orange broccoli carrot hot_dog pizza donut cake chair couch potted_plant bed dining_table toilet tv
laptop mouse remote keyboard cell_phone microwave oven toaster sink refrigerator book clock vase
scissors teddy_bear hair_drier toothbrush"""


@dataclasses.dataclass(frozen=True)
class Side:
    """One way to encode all captions."""

    run: Callable[[], Any]
    #: Converts the result of `run` to ids per caption, with <s> and </s>.
    ids: Callable[[Any], list[list[int]]]


def vocabulary(folder: Path) -> Tokenizer:
    """Read RoBERTa's vocabulary, or learn one."""
    if (folder / "vocab.json").exists():
        return Tokenizer.from_vocabulary(folder / "vocab.json", folder / "merges.txt")
    print(f"{folder}: no vocab.json; a vocabulary is trained")
    random = np.random.default_rng(1)
    words = [
        "".join(random.choice(list("etaoinshrdlu"), random.integers(2, 8))) for _ in range(4000)
    ]
    return Tokenizer.train([" ".join(random.choice(words, 20)) for _ in range(4000)], 8000)


def captions(tokenizer: Tokenizer, count: int) -> list[str]:
    """Draw captions of words of the vocabulary, and some names that it has to split."""
    random = np.random.default_rng(0)
    known = json.loads(tokenizer.to_json())["model"]["vocab"]
    words = [t[1:] for t in known if t[0] == "Ġ" and t[1:].isascii() and t[1:].isalpha()][:WORDS]
    weights = 1 / np.arange(1, len(words) + 1)
    texts = []
    for _ in range(count):
        drawn = random.choice(words, CAPTION_WORDS, p=weights / weights.sum()).tolist()
        drawn[random.integers(CAPTION_WORDS)] += "zqx"[: random.integers(4)]
        texts.append(" ".join(drawn).capitalize() + ".")
    return texts


def import_or_name(module: str) -> Any:
    """Import a peer, or say that it is absent."""
    try:
        return importlib.import_module(module)
    except ImportError:
        print(f"not measured: {module} is not installed")
        return None


def caption_sides(tokenizer: Tokenizer, texts: list[str]) -> dict[str, Side]:
    """Every way that is installed."""
    theirs = hugging_face(tokenizer.to_json())
    content = json.loads(tokenizer.to_json())
    content["post_processor"] = None
    plain = json.dumps(content)

    def batch(**options: Any) -> Side:
        run = functools.partial(
            tokenizer.encode_batch, texts, max_tokens=LENGTH, pad_to=LENGTH, **options
        )
        return Side(run, lambda out: _rows(out["token_ids"], np.asarray(out["text_mask"]).sum(1)))

    def encodings(run: Callable[..., Any]) -> Side:
        return Side(lambda: run(texts), lambda out: [each.ids for each in out])

    sides = {
        "fiber": batch(),
        "fiber, offsets": batch(offsets=True),
        PEER: encodings(theirs.encode_batch),
        "tokenizers, fast": encodings(theirs.encode_batch_fast),
    }
    if gigatoken := import_or_name("gigatoken"):
        padded = gigatoken.Tokenizer(hugging_face(plain)).encode_batch_padded
        options = {"prefix": [0], "suffix": [2], "parallel": False}
        sides["gigatoken, padded"] = Side(
            lambda: padded(texts, 1, LENGTH, True, True, **options), lambda out: _rows(*out)
        )
    if fastokens := import_or_name("fastokens"):
        flat = fastokens.Tokenizer.from_json_str(plain).encode_batch_flat
        sides["fastokens, flat"] = Side(lambda: flat(texts), _of_flat)
    if tiktoken := import_or_name("tiktoken"):
        encode, renumber = _tiktoken(tiktoken, content)
        sides["tiktoken, one by one"] = Side(
            lambda: [encode(text) for text in texts],
            lambda out: [[0, *(renumber[rank] for rank in ranks), 2] for ranks in out],
        )
    return sides


def hugging_face(content: str) -> Any:
    """Make a tokenizer of theirs."""
    return importlib.import_module("tokenizers").Tokenizer.from_str(content)


def _rows(ids: Any, lengths: Any) -> list[list[int]]:
    return [row[:n].tolist() for row, n in zip(np.asarray(ids), lengths, strict=True)]


def _of_flat(out: tuple[bytes, bytes]) -> list[list[int]]:
    ids, starts = np.frombuffer(out[0], np.uint32), np.frombuffer(out[1], np.uint64)
    return [[0, *part.tolist(), 2] for part in np.split(ids, starts[1:-1].astype(int))]


def _tiktoken(
    tiktoken: Any, content: dict[str, Any]
) -> tuple[Callable[[str], list[int]], list[int]]:
    """Its encoder, whose ids are ranks, and for each rank the id."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printed]
    letters = {chr(b): b for b in printed} | {chr(256 + n): b for n, b in enumerate(others)}
    vocabulary, merges = content["model"]["vocab"], content["model"]["merges"]
    tokens = [*letters, *("".join(pair) for pair in merges)]
    encoding = tiktoken.Encoding(
        "bench",
        pat_str=r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        mergeable_ranks={bytes(letters[c] for c in t): rank for rank, t in enumerate(tokens)},
        special_tokens={},
    )
    return encoding.encode_ordinary, [vocabulary[token] for token in tokens]


def prompt_sides(tokenizer: Tokenizer) -> dict[str, Callable[[], Any]]:
    """The prompt's positive map of both, ids and offsets with it."""
    theirs = hugging_face(tokenizer.to_json())
    names = [" ".join(name.split("_")) for name in COCO.split()]
    prompt = ". ".join(names)
    starts = np.cumsum([0, *(len(name) + 2 for name in names)]).tolist()
    spans = [[(start, start + len(name))] for start, name in zip(starts, names, strict=False)]
    boxes = [spans[n] for n in np.random.default_rng(0).integers(0, len(spans), BOXES)]

    def by_tokenizers() -> Any:
        encoding = theirs.encode(prompt)
        rows = np.zeros((BOXES, len(encoding)), bool)
        for row, ((start, end),) in zip(rows, boxes, strict=True):
            first, last = encoding.char_to_token(start), encoding.char_to_token(end - 1)
            row[first : last + 1] = True
        return rows

    return {
        "fiber, kept": lambda: tokenizer.positive_map(prompt, boxes),
        "tokenizers, encode and map": by_tokenizers,
    }


def microseconds(run: Callable[[], Any], count: int) -> float:
    """Processor time of one text of `count`, over at least 20 ms."""
    calls, began = 0, time.process_time()
    while (passed := time.process_time() - began) < 0.02 or calls < 3:
        for _ in range(max(1, 256 // count)):
            run()
            calls += 1
    return 1e6 * passed / (calls * count)


def main() -> None:
    """Compare, measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--vocabulary", type=Path, default=SHARED)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    refuse_debug_build()
    tokenizer = vocabulary(options.vocabulary)
    prompts = prompt_sides(tokenizer)
    found, expected = (np.asarray(run()) for run in prompts.values())
    if not np.array_equal(found, expected):
        sys.exit("the positive maps of the prompt differ")
    for size in (64, 1024):
        texts = captions(tokenizer, size)
        sides = caption_sides(tokenizer, texts)
        encoded = {name: side.ids(side.run()) for name, side in sides.items()}
        if wrong := [name for name, ids in encoded.items() if ids != encoded[PEER]]:
            sys.exit(f"ids of {wrong} differ from those of {PEER}")
        print(
            f"{size} captions, {np.mean([len(ids) for ids in encoded[PEER]]):.1f} tokens on average"
        )
        timed = {n: functools.partial(microseconds, s.run, size) for n, s in sides.items()}
        report(f"tokenizer_captions_{size}", "us", interleave(timed, options.rounds), peer=PEER)
    timed = {name: functools.partial(microseconds, run, 1) for name, run in prompts.items()}
    values = interleave(timed, options.rounds)
    report("tokenizer_prompt", "us", values, peer="tokenizers, encode and map")


if __name__ == "__main__":
    main()
