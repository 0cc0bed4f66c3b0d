"""Networks that find masks of classes and phrases as transformers models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.utils.generic import ModelOutput

from fiber.hf.modeling import FiberVLPreTrainedModel
from fiber.messages import shown
from fiber.models.abilities import need_ability
from fiber.models.heads import need_head
from fiber.models.mask_abilities import SegmentsMasks


@dataclass
class FiberVLSegmentationOutput(ModelOutput):
    """Masks of Q queries, of which images have the best for each phrase if phrases are asked for.

    Attributes:
        class_queries_logits: (B, Q, K + 1) logits of the classes and, last, of the background.
        masks_queries_logits: (B, Q, H / 4, W / 4) logits, or (B, n, H / 4, W / 4) of n phrases.
        scores: (B, n) scores of the phrases' masks, in [0, 1].
        logits: of the head "caption", (B, L, V) of the next tokens; of the head "retrieval", (B, n)
            scores of n texts.
        image_sizes: (B, 2) int64, as they were given.
    """

    class_queries_logits: Tensor | None = None
    masks_queries_logits: Tensor | None = None
    scores: Tensor | None = None
    logits: Tensor | None = None
    image_sizes: Tensor | None = None


class FiberVLForUniversalSegmentation(FiberVLPreTrainedModel):
    """Network that finds masks of any classes, and of phrases.

    `FiberVLImageProcessor.post_process_panoptic_segmentation` and others turn its output into
    masks; `network` has the methods of `fiber.models.mask_abilities.SegmentsMasks`. `forward` has
    no labels: `fiber train` trains masks, with losses that match them.
    """

    @classmethod
    def check_heads(cls, heads: tuple[str, ...]) -> None:
        """See `FiberVLPreTrainedModel`."""
        cls._check_head("mask", heads)

    def class_prompts(self, names: Sequence[str]) -> list[tuple[str, ...]]:
        """Return the texts of classes and, last, of the background, for the processor's `text`.

        Raises:
            ValueError: if there are no names, or a name is empty, there twice, or the background's.
        """
        network = need_ability(self.network, SegmentsMasks, type(self).__name__, "mask")
        return network.class_prompts(names)

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_sizes: Tensor | None = None,
        head: str | None = None,
        return_dict: bool | None = None,
    ) -> FiberVLSegmentationOutput | tuple[Any, ...]:
        """Find masks, or run another head.

        Args:
            pixel_values: (B, 3, H, W), H and W multiples of 32 pixels. Padding of smaller images
                takes part in everything: for the masks of `fiber.load`, ask one image at a time.
            input_ids: int64. (K + 1, T, L), T texts of each class (`class_prompts`), or (n, L),
                phrases that are asked together. For "caption" (B, L), and for "retrieval" (n, L).
            attention_mask: of the shape of `input_ids`, 1 = real token.
            image_sizes: (B, 2) int64 (height, width) without padding, returned for post-processing.
            head: "mask", "caption" or "retrieval". Default: that of the config, or else "mask".
            return_dict: return a tuple if False.

        Raises:
            MissingHeadError: if the model lacks the head.
            ValueError: if the shape of `input_ids` is not one of these.
        """
        name = head or self.config.head or "mask"
        need_head(self.network.config, name, f"{type(self).__name__}.forward")
        images, mask = pixel_values.to(self.dtype), attention_mask.bool()
        dimensions = (2, 3) if name == "mask" else (2,)
        if input_ids.ndim not in dimensions or mask.shape != input_ids.shape:
            raise ValueError(
                f"input_ids and attention_mask have shapes {tuple(input_ids.shape)} and"
                f" {tuple(mask.shape)}; expected equal ones with"
                f" {' or '.join(map(str, dimensions))} dimensions for the head {shown(name)}"
            )
        outputs: dict[str, Any] = {"image_sizes": image_sizes}
        if name != "mask":
            outputs["logits"] = self.network(images, input_ids, mask, name)
        elif input_ids.ndim == 3:
            classes, masks = self.network(images, input_ids, mask, name)
            outputs |= {"class_queries_logits": classes, "masks_queries_logits": masks}
        else:
            network = need_ability(self.network, SegmentsMasks, type(self).__name__, "mask")
            memory = network.read_image(images)
            scores, masks = network.find_phrases(memory, input_ids, mask)
            outputs |= {"scores": scores, "masks_queries_logits": masks}
        found = FiberVLSegmentationOutput(**outputs)
        return found.to_tuple() if return_dict is False else found
