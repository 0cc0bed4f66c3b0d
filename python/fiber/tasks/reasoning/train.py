"""Train on statements about two images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from fiber.data.batch import ReasoningBatch
from fiber.losses.nlvr2 import nlvr2_loss
from fiber.models.abilities import ScoresPairs
from fiber.training.config.run import RunConfig
from fiber.training.task_training import TaskTraining
from fiber.training.training_data import TrainingData


class ReasoningTraining(TaskTraining):
    """NLVR2 by a classifier of both pairs' features."""

    abilities: ClassVar[tuple[type, ...]] = (ScoresPairs,)
    causes: ClassVar[Mapping[str, str]] = {
        "nlvr2": "too few steps, or a start without pre-training (--init)"
    }

    def losses(self, model: Any, batch: ReasoningBatch, whole: Tensor | None) -> dict[str, Tensor]:
        logits = model.statement_logits(batch.images, batch.token_ids, batch.text_mask)
        return {"nlvr2": nlvr2_loss(logits, batch.truths, whole=whole)}

    def priors(self, config: RunConfig, data: TrainingData) -> dict[str, float]:
        return {"nlvr2": math.log(2)}
