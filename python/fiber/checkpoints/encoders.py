"""Load and write standalone encoders with the keys of other libraries.

A tensor that the model does not have raises an error, unless its format lists it as ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from fiber.checkpoints.published import load_mapped, unstack
from fiber.models.encoders.keys import EncoderLayout, KeyMap
from fiber.models.registry import Network, architecture_of, encoder_format

#: Key layouts of written Swin files.
SwinLayout = Literal["microsoft", "timm"]


def load_encoder(model: Network, state: Mapping[str, Tensor]) -> tuple[KeyMap, dict[str, str]]:
    """Load an encoder stored in any of the model family's formats.

    Tensors that depend on the image size are resized to the model's. The input channels of the
    first convolution are flipped if the model takes BGR input.

    Returns:
        Two dicts: our keys mapped to the loaded keys, and dropped keys mapped to reasons.

    Raises:
        ValueError: if keys are missing or unknown, or shapes do not match; the message lists them.
    """
    config, architecture = model.config, architecture_of(model.config)
    own = [each for each in architecture.encoders if each.keys(config, EncoderLayout())]
    titles = " or ".join(each.title for each in own)
    encoder = next((each for each in own if each.layout(state)), None)
    if encoder is None or (layout := encoder.layout(state)) is None:
        if (other := encoder_format(state)) is not None:
            raise ValueError(
                f"the file contains a {other.title} encoder, which the model has not; expected"
                f" {titles}"
            )
        raise ValueError(
            f"expected the keys of an image or text encoder ({titles}), got keys such as"
            f" {', '.join(sorted(state)[:4])}"
        )
    keys = encoder.keys(config, layout)
    state = dict(architecture.resize(state, config))
    if config.channel_order == "bgr":
        first = keys.get(architecture.first_convolution, ())
        state |= {name: state[name].flip(1) for name in first if name in state}

    ignored = encoder.ignored(config)

    def ignored_reason(name: str) -> str | None:
        return next((why for pattern, why in ignored if re.fullmatch(pattern, name)), None)

    return keys, load_mapped(model, state, keys, ignored_reason)


def encoder_states(
    model: Network, layout: SwinLayout = "microsoft"
) -> dict[str, dict[str, Tensor]]:
    """Return the state dicts of all encoders by format name (the inverse of `load_encoder`).

    The exported image encoder expects RGB input. Swin's last norm is included only if the model has
    the ITC head.
    """
    config, architecture = model.config, architecture_of(model.config)
    own, first = model.state_dict(), architecture.first_convolution
    if config.channel_order == "bgr":
        own[first] = own[first].flip(1)
    keys_of = EncoderLayout(merging_in_next_stage=layout == "timm")
    keys = {each.name: each.keys(config, keys_of) for each in architecture.encoders}
    return {name: unstack(own, each) for name, each in keys.items() if each}
