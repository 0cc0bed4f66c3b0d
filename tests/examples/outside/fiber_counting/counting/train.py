"""Train on the number of objects."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

from fiber_counting.counting.ability import CountsObjects
from torch import Tensor

from fiber.data.batch import GroundingBatch
from fiber.losses.cross_entropy import mean_cross_entropy
from fiber.training.config.run import RunConfig
from fiber.training.task_training import TaskTraining
from fiber.training.training_data import TrainingData


class CountingTraining(TaskTraining):
    """Classify images by their number of objects; larger numbers count as the largest one.

    Everything but the loss has a default: batches of the layout, forward passes, cost.
    """

    abilities: ClassVar[tuple[type, ...]] = (CountsObjects,)
    causes: ClassVar[Mapping[str, str]] = {"count": "too few steps or a low optim.lr"}

    def losses(self, model: Any, batch: GroundingBatch, whole: Tensor | None) -> dict[str, Tensor]:
        """Compute the cross entropy."""
        logits = model.count_logits(batch.images)
        counts = batch.boxes_per_image.clamp(max=logits.shape[1] - 1)
        return {"count": mean_cross_entropy(logits, counts, whole=whole)}

    def priors(self, config: RunConfig, data: TrainingData) -> dict[str, float]:
        """Return the loss of a model that knows only how frequent each number is."""
        records = data.records[self.task.name]
        numbers = Counter(len(records[index].boxes_xyxy) for index in range(len(records)))
        shares = [count / len(records) for count in numbers.values()]
        return {"count": -sum(share * math.log(share) for share in shares)}
