"""The fine model: boxes for the words of a text.

Backbone, pyramid, dynamic head, and three predictions at every location: how well each token of
the text fits, where the box is, and how central the location lies in it.

Letters: A = H_l W_l summed over the levels; otherwise as everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fiber.config import FiberConfig
from fiber.models.fiber.backbone import BackboneOutput, FiberBackbone, ImagePrefix, PictureSizes
from fiber.models.fiber.dyhead import DynamicHead
from fiber.models.fiber.pyramid import FeaturePyramid
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
    #: (B, A) bool, True = a location of the picture's own map, where pictures of several sizes
    #: share the batch; elsewhere token logits are the lowest there are. None: every location.
    inside: Tensor | None = None


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
        if "grounding" not in config.heads:
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

    def forward(
        self,
        images: Tensor,
        token_ids: Tensor,
        text_mask: Tensor,
        image_sizes: Tensor | None = None,
    ) -> DetectorOutput:
        """Predict boxes and how well the tokens fit them.

        Args:
            images: (B, 3, H, W) normalised pictures, H and W multiples of 8 patches (32 pixels).
            token_ids: (B, L) int64.
            text_mask: (B, L) bool, True = real token.
            image_sizes: (B, 2) int64 (height, width) of each picture in pixels, without padding.
                Predictions for a picture are then those for it alone, whatever shares the batch.
                None: padding is seen as a part of the picture, as published.

        Raises:
            ValueError: if the pictures' size does not fit.
        """
        # Nothing keeps a name, so that what has been read can be freed.
        return self.predict(
            self.backbone.fuse(
                self.image_prefix(images, image_sizes),
                self.backbone.text_prefix(token_ids, text_mask),
                text_mask,
            )
        )

    def image_prefix(self, images: Tensor, image_sizes: Tensor | None = None) -> ImagePrefix:
        """Run the part of the image tower that does not depend on a text.

        Args:
            images: as `forward` takes them.
            image_sizes: as `forward` takes them.

        Returns:
            What the backbone's `fuse` takes, and after it `predict`.

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
        sizes = None
        if image_sizes is not None:
            images, sizes = _own_parts(images, image_sizes, divisor)
        prefix = self.backbone.image_prefix(images, sizes)
        # The pyramid begins with the second stage.
        return prefix._replace(stages=prefix.stages[1:])

    def predict(self, features: BackboneOutput) -> DetectorOutput:
        """Predict from what the backbone's `encode_pair` or `fuse` gave.

        Raises:
            ValueError: if it holds no text.
        """
        text, text_mask = features.text, features.text_mask
        if text is None or text_mask is None:
            raise ValueError("the detector needs the text's tokens; use backbone.encode_pair")
        sizes, maps = features.sizes, self.stage_maps(features)
        del features
        if sizes is None:
            levels = self.pyramid(maps)
            del maps
            return self._predict(levels, text, text_mask)
        outputs = []
        # Convolutions, group norms and pooling would see the padding of a shared map.
        for own in dict.fromkeys(sizes):
            rows = torch.tensor([row for row, size in enumerate(sizes) if size == own])
            rows = rows.to(text.device)
            cut = [
                level[rows, :, :height, :width]
                for level, (height, width) in zip(maps, self._level_sizes(*own), strict=False)
            ]
            output = self._predict(self.pyramid(cut), text[rows], text_mask[rows])
            outputs.append((rows, self._level_sizes(*own), output))
        return self._join(outputs, text_mask)

    def _predict(self, levels: list[Tensor], text: Tensor, text_mask: Tensor) -> DetectorOutput:
        """Predict for pictures of one size from the levels of their pyramid."""
        levels = self.tower(levels)
        sizes = [(level.shape[-2], level.shape[-1]) for level in levels]
        lengths = [height * width for height, width in sizes]
        tokens, deltas, centerness = self.head(levels, text, text_mask)
        return DetectorOutput(
            token_logits=list(tokens.split(lengths, dim=1)),
            box_deltas=list(deltas.split(lengths, dim=1)),
            centerness_logits=list(centerness.split(lengths, dim=1)),
            anchors=self._anchors(sizes, deltas.device),
            text_mask=text_mask,
        )

    def stage_maps(self, features: BackboneOutput) -> list[Tensor]:
        """Normalise the last three stages: three (B, C_s, H_s, W_s), finest first."""
        return [
            # (B, H, W, C) -> (B, C, H, W)
            norm(stage).permute(0, 3, 1, 2)
            for norm, stage in zip(self.stage_norms, features.stages[-3:], strict=True)
        ]

    def _anchors(self, sizes: Sequence[tuple[int, int]], device: torch.device) -> list[Tensor]:
        detector = self.config.detector
        return pyramid_anchors(sizes, detector.strides, detector.anchor_scale, device=device)

    def _level_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """(height, width) of every level of a picture of whole patches of the last stage."""
        sizes = [(height // stride, width // stride) for stride in self.config.detector.strides[:3]]
        for _ in self.config.detector.strides[3:]:
            # Each further level is half the one before, rounded up.
            sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
        return sizes

    def _join(
        self,
        outputs: list[tuple[Tensor, list[tuple[int, int]], DetectorOutput]],
        text_mask: Tensor,
    ) -> DetectorOutput:
        """Lay predictions for pictures of several sizes out on maps that hold all of them.

        Args:
            outputs: places of the pictures in the batch, sizes of their levels, and what was
                predicted for them.
            text_mask: (B, L) bool of the whole batch.
        """
        levels = range(len(self.config.detector.strides))
        sizes = [
            (
                max(own[level][0] for _, own, _ in outputs),
                max(own[level][1] for _, own, _ in outputs),
            )
            for level in levels
        ]

        def laid_out(parts: Sequence[Tensor], level: int, fill: float | bool) -> Tensor:
            """Lay (b, h w, ...) of each size out: (B, H_l W_l, ...)."""
            whole = parts[0].new_full((len(text_mask), *sizes[level], *parts[0].shape[2:]), fill)
            for (rows, own, _), part in zip(outputs, parts, strict=True):
                height, width = own[level]
                whole[rows, :height, :width] = part.unflatten(1, own[level])
            return whole.flatten(1, 2)

        found = [output for _, _, output in outputs]
        lowest = -MAX_TOKEN_LOGIT
        return DetectorOutput(
            token_logits=[laid_out([f.token_logits[n] for f in found], n, lowest) for n in levels],
            box_deltas=[laid_out([f.box_deltas[n] for f in found], n, 0.0) for n in levels],
            centerness_logits=[
                laid_out([f.centerness_logits[n] for f in found], n, lowest) for n in levels
            ],
            anchors=self._anchors(sizes, text_mask.device),
            text_mask=text_mask,
            inside=torch.cat(
                [
                    laid_out(
                        [torch.ones_like(f.centerness_logits[n], dtype=torch.bool) for f in found],
                        n,
                        False,
                    )
                    for n in levels
                ],
                dim=1,
            ),
        )


def _own_parts(
    images: Tensor, image_sizes: Tensor, divisor: int
) -> tuple[Tensor, PictureSizes | None]:
    """Give every picture the part of the tensor that it would fill alone.

    Args:
        images: (B, 3, H, W).
        image_sizes: (B, 2) (height, width) without padding.
        divisor: a picture alone is padded to multiples of it.

    Returns:
        The pictures without what is padding for all of them, and the parts, None where all are
        equal.

    Raises:
        ValueError: if a size does not lie in the tensor.
    """
    height, width = images.shape[-2:]
    sizes = []
    for row, (own_height, own_width) in enumerate(image_sizes.tolist()):
        if not (0 < own_height <= height and 0 < own_width <= width):
            raise ValueError(
                f"image_sizes[{row}] is ({own_height}, {own_width}); expected (height, width) from"
                f" 1 to ({height}, {width}), the size of the tensor"
            )
        sizes.append((-(-own_height // divisor) * divisor, -(-own_width // divisor) * divisor))
    if len(sizes) != len(images):
        raise ValueError(f"{len(sizes)} image_sizes for {len(images)} pictures; expected as many")
    if not sizes:
        return images, None
    highest, widest = (max(size[axis] for size in sizes) for axis in (0, 1))
    images = images[..., :highest, :widest]
    return images, tuple(sizes) if len(set(sizes)) > 1 else None
