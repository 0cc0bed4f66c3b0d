"""All fuzz targets in Python, by name, and the inputs that they start from."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.fuzz import checkpoints, core, data, masks, seeds, structured

#: Inputs that once showed a defect, in a folder for each target.
CORPUS = Path(__file__).parent / "corpus"
#: Numbers that replace others in mutants: ends of ranges, and small ones.
_NUMBERS = (b"0", b"-1", b"1e400", b"NaN", b"null", b"[]", b"{}", b'""', b"9" * 13, b"9" * 400)
_BYTES = (b"\0", b"\xff", b"\x7f\xff\xff\xff", b"\0\0\0\x80", b"\xff" * 8, b"2\x86" * 60)


def mutant(draw: random.Random, originals: list[bytes]) -> bytes:
    """Change a few places of an input: bytes, numbers, texts in quotes, lengths and order."""
    data = bytearray(draw.choice(originals))
    for _ in range(draw.choice((1, 1, 2, 4))):
        at = draw.randrange(len(data) + 1)
        change = draw.choice(("byte", "insert", "delete", "copy", "number", "cut", "splice"))
        if change == "byte" and at < len(data):
            data[at] = draw.randrange(256)
        elif change == "insert":
            data[at:at] = draw.choice(_BYTES)
        elif change == "delete":
            del data[at : at + draw.choice((1, 2, 8, 64))]
        elif change == "copy":
            start = draw.randrange(len(data) + 1)
            data[at:at] = data[start : start + draw.choice((1, 4, 30, 200))]
        elif change == "number":
            _replace_number(draw, data, at)
        elif change == "cut" and draw.random() < 0.2:
            del data[at:]
        elif change == "splice":
            other = draw.choice(originals)
            start = draw.randrange(len(other) + 1)
            data[at : at + 16] = other[start : start + 16]
    return bytes(data)


def _replace_number(draw: random.Random, data: bytearray, at: int) -> None:
    """Replace the digits behind a place, if there are any, by another value."""
    start = next((i for i in range(at, len(data)) if 48 <= data[i] <= 57), None)
    if start is None:
        return
    end = next((i for i in range(start, len(data)) if not 48 <= data[i] <= 57), len(data))
    data[start:end] = draw.choice(_NUMBERS)


@dataclass(frozen=True)
class Target:
    """A reader under test."""

    #: Reads an input, with a folder for files; True if it is accepted, False if it is rejected with
    #: a documented error. Any other exception is a finding.
    read: Callable[[bytes, Path], bool]
    #: Sound inputs.
    seeds: Callable[[], list[bytes]]
    #: Makes other inputs from sound ones.
    mutate: Callable[[random.Random, list[bytes]], bytes] = mutant
    #: Measures how many times longer twice the size of an input takes; None if it has no size.
    growth: Callable[[bytes, Path], float] | None = None


def _containers() -> list[bytes]:
    stages = ("coarse", "fine")
    return [
        *(kind + seeds.published_pickle(stage) for kind in (b"z", b"l") for stage in stages),
        *(b"h" + seeds.header(stage, own_keys=False) for stage in stages),
        *(b"r" + seeds.small_file(legacy=legacy) for legacy in (False, True)),
    ]


TARGETS = {
    "pickles": Target(checkpoints.pickles, lambda: list(seeds.small_pickles().values())),
    "containers": Target(checkpoints.containers, _containers),
    "model_dirs": Target(checkpoints.model_dirs, lambda: list(seeds.model_dirs())),
    "packs": Target(data.packs, data.pack_seeds),
    "loader_states": Target(data.loader_states, data.state_seeds),
    "tars": Target(data.tars, data.tar_seeds),
    "tables": Target(data.tables, data.table_seeds),
}
TARGETS |= {
    name: Target(
        partial(structured.read, name=name),
        partial(structured.seeds, name),
        structured.choices,
        partial(structured.growth, name=name),
    )
    for name in structured.KINDS
}
#: Targets of rust/fuzz, whose corpus is also read through the extension module.
RUST_TARGETS = {
    "images": Target(core.images, core.image_seeds),
    "jpeg": Target(core.jpegs, core.jpeg_seeds),
    "masks": Target(masks.masks, masks.mask_seeds),
    "tokenizer": Target(core.texts, core.text_seeds),
    "tokenizer_json": Target(core.tokenizer_files, core.tokenizer_seeds),
}


def corpus(name: str) -> dict[str, bytes]:
    """Stored inputs of a target by file name."""
    return {path.name: path.read_bytes() for path in sorted((CORPUS / name).glob("*"))}
