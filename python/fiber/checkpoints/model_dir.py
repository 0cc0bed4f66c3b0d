"""Read and write model folders.

A model folder contains config.json and model.safetensors, and optionally tokenizer.json,
answers.json and classes.json. The transformers library reads it, too (`transformers_files`).
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from fiber.atomic_io import (
    flush_to_disk,
    made_folder,
    read_json,
    whole_or_none,
    write_file,
    write_json,
)
from fiber.checkpoints.kept import Kept, common_dtype, exact_in, read_kept
from fiber.checkpoints.mapped_file import SafetensorsFile, read_safetensors
from fiber.checkpoints.provenance import TrainedOn, values_of
from fiber.checkpoints.transformers_files import (
    TRANSFORMERS_FILES,
    config_fields,
    write_transformers_files,
)
from fiber.checkpoints.vocabulary.files import (
    MAX_JSON_BYTES,
    VOCABULARY_FILES,
    Vocabulary,
    read_list,
    read_vocabulary,
    write_lists,
    write_vocabulary,
)
from fiber.checkpoints.weights import copy_weights, dtype_problem, list_problems
from fiber.config_io import to_dict
from fiber.data import Tokenizer
from fiber.env import provenance
from fiber.messages import caller_level, shown, shown_names
from fiber.models.init import allocate
from fiber.models.registry import (
    ModelConfig,
    Network,
    architecture_of,
    build_empty,
    check_tokenizer,
    read_config,
)

#: Names of all files in a model folder.
MODEL_FILES = ("config.json", "model.safetensors", *VOCABULARY_FILES, *TRANSFORMERS_FILES)

#: Names of the subfolders of a folder with one model per stage, such as that of `fiber demo`.
STAGES = ("coarse", "fine")

#: Names of the folders of a run's checkpoints; damaged ones were set aside when the run resumed.
_RUN_CHECKPOINT = re.compile(r"(damaged-)?step-\d+")

#: Start of the names of files that transformers writes for a model in several of them.
_SHARDS = "model.safetensors"

#: What to pass as a model, for errors, but for the models in the package.
RELEASED = "a released file (docs/photographs.md says where they are)"
A_MODEL = f"pass the folder of a run, such as runs/demo after `fiber demo`, {RELEASED}"


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """Network with its tokenizer, answers, classes and provenance."""

    network: Network
    #: Folder or file that was read.
    path: Path | None = None
    tokenizer: Tokenizer | None = None
    #: Answers of the VQA head in logit order; empty without a VQA head.
    answers: tuple[str, ...] = ()
    #: Classes that a detector was trained on, if known.
    classes: tuple[str, ...] = ()
    #: Ignored tensors of a published checkpoint, with reasons.
    ignored: Mapping[str, str] = field(default_factory=dict)
    #: Tensors missing from a published checkpoint, with their fill values.
    filled: Mapping[str, float] = field(default_factory=dict)
    #: Training data, if known.
    trained_on: TrainedOn | None = None
    #: Autocast dtype at inference; weights keep their own dtype.
    dtype: torch.dtype = torch.float32
    #: Dtype of the stored weights; None if they have several.
    stored_dtype: torch.dtype | None = None
    #: Card, numbers and training config of the folder.
    kept: Kept = field(default_factory=Kept)

    @property
    def config(self) -> ModelConfig:
        """Config of the network."""
        return self.network.config


def save_model(
    model: Network,
    folder: Path,
    tokenizer: Tokenizer | None = None,
    answers: tuple[str, ...] = (),
    classes: tuple[str, ...] = (),
    *,
    kept: Kept | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a model folder. config.json is written last and marks the folder as complete.

    The folder is created if needed. answers.json and classes.json are written unless empty. `kept`
    is written, too. Weights are stored in `dtype` if that changes no value; otherwise a warning
    says that they are stored as they are.

    Raises:
        ValueError: if the model cannot use the tokenizer.
        NotADirectoryError: if `folder` is a file.
        FileExistsError: if `folder` already contains model or run files.
        OSError: if a file cannot be written. No partial model remains.
    """
    if tokenizer is not None:
        check_tokenizer(tokenizer, model.config)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; expected a folder for the model")
    # Leftover files, such as another model's answers, would be mixed with the new ones.
    kept = kept or Kept()
    files = (*MODEL_FILES, *kept.files)
    for name in (*files, "checkpoints", "metrics.jsonl"):
        if (folder / name).exists():
            raise FileExistsError(
                f"{folder} already contains {name}; expected a folder without a model or run"
            )
    # On an error, all files are deleted, to allow a retry with the same folder.
    state = model.state_dict()
    if dtype is not None and (exact := exact_in(state, dtype)) is not None:
        state = exact
    elif dtype is not None:
        warnings.warn(
            f"the weights in {folder} are stored in {common_dtype(state) or 'their own dtypes'}:"
            f" they have changed since they were loaded, and {dtype} cannot hold them exactly",
            UserWarning,
            stacklevel=caller_level(),
        )
    with made_folder(folder), whole_or_none(folder / name for name in files):
        if tokenizer is not None:
            write_vocabulary(folder, Vocabulary(tokenizer, answers, classes))
        else:
            write_lists(folder, answers=answers, classes=classes)
        write_transformers_files(folder, model.config, tokenizer)
        kept.write(folder)
        write_weights(folder, state)
        fields = provenance() | config_fields(model.config)
        write_json(folder / "config.json", fields | {"model": to_dict(model.config)} | kept.config)


def write_weights(folder: Path, state: dict[str, Tensor]) -> None:
    """Write model.safetensors atomically."""
    write_file(folder / "model.safetensors", lambda path: write_tensors(state, path))


def load_model(
    folder: str | os.PathLike[str],
    device: torch.device | str = "cpu",
    *,
    image_size: int | None = None,
) -> StoredModel:
    """Load a model folder or a finished run in evaluation mode.

    `image_size` sets a new input size in pixels.

    Raises:
        FileNotFoundError: if the folder or one of its files is missing.
        ValueError: if config fields are invalid, or tensors do not fit the model. The message lists
            these fields or tensors.
    """
    folder = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).exists():
            raise FileNotFoundError(
                f"{folder} contains no model: {name} does not exist{_where_models_are(folder)}"
            )
    stored = read_safetensors(folder / "model.safetensors")
    config, values = read_model_config(folder)
    _check_sizes(folder / "config.json", config, stored)
    if image_size is not None:
        config = config.with_image_size(image_size)
    vocabulary = read_vocabulary(folder, config)
    with values_of(folder / "config.json", values, "model: "):
        model = build_empty(config)
    load_tensors(
        model,
        folder / "model.safetensors",
        stored.tensors,
        resize=image_size is not None,
        device=device,
        release=stored.release,
    )
    return StoredModel(
        network=model.eval(),
        path=folder,
        tokenizer=vocabulary.tokenizer if vocabulary else None,
        answers=read_list(folder, "answers"),
        classes=read_list(folder, "classes"),
        trained_on=TrainedOn.read(values),
        stored_dtype=common_dtype(stored.tensors),
        kept=read_kept(folder, values),
    )


def is_run_checkpoint(folder: Path) -> bool:
    """Return whether a folder is a checkpoint of a run, by its name; it may be missing."""
    name = folder.absolute().name
    return bool(_RUN_CHECKPOINT.fullmatch(name)) and not (folder / "config.json").exists()


def _where_models_are(folder: Path) -> str:
    """Return the end of an error message about a folder without a model."""
    command = ". `fiber convert {} OUT` writes {} as a model folder"
    if (folder / f"{_SHARDS}.index.json").exists():
        return (
            f". Its weights are in several files ({_SHARDS}.index.json); expected one: save it with"
            ' max_shard_size="100GB"'
        )
    if is_run_checkpoint(folder):
        return command.format(folder, "this checkpoint of a run")
    is_run = (folder / "checkpoints").is_dir()
    checkpoints = (folder / "checkpoints" if is_run else folder).glob("step-*")
    newest = max((path for path in checkpoints if is_run_checkpoint(path)), default=None)
    saved = command.format(newest, "its newest checkpoint") if newest else ""
    if is_run:
        return f". The run is unfinished; resume it first{saved}"
    stages = sorted(path.parent.name for path in folder.glob("*/model.safetensors"))
    if not stages:
        # Those of `fiber demo`, in the folder of runs.
        found = (folder.glob(f"*/{stage}/model.safetensors") for stage in ("coarse", "fine"))
        stages = sorted({path.parents[1].name for each in found for path in each})
    if stages and not saved:
        return f". It contains models in {shown_names(stages)}; name one of these folders"
    return saved or f"; {A_MODEL}, or 'scenes', the model in the package"


def read_model_config(folder: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """Read config.json of a model folder or a run: the model's config, and all values.

    Raises:
        FileNotFoundError: if there is no config.json.
        ValueError: if it is invalid; the message names the file and the field.
    """
    path = folder / "config.json"
    values = read_json(path, MAX_JSON_BYTES)
    if not isinstance(values, dict) or not isinstance(values.get("model"), dict):
        raise ValueError(f"{path}: expected a JSON object whose field 'model' is an object")
    with values_of(path, values, "model: "):
        return read_config(values["model"]), values


def _check_sizes(path: Path, config: ModelConfig, stored: SafetensorsFile) -> None:
    """Compare the sizes in config.json with the header of the weights.

    Building a network takes time and memory in proportion to its sizes, so this comes first.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in stored.tensors.items()}
    architecture = architecture_of(config)
    try:
        differing = [
            f"{name} is {shown(attrgetter(name)(config))}, but model.safetensors has {shown(size)}"
            for name, size in architecture.stored_sizes(shapes).items()
            if attrgetter(name)(config) != size
        ]
    except ValueError as error:
        raise ValueError(f"{path.with_name('model.safetensors')}: {error}") from error
    if differing:
        raise ValueError(f"{path}: model: {'; '.join(differing)}")
    _check_tensor_names(path.with_name("model.safetensors"), architecture.keys(config), shapes)


def _check_tensor_names(path: Path, expected: Iterable[str], stored: Iterable[str]) -> None:
    expected, stored = dict.fromkeys(expected), dict.fromkeys(stored)
    missing = [f"missing {name}" for name in expected if name not in stored]
    unexpected = [f"unexpected {name}" for name in stored if name not in expected]
    # Files of another model have many of each; show some of both.
    faults = missing[:20] + unexpected[:20] + missing[20:] + unexpected[20:]
    _raise_if_any(path, faults)


def _raise_if_any(path: Path, faults: list[str]) -> None:
    if faults:
        raise ValueError(f"{path} does not fit the model:\n  {list_problems(faults)}")


def load_state(model: nn.Module, path: Path, *, resize: bool = False) -> None:
    """Load a safetensors file strictly. `resize` adapts tensors to the model's image size.

    Raises:
        ValueError: if keys are missing or unexpected, or shapes or dtypes do not match; the
            message lists them.
    """
    stored = read_safetensors(path)
    load_tensors(model, path, stored.tensors, resize=resize, release=stored.release)


def load_tensors(
    model: nn.Module,
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    resize: bool = False,
    device: torch.device | str | None = None,
    release: Callable[[], None] | None = None,
) -> None:
    """Copy tensors into a model, strictly.

    Args:
        model: the model; on the meta device if `device` is given.
        path: where the tensors come from, for messages.
        tensors: tensors by name.
        resize: adapt them to the model's image size.
        device: allocate the model there.
        release: see `copy_weights`.

    Raises:
        ValueError: if names, shapes or dtypes do not fit; the message lists them.
    """
    _check_tensor_names(path, model.state_dict(), tensors)
    if resize:
        config: ModelConfig = model.config  # type: ignore[assignment]
        tensors = architecture_of(config).resize(tensors, config)
    weights = model.state_dict()
    faults = [
        f"{name} has shape {tuple(tensors[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in weights.items()
        if tensor.shape != tensors[name].shape
    ]
    wrong = [dtype_problem(name, tensors[name], tensor) for name, tensor in weights.items()]
    _raise_if_any(path, faults + [problem for problem in wrong if problem])
    if device is not None:
        allocate(model, device)
        weights = model.state_dict()
    copy_weights(weights, {name: [tensors[name]] for name in weights}, path, release)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Map the tensors of a safetensors file. Raises ValueError if it is damaged or truncated."""
    return read_safetensors(path).tensors


def write_tensors(
    state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file and fsync it.

    `safetensors.torch.save_file` hides errors of the system, such as that of a full disk.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with path.open("wb") as file:
        file.write(safetensors.torch.save(tensors, {"format": "pt", **(metadata or {})}))
        flush_to_disk(file)
