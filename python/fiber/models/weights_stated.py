"""What a published file says of its model beside the tensors: the config of its training run.

Lightning writes the settings of a run under `hyper_parameters`, of which FIBER's are under
`config`, by the names of the published code. Names of it that change nothing in the model's
tensors or answers are not read: the published code may hold anything there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fiber.config import FiberConfig
from fiber.config_io import from_dict, to_dict

#: Our own name in that config: the whole `FiberConfig` of a file that we wrote. The published
#: names have no place for most of it, such as a window other than image_size / 32.
OWN = "fiber_model"

#: Fields of both stages that tensors and the published code settle.
_SETTLED = (
    *("stage", "channel_order", "fusion.num_fused_layers", "fusion.normalize_query"),
    *("fusion.normalize_last_text", "swin.patch_size", "swin.embed_dim", "swin.depths"),
    *("swin.num_heads", "swin.window_size", "roberta.vocab_size", "roberta.width"),
    *("roberta.num_layers", "roberta.ffn_width", "roberta.max_positions", "roberta.layer_norm_eps"),
)
#: Those of one stage. Whether a fine model shifts windows on small maps is not among them: our
#: small presets do not, against the published code.
_SETTLED_OF_STAGE = {
    "coarse": ("fusion.shift_small_maps",),
    "fine": ("detector.channels", "detector.num_blocks", "detector.num_unused_classes"),
}


def stated_config(config: FiberConfig) -> dict[str, Any]:
    """Give what a file in the published form shall say of a model: plain values for JSON."""
    return published_names(config) | {OWN: to_dict(config)}


def published_names(config: FiberConfig) -> dict[str, int]:
    """Give the settings of the published coarse code that a model of ours has; none if fine."""
    if config.stage == "fine":
        return {}
    answers = {"vqav2_label_size": config.image_text.num_answers} if "vqa" in config.heads else {}
    return {
        "image_size": config.image_size,
        "max_text_len": config.max_tokens,
        "vocab_size": config.roberta.vocab_size,
        "hidden_size": config.roberta.width,
        "num_heads": config.roberta.num_heads,
        "num_fuse_block": config.fusion.num_fused_layers,
        **answers,
    }


def stated_number(stated: Mapping[str, Any], name: str) -> int | None:
    """Look a whole number up in a file's config; None if the config does not say it.

    Raises:
        ValueError: if it is none above 0 (num_fuse_block: or 0).
    """
    value = stated.get(name)
    least = 0 if name == "num_fuse_block" else 1
    if value is not None and (type(value) is not int or value < least):
        raise ValueError(
            f"the file's config says {name} {value!r}; expected a whole number, {least} or more"
        )
    return value


def own_config(stated: Mapping[str, Any]) -> FiberConfig | None:
    """Read the config of a model of ours; None if the file does not hold one.

    Raises:
        ValueError: if it is no config, with the field.
    """
    if OWN not in stated:
        return None
    values = stated[OWN]
    if not isinstance(values, dict):
        raise ValueError(f"the file's {OWN} is a {type(values).__name__}, not fields by name")
    try:
        return from_dict(FiberConfig, values)
    except ValueError as error:
        raise ValueError(f"the file's {OWN}: {error}") from error


def check_names(stated: Mapping[str, Any], config: FiberConfig, source: str) -> None:
    """Check that the published names in a file's config say what is known of its model.

    Args:
        stated: the file's config.
        config: what is known.
        source: of that knowledge, for the message.

    Raises:
        ValueError: listing every name that says something else, with both values.
    """
    wrong = [
        f"{name} {said}, but {source} {value}"
        for name, value in published_names(config).items()
        if (said := stated_number(stated, name)) not in (None, value)
    ]
    if wrong:
        raise ValueError(f"the file's config says {'; '.join(wrong)}")


def check_settled(own: FiberConfig, inferred: FiberConfig) -> None:
    """Check a config of ours against what tensors and the published code settle.

    Raises:
        ValueError: listing every field that differs, with both values.
    """
    fields = [*_SETTLED, *_SETTLED_OF_STAGE[inferred.stage]]
    differing = [
        (name, _field(own, name), _field(inferred, name))
        for name in fields
        if _field(own, name) != _field(inferred, name)
    ]
    if inferred.stage == "coarse":
        differing += _differing_heads(own, inferred)
    if differing:
        raise ValueError(
            "the model's own config does not agree with its tensors and the published code: "
            + "; ".join(f"{name} is {ours}, there {theirs}" for name, ours, theirs in differing)
        )


def _differing_heads(own: FiberConfig, inferred: FiberConfig) -> list[tuple[str, Any, Any]]:
    heads, found = set(own.image_text.heads), inferred.image_text.heads
    # A captioner has the tensors of the head for masked words.
    if "caption" in heads:
        heads.add("mlm")
    if heads != set(found):
        return [("image_text.heads", own.image_text.heads, found)]
    answers = own.image_text.num_answers, inferred.image_text.num_answers
    if "vqa" in heads and answers[0] != answers[1]:
        return [("image_text.num_answers", *answers)]
    return []


def _field(config: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        config = getattr(config, name)
    return config
