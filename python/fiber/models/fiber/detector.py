"""Fine-stage model: text-conditioned object detector.

The backbone, feature pyramid and dynamic head make three predictions at each location: logits of
all text tokens, box deltas and centerness.

Shapes:
    images: (B, 3, H, W).
    token_ids: (B, L) int64.
    text_mask: (B, L) bool, True = real token.
    image_sizes: (B, 2) int64 (height, width) in pixels, excluding padding.

A is the total number of locations, the sum of H_l * W_l over the levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fiber.config import FiberConfig
from fiber.models.architecture import Network
from fiber.models.features import (
    BackboneOutput,
    DetectorOutput,
    ImagePrefix,
    ImageSizes,
    MaskOutput,
)
from fiber.models.fiber.backbone import FiberBackbone
from fiber.models.fiber.dyhead import DynamicHead
from fiber.models.fiber.mask_head import MaskHead
from fiber.models.fiber.parameter_parts import FINE_PARTS
from fiber.models.fiber.pyramid import FeaturePyramid
from fiber.ops.anchors import level_sizes, pyramid_anchors
from fiber.ops.dropout import of_rows

#: Initial token probability; a low value keeps negatives from dominating the first losses.
PRIOR_PROBABILITY = 0.01
#: Bound on the absolute value of token logits, as in the published code.
MAX_TOKEN_LOGIT = 50000.0
#: Message of the error for masks that the model lacks.
_NO_MASKS = "the model has no masks: detector.mask_width is 0"


class GroundingHead(nn.Module):
    """Prediction layers applied to dynamic head features and text features."""

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
        # Unused: the published model multiplies its loss by 0. Kept so that published checkpoints
        # can be loaded and saved completely.
        self.unused_classes = nn.Linear(channels, unused)
        for layer in (self.box_deltas, self.centerness, self.unused_classes):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
        nn.init.constant_(self.unused_classes.bias, -prior)
        self.unused_classes.requires_grad_(False)

    def forward(
        self, levels: list[Tensor], text: Tensor, text_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Predict token logits (B, A, L), box deltas (B, A, 4) and centerness logits (B, A).

        Inputs are (B, C, H_l, W_l) levels and (B, L, D) text features.
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
        """Compute (B, A, L) token logits.

        These are dot products of location and text features divided by the temperature, plus a bias
        for each token, clamped. Text features of padding tokens are set to 0 first.
        """
        unit = F.normalize(text * text_mask.unsqueeze(-1), dim=-1)
        # The factor 0.5 is from the published code.
        keys = self.text_projection(unit * 0.5)
        token_bias = unit @ self.text_bias + self.bias
        products = features @ keys.transpose(1, 2) / self.log_temperature.exp()
        return (products + token_bias.unsqueeze(1)).clamp(-MAX_TOKEN_LOGIT, MAX_TOKEN_LOGIT)


class FiberDetector(Network):
    """Fine-stage FIBER model (object detector).

    Args:
        config: fine-stage config, as from `FiberConfig.fine` or `preset(name, stage="fine")`.

    Raises:
        ValueError: if the config is not for the fine stage.
    """

    parts = FINE_PARTS

    def __init__(self, config: FiberConfig) -> None:
        super().__init__()
        if "grounding" not in config.heads:
            raise ValueError(
                "FiberDetector requires a fine-stage config, e.g. from config.fine(); got stage"
                f" {config.stage!r}"
            )
        detector = config.detector
        self.config = config
        self.backbone = FiberBackbone(config)
        channels = config.swin.channels[1:]
        self.stage_norms = nn.ModuleList(nn.LayerNorm(count) for count in channels)
        self.pyramid = FeaturePyramid(channels, detector.channels, drop_block=detector.drop_block)
        self.tower = DynamicHead(detector.channels, detector.num_blocks, detector.norm_groups)
        self.head = GroundingHead(
            detector.channels,
            config.roberta.width,
            len(detector.strides),
            detector.num_unused_classes,
        )
        if config.weight_start == "fan_in":
            self.pyramid.init_identity()
        # Last, so that all else is initialized as without it.
        self.mask_head = MaskHead(config) if detector.mask_width else None

    def forward(
        self,
        images: Tensor,
        token_ids: Tensor,
        text_mask: Tensor,
        image_sizes: Tensor | None = None,
    ) -> DetectorOutput:
        """Predict token logits, box deltas and centerness, and masks if the model has the head.

        H and W must be multiples of 8 patches (32 pixels). If image_sizes is given,
        predictions do not depend on the rest of the batch. If it is None, padding is treated as
        part of the image, as in the published code.

        Raises:
            ValueError: if H, W or image_sizes are invalid.
        """
        has_masks = self.mask_head is not None
        prefix, predict = (
            (self.mask_prefix, self.predict_masks)
            if has_masks
            else (self.image_prefix, self.predict)
        )
        # No further local variables, so that intermediate tensors can be freed.
        return predict(
            self.backbone.fuse(
                prefix(images, image_sizes),
                self.backbone.text_prefix(token_ids, text_mask),
                text_mask,
            )
        )

    @property
    def size_divisor(self) -> int:
        """Number that divides the height and width of padded images."""
        return self.config.swin.patch_size * 8

    def image_prefix(self, images: Tensor, image_sizes: Tensor | None = None) -> ImagePrefix:
        """Run the image blocks that precede fusion.

        Pass the result to the backbone's `fuse`, then to `predict`. Arguments and errors are as in
        `forward`.
        """
        prefix = self.mask_prefix(images, image_sizes)
        # The pyramid starts at the second stage.
        return prefix._replace(stages=prefix.stages[1:])

    def mask_prefix(self, images: Tensor, image_sizes: Tensor | None = None) -> ImagePrefix:
        """Run the image blocks that precede fusion, and keep all stages, as for `predict_masks`."""
        divisor = self.size_divisor
        height, width = images.shape[-2:]
        if images.ndim != 4 or height % divisor or width % divisor:
            raise ValueError(
                f"images: expected (B, 3, H, W) with H and W multiples of {divisor}, got"
                f" {tuple(images.shape)}"
            )
        sizes = None
        if image_sizes is not None:
            images, sizes = _crop_padding(images, image_sizes, divisor)
        return self.backbone.image_prefix(images, sizes)

    def predict(self, features: BackboneOutput) -> DetectorOutput:
        """Predict from the output of the backbone's `encode_pair` or `fuse`.

        Raises:
            ValueError: if `features` has no text.
        """
        return self._predict_all(features, None)

    def predict_masks(self, features: BackboneOutput) -> DetectorOutput:
        """Predict as `predict` does, and also masks, from the output of all four stages.

        Raises:
            ValueError: if `features` has no text, or the model no masks.
        """
        if self.mask_head is None:
            raise ValueError(_NO_MASKS)
        return self._predict_all(features, self.mask_head)

    def _predict_all(self, features: BackboneOutput, mask_head: MaskHead | None) -> DetectorOutput:
        text, text_mask = features.text, features.text_mask
        if text is None or text_mask is None:
            raise ValueError("features has no text; pass the output of encode_pair or fuse")
        sizes, maps = features.sizes, self.stage_maps(features)
        stages = () if mask_head is None else features.stages
        del features
        if sizes is None:
            levels = self.pyramid(maps)
            del maps
            return self._predict(levels, text, text_mask, mask_head, stages)
        outputs = []
        # Run each size separately, since convolutions, group norms and pooling would see padding.
        for own in dict.fromkeys(sizes):
            rows = torch.tensor([row for row, size in enumerate(sizes) if size == own])
            rows = rows.to(text.device)
            cut = [
                level[rows, :, :height, :width]
                for level, (height, width) in zip(maps, self._level_sizes(*own), strict=False)
            ]
            own_stages = tuple(
                stage[rows, : own[0] // stride, : own[1] // stride]
                for stage, stride in zip(stages, self._stage_strides, strict=False)
            )
            with of_rows(rows):
                output = self._predict(
                    self.pyramid(cut), text[rows], text_mask[rows], mask_head, own_stages
                )
            outputs.append((rows, self._level_sizes(*own), output))
        return self._join(outputs, text_mask)

    def _predict(
        self,
        levels: list[Tensor],
        text: Tensor,
        text_mask: Tensor,
        mask_head: MaskHead | None,
        stages: Sequence[Tensor],
    ) -> DetectorOutput:
        """Predict from the pyramid levels and, for masks, the stages of images of the same size."""
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
            masks=None if mask_head is None else mask_head(stages, levels),
        )

    def predict_all(self, features: BackboneOutput) -> tuple[Tensor, Tensor, Tensor]:
        """Predict as `predict` does for images of one size, with all levels in one tensor.

        Returns token logits (B, A, L), box deltas (B, A, 4) and centerness logits (B, A), in the
        order of `locations`.
        """
        assert features.text is not None
        assert features.text_mask is not None
        levels = self.tower(self.pyramid(self.stage_maps(features)))
        return self.head(levels, features.text, features.text_mask)

    def predict_all_masks(
        self, features: BackboneOutput
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Predict as `predict_all`, and mask embeddings of all levels and mask features.

        Raises:
            ValueError: if the model has no masks.
        """
        if self.mask_head is None:
            raise ValueError(_NO_MASKS)
        assert features.text is not None
        assert features.text_mask is not None
        levels = self.tower(self.pyramid(self.stage_maps(features)))
        masks = self.mask_head(features.stages, levels)
        found = self.head(levels, features.text, features.text_mask)
        return (*found, torch.cat(masks.embeddings, 1), masks.features)

    @property
    def mask_stride(self) -> int:
        """Stride of mask features in pixels."""
        return self.config.swin.patch_size

    def locations(
        self, images: Tensor, image_sizes: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor | None]:
        """Return `anchors` and `inside` of the output of `forward`, without running the network."""
        divisor, sizes = self.size_divisor, None
        if image_sizes is not None:
            images, sizes = _crop_padding(images, image_sizes, divisor)
        maps = self._level_sizes(images.shape[-2], images.shape[-1])
        if sizes is None:
            return self._anchors(maps, images.device), None
        inside = []
        for level, (height, width) in enumerate(maps):
            valid = torch.zeros(len(sizes), height, width, dtype=torch.bool, device=images.device)
            for row, size in enumerate(sizes):
                own_height, own_width = self._level_sizes(*size)[level]
                valid[row, :own_height, :own_width] = True
            inside.append(valid.flatten(1))
        return self._anchors(maps, images.device), torch.cat(inside, dim=1)

    def stage_maps(self, features: BackboneOutput) -> list[Tensor]:
        """Return the normalized maps of the last three stages, (B, C_s, H_s, W_s), finest first."""
        return [
            # (B, H, W, C) -> (B, C, H, W)
            norm(stage).permute(0, 3, 1, 2)
            for norm, stage in zip(self.stage_norms, features.stages[-3:], strict=True)
        ]

    @property
    def _stage_strides(self) -> tuple[int, ...]:
        return tuple(self.config.swin.patch_size * 2**stage for stage in range(4))

    def _anchors(self, sizes: Sequence[tuple[int, int]], device: torch.device) -> list[Tensor]:
        detector = self.config.detector
        return pyramid_anchors(sizes, detector.strides, detector.anchor_scale, device=device)

    def _level_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        return level_sizes(height, width, self.config.detector.strides)

    def _join(
        self,
        outputs: list[tuple[Tensor, list[tuple[int, int]], DetectorOutput]],
        text_mask: Tensor,
    ) -> DetectorOutput:
        """Join the predictions for different image sizes, padding them to common map sizes.

        `outputs` holds (batch indices, level sizes, predictions) for each image size.
        """
        levels = range(len(self.config.detector.strides))
        sizes = [
            (
                max(own[level][0] for _, own, _ in outputs),
                max(own[level][1] for _, own, _ in outputs),
            )
            for level in levels
        ]

        def pad(parts: list[list[Tensor]], fill: float | bool) -> list[Tensor]:
            """Pad and merge the (b, h w, ...) levels of all sizes into (B, H_l W_l, ...)."""
            padded = []
            for level in levels:
                shape = (len(text_mask), *sizes[level], *parts[0][level].shape[2:])
                whole = parts[0][level].new_full(shape, fill)
                for (rows, own, _), part in zip(outputs, parts, strict=True):
                    height, width = own[level]
                    whole[rows, :height, :width] = part[level].unflatten(1, own[level])
                padded.append(whole.flatten(1, 2))
            return padded

        outputs_of_groups = [output for _, _, output in outputs]
        lowest = -MAX_TOKEN_LOGIT
        valid = [
            [torch.ones_like(c, dtype=torch.bool) for c in f.centerness_logits]
            for f in outputs_of_groups
        ]
        return DetectorOutput(
            token_logits=pad([output.token_logits for output in outputs_of_groups], lowest),
            box_deltas=pad([output.box_deltas for output in outputs_of_groups], 0.0),
            centerness_logits=pad(
                [output.centerness_logits for output in outputs_of_groups], lowest
            ),
            anchors=self._anchors(sizes, text_mask.device),
            text_mask=text_mask,
            inside=torch.cat(pad(valid, False), dim=1),
            masks=self._join_masks(outputs, len(text_mask), pad),
        )

    @staticmethod
    def _join_masks(
        outputs: list[tuple[Tensor, list[tuple[int, int]], DetectorOutput]],
        count: int,
        pad: Callable[[list[list[Tensor]], float | bool], list[Tensor]],
    ) -> MaskOutput | None:
        """Join the masks of `count` images of different sizes, if there are any; see `_join`."""
        masks = [output.masks for _, _, output in outputs if output.masks is not None]
        if not masks:
            return None
        first = masks[0].features
        size = [max(each.features.shape[axis] for each in masks) for axis in (2, 3)]
        features = first.new_zeros(count, first.shape[1], *size)
        for (rows, _, _), own in zip(outputs, masks, strict=True):
            height, width = own.features.shape[2:]
            features[rows, :, :height, :width] = own.features
        embeddings = pad([each.embeddings for each in masks], 0.0)
        return MaskOutput(embeddings, features, masks[0].stride)


def _crop_padding(
    images: Tensor, image_sizes: Tensor, divisor: int
) -> tuple[Tensor, ImageSizes | None]:
    """Crop away padding common to all images.

    Returns:
        Cropped images and their valid regions, rounded up to multiples of `divisor`. The regions
        are None if they are all the same.
    """
    height, width = images.shape[-2:]
    sizes = []
    for row, (own_height, own_width) in enumerate(image_sizes.tolist()):
        if not (0 < own_height <= height and 0 < own_width <= width):
            raise ValueError(
                f"image_sizes[{row}]: expected 1 <= height <= {height} and 1 <= width <= {width},"
                f" got ({own_height}, {own_width})"
            )
        sizes.append((-(-own_height // divisor) * divisor, -(-own_width // divisor) * divisor))
    if len(sizes) != len(images):
        raise ValueError(f"image_sizes: expected {len(images)} rows, got {len(sizes)}")
    if not sizes:
        return images, None
    highest, widest = (max(size[axis] for size in sizes) for axis in (0, 1))
    images = images[..., :highest, :widest]
    return images, tuple(sizes) if len(set(sizes)) > 1 else None
