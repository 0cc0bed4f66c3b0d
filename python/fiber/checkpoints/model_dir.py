"""Model directories: config.json, model.safetensors, tokenizer.json, answers.json, classes.json."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from fiber.atomic_io import read_json, write_file, write_json
from fiber.checkpoints.key_map import resize_bias_tables
from fiber.checkpoints.provenance import TrainedOn
from fiber.config import FiberConfig
from fiber.config_io import from_dict, to_dict
from fiber.data import Tokenizer
from fiber.env import provenance
from fiber.models.registry import Network, build_model

#: Files of a model directory.
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "answers.json", "classes.json")


#: Errors of models without a vocabulary, such as published files.
NO_TOKENIZER = (
    "the model came without a tokenizer; name the one that it was trained with: --tokenizer DIR, or"
    ' fiber.load(path, tokenizer="folder"); `fiber convert MODEL OUT --to fiber --tokenizer DIR`'
    " writes it beside the model for good"
)


NO_ANSWERS = (
    "the model came without the answers of its VQA head; name them in the order of its logits:"
    ' --answers FILE, or fiber.load(path, answers="answers.json");'
    " `fiber data answers DIR --output FILE` makes those of the published head from VQAv2's"
    " original annotations;"
    " `fiber convert MODEL OUT --to fiber --answers FILE` writes them beside the model for good"
)


NO_CLASSES = (
    'the model was not trained to detect classes of its own; name what to look for: --classes "mug;'
    ' laptop", or model.detect(pictures, ["mug", "laptop"])'
)


class Vocabulary(NamedTuple):
    """Tokenizer and label names that belong to the weights of a model."""

    tokenizer: Tokenizer
    #: Answers of the VQA head, in the order of its logits; empty without one.
    answers: tuple[str, ...] = ()
    #: Classes that a fine model was trained to detect; empty if it was trained on phrases only.
    classes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """A network with its tokenizer, vocabularies and provenance."""

    network: Network
    #: Folder or file that it was read from, if any.
    path: Path | None = None
    #: None if the folder has none.
    tokenizer: Tokenizer | None = None
    #: Answers of the VQA head in the order of its logits; empty without one.
    answers: tuple[str, ...] = ()
    #: Classes that a detector was trained on, if known.
    classes: tuple[str, ...] = ()
    #: Unused tensors of a published checkpoint by name, each with the reason.
    ignored: Mapping[str, str] = field(default_factory=dict)
    #: Tensors of the model that a published checkpoint lacks by name, each with its value.
    filled: Mapping[str, float] = field(default_factory=dict)
    #: Training data of its run, if known.
    trained_on: TrainedOn | None = None
    #: Dtype of the computation at inference; the weights keep theirs.
    dtype: torch.dtype = torch.float32

    @property
    def config(self) -> FiberConfig:
        """Config of the network."""
        return self.network.config


def save_model(
    model: Network,
    folder: Path,
    tokenizer: Tokenizer | None = None,
    answers: tuple[str, ...] = (),
    classes: tuple[str, ...] = (),
) -> None:
    """Write a model directory; config.json is last, so that a folder with it is complete.

    Args:
        model: the model.
        folder: created if absent; it must not have a model or a run.
        tokenizer: written as tokenizer.json.
        answers: written as answers.json if there are any.
        classes: written as classes.json if there are any.

    Raises:
        ValueError: if the special tokens of the tokenizer are not RoBERTa's.
        NotADirectoryError: if `folder` is a file.
        FileExistsError: if it has a file of a model or of a run, with its name.
        OSError: if a file cannot be written (disk full); no file of the model remains.
    """
    if tokenizer is not None:
        tokenizer.check_for_models()
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; expected a folder to write the model to")
    # Files that are not overwritten would be mixed with this model, as another's answers.
    for name in (*MODEL_FILES, "checkpoints", "metrics.jsonl"):
        if (folder / name).exists():
            raise FileExistsError(
                f"{folder} holds {name} of another model or run; name a new folder"
            )
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if tokenizer is not None:
            write_vocabulary(folder, Vocabulary(tokenizer, answers, classes))
        else:
            _write_lists(folder, answers=answers, classes=classes)
        write_weights(folder, model.state_dict())
        write_json(folder / "config.json", provenance() | {"model": to_dict(model.config)})
    except BaseException:
        # So that the same folder can be used again.
        for name in MODEL_FILES:
            (folder / name).unlink(missing_ok=True)
        raise


def write_weights(folder: Path, state: dict[str, Tensor]) -> None:
    """Write model.safetensors atomically."""
    write_file(folder / "model.safetensors", lambda path: write_tensors(state, path))


def load_model(
    folder: str | os.PathLike[str],
    device: torch.device | str = "cpu",
    *,
    image_size: int | None = None,
) -> StoredModel:
    """Load a finished model, in evaluation mode.

    Args:
        folder: written by `save_model`, or a finished run.
        device: of the model.
        image_size: input size of a coarse model in pixels; its relative position bias tables are
            resized. None: its own.

    Raises:
        FileNotFoundError: if the folder or one of its files is missing.
        ValueError: if configuration or weights do not fit, with their names.
    """
    folder = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            unfinished = (folder / "checkpoints").is_dir()
            hint = "; its run is not finished, resume it first" if unfinished else ""
            raise FileNotFoundError(f"{folder} holds no model: {name} is missing{hint}")
    values = read_json(folder / "config.json")
    config = from_dict(FiberConfig, values["model"])
    if image_size is not None:
        config = config.with_image_size(image_size)
    with torch.device("meta"):
        model = build_model(config)
    model.to_empty(device=device)
    load_state(
        model,
        folder / "model.safetensors",
        window_size=None if image_size is None else config.swin.window_size,
    )
    words = read_vocabulary(folder)
    return StoredModel(
        network=model.eval(),
        path=folder,
        tokenizer=words.tokenizer if words else None,
        answers=_read_list(folder, "answers"),
        classes=_read_list(folder, "classes"),
        trained_on=TrainedOn.read(values),
    )


def write_vocabulary(folder: Path, words: Vocabulary) -> None:
    """Write tokenizer.json and, if there are answers or classes, answers.json and classes.json."""
    write_file(folder / "tokenizer.json", lambda path: words.tokenizer.save(str(path)))
    _write_lists(folder, answers=words.answers, classes=words.classes)


def read_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Read a tokenizer.json whose special tokens have RoBERTa's ids.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for another kind of tokenizer, with the first difference.
    """
    tokenizer = Tokenizer.from_file(path)
    try:
        tokenizer.check_for_models()
    except ValueError as problem:
        raise ValueError(f"{os.fspath(path)}: {problem}") from None
    return tokenizer


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """Read tokenizer, answers and classes; None without a tokenizer."""
    path = folder / "tokenizer.json"
    if not path.exists():
        return None
    lists = _read_list(folder, "answers"), _read_list(folder, "classes")
    return Vocabulary(read_tokenizer(path), *lists)


def _write_lists(folder: Path, **lists: tuple[str, ...]) -> None:
    for name, texts in lists.items():
        if texts:
            write_json(folder / f"{name}.json", list(texts))


def _read_list(folder: Path, name: str) -> tuple[str, ...]:
    path = folder / f"{name}.json"
    return tuple(read_json(path)) if path.exists() else ()


def load_state(model: nn.Module, path: Path, *, window_size: int | None = None) -> None:
    """Load a safetensors file with exactly the tensors of the model.

    Args:
        model: receives the tensors.
        path: the file.
        window_size: of the model, to resize relative position bias tables; None: do not.

    Raises:
        ValueError: with every missing, unexpected or differently shaped name.
    """
    stored = read_tensors(path)
    if window_size is not None:
        stored = resize_bias_tables(stored, window_size)
    own = model.state_dict()
    faults = [f"missing {name}" for name in own if name not in stored]
    faults += [f"unexpected {name}" for name in stored if name not in own]
    faults += [
        f"{name} has shape {tuple(stored[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own
        if name in stored and own[name].shape != stored[name].shape
    ]
    if faults:
        raise ValueError(f"{path} does not fit the model: " + "; ".join(faults))
    model.load_state_dict(stored)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        ValueError: if it is damaged or truncated.
    """
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def write_tensors(state: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file and fsync it."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with path.open("wb") as file:
        file.write(safetensors.torch.save(tensors, {"format": "pt"}))
        _to_disk(file)


def _to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
