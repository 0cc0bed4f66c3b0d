"""Configuration of FocalNet, without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fiber.config_io import check_ranges, require
from fiber.messages import shown

#: Number of stages; each after the first has half the resolution and twice the channels.
NUM_STAGES = 4


@dataclass(frozen=True, kw_only=True)
class FocalNetConfig:
    """Hyperparameters of the image encoder FocalNet.

    The defaults are those of Focal-T as in Zou et al. (CVPR 2023).
    """

    #: Order of the blocks, of which two are published under one name. "norm_after": a depthwise
    #: convolution before both parts of a block, norms after their residual sums, and a stem padded
    #: by 3 pixels (Focal-T). "norm_inside": norms inside of both branches, no such convolutions,
    #: and a stem padded by 2 pixels (Focal-L).
    block: Literal["norm_after", "norm_inside"] = "norm_after"
    #: Channels of the first stage.
    embed_dim: int = 96
    #: Number of blocks in each of the four stages.
    depths: tuple[int, ...] = (2, 2, 6, 2)
    #: Number of depthwise convolutions whose outputs are gated and summed to the modulator.
    focal_levels: int = 3
    #: Kernel size of the first of them; each further one is larger by 2.
    focal_window: int = 3
    #: MLP hidden dim as a multiple of the channels.
    mlp_ratio: float = 4.0
    #: Drop path rate of the last block; the rate grows linearly from 0 at the first.
    drop_path: float = 0.3

    def __post_init__(self) -> None:
        require(
            self.block in ("norm_after", "norm_inside"),
            f"focalnet.block: expected 'norm_after' or 'norm_inside', got {shown(self.block)}",
        )
        ranges = {
            "embed_dim": (1, 2**16),
            "depths": (1, 1000),
            "focal_levels": (1, 16),
            "focal_window": (1, 63),
            "mlp_ratio": (1 / 64, 64),
            "drop_path": (0, 0.99),
        }
        check_ranges(self, "focalnet.", ranges)
        require(
            len(self.depths) == NUM_STAGES,
            f"focalnet.depths: expected {NUM_STAGES} numbers, got {shown(self.depths)}",
        )
        require(
            self.focal_window % 2 == 1,
            f"focalnet.focal_window: expected an odd number, got {self.focal_window}",
        )

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(self.embed_dim << stage for stage in range(NUM_STAGES))

    @property
    def stride(self) -> int:
        """Stride of the last stage in pixels."""
        return 4 << (NUM_STAGES - 1)
