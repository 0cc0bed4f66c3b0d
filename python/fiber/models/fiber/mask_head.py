"""Masks of the fine stage: a mask embedding at each location, and mask features of all pixels.

An extension of this package; published FIBER has none. The mask of a box is the product of the
embedding at the box's location with the mask features, as in YOLACT (Bolya et al. 2019), plus a
quadratic function of the place relative to the location's anchor, which separates instances that
look the same (cf. CondInst, Tian et al. 2020). The features are those of a pixel decoder as in
Mask2Former (Cheng et al. 2022).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fiber.config import MASK_HEADS, FiberConfig
from fiber.models.features import MaskOutput
from fiber.models.fiber.keys import NUM_MASK_LAYERS
from fiber.models.masks.pixel_decoder import PixelDecoder
from fiber.models.masks.pixel_decoder_config import PixelDecoderConfig
from fiber.ops.masks import PLACE_TERMS

#: Hidden dimension of the pixel decoder's feed-forward layers, as a multiple of the channels.
FFN_RATIO = 4


class MaskHead(nn.Module):
    """Pixel decoder on the four stages of the image encoder, and embeddings of locations."""

    def __init__(self, config: FiberConfig) -> None:
        super().__init__()
        detector, channels = config.detector, config.detector.channels
        self.stride = config.swin.patch_size
        self.stage_norms = nn.ModuleList(nn.LayerNorm(count) for count in config.swin.channels)
        self.pixel_decoder = PixelDecoder(
            config.swin.channels,
            channels,
            detector.mask_width,
            PixelDecoderConfig(
                num_layers=NUM_MASK_LAYERS, num_heads=MASK_HEADS, ffn_width=FFN_RATIO * channels
            ),
            detector.norm_groups,
        )
        self.embedding = nn.Sequential(
            nn.Linear(channels, channels),
            nn.ReLU(),
            nn.Linear(channels, detector.mask_width + PLACE_TERMS),
        )

    def forward(self, stages: Sequence[Tensor], levels: Sequence[Tensor]) -> MaskOutput:
        """Compute mask features and embeddings.

        Args:
            stages: (B, H_s, W_s, C_s) outputs of the four stages.
            levels: (B, C, H_l, W_l) levels of the dynamic head.
        """
        maps = [
            # (B, H, W, C) -> (B, C, H, W)
            norm(stage).permute(0, 3, 1, 2)
            for norm, stage in zip(self.stage_norms, stages, strict=True)
        ]
        return MaskOutput(
            # (B, C, H, W) -> (B, H W, C)
            embeddings=[self.embedding(each.flatten(2).transpose(1, 2)) for each in levels],
            features=self.pixel_decoder(maps).mask_features,
            stride=self.stride,
        )
