"""Targets for files that hold data: packs, loader states, tar shards and Arrow tables."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import zlib
from functools import cache
from pathlib import Path

from fiber.data import DataLoader, ImageTransform, Tokenizer
from fiber.data.datasets.resolve import open_source
from fiber.data.storage import pack_description
from fiber.data.storage.pack_description import DESCRIPTION
from fiber.data.storage.shard_order import ShardGroups
from tests.data.signed_packs import line_index
from tests.fuzz import arrow_files, seeds, tar_files

#: The records of a pack, and their index.
LINES, LINE_INDEX = "index/train-detection.jsonl", "index/train-detection.bin"
#: The files of a pack, in the order of an input's first byte.
PACK_FILES = (
    "pack.json",
    LINES,
    "index/train-images.bin",
    "train-000000.tar",
    LINE_INDEX,
)
#: Inputs whose first byte is less get the checksums of a pack that was written like this.
_UNSIGNED = 128


def packs(data: bytes, folder: Path) -> bool:
    """Read a pack of which one file is replaced; the first byte chooses file and checksums."""
    if not data:
        return False
    root, replaced = folder / "packed", PACK_FILES[data[0] % len(PACK_FILES)]
    files = sound_pack() | {replaced: data[1:]}
    if data[0] < _UNSIGNED:
        if replaced == LINES:
            files[LINE_INDEX] = line_index(files[LINES].splitlines(keepends=True))
        files[DESCRIPTION] = signed(files)
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    pack_description._read_description.cache_clear()
    try:
        records = open_source("detection", root, "train", objects=True)
        for record in records:
            assert all(isinstance(image, bytes) for image in record.images)
        ShardGroups(records.shard_map())
    except (ValueError, OSError) as error:
        assert str(root) in str(error), f"the error does not name the file: {error}"
        return False
    finally:
        shutil.rmtree(root)
    return True


def signed(files: dict[str, bytes]) -> bytes:
    """The description of a pack with the checksums of its files, so that they are read."""
    stored = files[DESCRIPTION]
    try:
        description = json.loads(stored)
        for entry in (*description["indexes"], *description["parts"]):
            content = files[entry["file"]]
            entry["sha256"] = hashlib.sha256(content).hexdigest()
            entry |= {"bytes": len(content), "crc32s": [zlib.crc32(content)]}
        description["fingerprint"] = pack_description.fingerprint_of_content(description)
        return json.dumps(description).encode()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return stored


@cache
def sound_pack() -> dict[str, bytes]:
    """The files of a pack."""
    with tempfile.TemporaryDirectory() as name:
        seeds.write_pack(Path(name))
        return {each: (Path(name) / "packed" / each).read_bytes() for each in PACK_FILES}


def pack_seeds() -> list[bytes]:
    """Each file of a sound pack."""
    files = sound_pack()
    return [bytes([number]) + files[name] for number, name in enumerate(PACK_FILES)]


def loader_states(data: bytes, folder: Path) -> bool:
    """Resume a loader from a state in JSON; a state that is taken is kept and leads to an end."""
    try:
        state = json.loads(data)
    except (ValueError, RecursionError):
        return False
    loader = _loader()
    try:
        loader.load_state_dict(state)
    except (ValueError, TypeError):
        return False
    taken = loader.state_dict()
    assert all(taken[name] == state[name] for name in ("epoch", "sample", "seed", "shuffle"))
    records = sum(len(batch) for batch in loader)
    assert records == len(loader.records) - taken["sample"]
    return True


@cache
def _loader() -> DataLoader:
    return DataLoader(
        seeds.records(),
        "image_text",
        tokenizer=Tokenizer.train(["a cup"] * 9, 270),
        transform=ImageTransform.squash(4),
        batch_size=2,
        max_tokens=8,
        threads=1,
        shuffle=True,
    )


def state_seeds() -> list[bytes]:
    """A state at the start of an epoch, and one within."""
    start = {**_loader().state_dict(), "epoch": 0, "sample": 0}
    return [json.dumps({**start, "sample": sample}).encode() for sample in (0, 3)]


def tars(data: bytes, folder: Path) -> bool:
    """Read a tar shard, after an odd first byte with the right checksum in every header."""
    if not data:
        return False
    content = bytearray(data[1:])
    if data[0] % 2:
        for block in range(len(content) // tar_files.BLOCK):
            if tar_files.is_header(content, block):
                tar_files.repair(content, block)
    path = folder / "a.tar"
    path.write_bytes(content)
    return not tar_files.is_refused(path)


def tar_seeds() -> list[bytes]:
    """Sound tar files."""
    with tempfile.TemporaryDirectory() as name:
        return [b"\1" + whole for whole in tar_files.wholes(Path(name) / "a.tar")]


def tables(data: bytes, folder: Path) -> bool:
    """Read an Arrow table as records of every kind."""
    path = folder / "a.arrow"
    path.write_bytes(data)
    return not arrow_files.is_refused(path)


def table_seeds() -> list[bytes]:
    """Sound Arrow files."""
    return arrow_files.wholes()
