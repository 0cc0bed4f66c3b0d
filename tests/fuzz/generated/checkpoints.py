"""Documents of files with weights: pickles of torch.save, headers of safetensors."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from fiber.checkpoints.load import read_model
from fiber.checkpoints.torch_file import SETTINGS, read_checkpoint
from fiber.inference.masks.class_vectors import ClassVectors
from fiber.metrics.cider import DocumentFrequencies
from tests.fuzz import seeds
from tests.fuzz.generated.documents import Document
from tests.fuzz.generated.encodings import from_pickle, to_json, to_pickle
from tests.fuzz.generated.trees import Node, Pairs, tree_of

_FILE = "model.ckpt"
#: Storages with these keys are in every archive and legacy file.
_STORAGE = bytes(seeds.STORAGE_BYTES)
_LEGACY = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})


def _zipped(tree: Any, folder: Path) -> None:
    with zipfile.ZipFile(folder / _FILE, "w") as archive:
        archive.writestr("archive/version", b"3\n")
        archive.writestr("archive/data.pkl", to_pickle(tree))
        archive.writestr("archive/data/0", _STORAGE)


def _legacy(tree: Any, folder: Path) -> None:
    """Write five pickles, each of which may be any value, and a storage for each key."""
    trees = tree if isinstance(tree, tuple) and tree else (tree,)
    keys = trees[-1] if isinstance(trees[-1], list) else []
    storage = struct.pack("<q", 6) + bytes(24)
    (folder / _FILE).write_bytes(b"".join(map(to_pickle, trees)) + storage * len(keys))


def saved(content: Any) -> Any:
    """What torch.save writes as data.pkl, as a tree."""
    file = io.BytesIO()
    torch.save(content, file)
    return from_pickle(zipfile.ZipFile(file).read("archive/data.pkl"))


def _tensors(count: int) -> dict[str, torch.Tensor]:
    storage = torch.zeros(seeds.STORAGE_BYTES // 4)
    return {f"w{number}": storage[number : number + 6].view(2, 3) for number in range(count + 1)}


def _state(count: int) -> Any:
    return saved({"state_dict": _tensors(count), "epoch": 3})


def _reader(read: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: read(folder / _FILE)


@cache
def _published(stage: str) -> Any:
    return from_pickle(seeds.published_pickle(stage))


def _with_settings(count: int) -> Any:
    """A published file whose settings are those of a model of this package."""
    found = _published("fine")
    return Pairs([*found, *((f"other{number}", None) for number in range(count))])


def _frequencies(count: int) -> Any:
    """Document frequencies for rewards of captions, which published code pickles."""
    counts = {(f"word{number}", "a"): 2.0 for number in range(count + 1)}
    return tree_of({"document_frequency": counts, "ref_len": 9.0})


def _write_pickle(tree: Any, folder: Path) -> None:
    (folder / _FILE).write_bytes(to_pickle(tree))


def _header(count: int) -> dict[str, Any]:
    return {
        "__metadata__": {"format": "pt"},
        "empty": {"dtype": "F32", "shape": [0, 3], "data_offsets": [0, 0]},
        **{
            f"w{number}": {
                "dtype": "F32", "shape": [2, 3], "data_offsets": [24 * number, 24 * number + 24]
            }
            for number in range(count + 1)
        },
    }  # fmt: skip


def _published_header(count: int) -> Any:
    found = json.loads(seeds.header("coarse", own_keys=False))
    return found | {"__metadata__": {"hyper_parameters": seeds.settings("coarse")}}


def _write_header(tree: Any, folder: Path) -> None:
    """Write a header, whose settings are JSON in a string, and as much data as it asks for."""
    if isinstance(tree, Pairs):
        tree = Pairs((key, _as_text(value)) for key, value in tree)
    text = to_json(tree).encode()
    most = 0
    for _, entry in tree if isinstance(tree, Pairs) else ():
        offsets = dict(entry).get("data_offsets") if _is_plain(entry) else None
        if isinstance(offsets, list) and len(offsets) == 2 and type(offsets[1]) is int:
            most = max(most, offsets[1])
    data = bytes(most if most < 1 << 20 else 0)
    (folder / _FILE).write_bytes(struct.pack("<Q", len(text)) + text + data)


def _is_plain(entry: Any) -> bool:
    return isinstance(entry, Pairs) and all(isinstance(key, str) for key, _ in entry)


def _as_text(value: Any) -> Any:
    """Settings in the metadata as text."""
    if isinstance(value, Pairs) and value and value[0][0] == "hyper_parameters":
        return Pairs((key, _quoted(each)) for key, each in value)
    return value


def _quoted(value: Any) -> Any:
    return value if isinstance(value, Node) else to_json(value)


def _settings(count: int) -> dict[str, Any]:
    """Settings that a published file stores as JSON in a tensor."""
    return {"config": {**seeds.settings("coarse"), **{f"other{n}": None for n in range(count)}}}


def _write_settings(tree: Any, folder: Path) -> None:
    text = bytearray(to_json(tree).encode())
    settings = torch.frombuffer(text, dtype=torch.uint8)
    state = {SETTINGS: settings, "w": torch.ones(2, 3)}
    torch.save({"state_dict": state}, folder / _FILE)


_VECTORS = "classes.safetensors"


def _classes(count: int) -> list[str]:
    return [f"class {number}" for number in range(count + 1)]


def _write_vectors(tree: Any, folder: Path) -> None:
    """Write a vector for each class."""
    count = len(tree) if isinstance(tree, list) else 1
    metadata = {"classes": to_json(tree), "text_weights": "0" * 64}
    # The last one is that of the background.
    vectors = {"class_vectors": torch.ones(count + 1, 2) / 2**0.5}
    safetensors.torch.save_file(vectors, folder / _VECTORS, metadata)


def documents() -> list[Document]:
    """Pickles in both containers, and headers."""

    def pickled(name: str, tree: Any, write: Any, read: Any) -> Document:
        kind = "stored_configs" if read is read_model else "programs"
        return Document(kind, name, tree, write, _reader(read), is_pickle=True)

    def header(name: str, tree: Any, read: Any) -> Document:
        kind = "stored_configs" if read is read_model else "headers"
        return Document(kind, name, lambda n: tree_of(tree(n)), _write_header, _reader(read))

    def legacy(count: int) -> Any:
        keys = [str(number) for number in range(count + 1)]
        content = saved({f"w{key}": torch.zeros(6) for key in keys})
        return (*(tree_of(each) for each in _LEGACY), content, keys)

    return [
        pickled("tensors", _state, _zipped, read_checkpoint),
        pickled("legacy", legacy, _legacy, read_checkpoint),
        pickled("document frequencies", _frequencies, _write_pickle, DocumentFrequencies.read),
        pickled("published coarse", lambda _: _published("coarse"), _zipped, read_model),
        pickled("published fine", _with_settings, _zipped, read_model),
        header("header", _header, read_checkpoint),
        header("published header", _published_header, read_model),
        Document(
            "headers", "settings in a tensor", lambda n: tree_of(_settings(n)), _write_settings,
            _reader(read_checkpoint),
        ),
        Document(
            "headers", _VECTORS, _classes, _write_vectors,
            lambda folder: ClassVectors.load(folder / _VECTORS),
        ),
    ]  # fmt: skip
