"""The detector of the fine stage as a transformers model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers.utils.generic import ModelOutput

from fiber.hf.modeling import FiberVLPreTrainedModel
from fiber.losses.grounding import grounding_losses
from fiber.messages import shown
from fiber.models.abilities import FindsBoxes, need_ability
from fiber.models.features import DetectorOutput, MaskOutput

#: Weights of the losses in published training.
LOSS_WEIGHTS = {"alignment": 1.0, "box": 2.0, "centerness": 1.0}
#: Fields of each entry of `labels`.
_LABEL_FIELDS = {"boxes", "positive_map"}


@dataclass
class FiberVLDetectionOutput(ModelOutput):
    """Raw predictions. Tuples have one entry per pyramid level, as the lists of `DetectorOutput`.

    Attributes:
        loss: scalar, the sum of the losses with the published weights; only with labels.
        losses: the losses by name, not weighted.
        token_logits: (B, H_l * W_l, L) of each level.
        box_deltas: (B, H_l * W_l, 4) of each level.
        centerness_logits: (B, H_l * W_l) of each level.
        anchors: (H_l * W_l, 4) of each level, pixels of the padded image.
        attention_mask: (B, L), as it was given.
        image_sizes: (B, 2) int64, as they were given.
        inside: (B, A) bool, False for locations in the padding of a batch of several sizes.
        mask_embeddings: (B, H_l * W_l, M + 5) of each level, if the model has the head
            "grounding_mask"; see `fiber.models.features.MaskOutput`.
        mask_features: (B, M, H / stride, W / stride).
        mask_stride: the stride in pixels.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    token_logits: tuple[Tensor, ...] | None = None
    box_deltas: tuple[Tensor, ...] | None = None
    centerness_logits: tuple[Tensor, ...] | None = None
    anchors: tuple[Tensor, ...] | None = None
    attention_mask: Tensor | None = None
    image_sizes: Tensor | None = None
    inside: Tensor | None = None
    mask_embeddings: tuple[Tensor, ...] | None = None
    mask_features: Tensor | None = None
    mask_stride: int | None = None


class _Targets(NamedTuple):
    """Boxes of a batch; see `fiber.losses.grounding.GroundingTargets`."""

    boxes_xyxy: Tensor
    boxes_per_image: Tensor
    positive_map: Tensor


class FiberVLForZeroShotObjectDetection(FiberVLPreTrainedModel):
    """Detector: finds boxes for the tokens of a text, and masks if the model has the head.

    `FiberVLImageProcessor.post_process_object_detection` and the pipelines turn its output into
    boxes, `post_process_grounded_masks` into boxes with masks. Labels train boxes only: masks are
    trained by `fiber train scenes_fine_masks`. `network` has the methods of
    `fiber.models.abilities.FindsBoxes`.
    """

    @classmethod
    def check_heads(cls, heads: tuple[str, ...]) -> None:
        """See `FiberVLPreTrainedModel`."""
        cls._check_head("grounding", heads)

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_sizes: Tensor | None = None,
        labels: Sequence[Mapping[str, Tensor]] | None = None,
        return_dict: bool | None = None,
    ) -> FiberVLDetectionOutput | tuple[Any, ...]:
        """Predict token logits, box deltas and centerness, and with labels the losses.

        Args:
            pixel_values: (B, 3, H, W), H and W multiples of 32 pixels.
            input_ids: (B, L) int64.
            attention_mask: (B, L), 1 = real token.
            image_sizes: (B, 2) int64 (height, width) without padding. Without them, padding is part
                of the image.
            labels: for each image a mapping with `boxes` (G, 4), half-open xyxy pixels of
                `pixel_values`, and `positive_map` (G, L) bool, True for tokens that name the box.
            return_dict: return a tuple if False.

        Raises:
            ValueError: if a shape is wrong; the message names the input.
        """
        network = need_ability(self.network, FindsBoxes, type(self).__name__)
        images = pixel_values.to(self.dtype)
        output = network(images, input_ids, attention_mask.bool(), image_sizes)
        loss, losses = None, None
        if labels is not None:
            targets = _targets(labels, *input_ids.shape, device=pixel_values.device)
            losses = grounding_losses(output, targets, self.network.config)
            loss = sum(
                (LOSS_WEIGHTS[name] * each for name, each in losses.items()), torch.zeros(())
            )
        masks = output.masks
        found = FiberVLDetectionOutput(
            loss=cast("Tensor | None", loss),
            losses=losses,
            token_logits=tuple(output.token_logits),
            box_deltas=tuple(output.box_deltas),
            centerness_logits=tuple(output.centerness_logits),
            anchors=tuple(output.anchors),
            attention_mask=attention_mask,
            image_sizes=image_sizes,
            inside=output.inside,
            mask_embeddings=None if masks is None else tuple(masks.embeddings),
            mask_features=None if masks is None else masks.features,
            mask_stride=None if masks is None else masks.stride,
        )
        return found.to_tuple() if return_dict is False else found


def raw_output(output: Mapping[str, Any]) -> DetectorOutput:
    """Return the output of `FiberVLForZeroShotObjectDetection` as the network gave it."""
    masks, embeddings = None, output.get("mask_embeddings")
    if embeddings is not None:
        masks = MaskOutput(list(embeddings), output["mask_features"], output["mask_stride"])
    return DetectorOutput(
        token_logits=list(output["token_logits"]),
        box_deltas=list(output["box_deltas"]),
        centerness_logits=list(output["centerness_logits"]),
        anchors=list(output["anchors"]),
        text_mask=output["attention_mask"].bool(),
        inside=output.get("inside"),
        masks=masks,
    )


def _targets(labels: Any, batch: int, length: int, device: torch.device) -> _Targets:
    """Check `labels` and join those of all images.

    Raises:
        TypeError, ValueError: if an entry is no mapping, or a shape is wrong; they are named.
    """
    if isinstance(labels, (Mapping, Tensor, str)) or not hasattr(labels, "__len__"):
        raise TypeError(
            "labels: expected a list with a mapping for each image, with 'boxes' and"
            f" 'positive_map', got {_kind(labels)}"
        )
    if len(labels) != batch:
        raise ValueError(f"labels has {len(labels)} entries, expected {batch}, one per image")
    boxes, maps = [], []
    for row, entry in enumerate(labels):
        if not isinstance(entry, Mapping) or not entry.keys() >= _LABEL_FIELDS:
            has = ", ".join(map(shown, entry)) if isinstance(entry, Mapping) else _kind(entry)
            raise ValueError(
                f"labels[{row}]: expected a mapping with 'boxes' and 'positive_map', got {has}"
            )
        own, named = entry["boxes"], entry["positive_map"]
        if own.ndim != 2 or own.shape[1] != 4:
            raise ValueError(
                f"labels[{row}]['boxes'] has shape {tuple(own.shape)}; expected (G, 4), a row"
                " (x0, y0, x1, y1) per box"
            )
        if named.shape != (len(own), length):
            raise ValueError(
                f"labels[{row}]['positive_map'] has shape {tuple(named.shape)}; expected"
                f" ({len(own)}, {length}), a row per box and a column per token"
            )
        boxes.append(own.to(device))
        maps.append(named.to(device).bool())
    counts = torch.tensor([len(own) for own in boxes], device=device)
    return _Targets(torch.cat(boxes), counts, torch.cat(maps))


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"{type(value).__name__} {shown(value)}"
