"""Documents of runs and models: the index of a checkpoint, and files in JSON."""

from __future__ import annotations

import collections
import json
import pathlib
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed.checkpoint.filesystem as filesystem
import torch.distributed.checkpoint.metadata as metadata

from fiber.checkpoints.load import load_stored
from fiber.checkpoints.model_dir import save_model
from fiber.config_io import to_dict
from fiber.data import Tokenizer
from fiber.models.registry import build_model
from fiber.training.checkpoint.files import stored_tensors
from fiber.training.checkpoint.folder import Position, RunCheckpoint
from fiber.training.checkpoint.layout import INDEX
from fiber.training.config.run import RunConfig
from fiber.training.config.tasks import QuestionTask, TasksConfig
from fiber.training.run_dir import RunFolder, read_metrics
from tests.fuzz import core, seeds
from tests.fuzz.generated.documents import Document, json_document
from tests.fuzz.generated.encodings import from_pickle, to_pickle

#: Modules whose classes an index may name.
_MODULES: tuple[ModuleType, ...] = (pathlib, metadata, filesystem, collections, torch.serialization)


def attributes() -> dict[Any, dict[str, Any]]:
    """Return the attributes of every class that an index may name, and of dtypes and sizes."""
    classes = [each for module in _MODULES for each in vars(module).values()]
    classes += [torch.Size, torch.dtype, torch.layout, torch.Tensor]
    return {each: dict(vars(each)) for each in classes if isinstance(each, type)}


def _index(count: int) -> Any:
    properties = metadata.TensorProperties(dtype=torch.float32)
    size, start = torch.Size([2, 3]), torch.Size([0, 0])
    tensor = metadata.TensorStorageMetadata(
        properties, size, [metadata.ChunkStorageMetadata(start, size)]
    )
    names = [f"model/w{number}" for number in range(count + 1)]
    places = {
        metadata.MetadataIndex(name, start): filesystem._StorageInfo("__0_0.distcp", 24 * n, 24)
        for n, name in enumerate(names)
    }
    found = metadata.Metadata(dict.fromkeys(names, tensor), storage_data=places)
    found.storage_meta = metadata.StorageMeta()
    return from_pickle(pickle.dumps(found))


def _read_index(folder: Path) -> None:
    before = attributes()
    try:
        stored_tensors(folder)
    finally:
        after = attributes()
        # Restored, so that what follows is no consequence.
        for each, found in before.items():
            for name in after[each].keys() - found.keys():
                delattr(each, name)
            for name in (name for name in found if after[each].get(name) is not found[name]):
                setattr(each, name, found[name])
        changed = [each for each, found in before.items() if after[each] != found]
        assert not changed, f"the index changed {changed}"


@cache
def _tokenizer() -> Any:
    return json.loads(Tokenizer.train(["a cup of tea"] * 9, 270).to_json())


def _read_tokenizer(folder: Path) -> None:
    ids, _ = Tokenizer.from_file(folder / "tokenizer.json").encode("a cup of tea", max_tokens=40)
    assert len(ids) <= 40


@cache
def _run_config() -> dict[str, Any]:
    config = RunConfig(model=seeds.TINY, tasks=TasksConfig(question=QuestionTask(share=1)))
    return {"fiber_version": "1", "init": None, **to_dict(config)}


def _position(count: int) -> dict[str, Any]:
    tasks = {f"task{number}": number for number in range(count + 1)}
    names = {name: "0" * 64 for name in tasks}
    found = Position(step=7, consumed=tasks, records=tasks, fingerprints=names, scores=(0.5,))
    return to_dict(found)


def _metrics(count: int) -> list[dict[str, Any]]:
    return [{"step": n, "losses": {"itc": 1.0}, "learning_rates": {}} for n in range(count + 1)]


def _model(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    save_model(build_model(seeds.TINY), folder, answers=("yes", "no"), classes=("cup",))


def _model_config(count: int) -> dict[str, Any]:
    return {"model": to_dict(seeds.TINY), "data": {"split": "train"}, "data_path": "/data"}


def _load(folder: Path) -> None:
    load_stored(folder, device="cpu")


def indexes() -> list[Document]:
    """The index of a run's checkpoint."""
    write = lambda tree, folder: (folder / INDEX).write_bytes(to_pickle(tree))  # noqa: E731
    return [Document("runs", INDEX, _index, write, _read_index, is_pickle=True)]


def documents() -> list[Document]:
    """Files in JSON of runs and models."""

    def run(file: str, tree: Callable[[int], Any], read: Callable[[Path], object]) -> Document:
        return json_document("configs", file, tree, read)

    def model(file: str, tree: Callable[[int], Any]) -> Document:
        return json_document("configs", file, tree, _load, _model, f"{file} of a model")

    def strings(count: int) -> list[str]:
        return [f"answer {number}" for number in range(count + 2)]

    return [
        model("config.json", _model_config),
        model("answers.json", lambda _: ["yes", "no"]),
        model("classes.json", strings),
        run("config.json", lambda _: _run_config(), lambda f: RunFolder(f).stored_config()),
        run("data.json", _position, lambda f: RunCheckpoint(folder=f, step=7).read_position()),
        run("metrics.jsonl", _metrics, lambda f: read_metrics(f / "metrics.jsonl")),
        run("tokenizer.json", lambda _: _tokenizer(), _read_tokenizer),
    ]
