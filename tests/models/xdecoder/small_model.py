"""A small model with random weights, its tokenizer, and images to ask it about."""

import dataclasses
from functools import cache
from pathlib import Path

import numpy as np
import torch

from fiber.checkpoints.export import write_published
from fiber.data import Tokenizer
from fiber.inference.model import Model
from fiber.models.encoders.clip_text_config import ClipTextConfig
from fiber.models.encoders.focalnet_config import FocalNetConfig
from fiber.models.masks.pixel_decoder_config import PixelDecoderConfig
from fiber.models.registry import build_model
from fiber.models.xdecoder.class_texts import TEMPLATES
from fiber.models.xdecoder.config import DecoderConfig, XDecoderConfig

CLASSES = ["red square", "grass", "sky", "blue circle"]
STUFF = ["grass", "sky"]
#: Classes of docs/segmentation.md.
PAGE_CLASSES = ["zebra", "grass", "sky"]
PHRASES = ["the red square", "a blue circle", "sky"]


@cache
def small_tokenizer() -> Tokenizer:
    names = (*CLASSES, *PAGE_CLASSES, "background")
    texts = [template.format(name) for template in TEMPLATES for name in names]
    return Tokenizer.train(texts, 400)


@cache
def small_config(num_queries: int = 12) -> XDecoderConfig:
    return XDecoderConfig(
        image_size=64,
        segment_size=64,
        instance_size=96,
        focalnet=FocalNetConfig(embed_dim=8, depths=(1, 1, 1, 1)),
        clip_text=ClipTextConfig(
            vocab_size=small_tokenizer().vocab_size,
            width=32,
            num_blocks=2,
            num_heads=2,
            max_positions=32,
        ),
        pixel_decoder=PixelDecoderConfig(num_layers=1, num_heads=2, ffn_width=48),
        decoder=DecoderConfig(
            num_queries=num_queries, num_layers=4, num_heads=2, ffn_width=48, mask_width=24
        ),
    )


def small_model(*heads: str, seed: int = 3) -> Model:
    """Build a model whose masks, classes and phrases differ from one another."""
    config = small_config()
    config = dataclasses.replace(config, heads=heads or config.heads)
    network = build_model(config)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            own = torch.randn(parameter.shape, generator=draw)
            if name.endswith(("word_embedding.weight", "position_embedding")):
                parameter.copy_(0.5 * own)
            elif name.endswith(("queries.weight", "positions.weight", "level_embedding.weight")):
                parameter.copy_(own)
            elif name.endswith(("modulation_scale", "mlp_scale")):
                parameter.fill_(0.5)
            elif "_attention.output" in name:
                parameter.copy_(0.02 * own)
            elif name.startswith("decoder") and name.endswith("attention.in_weight"):
                parameter.copy_(0.36 * own)
            elif name.startswith("backbone.text") and parameter.dim() > 1:
                parameter.copy_(0.2 * own)
            elif name == "text_projection":
                parameter.copy_(0.3 * own)
            elif parameter.dim() > 1:
                parameter.copy_(0.12 * own)
            elif name.endswith("bias"):
                parameter.copy_(0.05 * own)
        network.logit_scale.fill_(4.0)
    return Model(network, small_tokenizer())


def write_small_xdecoder_file(path: Path, tokenizer: Path) -> None:
    """Write a small model as a published file, and its tokenizer unless it is there."""
    # The published code needs as many queries as a caption has tokens.
    torch.manual_seed(0)
    write_published(build_model(small_config(num_queries=40)), path)
    if not tokenizer.exists():
        small_tokenizer().save(tokenizer)


def some_images() -> list[np.ndarray]:
    """Eight images of five sizes."""
    draws = np.random.default_rng(0)
    sizes = [(64, 64), (70, 90), (90, 70), (40, 121), (64, 64), (70, 90), (33, 65), (64, 64)]
    images = []
    for height, width in sizes:
        image = draws.integers(0, 256, (height, width, 3), dtype=np.uint8)
        image[: height // 2, : width // 3] = (220, 30, 40)
        images.append(image)
    return images
