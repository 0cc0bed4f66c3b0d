"""The fine model: boxes for the words of a text.

Backbone, pyramid, dynamic head, and three predictions at every location: how well each token of
the text fits, where the box is, and how central the location lies in it.

Letters: A = H_l W_l summed over the levels; otherwise as everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fiber.config import FiberConfig
from fiber.models.backbone import BackboneOutput, FiberBackbone
from fiber.models.dyhead import DynamicHead
from fiber.models.pyramid import FeaturePyramid
from fiber.ops.anchors import pyramid_anchors

#: Share of tokens that a new model believes to fit, so that training does not start with a loss
#: made of negatives.
PRIOR_PROBABILITY = 0.01
#: Published bound of a token logit.
MAX_TOKEN_LOGIT = 50000.0


@dataclass(frozen=True)
class DetectorOutput:
    """Raw predictions; the lists go through the levels P3 to P7, finest first."""

    #: (B, H_l * W_l, L) logits of every token at every location, rows of a map one by one.
    token_logits: list[Tensor]
    #: (B, H_l * W_l, 4) deltas from the anchors; see `fiber.ops.boxes.decode_deltas`.
    box_deltas: list[Tensor]
    #: (B, H_l * W_l) logits.
    centerness_logits: list[Tensor]
    #: (H_l * W_l, 4) half-open boxes in pixels of the padded picture, float32.
    anchors: list[Tensor]
    #: (B, L) bool, True = real token.
    text_mask: Tensor


class GroundingHead(nn.Module):
    """Predictions from the head's features and the text's tokens."""

    def __init__(self, channels: int, text_width: int, num_levels: int, unused: int) -> None:
        super().__init__()
        self.box_deltas = nn.Linear(channels, 4)
        self.centerness = nn.Linear(channels, 1)
        self.text_projection = nn.Linear(text_width, channels)
        self.text_bias = nn.Parameter(torch.zeros(text_width))
        prior = math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY)
        self.bias = nn.Parameter(torch.full((1,), -prior))
        self.log_temperature = nn.Parameter(torch.zeros(1))
        self.level_scales = nn.ParameterList(torch.ones(1) for _ in range(num_levels))
        # Nothing reads this layer: the published model has it, runs it and multiplies its loss
        # by 0. It is kept so that published checkpoints load and save whole.
        self.unused_classes = nn.Linear(channels, unused)
        for layer in (self.box_deltas, self.centerness, self.unused_classes):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
        nn.init.constant_(self.unused_classes.bias, -prior)
        self.unused_classes.requires_grad_(False)

    def forward(
        self, levels: list[Tensor], text: Tensor, text_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Predict for all levels at once.

        Args:
            levels: (B, C, H_l, W_l) of each level.
            text: (B, L, D) tokens.
            text_mask: (B, L) bool.

        Returns:
            Token logits (B, A, L), box deltas (B, A, 4), centerness logits (B, A).
        """
        # (B, C, H_l, W_l) of each level -> (B, A, C)
        features = torch.cat([level.flatten(2) for level in levels], dim=2).transpose(1, 2)
        scales = torch.cat(
            [
                scale.expand(level.shape[-2] * level.shape[-1])
                for scale, level in zip(self.level_scales, levels, strict=True)
            ]
        )
        deltas = self.box_deltas(features) * scales[:, None]
        centerness = self.centerness(features).squeeze(-1)
        return self._token_logits(features, text, text_mask), deltas, centerness

    def _token_logits(self, features: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        """Dot products (B, A, L) of locations and tokens; a padded token counts as all zeros."""
        unit = F.normalize(text * text_mask.unsqueeze(-1), dim=-1)
        # The half is published.
        keys = self.text_projection(unit * 0.5)
        token_bias = unit @ self.text_bias + self.bias
        products = features @ keys.transpose(1, 2) / self.log_temperature.exp()
        return (products + token_bias.unsqueeze(1)).clamp(-MAX_TOKEN_LOGIT, MAX_TOKEN_LOGIT)


class FiberDetector(nn.Module):
    """The fine model.

    Args:
        config: a config of the fine stage, as `FiberConfig.fine` or `preset(name, stage="fine")`
            gives it.

    Raises:
        ValueError: for a config of another stage or strides that the towers cannot give.
    """

    def __init__(self, config: FiberConfig) -> None:
        super().__init__()
        if config.stage != "fine":
            raise ValueError(
                f"FiberDetector needs a config of stage 'fine', got {config.stage!r};"
                " config.fine() makes one"
            )
        detector = config.detector
        # P3 is the second stage of the image tower: twice the patch.
        expected = tuple(config.swin.patch_size * 2 ** (level + 1) for level in range(5))
        if tuple(detector.strides) != expected:
            raise ValueError(
                f"detector.strides are {detector.strides}; a patch of {config.swin.patch_size}"
                f" pixels gives {expected}"
            )
        self.config = config
        self.backbone = FiberBackbone(config)
        widths = config.swin.channels[1:]
        self.stage_norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        self.pyramid = FeaturePyramid(widths, detector.channels, drop_block=detector.drop_block)
        self.tower = DynamicHead(detector.channels, detector.num_blocks, detector.norm_groups)
        self.head = GroundingHead(
            detector.channels,
            config.roberta.width,
            len(detector.strides),
            detector.num_unused_classes,
        )

    def forward(self, images: Tensor, token_ids: Tensor, text_mask: Tensor) -> DetectorOutput:
        """Predict boxes and how well the tokens fit them.

        Args:
            images: (B, 3, H, W) normalised pictures, H and W multiples of 8 patches (32 pixels).
            token_ids: (B, L) int64.
            text_mask: (B, L) bool, True = real token.

        Raises:
            ValueError: if the pictures' size does not fit.
        """
        divisor = self.config.swin.patch_size * 8
        height, width = images.shape[-2:]
        if images.ndim != 4 or height % divisor or width % divisor:
            raise ValueError(
                f"images have shape {tuple(images.shape)}; expected (B, 3, H, W) with H and W"
                f" multiples of {divisor}"
            )
        return self.predict(self.backbone.encode_pair(images, token_ids, text_mask))

    def predict(self, features: BackboneOutput) -> DetectorOutput:
        """Predict from what the backbone's `encode_pair` or `fuse` gave.

        Raises:
            ValueError: if it holds no text.
        """
        text, text_mask = features.text, features.text_mask
        if text is None or text_mask is None:
            raise ValueError("the detector needs the text's tokens; use backbone.encode_pair")
        levels = self.tower(self.pyramid(self.stage_maps(features)))
        sizes = [(level.shape[-2], level.shape[-1]) for level in levels]
        lengths = [height * width for height, width in sizes]
        tokens, deltas, centerness = self.head(levels, text, text_mask)
        detector = self.config.detector
        return DetectorOutput(
            token_logits=list(tokens.split(lengths, dim=1)),
            box_deltas=list(deltas.split(lengths, dim=1)),
            centerness_logits=list(centerness.split(lengths, dim=1)),
            anchors=pyramid_anchors(
                sizes, detector.strides, detector.anchor_scale, device=deltas.device
            ),
            text_mask=text_mask,
        )

    def stage_maps(self, features: BackboneOutput) -> list[Tensor]:
        """Normalise the last three stages: three (B, C_s, H_s, W_s), finest first."""
        return [
            # (B, H, W, C) -> (B, C, H, W)
            norm(stage).permute(0, 3, 1, 2)
            for norm, stage in zip(self.stage_norms, features.stages[1:], strict=True)
        ]
