"""Files of an adapter folder.

`adapter_config.json` and `adapter_model.safetensors` are PEFT's. Adapters that this package trains
also have `fiber.json`, which names their base, and the tokenizer, answers and classes of the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from fiber.atomic_io import made_folder, read_json, write_file, write_json
from fiber.checkpoints.adapters.patterns import PATTERN_FIELDS, pattern_problem
from fiber.checkpoints.mapped_file import read_safetensors
from fiber.checkpoints.model_dir import write_tensors
from fiber.checkpoints.provenance import DATA_PATH, TrainedOn, values_of
from fiber.checkpoints.vocabulary.files import MAX_JSON_BYTES, Vocabulary, write_vocabulary
from fiber.checkpoints.weights import dtype_problem
from fiber.config_io import nearest, to_dict
from fiber.env import provenance
from fiber.messages import printable, shown, shown_names
from fiber.models.lora import PREFIX, adapter_tensors, import_peft
from fiber.models.registry import ModelConfig, read_config

if TYPE_CHECKING:
    import peft

#: PEFT's files.
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
#: PEFT's older format of weights, a pickle.
_PICKLE = "adapter_model.bin"
#: What this package adds.
ABOUT = "fiber.json"

#: Fields of PEFT's config that change what an adapter computes, and their types.
_FIELDS: dict[str, tuple[type, ...]] = {
    "r": (int,),
    "lora_alpha": (int, float),
    "lora_dropout": (int, float),
    "target_modules": (list, str),
    "exclude_modules": (list, str),
    "modules_to_save": (list,),
    "bias": (str,),
    "use_rslora": (bool,),
    "use_dora": (bool,),
    "lora_bias": (bool,),
    "fan_in_fan_out": (bool,),
    "rank_pattern": (dict,),
    "alpha_pattern": (dict,),
    "layers_to_transform": (list, int),
    "layers_pattern": (list, str),
}
#: Fields that change nothing in a trained adapter.
_NOTES = (
    *("peft_type", "peft_version", "task_type", "auto_mapping", "inference_mode", "revision"),
    *("base_model_name_or_path", "megatron_core", "runtime_config", "qalora_group_size"),
)
#: Initializations that leave the weights of the base as they are.
_PLAIN_INITS = (True, False, None, "gaussian", "orthogonal")
#: Maximum rank of an adapter.
_MAX_RANK = 2**16
#: Maximum number of characters of a reason that PEFT gives.
_MAX_REASON = 300


@dataclass(frozen=True, kw_only=True)
class About:
    """Contents of fiber.json."""

    #: Base of the adapter: an absolute path, or the name of a model in the package.
    base: str
    #: `weights_sha256` of the base.
    base_sha256: str
    #: Config of the model.
    model: ModelConfig
    #: Training data, if known.
    trained_on: TrainedOn | None = None


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter, by the names of its files."""
    return any((folder / name).exists() for name in (CONFIG, WEIGHTS, _PICKLE))


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 checksum of weights: their names, shapes and values in float32.

    It does not depend on the format of the file that they are from, or on the order of tensors.
    """
    found = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().to("cpu", torch.float32).contiguous()
        found.update(f"{name} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def write_adapter(
    folder: Path,
    config: peft.LoraConfig,
    state: Mapping[str, Tensor],
    about: About,
    vocabulary: Vocabulary | None = None,
) -> None:
    """Write an adapter folder; one of the same run is replaced.

    Args:
        folder: folder to write.
        config: PEFT's config of the adapters, with full names.
        state: state dict of the network with adapters.
        about: its base and model.
        vocabulary: tokenizer, answers and classes of the model.

    Raises:
        OSError: if a file cannot be written.
    """
    with made_folder(folder):
        if vocabulary is not None:
            write_vocabulary(folder, vocabulary)
        tensors = adapter_tensors(state)
        write_file(folder / WEIGHTS, lambda part: write_tensors(tensors, part))
        values: dict[str, Any] = {"base": about.base, "base_sha256": about.base_sha256}
        if about.trained_on is not None:
            values[DATA_PATH] = about.trained_on.path
            values["data"] = {"split": about.trained_on.split}
        write_json(folder / ABOUT, provenance() | values | {"model": to_dict(about.model)})
        write_json(folder / CONFIG, _plain(config))


def _plain(config: peft.LoraConfig) -> dict[str, Any]:
    """Return the fields of a config as PEFT writes them, with names in order.

    PEFT would take the path of the base for that of a model of transformers, so it is not there.
    """
    values = {name: each for name, each in config.to_dict().items() if name != "runtime_config"}
    return {name: sorted(each) if isinstance(each, set) else each for name, each in values.items()}


def read_about(folder: Path) -> About | None:
    """Read fiber.json, or return None if there is none.

    Raises:
        ValueError: if it is damaged; the message names the field.
    """
    path = folder / ABOUT
    if not path.exists():
        return None
    values = read_json(path, MAX_JSON_BYTES)
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object, got {shown(values)}")
    for name in ("base", "base_sha256"):
        if not isinstance(values.get(name), str) or "\0" in values[name] or not values[name]:
            raise ValueError(f"{path}: {name}: expected a string, got {shown(values.get(name))}")
    with values_of(path, values):
        model = read_config(values.get("model"), "model")
    return About(
        base=values["base"],
        base_sha256=values["base_sha256"],
        model=model,
        trained_on=TrainedOn.read(values),
    )


def read_adapter_config(folder: Path) -> tuple[peft.LoraConfig, str | None]:
    """Read adapter_config.json: PEFT's config, and the base that it names, if any.

    Only LoRA is read, with the options that act on a trained adapter alone: no code is imported and
    no weight of the base is changed.

    Raises:
        FileNotFoundError: if it is missing.
        ModuleNotFoundError: if PEFT is not installed.
        ValueError: if a field is invalid or not supported; the message names it.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a whole adapter: {CONFIG} does not exist")
    values = read_json(path, MAX_JSON_BYTES)
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object, got {shown(values)}")
    if values.get("peft_type") != "LORA":
        kind = shown(values.get("peft_type"))
        raise ValueError(f"{path}: peft_type: expected 'LORA', got {kind}")
    if not _is_same(values.get("init_lora_weights", True), _PLAIN_INITS):
        raise ValueError(
            f"{path}: init_lora_weights: {shown(values['init_lora_weights'])} changes the base;"
            " expected true (PEFT's docs say how to convert such an adapter)"
        )
    peft = import_peft()
    plain, chosen = peft.LoraConfig(), {}
    for name, value in values.items():
        if name in _FIELDS:
            # What the config of another version leaves out is null.
            if value is not None:
                chosen[name] = _checked(path, name, value)
        elif name in _NOTES or name == "init_lora_weights":
            continue
        elif value and not hasattr(plain, name):
            raise ValueError(f"{path}: unknown field {shown(name)}; {nearest(name, _FIELDS)}")
        elif value and value != getattr(plain, name):
            raise ValueError(f"{path}: {name}: {shown(value)} is not supported, expected null")
    if not chosen.get("target_modules"):
        raise ValueError(f"{path}: target_modules: expected names of layers, got none")
    base = values.get("base_model_name_or_path")
    if base is not None and (not isinstance(base, str) or "\0" in base):
        raise ValueError(f"{path}: base_model_name_or_path: expected a path, got {shown(base)}")
    try:
        return peft.LoraConfig(**chosen), base or None
    except (TypeError, ValueError) as error:
        # Of fields that exclude one another, or need one another.
        raise ValueError(f"{path}: {printable(str(error), _MAX_REASON)}") from error


def _is_same(value: Any, options: tuple[Any, ...]) -> bool:
    """Return whether a JSON value is one of some options; 1 is not True."""
    return any(type(value) is type(each) and value == each for each in options)


def _checked(path: Path, name: str, value: Any) -> Any:
    """Check the type and range of a field."""
    kinds = _FIELDS[name]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{path}: {name}: expected {expected}, got {shown(value)}")
    if isinstance(value, list):
        kind = int if name == "layers_to_transform" else str
        if wrong := [each for each in value if not isinstance(each, kind)]:
            raise ValueError(
                f"{path}: {name}: expected a list of {kind.__name__}, got {shown(wrong[0])} in it"
            )
    if name in PATTERN_FIELDS and (problem := pattern_problem(name, value)) is not None:
        raise ValueError(f"{path}: {name}: {problem}")
    numbers: list[Any] = list(value.values()) if isinstance(value, dict) else [value]
    least = {"r": 1, "rank_pattern": 1, "lora_alpha": 0, "alpha_pattern": 0, "lora_dropout": 0}
    if name in least:
        for number in numbers:
            is_number = isinstance(number, int | float) and not isinstance(number, bool)
            if not (is_number and least[name] <= cast(float, number) <= _MAX_RANK):
                raise ValueError(
                    f"{path}: {name}: expected {least[name]} to {_MAX_RANK}, got {shown(number)}"
                )
    return value


def read_adapter_tensors(folder: Path) -> dict[str, Tensor]:
    """Read adapter_model.safetensors, in float32.

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: if it is damaged, or holds anything but the tensors of an adapter.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        has_pickle = (folder / _PICKLE).exists()
        reason = f"; {_PICKLE} is a pickle, which is not read" if has_pickle else ""
        raise FileNotFoundError(
            f"{folder} is not a whole adapter: {WEIGHTS} does not exist{reason}"
        )
    tensors = read_safetensors(path).tensors
    if others := [name for name in tensors if not name.startswith(PREFIX)]:
        raise ValueError(
            f"{path}: expected names that start with {PREFIX}, got {shown_names(others, 4)}"
        )
    for name, each in tensors.items():
        if problem := dtype_problem(name, each, torch.empty(())):
            raise ValueError(f"{path}: {problem}")
    return {name: each.to(torch.float32, copy=True) for name, each in tensors.items()}
