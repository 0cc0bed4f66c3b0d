"""Groups of parameters as published: learning rate multipliers and weight decay, by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from fiber.messages import shown
from fiber.models.architecture import Part
from fiber.training.config.run import OptimConfig

#: Kind of a parameter: biases (and relative position bias tables) are never decayed; vectors (norm
#: weights, temperatures) and gates are decayed only with `decay_vectors`.
Kind = Literal["weight", "bias", "vector", "gate"]

#: Maps the first component of a name inside the backbone to its part. `image_norm` and
#: `token_types` are METER's, whose published groups count them as encoders.
BACKBONE_PARTS: dict[str, Part] = {
    "image": "encoder",
    "image_norm": "encoder",
    "text": "encoder",
    "token_types": "encoder",
    "fusion": "cross_modal",
    "image_transform": "cross_modal",
    "text_transform": "cross_modal",
    "image_layers": "cross_modal",
    "text_layers": "cross_modal",
    "layers": "cross_modal",
}
#: Maps the first component of a parameter name outside the backbone to its part. As in the
#: published coarse-stage groups, transforms, poolers and caption projections are cross-modal.
PARTS: dict[str, Part] = {
    "temperature": "encoder",
    "itc_image_norm": "encoder",
    "itc_image_transform": "cross_modal",
    "itc_text_transform": "cross_modal",
    "itc_image_pooler": "cross_modal",
    "itc_text_pooler": "cross_modal",
    "image_transform": "cross_modal",
    "text_transform": "cross_modal",
    "image_pooler": "cross_modal",
    "text_pooler": "cross_modal",
    "caption_projections": "cross_modal",
    "language_head": "head",
    "itm_head": "head",
    "vqa_head": "head",
    "nlvr2_head": "head",
    "snli_head": "head",
    # As in METER's published groups, where no pattern matches this head.
    "rank_head": "encoder",
    "stage_norms": "head",
    "pyramid": "head",
    "tower": "head",
    "head": "head",
}
BIASES = ("bias", "bias_table", "text_bias")

#: Suffixes of vectors that the published coarse-stage code decays in addition to gates, since their
#: names there (`temp`, `norm_i2t_i`, `vqa_classifier.1`) match none of its norm patterns.
DECAYED_AS_PUBLISHED = (
    "temperature",
    "image_to_text.norm.weight",
    "vqa_head.norm.weight",
    "nlvr2_head.norm.weight",
    "snli_head.norm.weight",
    # CLIP's norms, and its class token.
    "image.first_norm.weight",
    "image.last_norm.weight",
    "image.class_embedding",
)
#: Norms of CLIP's blocks, whose names in the published code (`ln_1`, `ln_2`) match no pattern
#: either.
_CLIP_BLOCK_NORMS = re.compile(r"backbone\.image\.blocks\.\d+\.(attention|mlp)_norm\.weight")


def part_of(name: str, others: Mapping[str, Part] | None = None) -> Part:
    """Return the part of the model that a parameter belongs to.

    Args:
        name: name of the parameter.
        others: `Network.parts` of the model.

    Raises:
        ValueError: if the name is unknown; new modules must be added to `PARTS`.
    """
    for prefix, part in (others or {}).items():
        if f"{name}.".startswith(f"{prefix}."):
            return part
    parts = name.split(".")
    if parts[0] == "backbone" and parts[1] in BACKBONE_PARTS:
        return BACKBONE_PARTS[parts[1]]
    if parts[0] not in PARTS:
        raise ValueError(
            f"parameter {shown(name)} is not in a known part of the model; add {shown(parts[0])} to"
            " fiber.training.optim.parameter_groups.PARTS, or to `parts` of a network of another"
            " package"
        )
    return PARTS[parts[0]]


def kind_of(name: str, parameter: Tensor) -> Kind:
    """Return the kind of a parameter."""
    last = name.rsplit(".", 1)[-1]
    if last in BIASES:
        return "bias"
    if last == "gate":
        return "gate"
    return "vector" if parameter.ndim < 2 else "weight"


def factor_of(
    name: str, parameter: Tensor, config: OptimConfig, others: Mapping[str, Part] | None = None
) -> float:
    """Return a parameter's learning rate multiplier; `others` as in `part_of`."""
    kind = kind_of(name, parameter)
    factor = {
        "encoder": 1.0,
        "cross_modal": config.cross_modal_lr_multiplier,
        "head": config.head_lr_multiplier,
    }[part_of(name, others)]
    # As in the published fine stage, the text multiplier also covers the text's cross-attention.
    if name.startswith("backbone.text.") or ".text_to_image." in name:
        factor *= config.text_lr_multiplier
    if kind == "bias":
        factor *= config.bias_lr_multiplier
    if kind == "gate":
        factor *= config.gate_lr_multiplier
    return factor


def is_decayed(name: str, parameter: Tensor, config: OptimConfig) -> bool:
    """Return whether weight decay applies to a parameter.

    With `published_coarse`, gates, the temperature and some norms are also decayed, since the name
    patterns in the published code do not exclude them.
    """
    kind = kind_of(name, parameter)
    if config.published_coarse and (
        kind == "gate"
        or name.endswith(DECAYED_AS_PUBLISHED)
        or _CLIP_BLOCK_NORMS.fullmatch(name) is not None
    ):
        return True
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
