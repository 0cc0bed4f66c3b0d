"""Published state-dict keys of encoders, inside a model or in standalone files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

from fiber.config import ClipConfig, RobertaConfig, SwinConfig
from fiber.models.encoders.bert_config import TOKEN_TYPES, BertConfig
from fiber.models.encoders.sizes import (
    BERT_SETTINGS,
    CLIP_SETTINGS,
    CLIP_SIZES,
    ROBERTA_SETTINGS,
    SWIN_SETTINGS,
    SWIN_SIZES,
    TEXT_SIZES,
    Setting,
    Size,
)

#: Maps each of our keys to the published keys whose tensors are concatenated.
KeyMap = dict[str, tuple[str, ...]]

#: Ignored published keys: (pattern, reason) pairs.
IgnoredKeys = tuple[tuple[str, str], ...]

IGNORED_SWIN: IgnoredKeys = (
    (r".*\.relative_position_index", "buffer derived from the window size"),
    (r".*\.attn_mask", "buffer derived from the map size"),
    (r"head\.(fc\.)?(weight|bias)", "ImageNet classifier"),
    (r"norm\.(weight|bias)", "last norm, used only by the ITC head, which the model lacks"),
)
_IGNORED_CLIP: IgnoredKeys = (
    (r".*\.position_ids", "position buffer"),
    (r"visual\.proj|(visual|text)_projection\..*", "projection to CLIP's joint space"),
    (r"text_model\..*", "CLIP's text encoder"),
    (r"transformer\..*|token_embedding\..*|ln_final\..*", "CLIP's text encoder"),
    (r"positional_embedding|text_projection|logit_scale", "CLIP's text encoder"),
    (r"input_resolution|context_length|vocab_size", "size of CLIP"),
)
IGNORED_ROBERTA: IgnoredKeys = (
    (r"(roberta\.)?embeddings\.(position_ids|token_type_ids)", "position buffer"),
    (r"(roberta\.)?pooler\.dense\.(weight|bias)", "unused pooler"),
    (r"lm_head\..*", "RoBERTa's language head; FIBER initializes its own"),
)
IGNORED_BERT: IgnoredKeys = (
    (r"(bert\.)?embeddings\.(position_ids|token_type_ids)", "position buffer"),
    (r"(bert\.)?pooler\.dense\.(weight|bias)", "unused pooler"),
    (r"cls\.predictions\..*", "BERT's language head; METER initializes its own"),
    (r"cls\.seq_relationship\.(weight|bias)", "BERT's classifier of the next sentence"),
)


class EncoderLayout(NamedTuple):
    """State-dict key layout of a standalone encoder."""

    #: Common prefix of all keys, including the dot.
    prefix: str = ""
    #: For Swin: True if patch merging belongs to the stage after it, as in timm >= 0.9; False if it
    #: belongs to the stage before it, as in Microsoft's Swin and FIBER.
    merging_in_next_stage: bool = False
    #: For CLIP: True for the names of transformers, False for those of OpenAI.
    is_transformers: bool = False
    #: For BERT: True if weight and bias of LayerNorms are named gamma and beta, as in the files of
    #: bert-base-uncased.
    has_gamma: bool = False


@dataclass(frozen=True, kw_only=True)
class EncoderFormat:
    """Standalone encoder checkpoint format that a model family can load and write."""

    #: Stem of the written file, name of the encoder's config, and value of the field
    #: `{side}_encoder` of families that choose between encoders.
    name: str
    #: Display name.
    title: str
    #: Input of the encoder.
    side: Literal["image", "text"]
    #: Detects the layout from published keys; returns None for any other model.
    layout: Callable[[Collection[str]], EncoderLayout | None]
    #: Returns the mapping from keys of the whole model to published keys, given its config.
    keys: Callable[[Any, EncoderLayout], KeyMap]
    #: Returns the published keys to ignore, given the config of the whole model.
    ignored: Callable[[Any], IgnoredKeys]
    #: Returns the mapping of tensors that a file may lack, given the config of the whole model.
    optional: Callable[[Any], KeyMap] = lambda config: {}
    #: Sizes to compare with the model's before tensors are.
    sizes: tuple[Size, ...] = ()
    #: Values of `model_type` in transformers' config.json, and fields of that file to compare.
    model_types: tuple[str, ...] = ()
    settings: tuple[Setting, ...] = ()


def clip_layout(names: Collection[str]) -> EncoderLayout | None:
    """Return the key layout of OpenAI's or transformers' CLIP, or None if the keys are others."""
    if "visual.class_embedding" in names:
        return EncoderLayout("visual.")
    # CLIPModel writes the prefix, CLIPVisionModel since transformers 5 does not.
    for prefix in ("vision_model.", ""):
        if f"{prefix}embeddings.class_embedding" in names:
            return EncoderLayout(prefix, is_transformers=True)
    return None


def ignored_clip(config: ClipConfig) -> IgnoredKeys:
    """Return the ignored keys of a CLIP file: its last block, and CLIP's rest.

    METER leaves out one block. Blocks after it are unknown.
    """
    last = config.num_blocks
    return (
        (rf"visual\.transformer\.resblocks\.{last}\..*", "last block, which METER leaves out"),
        (rf"(vision_model\.)?encoder\.layers\.{last}\..*", "last block, which METER leaves out"),
        *_IGNORED_CLIP,
    )


def swin_layout(names: Collection[str]) -> EncoderLayout | None:
    """Return the key layout of a Swin checkpoint, or None if the keys are not Swin's."""
    if "patch_embed.proj.weight" not in names:
        return None
    if not any(name.startswith("layers.0.") for name in names):
        return None
    stages = {name.split(".")[1] for name in names if ".downsample." in name}
    return EncoderLayout(merging_in_next_stage="0" not in stages)


def roberta_layout(names: Collection[str]) -> EncoderLayout | None:
    """Return the key layout of a RoBERTa checkpoint, or None if the keys are not RoBERTa's.

    `names` may be a state dict, whose shapes tell RoBERTa without a prefix from BERT.
    """
    for prefix in ("", "roberta."):
        if f"{prefix}embeddings.word_embeddings.weight" in names:
            return None if not prefix and _has_berts_types(names) else EncoderLayout(prefix)
    return None


def bert_layout(names: Collection[str]) -> EncoderLayout | None:
    """Return the key layout of a BERT checkpoint, or None if the keys are not BERT's.

    Without a prefix, keys are RoBERTa's too; then `names` must be a state dict, whose shapes tell.
    """
    for prefix in ("bert.", ""):
        if f"{prefix}embeddings.word_embeddings.weight" in names:
            if not prefix and not _has_berts_types(names):
                return None
            has_gamma = f"{prefix}embeddings.LayerNorm.gamma" in names
            return EncoderLayout(prefix, has_gamma=has_gamma)
    return None


def _has_berts_types(names: Collection[str]) -> bool:
    types = "embeddings.token_type_embeddings.weight"
    return isinstance(names, Mapping) and types in names and len(names[types]) == TOKEN_TYPES


def swin_keys(config: SwinConfig, layout: EncoderLayout) -> KeyMap:
    """Map `backbone.image.*` keys to published Swin keys."""
    ours, theirs = "backbone.image", layout.prefix
    keys = {
        **weight_and_bias(f"{ours}.patch_embedding.projection", f"{theirs}patch_embed.proj"),
        **weight_and_bias(f"{ours}.patch_embedding.norm", f"{theirs}patch_embed.norm"),
    }
    for stage, depth in enumerate(config.depths):
        for number in range(depth):
            block = f"{ours}.stages.{stage}.blocks.{number}"
            published = f"{theirs}layers.{stage}.blocks.{number}"
            keys |= {
                f"{block}.attention.bias_table": (
                    f"{published}.attn.relative_position_bias_table",
                ),
                **weight_and_bias(f"{block}.attention_norm", f"{published}.norm1"),
                **weight_and_bias(f"{block}.attention.qkv", f"{published}.attn.qkv"),
                **weight_and_bias(f"{block}.attention.output", f"{published}.attn.proj"),
                **weight_and_bias(f"{block}.mlp_norm", f"{published}.norm2"),
                **weight_and_bias(f"{block}.mlp.0", f"{published}.mlp.fc1"),
                **weight_and_bias(f"{block}.mlp.2", f"{published}.mlp.fc2"),
            }
        if stage < len(config.depths) - 1:
            merging = f"{ours}.stages.{stage}.merging"
            published = f"{theirs}layers.{stage + layout.merging_in_next_stage}.downsample"
            keys |= weight_and_bias(f"{merging}.norm", f"{published}.norm")
            keys[f"{merging}.reduction.weight"] = (f"{published}.reduction.weight",)
    return keys


def clip_keys(config: ClipConfig, layout: EncoderLayout) -> KeyMap:
    """Map `backbone.image.*` keys to the keys of CLIP's image encoder inside `visual`."""
    if layout.is_transformers:
        return _transformers_clip_keys(config, layout.prefix)
    ours, theirs = "backbone.image", layout.prefix
    keys: KeyMap = {
        f"{ours}.patch_embedding.projection.weight": (f"{theirs}conv1.weight",),
        f"{ours}.class_embedding": (f"{theirs}class_embedding",),
        f"{ours}.position_embedding": (f"{theirs}positional_embedding",),
        **weight_and_bias(f"{ours}.first_norm", f"{theirs}ln_pre"),
        **weight_and_bias(f"{ours}.last_norm", f"{theirs}ln_post"),
    }
    for number in range(config.num_blocks):
        block, published = f"{ours}.blocks.{number}", f"{theirs}transformer.resblocks.{number}"
        keys |= {
            f"{block}.qkv.weight": (f"{published}.attn.in_proj_weight",),
            f"{block}.qkv.bias": (f"{published}.attn.in_proj_bias",),
            **weight_and_bias(f"{block}.output", f"{published}.attn.out_proj"),
            **weight_and_bias(f"{block}.attention_norm", f"{published}.ln_1"),
            **weight_and_bias(f"{block}.mlp_norm", f"{published}.ln_2"),
            **weight_and_bias(f"{block}.mlp.0", f"{published}.mlp.c_fc"),
            **weight_and_bias(f"{block}.mlp.2", f"{published}.mlp.c_proj"),
        }
    return keys


def _transformers_clip_keys(config: ClipConfig, prefix: str) -> KeyMap:
    """Map `backbone.image.*` keys to those of `transformers.CLIPVisionModel`."""
    ours, embeddings = "backbone.image", f"{prefix}embeddings"
    keys: KeyMap = {
        f"{ours}.patch_embedding.projection.weight": (f"{embeddings}.patch_embedding.weight",),
        f"{ours}.class_embedding": (f"{embeddings}.class_embedding",),
        f"{ours}.position_embedding": (f"{embeddings}.position_embedding.weight",),
        # The name is misspelled in transformers.
        **weight_and_bias(f"{ours}.first_norm", f"{prefix}pre_layrnorm"),
        **weight_and_bias(f"{ours}.last_norm", f"{prefix}post_layernorm"),
    }
    for number in range(config.num_blocks):
        block, layer = f"{ours}.blocks.{number}", f"{prefix}encoder.layers.{number}"
        qkv = [f"{layer}.self_attn.{name}_proj" for name in ("q", "k", "v")]
        keys |= {
            **weight_and_bias(f"{block}.qkv", *qkv),
            **weight_and_bias(f"{block}.output", f"{layer}.self_attn.out_proj"),
            **weight_and_bias(f"{block}.attention_norm", f"{layer}.layer_norm1"),
            **weight_and_bias(f"{block}.mlp_norm", f"{layer}.layer_norm2"),
            **weight_and_bias(f"{block}.mlp.0", f"{layer}.mlp.fc1"),
            **weight_and_bias(f"{block}.mlp.2", f"{layer}.mlp.fc2"),
        }
    return keys


def roberta_keys(config: RobertaConfig, layout: EncoderLayout) -> KeyMap:
    """Map `backbone.text.*` keys to the keys of `transformers.RobertaModel`."""
    ours, theirs = "backbone.text", layout.prefix
    keys: KeyMap = {
        f"{ours}.embeddings.{name}.weight": (f"{theirs}embeddings.{name}_embeddings.weight",)
        for name in ("word", "position", "token_type")
    }
    keys |= weight_and_bias(f"{ours}.embeddings.norm", f"{theirs}embeddings.LayerNorm")
    for number in range(config.num_layers):
        layer, published = f"{ours}.layers.{number}", f"{theirs}encoder.layer.{number}"
        qkv = [f"{published}.attention.self.{name}" for name in ("query", "key", "value")]
        keys |= {
            **weight_and_bias(f"{layer}.attention.qkv", *qkv),
            **weight_and_bias(f"{layer}.attention.output", f"{published}.attention.output.dense"),
            **weight_and_bias(f"{layer}.attention_norm", f"{published}.attention.output.LayerNorm"),
            **weight_and_bias(f"{layer}.mlp.0", f"{published}.intermediate.dense"),
            **weight_and_bias(f"{layer}.mlp.2", f"{published}.output.dense"),
            **weight_and_bias(f"{layer}.output_norm", f"{published}.output.LayerNorm"),
        }
    return keys


def bert_keys(config: BertConfig, layout: EncoderLayout) -> KeyMap:
    """Map `backbone.text.*` keys to the keys of `transformers.BertModel`."""
    keys = roberta_keys(config, layout)
    if not layout.has_gamma:
        return keys
    norm = "LayerNorm."
    old = {f"{norm}weight": f"{norm}gamma", f"{norm}bias": f"{norm}beta"}
    return {
        ours: tuple(
            next((name.replace(new, was) for new, was in old.items() if name.endswith(new)), name)
            for name in theirs
        )
        for ours, theirs in keys.items()
    }


def weight_and_bias(ours: str, *theirs: str) -> KeyMap:
    """Map a layer's weight and bias to the concatenated weights and biases of published layers."""
    return {
        f"{ours}.{part}": tuple(f"{name}.{part}" for name in theirs) for part in ("weight", "bias")
    }


#: Create the formats of each encoder from `keys` and `ignored`, which depend on the family.
clip_format = partial(
    EncoderFormat,
    name="clip",
    title="CLIP",
    side="image",
    layout=clip_layout,
    sizes=CLIP_SIZES,
    model_types=("clip", "clip_vision_model"),
    settings=CLIP_SETTINGS,
)
swin_format = partial(
    EncoderFormat,
    name="swin",
    title="Swin",
    side="image",
    layout=swin_layout,
    ignored=lambda config: IGNORED_SWIN,
    sizes=SWIN_SIZES,
    model_types=("swin",),
    settings=SWIN_SETTINGS,
)
roberta_format = partial(
    EncoderFormat,
    name="roberta",
    title="RoBERTa",
    side="text",
    layout=roberta_layout,
    ignored=lambda config: IGNORED_ROBERTA,
    sizes=TEXT_SIZES,
    model_types=("roberta", "xlm-roberta", "camembert"),
    settings=ROBERTA_SETTINGS,
)
bert_format = partial(
    EncoderFormat,
    name="bert",
    title="BERT",
    side="text",
    layout=bert_layout,
    ignored=lambda config: IGNORED_BERT,
    sizes=TEXT_SIZES,
    model_types=("bert",),
    settings=BERT_SETTINGS,
)
