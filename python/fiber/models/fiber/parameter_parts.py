"""Parts of FIBER's networks, which choose learning rates, and decay as in its published code."""

from __future__ import annotations

from collections.abc import Mapping

from fiber.models.architecture import Part

_BACKBONE: dict[str, Part] = {
    "backbone.image": "encoder",
    "backbone.text": "encoder",
    "backbone.fusion": "cross_modal",
}
#: As in the published coarse-stage groups, transforms, poolers and caption projections are
#: cross-modal.
COARSE_PARTS: Mapping[str, Part] = {
    **_BACKBONE,
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
}
FINE_PARTS: Mapping[str, Part] = {
    **_BACKBONE,
    "stage_norms": "head",
    "pyramid": "head",
    "tower": "head",
    "head": "head",
    "mask_head": "head",
}
#: Gates, and vectors whose names in the published coarse-stage code (`temp`, `norm_i2t_i`,
#: `vqa_classifier.1`) match none of its norm patterns.
COARSE_DECAY: Mapping[str, bool] = {
    "*.gate": True,
    "temperature": True,
    "*image_to_text.norm.weight": True,
    "vqa_head.norm.weight": True,
    "nlvr2_head.norm.weight": True,
}
