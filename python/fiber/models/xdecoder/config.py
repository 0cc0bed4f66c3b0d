"""Configuration of X-Decoder models."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from fiber.config_io import check_ranges, nearest, require
from fiber.messages import shown
from fiber.models.encoders.clip_text_config import ClipTextConfig
from fiber.models.encoders.focalnet_config import FocalNetConfig
from fiber.models.masks.pixel_decoder_config import NORM_GROUPS, PixelDecoderConfig
from fiber.models.xdecoder.released import XDECODER_HEADS, head_hint


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Decoder of queries."""

    #: Number of queries; the last is the class query, which reads the others.
    num_queries: int = 101
    #: Number of layers. The published setting counts the predictions, which are one more.
    num_layers: int = 9
    #: Number of attention heads per layer.
    num_heads: int = 8
    #: Hidden dimension of the feed-forward layers.
    ffn_width: int = 2048
    #: Channels of mask embeddings and mask features.
    mask_width: int = 512

    def __post_init__(self) -> None:
        ranges = {
            "num_queries": (2, 2**16),
            "num_layers": (1, 1000),
            "num_heads": (1, 2**16),
            "ffn_width": (1, 2**20),
            "mask_width": (1, 2**16),
        }
        check_ranges(self, "decoder.", ranges)


@dataclass(frozen=True, kw_only=True)
class XDecoderConfig:
    """Config of an X-Decoder model.

    Queries, maps and texts have the width of the text encoder: tokens of phrases and captions
    enter the decoder, and words of captions are scored by the embeddings of the text encoder.
    """

    family: Literal["xdecoder"] = "xdecoder"
    #: Height and width in pixels of the images that are captioned or searched.
    image_size: int = 224
    #: Shorter side in pixels of images that are segmented, and of those whose instances are.
    segment_size: int = 512
    instance_size: int = 800
    focalnet: FocalNetConfig = field(default_factory=FocalNetConfig)
    clip_text: ClipTextConfig = field(default_factory=ClipTextConfig)
    pixel_decoder: PixelDecoderConfig = field(default_factory=PixelDecoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    #: Subset of `XDECODER_HEADS`.
    heads: tuple[str, ...] = XDECODER_HEADS
    #: Number of classes that the model was trained with, without the background. Any classes may
    #: be asked for; published files store it.
    num_classes: int = 133

    def __post_init__(self) -> None:
        require(self.family == "xdecoder", f"family: expected 'xdecoder', got {shown(self.family)}")
        for head in self.heads:
            require(
                head in XDECODER_HEADS,
                f"heads: expected any of {', '.join(XDECODER_HEADS)}, got {shown(head)}",
            )
        ranges = {
            "image_size": (1, 2**16),
            "segment_size": (1, 2**16),
            "instance_size": (1, 2**16),
            "num_classes": (1, 2**24),
        }
        check_ranges(self, "", ranges)
        width = self.width
        require(
            width % NORM_GROUPS == 0,
            f"clip_text.width: expected a multiple of {NORM_GROUPS}, the groups of the pixel"
            f" decoder's norms, got {width}",
        )
        for part in ("pixel_decoder", "decoder"):
            num_heads = getattr(self, part).num_heads
            require(
                width % num_heads == 0,
                f"{part}.num_heads must divide clip_text.width, got {num_heads} and {width}",
            )
        self._check_image_size(self.image_size)

    @property
    def width(self) -> int:
        """Channels of queries, maps and text vectors."""
        return self.clip_text.width

    @property
    def size_step(self) -> int:
        """Number that divides every image size: the stride of the last stage in pixels."""
        return self.focalnet.stride

    @property
    def channel_order(self) -> Literal["rgb", "bgr"]:
        """Input channel order."""
        return "rgb"

    @property
    def max_tokens(self) -> int:
        """Maximum text length in tokens, including the start and the end of the text."""
        return self.clip_text.max_positions

    @property
    def vocab_size(self) -> int:
        """Vocabulary size of the text encoder."""
        return self.clip_text.vocab_size

    @property
    def text_cleaning(self) -> str:
        """Texts are cleaned as by the published tokenizer; see `fiber.data.texts.cleaning`."""
        return "clip"

    @property
    def num_answers(self) -> int:
        """0: there is no VQA head."""
        return 0

    @property
    def weight_start(self) -> str:
        """Initialization of linear weights."""
        return "published"

    @property
    def mlm_units(self) -> tuple[str, ...]:
        """No units: a causal text encoder has no masked tokens."""
        return ()

    @property
    def pair_heads(self) -> tuple[str, ...]:
        """Heads that rank images for a text."""
        return ("retrieval",)

    def head_hint(self, head: str) -> str:
        """Return a sentence about a head that the model lacks."""
        return head_hint(head)

    @property
    def has_row_draws(self) -> bool:
        """True: only drop path is random, which is drawn by sample."""
        return True

    def with_vocabulary(self, vocab_size: int) -> XDecoderConfig:
        """Return a copy of the config with a new vocabulary size."""
        text = dataclasses.replace(self.clip_text, vocab_size=vocab_size)
        return dataclasses.replace(self, clip_text=text)

    def with_answers(self, count: int) -> XDecoderConfig:
        """Raise ValueError, since there is no VQA head."""
        raise ValueError(f"X-Decoder has no VQA head; got {count} answers")

    def with_image_size(self, image_size: int) -> XDecoderConfig:
        """Return a copy of the config with a new size of captioned and searched images.

        Raises:
            ValueError: if the size is not a multiple of `size_step`.
        """
        self._check_image_size(image_size)
        return dataclasses.replace(self, image_size=image_size)

    def check_published(self, prefix: str = "") -> None:
        """Check nothing: any config may be that of a published run."""

    def _check_image_size(self, image_size: int) -> None:
        step = self.size_step
        require(
            image_size > 0 and image_size % step == 0,
            f"image_size {image_size}: expected a multiple of {step} (the stride of FocalNet)",
        )


#: Published models: Focal-T and Focal-L. Focal-L was also released with 101 queries.
XDECODER_PRESETS: dict[str, XDecoderConfig] = {
    "focalt": XDecoderConfig(),
    "focall": XDecoderConfig(
        focalnet=FocalNetConfig(
            block="norm_inside", embed_dim=192, depths=(2, 2, 18, 2), focal_levels=4
        ),
        decoder=DecoderConfig(num_queries=201),
    ),
}


def xdecoder_preset(name: str) -> XDecoderConfig:
    """Look up a preset.

    Raises:
        ValueError: if it does not exist; the message suggests the nearest names.
    """
    if name not in XDECODER_PRESETS:
        raise ValueError(
            f"X-Decoder preset {shown(name)} does not exist; {nearest(name, XDECODER_PRESETS)}"
        )
    return XDECODER_PRESETS[name]
