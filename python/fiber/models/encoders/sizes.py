"""Sizes that tensors of a standalone encoder show, and settings that only its config.json shows.

Sources: the config classes of CLIP, Swin, RoBERTa and BERT in transformers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any, NamedTuple

from torch import Tensor

from fiber.models.encoders.clip import LAYER_NORM_EPS as CLIP_EPS
from fiber.models.encoders.swin import LAYER_NORM_EPS as SWIN_EPS
from fiber.models.infer import count_numbers


class Size(NamedTuple):
    """Size of an encoder that shapes or names of its tensors show."""

    #: Display name.
    title: str
    #: Field of the encoder's config.
    field: str
    #: Our keys of the tensors that show it: one, or one per stage for a tuple of sizes.
    keys: tuple[str, ...]
    #: Computes it from the shape; None counts the blocks of the tensor, which is in block 0.
    measure: Callable[[tuple[int, ...]], Any] | None
    #: Number of last blocks that the file may have and the model leaves out.
    spare: int = 0


class Setting(NamedTuple):
    """Field of transformers' config.json that shapes of tensors do not show."""

    name: str
    #: Field of the encoder's config, if ours can be set.
    field: str | None = None
    #: Values that are computed, if it cannot be set.
    values: tuple[Any, ...] = ()


def _ratio(shape: tuple[int, ...]) -> float:
    return shape[0] / shape[1]


_PATCHES = ("backbone.image.patch_embedding.projection.weight",)
_WORDS = ("backbone.text.embeddings.word.weight",)
_POSITIONS = ("backbone.text.embeddings.position.weight",)
_STAGES = tuple(f"backbone.image.stages.{stage}.blocks.0" for stage in range(4))
_LAYER = "backbone.text.layers.0"

CLIP_SIZES = (
    Size("patch size", "patch_size", _PATCHES, itemgetter(2)),
    Size("width", "width", _PATCHES, itemgetter(0)),
    Size("blocks", "num_blocks", ("backbone.image.blocks.0.qkv.weight",), None, spare=1),
    Size("MLP ratio", "mlp_ratio", ("backbone.image.blocks.0.mlp.0.weight",), _ratio),
)
#: Without the window size: bias tables are resized.
SWIN_SIZES = (
    Size("patch size", "patch_size", _PATCHES, itemgetter(2)),
    Size("width", "embed_dim", _PATCHES, itemgetter(0)),
    Size("blocks", "depths", tuple(f"{each}.attention.qkv.weight" for each in _STAGES), None),
    Size(
        "heads",
        "num_heads",
        tuple(f"{each}.attention.bias_table" for each in _STAGES),
        itemgetter(1),
    ),
    Size("MLP ratio", "mlp_ratio", (f"{_STAGES[0]}.mlp.0.weight",), _ratio),
)
TEXT_SIZES = (
    Size("vocabulary size", "vocab_size", _WORDS, itemgetter(0)),
    Size("width", "width", _WORDS, itemgetter(1)),
    Size("layers", "num_layers", (f"{_LAYER}.attention.qkv.weight",), None),
    Size("MLP width", "ffn_width", (f"{_LAYER}.mlp.0.weight",), itemgetter(0)),
    Size("positions", "max_positions", _POSITIONS, itemgetter(0)),
)

#: Names of the exact GELU in transformers.
_GELU = ("gelu", "gelu_python")
CLIP_SETTINGS = (
    Setting("num_attention_heads", "num_heads"),
    Setting("hidden_act", values=("quick_gelu",)),
    Setting("layer_norm_eps", values=(CLIP_EPS,)),
)
SWIN_SETTINGS = (
    Setting("hidden_act", values=_GELU),
    Setting("layer_norm_eps", values=(SWIN_EPS,)),
)
BERT_SETTINGS = (
    Setting("num_attention_heads", "num_heads"),
    Setting("layer_norm_eps", "layer_norm_eps"),
    Setting("hidden_act", values=_GELU),
    # A decoder attends to earlier tokens only.
    Setting("is_decoder", values=(False,)),
)
#: Positions of RoBERTa count from the id of the padding.
ROBERTA_SETTINGS = (*BERT_SETTINGS, Setting("pad_token_id", values=(1,)))


def size_in(
    size: Size, keys: Mapping[str, tuple[str, ...]], state: Mapping[str, Tensor]
) -> Any | None:
    """Measure a size of an encoder in a state dict.

    Args:
        size: size to measure.
        keys: mapping from our keys to those of the state dict, where they differ.
        state: tensors of the encoder.

    Returns:
        The size, or None if a tensor that shows it is missing or has another number of dimensions;
        loading names such a tensor.
    """
    values = []
    for key in size.keys:
        name = keys.get(key, (key,))[0]
        if size.measure is None:
            blocks = name.rpartition(".0.")[0]
            value = count_numbers(state, re.escape(blocks) + r"\.(\d+)\.")
        else:
            shape = tuple(state[name].shape) if name in state else ()
            dims = 4 if key in _PATCHES else 2
            value = size.measure(shape) if len(shape) == dims and 0 not in shape else 0
        if not value:
            return None
        values.append(value)
    return tuple(values) if len(values) > 1 else values[0]
