"""Published keys of METER: key mapping and ignored keys.

Each published tensor is mapped, ignored for a reason listed here, or causes an error on load.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from fiber.models.encoders.keys import (
    EncoderLayout,
    IgnoredKeys,
    KeyMap,
    bert_format,
    bert_keys,
    clip_format,
    clip_keys,
    ignored_clip,
    roberta_format,
    roberta_keys,
    swin_format,
    swin_keys,
    weight_and_bias,
)
from fiber.models.encoders.position_interpolation import resize_bias_tables, resize_position_tables
from fiber.models.meter.config import MeterConfig

#: Prefixes of the published encoders.
IMAGE, CLIP_IMAGE, TEXT = "vit_model.", "vit_model.visual.", "text_transformer."
#: Prefixes of the layers of each side, and of merged attention, which no published file has.
TEXT_LAYERS, IMAGE_LAYERS = "cross_modal_text_layers.", "cross_modal_image_layers."
MERGED_LAYERS = "cross_modal_merged_layers."

_IGNORED: IgnoredKeys = (
    (r".*\.relative_position_index", "buffer derived from the window size"),
    (r".*\.attn_mask", "buffer derived from the map size"),
    (r"text_transformer\.embeddings\.position_ids", "position buffer"),
    (r"text_transformer\.pooler\.dense\.(weight|bias)", "unused pooler of the text encoder"),
    (r"vit_model\.positional_embedding", "positions of CLIP's text encoder, which is not used"),
    (r"vit_model\.ln_final\.(weight|bias)", "norm of CLIP's text encoder, which is not used"),
)

#: Maps each head to a mapping from our layers to published layers; a tuple holds the key of a
#: single tensor.
_HEAD_LAYERS: dict[str, dict[str, str | tuple[str, ...]]] = {
    "itm": {"itm_head": "itm_score.fc"},
    "mlm": {
        "language_head.transform": "mlm_score.transform.dense",
        "language_head.norm": "mlm_score.transform.LayerNorm",
        "language_head.decoder.weight": ("mlm_score.decoder.weight",),
        "language_head.decoder.bias": ("mlm_score.bias",),
    },
    "rank": {"rank_head": "rank_output"},
    **{
        head: {
            f"{head}_head.hidden": f"{head}_classifier.0",
            f"{head}_head.norm": f"{head}_classifier.1",
            f"{head}_head.output": f"{head}_classifier.3",
        }
        for head in ("vqa", "nlvr2", "snli")
    },
}


#: Row of the ITM head that scores a match.
MATCH = 1

#: Weight whose input channels are in RGB order, of either image encoder.
FIRST_CONVOLUTION = "backbone.image.patch_embedding.projection.weight"


def _clip_file_keys(config: MeterConfig, layout: EncoderLayout) -> KeyMap:
    # Files are written with the prefix that they are recognized by.
    if not layout.prefix and not layout.is_transformers:
        layout = layout._replace(prefix="visual.")
    return clip_keys(config.clip, layout) if config.image_encoder == "clip" else {}


def _swin_file_keys(config: MeterConfig, layout: EncoderLayout) -> KeyMap:
    if config.image_encoder != "swin":
        return {}
    keys = swin_keys(config.swin, layout)
    return keys | weight_and_bias("backbone.image_norm", f"{layout.prefix}norm")


#: Standalone encoders that METER models load and write.
ENCODERS = (
    clip_format(keys=_clip_file_keys, ignored=lambda config: ignored_clip(config.clip)),
    swin_format(keys=_swin_file_keys),
    roberta_format(
        keys=lambda config, layout: (
            roberta_keys(config.roberta, layout) if config.text_encoder == "roberta" else {}
        ),
    ),
    bert_format(
        keys=lambda config, layout: (
            bert_keys(config.bert, layout) if config.text_encoder == "bert" else {}
        ),
    ),
)


def is_meter(names: Collection[str]) -> bool:
    """Return whether published keys are those of a METER model, even if parts are missing.

    FIBER has no layers on top of its encoders, and no CLIP.
    """
    prefixes = (IMAGE_LAYERS, TEXT_LAYERS, MERGED_LAYERS, CLIP_IMAGE)
    return any(name.startswith(prefixes) for name in names)


def meter_keys(config: MeterConfig) -> KeyMap:
    """Return a mapping from `MeterImageText` keys to published keys."""
    if config.image_encoder == "clip":
        keys = clip_keys(config.clip, EncoderLayout(CLIP_IMAGE))
    else:
        keys = swin_keys(config.swin, EncoderLayout(IMAGE))
        keys |= weight_and_bias("backbone.image_norm", f"{IMAGE}norm")
    keys |= roberta_keys(config.text, EncoderLayout(TEXT))
    keys["backbone.token_types.weight"] = ("token_type_embeddings.weight",)
    for side in ("text", "image"):
        keys |= weight_and_bias(f"backbone.{side}_transform", f"cross_modal_{side}_transform")
        keys |= weight_and_bias(f"{side}_pooler.linear", f"cross_modal_{side}_pooler.dense")
    for number in range(config.cross.num_layers):
        if config.cross.kind == "merged_attention":
            keys |= _layer_keys(f"backbone.layers.{number}", f"{MERGED_LAYERS}{number}")
            continue
        for side, theirs in (("text", TEXT_LAYERS), ("image", IMAGE_LAYERS)):
            ours, published = f"backbone.{side}_layers.{number}", f"{theirs}{number}"
            keys |= _layer_keys(ours, published)
            keys |= _attention_keys(f"{ours}.cross_attention", f"{published}.crossattention")
    for head in config.heads:
        for ours, layer in _HEAD_LAYERS[head].items():
            is_tensor = isinstance(layer, tuple)
            keys |= {ours: layer} if is_tensor else weight_and_bias(ours, layer)
    return keys


def _layer_keys(ours: str, theirs: str) -> KeyMap:
    """Map self-attention and MLP of a layer."""
    return {
        **_attention_keys(f"{ours}.self_attention", f"{theirs}.attention"),
        **weight_and_bias(f"{ours}.feed_forward.mlp.0", f"{theirs}.intermediate.dense"),
        **weight_and_bias(f"{ours}.feed_forward.mlp.2", f"{theirs}.output.dense"),
        **weight_and_bias(f"{ours}.feed_forward.norm", f"{theirs}.output.LayerNorm"),
    }


def _attention_keys(ours: str, theirs: str) -> KeyMap:
    return {
        **weight_and_bias(f"{ours}.query", f"{theirs}.self.query"),
        **weight_and_bias(f"{ours}.key_value", f"{theirs}.self.key", f"{theirs}.self.value"),
        **weight_and_bias(f"{ours}.output", f"{theirs}.output.dense"),
        **weight_and_bias(f"{ours}.norm", f"{theirs}.output.LayerNorm"),
    }


def ignored_meter_key(name: str, config: MeterConfig) -> str | None:
    """Return why a published key outside `meter_keys` is ignored, or None if it is unknown."""
    return next((why for pattern, why in _IGNORED if re.fullmatch(pattern, name)), None)


def resize_tables(state: Mapping[str, Tensor], config: MeterConfig) -> dict[str, Tensor]:
    """Resize tensors that depend on the image size or the task, with our or published keys.

    As in the published code, the token type of the second image of NLVR2 starts as that of an
    image, and a ranking head that the file lacks as the "match" row of the ITM head. Models for
    other tasks do not have them.
    """
    if config.image_encoder == "swin":
        resized = resize_bias_tables(state, config.swin.window_size)
    else:
        rows = 1 + (config.image_size // config.clip.patch_size) ** 2
        resized = resize_position_tables(state, rows)
    for name in ("backbone.token_types.weight", "token_type_embeddings.weight"):
        if name in resized:
            types = resized[name]
            missing = config.num_token_types - len(types)
            resized[name] = torch.cat((types, types[1:2].expand(max(missing, 0), -1)))[
                : config.num_token_types
            ]
    if "rank" in config.heads:
        for itm, rank in (("itm_head", "rank_head"), ("itm_score.fc", "rank_output")):
            for part in ("weight", "bias"):
                if f"{itm}.{part}" in resized and f"{rank}.{part}" not in resized:
                    resized[f"{rank}.{part}"] = resized[f"{itm}.{part}"][MATCH : MATCH + 1]
    return resized
