"""The method `count` of models."""

from __future__ import annotations

from typing import Any

import torch
from fiber_counting.counting.ability import CountsObjects

from fiber.inference.inputs import as_list
from fiber.models.abilities import need_ability


def count(model: Any, images: Any) -> int | list[int]:
    """Count the objects in an image, or in each of a list of images.

    Args:
        model: the `fiber.Model` whose method this is.
        images: an image or a list of images, as for all methods of a model.

    Raises:
        MissingHeadError: if the model cannot count.
    """
    network = need_ability(model.network, CountsObjects, "count", "count")
    given, single = as_list(images)
    counts = [0] * len(given)
    with torch.inference_mode(), model.arithmetic():
        for batch in model.inputs.images(given):
            found = network.count_logits(batch.images).argmax(-1).tolist()
            for index, number in zip(batch.indices, found, strict=True):
                counts[index] = number
    return counts[0] if single else counts
