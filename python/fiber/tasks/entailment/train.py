"""Train on hypotheses that an image entails or contradicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from fiber.data.batch import QuestionBatch
from fiber.data.datasets.snli_ve import ENTAILMENT
from fiber.losses.entailment import entailment_loss
from fiber.models.abilities import ClassifiesEntailment
from fiber.training.config.run import RunConfig
from fiber.training.task_training import TaskTraining
from fiber.training.training_data import TrainingData


class EntailmentTraining(TaskTraining):
    """SNLI-VE by a classifier of three classes, which are the answers of the records."""

    abilities: ClassVar[tuple[type, ...]] = (ClassifiesEntailment,)
    causes: ClassVar[Mapping[str, str]] = {
        "snli": "too few steps, or a start without pre-training (--init)"
    }

    def labels(self, answers: Sequence[str]) -> Sequence[str]:
        return ENTAILMENT

    def losses(self, model: Any, batch: QuestionBatch, whole: Tensor | None) -> dict[str, Tensor]:
        fused = model.backbone.encode_pair(
            batch.images, batch.token_ids, batch.text_mask, wanted="pooled"
        )
        logits = model.snli_logits(model.pooled(fused))
        return {"snli": entailment_loss(logits, batch.targets.argmax(1), whole=whole)}

    def priors(self, config: RunConfig, data: TrainingData) -> dict[str, float]:
        return {"snli": math.log(len(ENTAILMENT))}
