"""Configuration of CLIP's text encoder, without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from fiber.config_io import check_ranges, require


@dataclass(frozen=True, kw_only=True)
class ClipTextConfig:
    """Hyperparameters of the text encoder of CLIP, a causal Transformer.

    The defaults are those of Zou et al. (CVPR 2023), who did not start from OpenAI's weights.
    """

    #: Vocabulary size.
    vocab_size: int = 49408
    #: Embedding dimension.
    width: int = 512
    #: Number of blocks.
    num_blocks: int = 12
    #: Number of attention heads per block.
    num_heads: int = 8
    #: MLP hidden dim as a multiple of the width.
    mlp_ratio: float = 4.0
    #: Number of rows of the position embedding, which is the maximum text length.
    max_positions: int = 77
    #: Epsilon of every LayerNorm. OpenAI's CLIP has 1e-5.
    layer_norm_eps: float = 1e-12

    def __post_init__(self) -> None:
        ranges = {
            "vocab_size": (1, 2**24),
            "width": (1, 2**16),
            "num_blocks": (1, 1000),
            "num_heads": (1, 2**16),
            "mlp_ratio": (1 / 64, 64),
            "max_positions": (2, 2**20),
            "layer_norm_eps": (0, 1),
        }
        check_ranges(self, "clip_text.", ranges)
        require(
            self.width % self.num_heads == 0,
            f"clip_text: num_heads must divide width, got {self.num_heads} and {self.width}",
        )
