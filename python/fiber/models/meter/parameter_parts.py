"""Parts of METER's networks, which choose learning rates, and decay as in its published code."""

from __future__ import annotations

from collections.abc import Mapping

from fiber.models.architecture import Part

#: Published groups count `image_norm` and `token_types` as encoders.
PARTS: Mapping[str, Part] = {
    "backbone.image": "encoder",
    "backbone.image_norm": "encoder",
    "backbone.text": "encoder",
    "backbone.token_types": "encoder",
    "backbone.image_transform": "cross_modal",
    "backbone.text_transform": "cross_modal",
    "backbone.image_layers": "cross_modal",
    "backbone.text_layers": "cross_modal",
    "backbone.layers": "cross_modal",
    "image_pooler": "cross_modal",
    "text_pooler": "cross_modal",
    "language_head": "head",
    "itm_head": "head",
    "vqa_head": "head",
    "nlvr2_head": "head",
    "snli_head": "head",
    # No published pattern matches this head.
    "rank_head": "encoder",
}
#: Vectors whose names in the published code match none of its norm patterns: norms of classifiers,
#: and of CLIP (`ln_1`, `ln_pre`) with its class token.
DECAY: Mapping[str, bool] = {
    "vqa_head.norm.weight": True,
    "nlvr2_head.norm.weight": True,
    "snli_head.norm.weight": True,
    "*image.first_norm.weight": True,
    "*image.last_norm.weight": True,
    "*image.class_embedding": True,
    "backbone.image.blocks.*.attention_norm.weight": True,
    "backbone.image.blocks.*.mlp_norm.weight": True,
}
