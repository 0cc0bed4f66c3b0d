"""Train on questions about images."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fiber.checkpoints.vocabulary.files import Vocabulary
from fiber.checkpoints.vocabulary.sources import choose_answers
from fiber.data.batch import QuestionBatch
from fiber.data.record import RecordSet
from fiber.data.skip_report import counted
from fiber.data.storage.held_out import ChosenRecords
from fiber.losses.bernoulli import entropy
from fiber.losses.vqa import vqa_loss
from fiber.messages import shown, shown_names
from fiber.models.abilities import ScoresPairs, StartsAtAnswerPriors
from fiber.training.config.run import RunConfig
from fiber.training.task_training import TaskTraining
from fiber.training.training_data import TrainingData


class QuestionTraining(TaskTraining):
    """VQA by a classifier of answers, with soft scores as targets."""

    abilities: ClassVar[tuple[type, ...]] = (ScoresPairs,)
    causes: ClassVar[Mapping[str, str]] = {
        "vqa": "too few steps or a low optim.lr, or images do not determine the answers"
    }

    def choose_answers(
        self,
        records: RecordSet,
        config: RunConfig,
        fixed: tuple[str, ...] | None,
        known: Vocabulary | None,
    ) -> tuple[str, ...]:
        return choose_answers(records, config.model.num_answers, fixed, known)

    def usable_records(
        self, records: RecordSet, answers: Sequence[str]
    ) -> tuple[RecordSet, str | None]:
        kept = answerable(records, answers)
        missed = len(records) - len(kept)
        if not missed:
            return kept, None
        return kept, (
            f"{missed} of {len(records)} questions were skipped, since none of their answers is"
            f" among the model's {counted(len(answers), 'answers')}"
        )

    def init_from_data(
        self,
        model: Any,
        new: Collection[str],
        data: TrainingData,
        first_batch: Callable[[], Any],
    ) -> None:
        if isinstance(model, StartsAtAnswerPriors) and model.answer_bias in new:
            model.init_answer_priors(torch.tensor(data.answer_priors))

    def losses(self, model: Any, batch: QuestionBatch, whole: Tensor | None) -> dict[str, Tensor]:
        fused = model.backbone.encode_pair(
            batch.images, batch.token_ids, batch.text_mask, wanted="pooled"
        )
        logits = model.vqa_logits(model.pooled(fused))
        return {"vqa": vqa_loss(logits, batch.targets, whole=whole)}

    def priors(self, config: RunConfig, data: TrainingData) -> dict[str, float]:
        return {"vqa": sum(map(entropy, data.answer_priors))}


def answerable(records: RecordSet, answers: Sequence[str]) -> RecordSet:
    """Drop questions without an answer in the vocabulary.

    Raises:
        ValueError: if no question remains.
    """
    known = set(answers)
    chosen = [i for i in range(len(records)) if not known.isdisjoint(records[i].answers or ())]
    if not chosen:
        first = records[0]
        wanted = f"one of the model's {len(known)} answers" if known else "an answer"
        raise ValueError(
            f"data for task 'question': none of the {len(records)} questions has {wanted}; the"
            f" first record {shown(first.key)} has {shown_names(first.answers or ())}"
        )
    return records if len(chosen) == len(records) else ChosenRecords(records, chosen)
