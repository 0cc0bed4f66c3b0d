"""Load and write standalone encoders with the keys of other libraries.

A tensor that the model does not have raises an error, unless its format lists it as ignored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from fiber.checkpoints.published import load_mapped, unstack
from fiber.messages import shown
from fiber.models.encoders.keys import EncoderFormat, EncoderLayout, KeyMap
from fiber.models.encoders.sizes import Setting, Size, size_in
from fiber.models.registry import (
    ModelConfig,
    Network,
    architecture_of,
    architectures,
    encoder_format,
)

#: Key layouts of written Swin files.
SwinLayout = Literal["microsoft", "timm"]

#: Channels of an attention head in published encoders.
_HEAD_DIM = 64


@dataclass(frozen=True, kw_only=True)
class EncoderStates:
    """State dicts of pretrained image and text encoders."""

    #: Folder or file that was read.
    path: Path
    #: State dict of each file, by path.
    states: Mapping[Path, Mapping[str, Tensor]]
    #: config.json of transformers next to the files; empty if there is none.
    settings: Mapping[str, Any] = field(default_factory=dict)


def load_encoder(
    model: Network, state: Mapping[str, Tensor], settings: Mapping[str, Any] | None = None
) -> tuple[KeyMap, dict[str, str]]:
    """Load an encoder stored in any of the model family's formats.

    Tensors that depend on the image size are resized to the model's. The input channels of the
    first convolution are flipped if the model takes BGR input.

    Args:
        model: model to load into.
        state: tensors of the encoder by published key.
        settings: content of transformers' config.json next to the file. Fields that it lacks are
            not compared, nor is anything if it is the config of another model.

    Returns:
        Two dicts: our keys mapped to the loaded keys, and dropped keys mapped to reasons.

    Raises:
        ValueError: if sizes or `settings` differ from the model's, with the fields to set; else if
            keys are missing or unknown, or shapes do not match. The message lists them.
    """
    config, architecture = model.config, architecture_of(model.config)
    settings = settings or {}
    own = [each for each in architecture.encoders if each.keys(config, EncoderLayout())]
    encoder = next((each for each in own if each.layout(state)), None)
    if (given := encoder or encoder_format(state)) is not None:
        _check_model_type(given, settings)
    if encoder is None or (layout := encoder.layout(state)) is None:
        titles = " or ".join(each.title for each in own)
        if given is not None:
            raise ValueError(
                f"the file contains a {given.title} encoder, which the model has not; expected"
                f" {titles}{_choice_hint(given, config)}"
            )
        raise ValueError(
            f"expected the keys of an image or text encoder ({titles}), got keys such as"
            f" {', '.join(sorted(state)[:4])}"
        )
    keys = dict(encoder.keys(config, layout))
    optional = encoder.optional(config)
    keys |= {ours: theirs for ours, theirs in optional.items() if set(theirs) <= state.keys()}
    _check_sizes(model, encoder, keys, state, _settings_of(encoder, settings))
    state = dict(architecture.resize(state, config))
    if config.channel_order == "bgr":
        first = keys.get(architecture.first_convolution, ())
        state |= {name: state[name].flip(1) for name in first if name in state}

    ignored = encoder.ignored(config)

    def ignored_reason(name: str) -> str | None:
        return next((why for pattern, why in ignored if re.fullmatch(pattern, name)), None)

    return keys, load_mapped(model, state, keys, ignored_reason)


class _Difference(NamedTuple):
    """What a file has and the model has not."""

    #: Both values.
    text: str
    #: Field of the encoder's config and its value in the file, if it can be set.
    field: str | None
    value: Any
    #: What else there is to know about the field.
    advice: str = ""


def _check_model_type(encoder: EncoderFormat, settings: Mapping[str, Any]) -> None:
    """Check that config.json does not name another encoder of the same input.

    RoBERTa with two token types, for example, has the tensors of BERT but counts positions
    otherwise.
    """
    named = settings.get("model_type")
    if named is None:
        return
    formats = (each for entry in architectures() for each in entry.encoders)
    other = next((each for each in formats if named in each.model_types), encoder)
    if other.title != encoder.title and other.side == encoder.side:
        raise ValueError(
            f"config.json has model_type {shown(named)}, but the tensors are those of"
            f" {encoder.title}, not of {other.title}"
        )


def _choice_hint(encoder: EncoderFormat, config: ModelConfig) -> str:
    """Name the field that gives a model this encoder, or the families that have it."""
    field = f"{encoder.side}_encoder"
    if hasattr(config, field):
        return f"; --set model.{field}={encoder.name} builds a model with it"
    titles = [entry.title for entry in architectures() if encoder in entry.encoders]
    return f"; models with it: {', '.join(titles)}"


def _settings_of(encoder: EncoderFormat, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of config.json that describe an encoder; empty if they are of another."""
    if settings.get("model_type") not in encoder.model_types:
        return {}
    # CLIP with both towers; the fields of vision_config_dict take precedence in transformers.
    nested = (settings.get(name) for name in ("vision_config", "vision_config_dict"))
    merged = dict(settings)
    for fields in nested:
        merged |= fields if isinstance(fields, Mapping) else {}
    return merged


def _check_sizes(
    model: Network,
    encoder: EncoderFormat,
    keys: KeyMap,
    state: Mapping[str, Tensor],
    settings: Mapping[str, Any],
) -> None:
    """Raise ValueError if sizes or settings of a file differ from the model's."""
    weights, section = model.state_dict(), getattr(model.config, encoder.name, None)
    differing = [
        *(_size_difference(each, keys, state, weights) for each in encoder.sizes),
        *(_setting_difference(each, settings.get(each.name), section) for each in encoder.settings),
    ]
    differing = [each for each in differing if each is not None]
    if not differing:
        return
    fields = {each.field: each.value for each in differing if each.field is not None}
    advice = [each.advice for each in differing if each.advice]
    # The vocabulary size of a run is that of its tokenizer.
    fields.pop("vocab_size", None)
    has_heads = any(each.field == "num_heads" for each in encoder.settings)
    if (
        has_heads
        and "num_attention_heads" not in settings
        and fields.get("width", 1) % _HEAD_DIM == 0
    ):
        fields["num_heads"] = fields["width"] // _HEAD_DIM
        advice.append(
            f"num_heads is not in the file; published encoders have {_HEAD_DIM} channels a head"
        )
    if fields:
        options = [
            f"--set model.{encoder.name}.{name}={_as_option(each)}" for name, each in fields.items()
        ]
        advice.insert(0, f"for a model like the file: {' '.join(options)}")
    texts = [each.text for each in differing]
    raise ValueError(f"the {encoder.title} encoder has {'; '.join([*texts, *advice])}")


def _size_difference(
    size: Size, keys: KeyMap, state: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> _Difference | None:
    value, expected = size_in(size, keys, state), size_in(size, {}, weights)
    text, advice = f"{size.title} {value}, expected {expected}", ""
    if value is None or expected is None or value == expected:
        return None
    if size.spare:
        if value == expected + size.spare:
            return None
        text += f" or {expected + size.spare}"
        advice = f"{size.field}={value - size.spare} leaves out the last block, as METER does"
    if size.field == "vocab_size":
        advice = "pass the tokenizer of the file (--tokenizer DIR), which sets the vocabulary size"
    return _Difference(text, size.field, value, advice)


def _setting_difference(setting: Setting, value: Any, section: Any) -> _Difference | None:
    expected = setting.values if setting.field is None else (getattr(section, setting.field),)
    if value is None or any(_agree(value, each) for each in expected):
        return None
    text = f"{setting.name} {shown(value)} in config.json, expected {shown(expected[0])}"
    can_be_set = setting.field is not None and type(value) in (int, float)
    return _Difference(text, setting.field if can_be_set else None, value)


def _agree(value: Any, expected: Any) -> bool:
    """Compare values of fields; converted files have 1e-5 in single precision."""
    if isinstance(value, float) and isinstance(expected, float):
        return math.isclose(value, expected, rel_tol=1e-6)
    return value == expected


def _as_option(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def encoder_states(
    model: Network, layout: SwinLayout = "microsoft"
) -> dict[str, dict[str, Tensor]]:
    """Return the state dicts of all encoders by format name (the inverse of `load_encoder`).

    The exported image encoder expects RGB input. Swin's last norm is included only if the model has
    the ITC head.
    """
    config, architecture = model.config, architecture_of(model.config)
    weights, first = model.state_dict(), architecture.first_convolution
    if config.channel_order == "bgr":
        weights[first] = weights[first].flip(1)
    keys_of = EncoderLayout(merging_in_next_stage=layout == "timm")
    keys = {each.name: each.keys(config, keys_of) for each in architecture.encoders}
    more = {each.name: each.optional(config) for each in architecture.encoders}
    return {name: unstack(weights, each | more[name]) for name, each in keys.items() if each}
