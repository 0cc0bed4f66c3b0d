"""Small networks of every family and kind, with every head.

The detector with two blocks also has masks of boxes.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

import fiber
from fiber.checkpoints.model_dir import save_model
from fiber.models.registry import build_model
from tests.models import small_networks
from tests.models.xdecoder.small_model import CLASSES, small_tokenizer

#: Networks by name.
NAMES = (
    "coarse",
    "fine",
    "fine two blocks",
    "METER",
    "METER BERT",
    "METER Swin",
    "METER merged",
    "X-Decoder",
)
#: Padded sizes of images. In the network with two blocks, whose window is 12, all maps of the first
#: size are below a window.
SIZES = ((32, 32), (96, 160), (160, 64))


def network(name: str) -> Any:
    """Build a network."""
    if name == "coarse":
        return _with_nlvr2()
    if name == "fine two blocks":
        return _two_blocks()
    if name == "METER":
        return _with_words()
    return small_networks.network(name).eval()


def save(name: str, folder: Path) -> None:
    """Write a model folder of a network; four have the tokenizer of the packaged model."""
    if name in ("coarse", "fine"):
        packaged = fiber.load(f"scenes/{name}", device="cpu")
        save_model(network(name), folder, packaged.tokenizer, packaged.answers, packaged.classes)
    elif name == "METER":
        built, tokenizer = network(name), fiber.load("scenes/coarse", device="cpu").tokenizer
        answers = [f"answer {number}" for number in range(built.config.num_answers)]
        save_model(built, folder, tokenizer, answers)
    elif name == "fine two blocks":
        tokenizer = fiber.load("scenes/fine", device="cpu").tokenizer
        save_model(network(name), folder, tokenizer)
    elif name == "X-Decoder":
        save_model(network(name), folder, small_tokenizer(), classes=CLASSES)
    else:
        save_model(network(name), folder)


def _with_nlvr2() -> Any:
    """Build the packaged coarse model, with the head that it lacks."""
    packaged = small_networks.network("coarse")
    config = packaged.config
    heads = dataclasses.replace(config.image_text, heads=(*config.heads, "nlvr2"))
    torch.manual_seed(0)
    built = build_model(dataclasses.replace(config, image_text=heads))
    missing = built.load_state_dict(packaged.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert all(name.startswith("nlvr2_head") for name in missing.missing_keys)
    return built.eval()


def _with_words() -> Any:
    """Build a METER with the vocabulary of the packaged model."""
    config = small_networks.network("METER").config
    words = small_networks.network("coarse").config.vocab_size
    torch.manual_seed(0)
    return build_model(config.with_vocabulary(words)).eval()


def _two_blocks() -> Any:
    """Build a detector with two dynamic blocks and masks; its prefix ends within a stage."""
    config = small_networks.network("fine").config
    config = dataclasses.replace(
        config,
        detector=dataclasses.replace(config.detector, num_blocks=2, mask_width=8),
        fusion=dataclasses.replace(config.fusion, num_fused_layers=3),
        swin=dataclasses.replace(config.swin, window_size=12),
    )
    torch.manual_seed(0)
    built = build_model(config)
    with torch.no_grad():
        for block in built.tower.blocks:
            # Offsets of several pixels, also beyond the borders of maps.
            block.offsets.weight.mul_(4)
        # Predictions that differ between locations and tokens. In float32, the network itself is
        # within 2.5e-5 of float64.
        built.head.text_projection.weight.mul_(20)
        built.head.box_deltas.weight.mul_(30)
        built.head.centerness.weight.mul_(30)
        # Masks that differ between locations, and end within boxes.
        built.mask_head.embedding[-1].weight.mul_(20)
    return built.eval()
