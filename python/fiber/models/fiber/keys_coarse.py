"""Published checkpoints and ours: an explicit map of names, both ways, and coarse to fine.

Nothing is skipped quietly: a published tensor that the map does not name is left out for a reason
listed in `IGNORED_COARSE_KEYS`, or it raises.
"""

from __future__ import annotations

import re
from collections.abc import Container

from fiber.config import FiberConfig
from fiber.models.encoders.keys import KeyMap, weight_and_bias
from fiber.models.fiber.keys import tower_keys

#: Published coarse keys that hold nothing the model needs: pattern, and why it is left out.
IGNORED_COARSE_KEYS: tuple[tuple[str, str], ...] = (
    (r".*\.relative_position_index", "buffer that follows from the window size"),
    (r".*\.attn_mask", "buffer that follows from the map size"),
    (r"text_transformer\.embeddings\.position_ids", "buffer that counts positions"),
    (r"(image|text|image_input|text_input|text_input_mask)_queue", "queue of past batches"),
    (r"queue_(ptr|total)", "queue of past batches"),
    (r"rank_output\.(weight|bias)", "stale copy of row 1 of the matching head"),
    (r"logit_scale", "temperature of an implementation before the published one"),
    (r"token_type_embeddings\.weight", "modality vectors that no published code reads"),
    (r"copy_module\..*", "frozen copy that the captioner's off-policy training (GOLD) keeps"),
    (r"text_transformer\.pooler\.dense\.(weight|bias)", "RoBERTa's pooler, never used"),
    (r".*\.crossattention_t2i\.output\.LayerNorm\.(weight|bias)", "norm that is never applied"),
)

#: Heads, and the published prefixes that a model has only if it has one of them.
_HEAD_PREFIXES: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("itc",),
        (
            "temp",
            "vit_model.norm.",
            "cross_modal_text_transform_itc.",
            "cross_modal_image_transform_itc.",
            "cross_modal_text_pooler_itc.",
            "cross_modal_image_pooler_itc.",
        ),
    ),
    (("itm", "mlm", "vqa", "nlvr2", "caption"), ("cross_modal_text_transform.",)),
    (
        ("itm", "vqa", "nlvr2"),
        (
            "cross_modal_image_transform.",
            "cross_modal_image_pooler.",
            "cross_modal_text_pooler.",
        ),
    ),
    (("mlm", "caption"), ("mlm_score.",)),
    (("itm",), ("itm_score.",)),
    (("vqa",), ("vqa_classifier.",)),
    (("nlvr2",), ("nlvr2_classifier.",)),
    (("caption",), ("cross_modal_att_layers.",)),
)


def coarse_keys(config: FiberConfig) -> KeyMap:
    """Map every tensor of the coarse model: names of a `FiberImageText` -> published names."""
    towers = tower_keys(config, image_prefix="vit_model.", text_prefix="text_transformer.")
    keys: KeyMap = {f"backbone.{ours}": theirs for ours, theirs in towers.items()}
    heads = set(config.image_text.heads)
    if "itc" in heads:
        keys["temperature"] = ("temp",)
        keys |= weight_and_bias("itc_image_norm", "vit_model.norm")
        for side in ("image", "text"):
            keys |= weight_and_bias(f"itc_{side}_transform", f"cross_modal_{side}_transform_itc")
            keys |= weight_and_bias(
                f"itc_{side}_pooler.linear", f"cross_modal_{side}_pooler_itc.dense"
            )
    if heads - {"itc"}:
        keys |= weight_and_bias("text_transform", "cross_modal_text_transform")
    if heads & {"itm", "vqa", "nlvr2"}:
        keys |= weight_and_bias("image_transform", "cross_modal_image_transform")
        for side in ("image", "text"):
            keys |= weight_and_bias(f"{side}_pooler.linear", f"cross_modal_{side}_pooler.dense")
    if heads & {"mlm", "caption"}:
        keys |= weight_and_bias("language_head.transform", "mlm_score.transform.dense")
        keys |= weight_and_bias("language_head.norm", "mlm_score.transform.LayerNorm")
        keys["language_head.decoder.weight"] = ("mlm_score.decoder.weight",)
        keys["language_head.decoder.bias"] = ("mlm_score.bias",)
    if "itm" in heads:
        keys |= weight_and_bias("itm_head", "itm_score.fc")
    for head in ("vqa", "nlvr2"):
        if head in heads:
            keys |= weight_and_bias(f"{head}_head.hidden", f"{head}_classifier.0")
            keys |= weight_and_bias(f"{head}_head.norm", f"{head}_classifier.1")
            keys |= weight_and_bias(f"{head}_head.output", f"{head}_classifier.3")
    if "caption" in heads:
        for number, layer in enumerate(_projected_text_layers(config)):
            keys |= weight_and_bias(
                f"caption_projections.{number}", f"cross_modal_att_layers.{layer}"
            )
    return keys


def ignored_coarse_key(name: str, config: FiberConfig) -> str | None:
    """Say why a published key outside `coarse_keys` may be left out; None: it may not."""
    for pattern, reason in IGNORED_COARSE_KEYS:
        if re.fullmatch(pattern, name):
            return reason
    layer = re.fullmatch(r"text_transformer\.encoder\.layer\.(\d+)\.alpha_t2i", name)
    fused_from = config.roberta.num_layers - config.fusion.num_fused_layers
    if layer and int(layer[1]) < fused_from:
        return "gate of a text layer that reads no picture"
    layer = re.fullmatch(r"cross_modal_att_layers\.(\d+)\.(weight|bias)", name)
    if layer and int(layer[1]) not in _projected_text_layers(config):
        return "projection for a text layer that needs none"
    for heads, prefixes in _HEAD_PREFIXES:
        if name.startswith(prefixes) and not set(heads) & set(config.image_text.heads):
            return f"the model was built without a head that needs it ({' or '.join(heads)})"
    return None


def _projected_text_layers(config: FiberConfig) -> range:
    """Text layers whose image block has the channels of stage 3, which captioning projects to."""
    fused = config.fusion.num_fused_layers
    first = config.roberta.num_layers - fused
    return range(first, first + max(fused - config.swin.depths[3], 0))


def filled_in(config: FiberConfig, names: Container[str]) -> dict[str, float]:
    """Tell what a published coarse file may lack, and what it is set to then.

    `temp` is there only if contrast (ITC) was among the objectives of its run, and not in the
    released files, which an earlier implementation wrote; the projections of contrast always are.

    Args:
        config: of the model that the file is to fill.
        names: published names of the tensors in the file.

    Returns:
        Our names of tensors that the file does not hold, each with its value.
    """
    if "itc" in config.image_text.heads and "temp" not in names:
        return {"temperature": config.image_text.temperature}
    return {}
