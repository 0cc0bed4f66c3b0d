"""Documents of folders around a model: exported graphs and LoRA adapters."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import fiber.runtime
from fiber.checkpoints.adapters.files import ABOUT, CONFIG, read_about, read_adapter_config
from fiber.checkpoints.kept import read_presence
from fiber.config_io import to_dict
from fiber.metrics.presence import PRESENCE_FILE
from fiber.metrics.presence import to_json as presence_json
from fiber.models.lora import import_peft
from fiber.runtime.graphs import MARK_FILE, _read_mark
from fiber.runtime.metadata import FILE, MODEL_KEY, PART_KEY
from tests.fuzz import seeds
from tests.fuzz.generated.documents import Document, json_document
from tests.fuzz.generated.encodings import to_json
from tests.fuzz.generated.text_tables import cell
from tests.fuzz.generated.trees import Pairs, tree_of
from tests.runtime import unloaded

#: Networks whose graphs have different fields: of a detector, of answers, of captions.
_NETWORKS = ("fine", "coarse", "METER")


@cache
def _graphs(network: str) -> dict[str, bytes]:
    """Files of a folder of exported graphs, none of which is a graph."""
    with tempfile.TemporaryDirectory() as folder:
        written = unloaded.write(network, Path(folder))
        return {file.name: file.read_bytes() for file in written.iterdir()}


def _metadata(network: str, count: int) -> dict[str, Any]:
    """metadata.json with more files than the graphs need."""
    found = json.loads(_graphs(network)[FILE])
    file = found["files"][found["tokenizer"]]
    found["files"] |= {f"copy{number}.json": file for number in range(min(count, 900))}
    return found


def _write_graphs(network: str, folder: Path) -> None:
    files = _graphs(network)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    tokenizer = json.loads(files[FILE])["tokenizer"]
    for number in range(900):
        (folder / f"copy{number}.json").hardlink_to(folder / tokenizer)


def _read_graphs(folder: Path) -> None:
    # Of the other engines, whose packages may be missing; nothing is loaded before it is run.
    fiber.runtime.load(folder, engine="torch")


def _mark(count: int) -> dict[str, Any]:
    """What a graph file says of itself."""
    return {MODEL_KEY: "0" * 64, PART_KEY: "pair"}


def _write_archive(content: Any, folder: Path) -> None:
    with zipfile.ZipFile(folder / "pair.pt2", "w") as archive:
        archive.writestr(f"pair/extra/{MARK_FILE}", to_json(content))


def _write_onnx(content: Any, folder: Path) -> None:
    """Write keys and values of a protocol buffer, with their lengths."""
    pairs = content if isinstance(content, Pairs) else [(content, content)]
    found = bytearray()
    for pair in pairs:
        for code, text in zip(b"\x0a\x12", map(cell, pair), strict=True):
            data = text.encode("utf-8", "surrogatepass")
            found += bytes([code, min(len(data), 127)]) + data
    (folder / "pair.onnx").write_bytes(found)


def adapter(count: int) -> dict[str, Any]:
    """Return the config of an adapter with count + 2 target layers."""
    layers = [f"layer.{number}" for number in range(count + 2)]
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": "base",
        "r": 2,
        "lora_alpha": 4.0,
        "lora_dropout": 0.0,
        "target_modules": layers,
        "exclude_modules": "layer.c",
        "modules_to_save": ["head"],
        "bias": "none",
        "use_rslora": False,
        "init_lora_weights": True,
        "rank_pattern": {"layer.a": 2},
        "alpha_pattern": {"layer.a": 2},
        "layers_to_transform": [0, 1],
        "layers_pattern": ["layer"],
        "task_type": None,
        "revision": None,
    }


def _about(count: int) -> dict[str, Any]:
    rest = {"base": "base", "base_sha256": "0" * 64, "data": {"split": "train"}}
    return {**rest, "model": to_dict(seeds.TINY), "data_path": "/data"}


def _presence(count: int) -> dict[str, Any]:
    """Calibrations of a model; the number of data is that of the name of the data."""
    return presence_json(dataclasses.replace(unloaded.PRESENCE, data="x" * count))


def _import_peft(folder: Path) -> None:
    """Import PEFT before processes are forked."""
    import_peft()


def documents() -> list[Document]:
    """metadata.json of exported graphs, and the JSON files of an adapter."""

    def graphs(network: str) -> Document:
        return json_document(
            "graphs",
            FILE,
            lambda n: _metadata(network, n),
            _read_graphs,
            lambda folder: _write_graphs(network, folder),
            f"{FILE} of {network}",
        )

    found = [graphs(network) for network in _NETWORKS]
    # Read of a graph whose checksum is wrong; what cannot be read is no mark.
    found += [
        Document(
            "graphs", file, lambda n: tree_of(_mark(n)), write,
            lambda folder, file=file: _read_mark(folder / file),
        )
        for file, write in (("pair.pt2", _write_archive), ("pair.onnx", _write_onnx))
    ]  # fmt: skip
    found.append(json_document("adapters", ABOUT, _about, read_about))
    found.append(json_document("adapters", PRESENCE_FILE, _presence, read_presence))
    if importlib.util.find_spec("peft") is not None:
        found.append(json_document("adapters", CONFIG, adapter, read_adapter_config, _import_peft))
    return found
