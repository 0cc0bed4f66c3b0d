"""Image-text networks of all families, FIBER's coarse stage and METER, as transformers models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.utils.generic import ModelOutput

from fiber.data.datasets.snli_ve import ENTAILMENT
from fiber.hf.modeling import FiberVLPreTrainedModel
from fiber.losses.cross_entropy import class_loss, mean_cross_entropy
from fiber.losses.mlm import mlm_loss
from fiber.losses.vqa import vqa_loss
from fiber.models.heads import MissingHeadError, need_head


@dataclass
class FiberVLImageTextOutput(ModelOutput):
    """Logits of one head.

    Attributes:
        loss: scalar; only with labels.
        logits: see `fiber.FiberImageText.forward` and `fiber.models.meter.MeterImageText.forward`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None


class FiberVLForImageText(FiberVLPreTrainedModel):
    """Image-text network; `forward` runs one of its heads.

    The head is the argument of `forward`, or else `config.head`, or else the first of the network.
    `network` has the methods of `fiber.models.abilities`, such as `embed_images` with the head
    "itc".
    """

    #: Head that the class is for, if it is for one only.
    only_head: str | None = None

    @classmethod
    def check_heads(cls, heads: tuple[str, ...]) -> None:
        """See `FiberVLPreTrainedModel`."""
        if cls.only_head is not None:
            cls._check_head(cls.only_head, heads)
        if "grounding" in heads:
            raise MissingHeadError(
                f"{cls.__name__} is for heads of images and texts; this model has"
                f" {', '.join(heads)}: load it by AutoModelForZeroShotObjectDetection"
            )
        if "mask" in heads:
            raise MissingHeadError(
                f"{cls.__name__} does not run the head 'mask'; this model has"
                f" {', '.join(heads)}: load it by AutoModelForUniversalSegmentation"
            )

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_sizes: Tensor | None = None,
        labels: Tensor | None = None,
        head: str | None = None,
        return_dict: bool | None = None,
    ) -> FiberVLImageTextOutput | tuple[Any, ...]:
        """Run one head, and with labels its loss.

        Args:
            pixel_values: (B, 3, S, S), or for "nlvr2" (B, 2, 3, S, S), left image first.
            input_ids: (B, L) int64.
            attention_mask: (B, L), 1 = real token.
            image_sizes: not used, since images fill the square.
            labels: targets of the head. "vqa": (B, answers) soft scores in [0, 1]. "itm", "nlvr2":
                (B,) int64, 1 = true. "snli": (B,) int64, in the order of `ENTAILMENT`. "mlm":
                (B, L) int64, the original ids of masked tokens, else -100. "caption": (B, L) int64,
                `input_ids` with -100 for padding; each token predicts the next one.
            head: name of the head.
            return_dict: return a tuple if False.

        Raises:
            MissingHeadError: if the model lacks the head.
            ValueError: if the labels have a wrong shape, or the head has no loss for single pairs.
        """
        name = head or self.only_head or self.config.head or self.network.config.heads[0]
        need_head(self.network.config, name, f"{type(self).__name__}.forward")
        images = pixel_values.to(self.dtype)
        logits = self.network(images, input_ids, attention_mask.bool(), name)
        loss = None if labels is None else head_loss(name, logits, labels)
        found = FiberVLImageTextOutput(loss=loss, logits=logits)
        return found.to_tuple() if return_dict is False else found


class FiberVLForVisualQuestionAnswering(FiberVLForImageText):
    """Image-text network with the VQA head."""

    only_head = "vqa"


def head_loss(head: str, logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the loss of a head; see `FiberVLForImageText.forward`.

    Raises:
        ValueError: if the labels have a wrong shape or dtype, or the head needs several texts of
            each image (ITC and METER's ranking, which `fiber train` trains).
    """
    if head not in _LOSSES:
        raise ValueError(
            f"labels: the head {head!r} has no loss for labels of single pairs; expected one of"
            f" {', '.join(map(repr, _LOSSES))}. `fiber train` trains the others"
        )
    return _LOSSES[head](logits, labels)


def _classes(count: int) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda logits, labels: class_loss(logits, labels, count, "labels")


def _next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    if labels.shape != logits.shape[:2]:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}, caption logits {tuple(logits.shape)};"
            " expected (B, L) and (B, L, V)"
        )
    return mean_cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "vqa": vqa_loss,
    "itm": _classes(2),
    "nlvr2": _classes(2),
    "snli": _classes(len(ENTAILMENT)),
    "mlm": mlm_loss,
    "caption": _next_token_loss,
}
