"""Load the model of an adapter folder: its base, with the adapter merged."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from fiber.checkpoints.adapters.files import (
    ABOUT,
    CONFIG,
    WEIGHTS,
    About,
    is_adapter,
    read_about,
    read_adapter_config,
    read_adapter_tensors,
    weights_sha256,
)
from fiber.checkpoints.hub.names import hub_name
from fiber.checkpoints.init_from import initialize_as_base
from fiber.checkpoints.model_dir import StoredModel
from fiber.checkpoints.stages import describe_missing, model_path, packaged_path_name
from fiber.checkpoints.vocabulary.files import read_strings, read_tokenizer
from fiber.checkpoints.weights import list_problems
from fiber.messages import printable, shown, shown_names
from fiber.models.lora import PREFIX, add_adapters, import_peft, merge
from fiber.models.registry import Network, architecture_of, build_model

#: Maximum number of characters of a reason that PEFT gives.
_MAX_REASON = 300
#: Module of the models of `fiber.hf` that is the network, and how names of its adapters start.
_NETWORK = "network"
_OF_HF = f"{PREFIX}{_NETWORK}."


class ReadBase(Protocol):
    """Function that loads the base, `fiber.checkpoints.load.read_model`."""

    def __call__(self, path: Path, *, image_size: int | None = None) -> StoredModel:
        """Load it on the CPU."""
        ...


def base_name(path: str | os.PathLike[str]) -> str:
    """Return how an adapter names its base: in the package, on the Hub, or an absolute path."""
    name = packaged_path_name(Path(path)) or hub_name(path)
    return str(name or Path(path).resolve())


def load_adapter(
    folder: Path,
    read_base: ReadBase,
    *,
    base: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
) -> StoredModel:
    """Load a model from an adapter and its base, merged, on the CPU.

    Args:
        folder: folder of the adapter, of a run or of PEFT's `save_pretrained`.
        read_base: loads the base.
        base: path or name of the base. Default: the one that the adapter names.
        image_size: new input size in pixels.

    Raises:
        FileNotFoundError: if the base or a file of the adapter is missing.
        ModuleNotFoundError: if PEFT is not installed.
        ValueError: if a file is damaged, the adapter was trained on another base, or its tensors do
            not fit.
    """
    config, named = read_adapter_config(folder)
    about, tensors = read_about(folder), read_adapter_tensors(folder)
    stored = read_base_of(folder, about, named, base, read_base, None if about else image_size)
    vocabulary = _own_vocabulary(folder, stored)
    network = stored.network
    if about is not None:
        network = _build_model(folder, about, stored, vocabulary["answers"], image_size, tensors)
    return StoredModel(
        network=_merged(folder, network, config, tensors).eval(),
        path=folder,
        ignored=stored.ignored,
        filled=stored.filled,
        trained_on=about.trained_on if about is not None else stored.trained_on,
        **vocabulary,
    )


def read_base_of(
    folder: Path,
    about: About | None,
    named: str | None,
    base: str | os.PathLike[str] | None,
    read_base: ReadBase,
    image_size: int | None,
) -> StoredModel:
    """Load the base of an adapter and compare it with the fingerprint; see `load_adapter`.

    `named` is the base in adapter_config.json, which PEFT leaves empty for models of this package.
    """
    asked = os.fspath(base) if base is not None else about.base if about is not None else named
    if asked is None:
        raise ValueError(
            f"{folder} does not name its base ({ABOUT} and base_model_name_or_path of {CONFIG});"
            ' pass it: fiber.load(folder, base="scenes/coarse"), or fiber convert --merge --base'
        )
    path = model_path(asked)
    if not path.exists():
        raise FileNotFoundError(
            f"{folder}: its base {describe_missing(path)}; if it was moved, pass it:"
            " fiber.load(folder, base=...), or fiber convert --merge --base"
        )
    if path.is_dir() and is_adapter(path):
        raise ValueError(
            f"{folder}: its base {path} is an adapter, too; merge that one first (fiber convert"
            " --merge)"
        )
    stored = read_base(path, image_size=image_size)
    if about is None:
        warnings.warn(
            f"{folder} has no fingerprint of its base ({ABOUT}), so nothing checks that it was"
            f" trained on {printable(asked, _MAX_REASON)}",
            RuntimeWarning,
            stacklevel=2,
        )
    elif (found := weights_sha256(stored.network.state_dict())) != about.base_sha256:
        raise ValueError(
            f"{folder} was trained on another base: {printable(asked, _MAX_REASON)} has the"
            f" fingerprint {found[:12]}, expected {printable(about.base_sha256, 12)} (that of"
            f" {printable(about.base, _MAX_REASON)} when the adapter was trained)"
        )
    return stored


def _own_vocabulary(folder: Path, base: StoredModel) -> dict[str, Any]:
    """Read tokenizer, answers and classes of the adapter, by default those of its base."""
    vocabulary: dict[str, Any] = {"tokenizer": base.tokenizer}
    if (folder / "tokenizer.json").exists():
        vocabulary["tokenizer"] = read_tokenizer(folder / "tokenizer.json")
    for name in ("answers", "classes"):
        path = folder / f"{name}.json"
        vocabulary[name] = read_strings(path, name) if path.exists() else getattr(base, name)
    return vocabulary


def _build_model(
    folder: Path,
    about: About,
    base: StoredModel,
    answers: tuple[str, ...],
    image_size: int | None,
    tensors: dict[str, torch.Tensor],
) -> Network:
    """Build the model of an adapter, whose heads and sizes may be others than those of the base."""
    config = about.model if image_size is None else about.model.with_image_size(image_size)
    if architecture_of(config) is not architecture_of(base.config):
        raise ValueError(
            f"{folder / ABOUT}: model: {architecture_of(config).title}, but the base is"
            f" {architecture_of(base.config).title}"
        )
    network = build_model(config)
    try:
        created = initialize_as_base(network, base, answers).created
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    missing = [f"missing {name}" for name in created if PREFIX + name not in tensors]
    if missing:
        raise ValueError(
            f"{folder / WEIGHTS} lacks tensors that the base lacks, too:\n "
            f" {list_problems(missing)}"
        )
    return network


def _merged(
    folder: Path, network: Network, config: Any, tensors: dict[str, torch.Tensor]
) -> Network:
    """Merge an adapter into a network, strictly."""
    owner: nn.Module = network
    if tensors and all(name.startswith(_OF_HF) for name in tensors):
        owner = nn.Module()
        owner.add_module(_NETWORK, network)
    import_peft()
    from peft import set_peft_model_state_dict

    targets, names = config.target_modules, [name for name, _ in owner.named_modules()]
    if not isinstance(targets, str) and not any(
        f".{name}".endswith(tuple(f".{target}" for target in targets)) for name in names
    ):
        raise ValueError(
            f"{folder / CONFIG}: target_modules: no layer of the base is called"
            f" {shown_names(sorted(targets), 4)}"
        )
    try:
        # Without memory for adapters until their shapes are known to be those of the file.
        wrapped = add_adapters(owner, config, empty=True)
        result = set_peft_model_state_dict(wrapped, tensors, low_cpu_mem_usage=True)
    except KeyError as error:
        raise ValueError(f"{folder / WEIGHTS} lacks {shown(error.args[0])}") from error
    except Exception as error:  # PEFT and torch have many kinds for files that do not fit.
        reason = printable(" ".join(str(error).split()), _MAX_REASON)
        raise ValueError(f"{folder} does not fit its base: {reason}") from error
    faults = [
        f"missing {PREFIX}{name.removeprefix(PREFIX).replace('.default', '')}"
        for name, parameter in wrapped.named_parameters()
        if parameter.is_meta
    ] + [f"unexpected {name}" for name in result.unexpected_keys]
    if faults:
        raise ValueError(
            f"{folder / WEIGHTS} does not fit {CONFIG} and the base:\n  {list_problems(faults)}"
        )
    try:
        merged = merge(wrapped)
        return merged if owner is network else merged.get_submodule(_NETWORK)
    except ValueError as error:
        raise ValueError(f"{folder / WEIGHTS}: {error}") from error
