"""Groups of parameters as published: learning rate multipliers and weight decay, by name."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Literal

from torch import Tensor

from fiber.messages import shown, shown_names
from fiber.models.architecture import Part
from fiber.training.config.run import OptimConfig

#: Kind of a parameter: biases (and relative position bias tables) are never decayed; vectors (norm
#: weights, temperatures) and gates are decayed only with `decay_vectors`.
Kind = Literal["weight", "bias", "vector", "gate"]

#: Last components of the names of biases.
BIASES = ("bias", "bias_table", "text_bias")
_NOTHING: Mapping[str, bool] = MappingProxyType({})


def part_of(name: str, parts: Mapping[str, Part]) -> Part:
    """Return the part of the model that a parameter belongs to.

    Args:
        name: name of the parameter.
        parts: `Network.parts` of the model.

    Raises:
        ValueError: if no prefix of the name has a part.
    """
    found = next((prefix for prefix in parts if f"{name}.".startswith(f"{prefix}.")), None)
    if found is None:
        raise ValueError(
            f"parameter {shown(name)} is not in a known part of the model; add"
            f" {shown(name.split('.')[0])} to `parts` of its network, which has"
            f" {shown_names(parts)}"
        )
    return parts[found]


def kind_of(name: str, parameter: Tensor) -> Kind:
    """Return the kind of a parameter."""
    last = name.rsplit(".", 1)[-1]
    if last in BIASES:
        return "bias"
    if last == "gate":
        return "gate"
    return "vector" if parameter.ndim < 2 else "weight"


def factor_of(
    name: str, parameter: Tensor, config: OptimConfig, parts: Mapping[str, Part]
) -> float:
    """Return a parameter's learning rate multiplier; `parts` as in `part_of`."""
    kind = kind_of(name, parameter)
    factor = {
        "encoder": 1.0,
        "cross_modal": config.cross_modal_lr_multiplier,
        "head": config.head_lr_multiplier,
    }[part_of(name, parts)]
    # As in the published fine stage, the text multiplier also covers the text's cross-attention.
    if name.startswith("backbone.text.") or ".text_to_image." in name:
        factor *= config.text_lr_multiplier
    if kind == "bias":
        factor *= config.bias_lr_multiplier
    if kind == "gate":
        factor *= config.gate_lr_multiplier
    return factor


def is_decayed(
    name: str, parameter: Tensor, config: OptimConfig, published: Mapping[str, bool] = _NOTHING
) -> bool:
    """Return whether weight decay applies to a parameter.

    With `published_coarse` or `published_decay`, the first matching pattern of `published`,
    `Network.published_decay`, decides.
    """
    if config.published_coarse or config.published_decay:
        for pattern, is_decayed_there in published.items():
            if fnmatchcase(name, pattern):
                return is_decayed_there
    kind = kind_of(name, parameter)
    return kind == "weight" or (kind in ("vector", "gate") and config.decay_vectors)


def is_adapter(name: str) -> bool:
    """Return whether a parameter is one of LoRA's."""
    return ".lora_" in name


def is_backbone_matrix(name: str, parameter: Tensor) -> bool:
    """Return whether a parameter is a matrix of an encoder or of the fusion.

    Embeddings and adapters of LoRA are not: the rows of a matrix of rank r that is orthogonal would
    all be as important as the first.
    """
    is_matrix = parameter.ndim == 2 and kind_of(name, parameter) == "weight"
    is_other = ".embeddings." in name or is_adapter(name)
    return is_matrix and name.startswith("backbone.") and not is_other
