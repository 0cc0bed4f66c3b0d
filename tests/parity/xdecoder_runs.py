"""Keep outputs of X-Decoder's modules by recorded name, and run its decoder on given masks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fiber.models.xdecoder.decoder import Memory, Prediction
from fiber.models.xdecoder.segmenter import XDecoder
from tests.parity.xdecoder_case import XDecoderCase


@contextmanager
def recorded(model: nn.Module, prefix: str) -> Iterator[dict[str, Tensor]]:
    """Keep the outputs of modules that were recorded, by recorded name, in the first call of each.

    Maps of blocks are recorded as (B, H W, C), those between stages as (B, C, H, W), tokens of
    maps and states as (N, B, D).
    """
    found: dict[str, Tensor] = {}
    shapes: dict[str, Callable[[Tensor], Tensor]] = {
        "block": lambda out: out.flatten(1, 2),
        "map": lambda out: out.permute(0, 3, 1, 2),
        "states": lambda out: out.transpose(0, 1),
        "same": lambda out: out,
        "relu": F.relu,
    }
    hooks = []
    for name, module in model.named_modules():
        place = recorded_name(name)
        if place is not None:

            def keep(_: object, __: object, output: Tensor, place: tuple[str, str] = place) -> None:
                found.setdefault(f"{prefix}{place[0]}", shapes[place[1]](output))

            hooks.append(module.register_forward_hook(keep))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def recorded_name(module: str) -> tuple[str, str] | None:
    """Return the recorded name of a module's output, and how its axes are ordered there."""
    parts = module.split(".")
    match parts:
        case ["backbone", "image", "patch_embedding"]:
            return "backbone.patch_embed", "map"
        case ["backbone", "image", "stages", stage, "downsample"]:
            return f"backbone.layers{stage}.downsample", "map"
        case ["backbone", "image", "stages", stage, "blocks", block]:
            return f"backbone.layers{stage}.block{block}", "block"
        case ["backbone", "image", "stages", stage, "blocks", block, "modulation"]:
            return f"backbone.layers{stage}.block{block}.modulation", "same"
        case ["backbone", "text", "blocks", block]:
            return f"text.block{block}", "same"
        case ["backbone", "text", "last_norm"]:
            return "text.last_hidden_state", "same"
        case ["pixel_decoder", "input_projection"]:
            return "pixel.input_proj", "same"
        case ["pixel_decoder", "layers", layer]:
            return f"pixel.encoder{layer}", "states"
        case ["pixel_decoder", "outputs", number]:
            return f"pixel.layer_{4 - int(number)}", "relu"
        case ["pixel_decoder", "laterals", number]:
            return f"pixel.adapter_{3 - int(number)}", "same"
        case ["pixel_decoder", "mask_features"]:
            return "pixel.mask_features", "same"
        case ["decoder", "layers", layer, ("cross_norm" | "self_norm") as norm]:
            return f"decoder.layer{layer}.{norm.removesuffix('_norm')}", "states"
        case ["decoder", "layers", layer]:
            return f"decoder.layer{layer}.ffn", "states"
        case _:
            return None


@contextmanager
def on_bits(model: XDecoder, bits: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Let the layers of a pass read given attention masks; give our own masks."""
    decoder, own = model.decoder, []
    predict = decoder.predict

    def replaced(states: Tensor, memory: Memory, level: int | None) -> Prediction:
        prediction = predict(states, memory, level)
        if prediction.hidden is None:
            return prediction
        own.append(prediction.hidden)
        given = bits[len(own) - 1] if len(own) <= len(bits) else prediction.hidden
        if given.numel() != prediction.hidden.numel():
            return prediction
        return prediction._replace(hidden=given.view(prediction.hidden.shape))

    decoder.predict = replaced
    try:
        yield own
    finally:
        del decoder.predict


def recorded_bits(case: XDecoderCase, prefix: str) -> list[Tensor]:
    """Return the recorded attention masks of a pass."""
    layers = range(case.xdecoder_config().decoder.num_layers)
    names = [f"{prefix}.pred{number}.attn_mask" for number in layers]
    return [case.stored(name) for name in names if name in case.records]


@torch.no_grad()
def exact_bits(model: XDecoder, images: Tensor, tokens: Tensor | None = None) -> list[Tensor]:
    """Compute the attention masks of images in float64, with tokens those of the pass with phrases.

    Those of captions and of training were not recorded.
    """
    double = copy.deepcopy(model).double()
    memory = double.read_image(images.double())
    refer = None if tokens is None else tokens.double()
    predictions = double.decoder(memory) if refer is None else double.decoder.refer(memory, refer)
    return [each.hidden for each in predictions if each.hidden is not None]
