"""Infer configs of encoders from published tensors, and read configs stored in published files."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Any, TypeVar

from torch import Tensor

from fiber.config import ClipConfig, RobertaConfig, SwinConfig
from fiber.config_io import from_dict
from fiber.messages import shown

ConfigT = TypeVar("ConfigT")

#: Field of the stored config that holds the complete config, in files written by this package.
#: Published fields cannot express, for example, a window size other than image_size / 32.
OWN = "fiber_model"


#: Maximum number of digits in the number of a layer.
_MAX_DIGITS = 6

#: Head dim of published RoBERTa and CLIP models, which cannot be inferred from shapes.
_HEAD_DIM = 64


def infer_swin(state: Mapping[str, Tensor], prefix: str) -> SwinConfig:
    """Infer the config of a Swin encoder from published tensors."""
    embed_dim, _, patch_size, _ = shape_of(state, f"{prefix}patch_embed.proj.weight", 4)
    stages = [f"{prefix}layers.{stage}.blocks." for stage in range(4)]
    tables = [shape_of(state, f"{stage}0.attn.relative_position_bias_table", 2) for stage in stages]
    return SwinConfig(
        patch_size=patch_size,
        embed_dim=embed_dim,
        depths=tuple(count_numbers(state, re.escape(stage) + r"(\d+)\.") for stage in stages),
        num_heads=tuple(heads for _, heads in tables),
        # (2 w - 1) ** 2 rows.
        window_size=(math.isqrt(tables[0][0]) + 1) // 2,
        mlp_ratio=shape_of(state, f"{stages[0]}0.mlp.fc1.weight", 2)[0] / embed_dim,
    )


def infer_clip(state: Mapping[str, Tensor], prefix: str) -> ClipConfig:
    """Infer the config of CLIP's image encoder from published tensors.

    Heads have 64 channels, as in every published model; other widths have one head.
    """
    width, _, patch_size, _ = shape_of(state, f"{prefix}conv1.weight", 4)
    blocks = f"{prefix}transformer.resblocks."
    return ClipConfig(
        patch_size=patch_size,
        width=width,
        num_blocks=count_numbers(state, re.escape(blocks) + r"(\d+)\."),
        num_heads=width // _HEAD_DIM if width % _HEAD_DIM == 0 else 1,
        mlp_ratio=shape_of(state, f"{blocks}0.mlp.c_fc.weight", 2)[0] / width,
    )


def infer_text(
    state: Mapping[str, Tensor],
    prefix: str,
    num_heads: int | None,
    config_class: type[RobertaConfig] = RobertaConfig,
) -> RobertaConfig:
    """Infer the config of the text encoder. If `num_heads` is None, assume head dim 64."""
    vocab_size, width = shape_of(state, f"{prefix}embeddings.word_embeddings.weight", 2)
    if num_heads is None and width % _HEAD_DIM:
        raise ValueError(
            f"cannot infer num_heads: expected text encoder channels divisible by {_HEAD_DIM}"
            f" (RoBERTa's head dim), got {width}"
        )
    if num_heads is not None and width % num_heads:
        raise ValueError(
            f"the stored config has num_heads {num_heads}, which does not divide the {width}"
            " channels of the text encoder"
        )
    layers = f"{prefix}encoder.layer."
    return config_class(
        vocab_size=vocab_size,
        width=width,
        num_layers=count_numbers(state, re.escape(layers) + r"(\d+)\."),
        num_heads=num_heads or width // _HEAD_DIM,
        ffn_width=shape_of(state, f"{layers}0.intermediate.dense.weight", 2)[0],
        max_positions=shape_of(state, f"{prefix}embeddings.position_embeddings.weight", 2)[0],
    )


def count_numbers(state: Mapping[str, Tensor], pattern: str) -> int:
    """Return one more than the largest number that group 1 of `pattern` matches in the keys."""
    numbers = [match[1] for name in state if (match := re.match(pattern, name))]
    longest = max(numbers, key=len, default="0")
    if len(longest) > _MAX_DIGITS:
        raise ValueError(f"a tensor has the number {shown(longest)}; expected that of a layer")
    return max(map(int, numbers), default=-1) + 1


def shape_of(state: Mapping[str, Tensor], name: str, dims: int) -> tuple[int, ...]:
    """Return the shape of a tensor that a config is inferred from.

    Raises:
        ValueError: if the tensor is missing, empty or not of `dims` dimensions.
    """
    if name not in state:
        raise ValueError(f"missing {name}, which is needed to determine the model size")
    shape = tuple(state[name].shape)
    if len(shape) != dims or 0 in shape:
        raise ValueError(f"{name} has shape {shape}, expected {dims} dimensions of 1 or more")
    return shape


def stored_integer(stored: Mapping[str, Any], name: str) -> int | None:
    """Return an integer field of a stored config, or None if it is missing.

    Raises:
        ValueError: if the value is not an integer from 1 (num_fuse_block: 0) to 2**31 - 1.
    """
    value = stored.get(name)
    least = 0 if name == "num_fuse_block" else 1
    if value is not None and (type(value) is not int or not least <= value < 2**31):
        raise ValueError(f"stored config: {name} must be an integer >= {least}, got {shown(value)}")
    return value


def own_config(stored: Mapping[str, Any], config_class: type[ConfigT]) -> ConfigT | None:
    """Read the `OWN` field of a stored config, or return None if it is missing.

    Raises:
        ValueError: if it is not a valid config.
    """
    if OWN not in stored:
        return None
    values = stored[OWN]
    if not isinstance(values, dict):
        raise ValueError(f"stored {OWN}: expected a JSON object, got {type(values).__name__}")
    try:
        return from_dict(config_class, values)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"stored {OWN}: {error}") from error


def check_stored(stored: Mapping[str, Any], known: Mapping[str, int], source: str) -> None:
    """Check that a stored config matches known values of published fields.

    `source` precedes the known values in errors, e.g. "the tensors have".

    Raises:
        ValueError: if it does not; the message lists the fields.
    """
    wrong = [
        f"{name} {found}, but {source} {value}"
        for name, value in known.items()
        if (found := stored_integer(stored, name)) not in (None, value)
    ]
    if wrong:
        raise ValueError(f"the stored config has {'; '.join(wrong)}")


def check_fields(own: Any, inferred: Any, fields: Iterable[str]) -> None:
    """Check that fields of the stored own config match the inferred config, by dotted name.

    Raises:
        ValueError: if they do not; the message lists the fields.
    """
    pairs = {name: (attrgetter(name)(own), attrgetter(name)(inferred)) for name in fields}
    differing = [
        f"{name} is {shown(stored)}, expected {shown(found)}"
        for name, (stored, found) in pairs.items()
        if stored != found
    ]
    if differing:
        raise ValueError(
            f"the stored {OWN} contradicts the tensors or the published code: "
            + "; ".join(differing)
        )
