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

#: What a finished model consists of.
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "answers.json", "classes.json")


#: What a model says that lacks its words. Published files hold neither.
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


class Words(NamedTuple):
    """What turns a model's numbers into words and back; it belongs to the model's weights."""

    tokenizer: Tokenizer
    #: Answers of the VQA head, in the order of its logits; empty without one.
    answers: tuple[str, ...] = ()
    #: Classes that a fine model was trained to detect; empty where it learned from phrases alone.
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
    """Write a finished model, `config.json` last: a folder that has it holds a whole model.

    Args:
        model: the model.
        folder: made if absent; it must hold neither a model nor a run.
        tokenizer: written as tokenizer.json.
        answers: written as answers.json if there are any.
        classes: written as classes.json if there are any.

    Raises:
        ValueError: if the tokenizer is none that models can read.
        NotADirectoryError: if `folder` is a file.
        FileExistsError: if it holds a part of a model or of a run, with that part's name.
        OSError: if a file cannot be written (a full disk); no file of the model is left then.
    """
    if tokenizer is not None:
        tokenizer.check_for_models()
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; expected a folder to write the model to")
    # What is not written again would be mixed with this model, as another's answers.
    for name in (*MODEL_FILES, "checkpoints", "metrics.jsonl"):
        if (folder / name).exists():
            raise FileExistsError(
                f"{folder} holds {name} of another model or run; name a new folder"
            )
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if tokenizer is not None:
            write_words(folder, Words(tokenizer, answers, classes))
        else:
            _write_lists(folder, answers=answers, classes=classes)
        write_weights(folder, model.state_dict())
        write_json(folder / "config.json", provenance() | {"model": to_dict(model.config)})
    except BaseException:
        # The same folder can be named again.
        for name in MODEL_FILES:
            (folder / name).unlink(missing_ok=True)
        raise


def write_weights(folder: Path, state: dict[str, Tensor]) -> None:
    """Write model.safetensors, whole or not at all."""
    write_file(folder / "model.safetensors", lambda path: write_tensors(state, path))


def load_model(
    folder: str | os.PathLike[str],
    device: torch.device | str = "cpu",
    *,
    image_size: int | None = None,
) -> StoredModel:
    """Read a finished model, in evaluation mode.

    Args:
        folder: what `save_model` wrote, or a finished run.
        device: where to.
        image_size: side of the pictures in pixels that a coarse model is for from now on, if not
            its own; its tables of position biases are resized.

    Raises:
        FileNotFoundError: if the folder or one of its files is absent.
        ValueError: if the configuration or the weights do not fit, with the names that do not.
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
    words = read_words(folder)
    return StoredModel(
        network=model.eval(),
        path=folder,
        tokenizer=words.tokenizer if words else None,
        answers=_read_list(folder, "answers"),
        classes=_read_list(folder, "classes"),
        trained_on=TrainedOn.read(values),
    )


def write_words(folder: Path, words: Words) -> None:
    """Write tokenizer.json and, if there are answers or classes, answers.json and classes.json."""
    write_file(folder / "tokenizer.json", lambda path: words.tokenizer.save(str(path)))
    _write_lists(folder, answers=words.answers, classes=words.classes)


def read_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Read a tokenizer.json that models can read: its special tokens have RoBERTa's ids.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is another kind of tokenizer, with the first difference.
    """
    tokenizer = Tokenizer.from_file(path)
    try:
        tokenizer.check_for_models()
    except ValueError as problem:
        raise ValueError(f"{os.fspath(path)}: {problem}") from None
    return tokenizer


def read_words(folder: Path) -> Words | None:
    """Read what `write_words` wrote; None where there is no tokenizer."""
    path = folder / "tokenizer.json"
    if not path.exists():
        return None
    lists = _read_list(folder, "answers"), _read_list(folder, "classes")
    return Words(read_tokenizer(path), *lists)


def _write_lists(folder: Path, **lists: tuple[str, ...]) -> None:
    for name, texts in lists.items():
        if texts:
            write_json(folder / f"{name}.json", list(texts))


def _read_list(folder: Path, name: str) -> tuple[str, ...]:
    path = folder / f"{name}.json"
    return tuple(read_json(path)) if path.exists() else ()


def load_state(model: nn.Module, path: Path, *, window_size: int | None = None) -> None:
    """Fill a model from a safetensors file that must hold exactly its tensors.

    Args:
        model: receives the tensors.
        path: the file.
        window_size: of the model, if the file's may be another one.

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
        ValueError: if it is damaged or cut off.
    """
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def write_tensors(state: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file and wait until it is on the disk."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with path.open("wb") as file:
        file.write(safetensors.torch.save(tensors, {"format": "pt"}))
        _to_disk(file)


def _to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
