"""Configuration of pixel decoders."""

from __future__ import annotations

from dataclasses import dataclass

from fiber.config_io import check_ranges

#: Published number of groups of every GroupNorm.
NORM_GROUPS = 32


@dataclass(frozen=True, kw_only=True)
class PixelDecoderConfig:
    """Pixel decoder: Transformer on the last stage, and a feature pyramid."""

    #: Number of Transformer layers.
    num_layers: int = 6
    #: Number of attention heads per layer.
    num_heads: int = 8
    #: Hidden dimension of the feed-forward layers.
    ffn_width: int = 2048

    def __post_init__(self) -> None:
        ranges = {"num_layers": (0, 1000), "num_heads": (1, 2**16), "ffn_width": (1, 2**20)}
        check_ranges(self, "pixel_decoder.", ranges)
