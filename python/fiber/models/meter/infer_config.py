"""Infer the configs of published METER checkpoints from their tensors and stored configs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fiber.config import ClipConfig, RobertaConfig, SwinConfig
from fiber.config_io import to_dict
from fiber.messages import shown
from fiber.models.encoders.bert_config import TOKEN_TYPES, BertConfig
from fiber.models.infer import (
    OWN,
    check_fields,
    check_stored,
    count_numbers,
    infer_clip,
    infer_swin,
    infer_text,
    own_config,
    shape_of,
    stored_integer,
)
from fiber.models.meter.config import (
    CrossConfig,
    MeterConfig,
    MeterHeadsConfig,
    meter_preset,
)
from fiber.models.meter.keys import (
    CLIP_IMAGE,
    FIRST_CONVOLUTION,
    IMAGE,
    MERGED_LAYERS,
    TEXT,
    TEXT_LAYERS,
)

#: Prefix of the keys of each head, in the order of `METER_HEADS`. One match is enough; keys missing
#: from a head are then reported on load.
_HEAD_PREFIXES = {
    "itm": "itm_score.",
    "mlm": "mlm_score.",
    "vqa": "vqa_classifier.",
    "nlvr2": "nlvr2_classifier.",
    "snli": "snli_classifier.",
    "rank": "rank_output.",
}
#: Head that each published loss trains, by its name in `loss_names`.
_LOSS_HEADS = {**{name: name for name in ("itm", "mlm", "vqa", "nlvr2", "snli")}, "irtr": "rank"}
#: Models with the encoders that a stored config names in its fields `vit` and `tokenizer`.
_IMAGE_ENCODERS = {
    "ViT-B/16": meter_preset("clip16"),
    "ViT-B/32": meter_preset("clip32"),
    "swin_base_patch4_window7_224_in22k": meter_preset("swin_base"),
    "swin_base_patch4_window12_384_in22k": meter_preset("swin_base"),
    "swin_large_patch4_window12_384_in22k": meter_preset("swin_large"),
}
_TEXT_ENCODERS = {
    "roberta-base": meter_preset("clip16"),
    "roberta-large": meter_preset("clip16", text_encoder="roberta_large"),
    "bert-base-uncased": meter_preset("clip16", text_encoder="bert_base"),
}
#: Maximum number of text tokens in retrieval and in all other published runs.
_RETRIEVAL_TOKENS, _TOKENS = 40, 50
#: Channels of a head in the published fusion, which cannot be inferred from shapes.
_HEAD_DIM = 64

#: Fields that are determined by tensors, and those of each encoder.
_DETERMINED = (
    *("family", "image_size", "image_encoder", "text_encoder", "image_text.heads"),
    *("cross.kind", "cross.width", "cross.num_layers", "cross.ffn_width"),
)
_TEXT_FIELDS = ("vocab_size", "width", "num_layers", "ffn_width", "max_positions")
_ENCODER_FIELDS = {
    "clip": ("patch_size", "width", "num_blocks"),
    "swin": ("patch_size", "embed_dim", "depths", "num_heads", "window_size"),
    "roberta": _TEXT_FIELDS,
    "bert": _TEXT_FIELDS,
}


def meter_config(state: Mapping[str, Tensor], stored: Mapping[str, Any]) -> MeterConfig:
    """Infer the config of a published METER checkpoint.

    Values that shapes do not determine are read from the config stored in the file, under published
    field names and `OWN`. Missing values get the published ones: heads of 64 channels in both
    encoders and the fusion, and at most 40 text tokens for retrieval or 50 for other tasks.

    Raises:
        ValueError: if a size cannot be inferred, the file has no head, or the stored config
            contradicts the tensors or itself. Tensors that are missing as a whole, such as a head
            or a block, are noticed by the losses and encoders that the published config names.
    """
    own = own_config(stored, MeterConfig)
    heads = tuple(
        head
        for head, prefix in _HEAD_PREFIXES.items()
        if any(name.startswith(prefix) for name in state)
    )
    is_clip = any(name.startswith(CLIP_IMAGE) for name in state)
    clip, swin = ClipConfig(), SwinConfig()
    if is_clip:
        clip = infer_clip(state, CLIP_IMAGE)
        rows = shape_of(state, f"{CLIP_IMAGE}positional_embedding", 2)[0]
        side = math.isqrt(max(rows - 1, 0))
        if side**2 + 1 != rows:
            raise ValueError(
                f"{CLIP_IMAGE}positional_embedding: expected one row more than a square number,"
                f" got {rows}"
            )
        image_size = side * clip.patch_size
    else:
        swin = infer_swin(state, IMAGE)
        # Published window sizes are image_size / 32: one window in the last stage.
        image_size = swin.window_size * swin.patch_size * 8
    text = _text(state, own)
    text_encoder = "bert" if isinstance(text, BertConfig) else "roberta"
    encoders: dict[str, Any] = {"clip": clip, "swin": swin, text_encoder: text}
    answers = (
        {"num_answers": shape_of(state, "vqa_classifier.3.weight", 2)[0]} if "vqa" in heads else {}
    )
    published = _RETRIEVAL_TOKENS if "rank" in heads else _TOKENS
    max_tokens = stored_integer(stored, "max_text_len") or published
    config = MeterConfig(
        image_size=image_size,
        max_tokens=min(max_tokens, text.max_tokens),
        image_encoder="clip" if is_clip else "swin",
        text_encoder=text_encoder,
        **encoders,
        cross=_cross(state, stored, own),
        image_text=MeterHeadsConfig(heads=heads, **answers),
    )
    if own is None:
        _check_image_size(state, stored, config)
        check_stored(stored, _published_names(config), "the tensors have")
        _check_heads(stored, config)
        _check_encoders(stored, config)
        return config
    used = [
        f"{encoder}.{name}"
        for encoder in (config.image_encoder, config.text_encoder)
        for name in _ENCODER_FIELDS[encoder]
    ]
    check_fields(own, config, (*_DETERMINED, *used))
    check_stored(stored, _published_names(own), f"{OWN} has")
    return own


def _text(state: Mapping[str, Tensor], own: MeterConfig | None) -> RobertaConfig:
    """Infer the config of the text encoder, RoBERTa or BERT."""
    num_heads = own.text.num_heads if own else None
    if shape_of(state, f"{TEXT}embeddings.token_type_embeddings.weight", 2)[0] == TOKEN_TYPES:
        return infer_text(state, TEXT, num_heads, BertConfig)
    return infer_text(state, TEXT, num_heads)


def _cross(
    state: Mapping[str, Tensor], stored: Mapping[str, Any], own: MeterConfig | None
) -> CrossConfig:
    """Infer the config of the fusion."""
    width = shape_of(state, "cross_modal_text_transform.weight", 2)[0]
    is_merged = any(name.startswith(MERGED_LAYERS) for name in state)
    layers = MERGED_LAYERS if is_merged else TEXT_LAYERS
    num_heads = own.cross.num_heads if own else stored_integer(stored, "num_heads")
    if num_heads is None and width % _HEAD_DIM:
        raise ValueError(
            f"cannot infer num_heads: expected cross-modal channels divisible by {_HEAD_DIM}, got"
            f" {width}"
        )
    return CrossConfig(
        kind="merged_attention" if is_merged else "co_attention",
        width=width,
        num_layers=count_numbers(state, re.escape(layers) + r"(\d+)\."),
        num_heads=num_heads or width // _HEAD_DIM,
        ffn_width=shape_of(state, f"{layers}0.intermediate.dense.weight", 2)[0],
    )


def _check_image_size(
    state: Mapping[str, Tensor], stored: Mapping[str, Any], config: MeterConfig
) -> None:
    """Check the stored image size of CLIP against the patches of its table.

    The published code resizes the table of every file that it loads and writes the new one, so the
    two agree in each file.
    """
    size = stored_integer(stored, "image_size")
    if config.image_encoder != "clip" or size in (None, config.image_size):
        return
    patch, side = config.clip.patch_size, config.image_size // config.clip.patch_size
    name = f"{CLIP_IMAGE}positional_embedding"
    raise ValueError(
        f"the stored config has image_size {size}, but {name} has {len(state[name])} rows, for"
        f" {side} x {side} patches of {patch} pixels: expected image_size {config.image_size}"
    )


def _check_heads(stored: Mapping[str, Any], config: MeterConfig) -> None:
    """Check that a published file has a head, and those of the losses that it was trained with."""
    if not config.heads:
        prefixes = ", ".join(_HEAD_PREFIXES.values())
        raise ValueError(f"the file has no head: expected tensors of one of {prefixes}")
    if "rank" in config.heads and "itm" not in config.heads:
        raise ValueError(
            "the file has rank_output.* without itm_score.*: expected both, as the published code"
            " makes the one from the other"
        )
    losses = stored.get("loss_names", {})
    if not isinstance(losses, Mapping) or not all(
        isinstance(weight, (int, float)) for weight in losses.values()
    ):
        raise ValueError(f"stored config: loss_names must have a number each, got {shown(losses)}")
    missing = [
        f"{loss} (head {shown(head)}, {_HEAD_PREFIXES[head]}*)"
        for loss, head in _LOSS_HEADS.items()
        if losses.get(loss, 0) > 0 and head not in config.heads
    ]
    if missing:
        raise ValueError(
            f"the stored config has the losses {', '.join(missing)}, whose tensors are missing; the"
            f" file has the heads {', '.join(config.heads)}"
        )


def _check_encoders(stored: Mapping[str, Any], config: MeterConfig) -> None:
    """Check the sizes of the encoders that the stored config names, if they are known."""
    named = (("vit", "image", _IMAGE_ENCODERS), ("tokenizer", "text", _TEXT_ENCODERS))
    for field, side, presets in named:
        name = stored.get(field)
        if not isinstance(name, str) or name not in presets:
            continue
        expected, found = (
            {size: value for size, value in main_sizes(each).items() if size.startswith(side)}
            for each in (presets[name], config)
        )
        if found != expected:
            sizes = [", ".join(f"{k} {v}" for k, v in each.items()) for each in (expected, found)]
            raise ValueError(
                f"the stored config has {field} {shown(name)} ({sizes[0]}), but the tensors have"
                f" {sizes[1]}"
            )


def stored_sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return the config fields that shapes of our tensors determine, by dotted name.

    Fields whose tensors are missing are left out.
    """
    sizes: dict[str, Any] = {}

    def add(field: str, name: str, dim: int) -> None:
        if len(shapes.get(name, ())) > dim:
            sizes[field] = shapes[name][dim]

    def count(pattern: str) -> int:
        return len({match[1] for name in shapes if (match := re.match(pattern, name))})

    text = "backbone.text"
    if "backbone.image.position_embedding" in shapes:
        add("clip.patch_size", FIRST_CONVOLUTION, 2)
        add("clip.width", FIRST_CONVOLUTION, 0)
        sizes["clip.num_blocks"] = count(r"backbone\.image\.blocks\.(\d+)\.")
    else:
        add("swin.embed_dim", FIRST_CONVOLUTION, 0)
        sizes["swin.depths"] = tuple(
            count(rf"backbone\.image\.stages\.{stage}\.blocks\.(\d+)\.") for stage in range(4)
        )
    types = shapes.get(f"{text}.embeddings.token_type.weight", ())
    encoder = "bert" if types[:1] == (TOKEN_TYPES,) else "roberta"
    sizes["text_encoder"] = encoder
    add(f"{encoder}.vocab_size", f"{text}.embeddings.word.weight", 0)
    add(f"{encoder}.width", f"{text}.embeddings.word.weight", 1)
    add(f"{encoder}.max_positions", f"{text}.embeddings.position.weight", 0)
    add(f"{encoder}.ffn_width", f"{text}.layers.0.mlp.0.weight", 0)
    sizes[f"{encoder}.num_layers"] = count(r"backbone\.text\.layers\.(\d+)\.")
    add("cross.width", "backbone.text_transform.weight", 0)
    sizes["cross.num_layers"] = count(r"backbone\.(?:text_)?layers\.(\d+)\.")
    add("image_text.num_answers", "vqa_head.output.weight", 0)
    return sizes


def stored_config(config: MeterConfig) -> dict[str, Any]:
    """Return the config to store in a published file, as a JSON-serializable dict."""
    return _published_names(config) | {OWN: to_dict(config)}


def _published_names(config: MeterConfig) -> dict[str, int]:
    """Return the published fields of a config. `hidden_size` and `num_heads` are the fusion's."""
    answers = {"vqav2_label_size": config.num_answers} if "vqa" in config.heads else {}
    patches = {"patch_size": config.clip.patch_size} if config.image_encoder == "clip" else {}
    return {
        "image_size": config.image_size,
        "max_text_len": config.max_tokens,
        "vocab_size": config.vocab_size,
        "hidden_size": config.cross.width,
        "num_heads": config.cross.num_heads,
        "num_top_layer": config.cross.num_layers,
        **patches,
        **answers,
    }


def main_sizes(config: MeterConfig) -> dict[str, Any]:
    """Return the hyperparameters that determine most tensor shapes, keyed by display name."""
    is_clip = config.image_encoder == "clip"
    image: dict[str, Any] = (
        {"image channels": config.clip.width, "image blocks": config.clip.num_blocks}
        if is_clip
        else {"image channels": config.swin.embed_dim, "image depths": config.swin.depths}
    )
    return {
        "text encoder": config.text_encoder,
        "text width": config.text.width,
        "text layers": config.text.num_layers,
        **image,
        "cross-modal width": config.cross.width,
        "cross-modal layers": config.cross.num_layers,
    }


def describe(config: MeterConfig) -> str:
    """Describe a model in one line."""
    text, cross, swin, clip = config.text, config.cross, config.swin, config.clip
    if config.image_encoder == "clip":
        image = (
            f"CLIP-ViT with {clip.num_blocks} blocks, {clip.width} channels, patch size"
            f" {clip.patch_size}"
        )
    else:
        depths = "-".join(map(str, swin.depths))
        image = (
            f"Swin with {depths} blocks, {swin.embed_dim} channels, window size {swin.window_size}"
        )
    kind = cross.kind.replace("_", "-")
    if cross.kind == "merged_attention":
        kind += " (not in the published code)"
    encoder = "RoBERTa" if config.text_encoder == "roberta" else "BERT"
    return (
        f"METER with {', '.join(config.heads)}; {image}, image size {config.image_size};"
        f" {encoder} with {text.num_layers} layers, {text.width} channels, {text.vocab_size}"
        f" tokens; {cross.num_layers} levels of {kind} with {cross.width} channels"
    )
