"""Evaluate answers to questions (VQA)."""

from __future__ import annotations

import warnings
from itertools import chain
from typing import Any

from fiber.checkpoints.vocabulary.files import NO_ANSWERS
from fiber.data.record import Record
from fiber.evaluation.context import EvalContext, EvalResult, entry_id
from fiber.metrics.groups import with_groups
from fiber.metrics.vqa import PEOPLE_FOR_ALL, soft_accuracy, vqa_accuracy
from fiber.models.abilities import ScoresPairs


def vqa(context: EvalContext, records: list[Record]) -> EvalResult:
    """Evaluate VQA.

    `accuracy` is the mean of the scores that the records assign to the predicted answers. If every
    record lists its annotators' answers (VQAv2, or lines with lists of answers),
    `official_accuracy` and `published_accuracy` are added. As in the official evaluation, a
    question without an answer in the model's vocabulary scores 0. The published code drops such
    questions. Warns about these questions, and about questions with too few annotators for a full
    score. If any question has no answers, warns and returns only predictions.

    Raises:
        ValueError: if the model has no answer vocabulary.
    """
    if not context.answers:
        raise ValueError(NO_ANSWERS)
    model = context.able(ScoresPairs, "task 'vqa'", "vqa")

    def answer_all(batch: Any, shown: list[Record], at: int) -> list[int]:
        fused = context.encode_pair(batch, shown, batch.token_ids, wanted="pooled")
        return model.vqa_logits(model.pooled(fused)).argmax(-1).tolist()

    best = chain.from_iterable(context.run_batches(records, "question", answer_all))
    answers = [context.answers[answer] for answer in best]
    predictions = [
        {"question_id": entry_id(record.key), "answer": answer}
        for record, answer in zip(records, answers, strict=True)
    ]
    count = len(records)
    unanswered = sum(record.answers is None for record in records)
    if unanswered:
        _warn(
            f"{unanswered} of {count} questions have no answers, so metrics cannot be computed; use"
            " --output (output=...) to write the predictions"
        )
        return EvalResult({}, predictions)
    known = set(context.answers)
    missed = sum(known.isdisjoint(record.answers or ()) for record in records)
    if missed:
        _warn(
            f"{missed} of {count} questions have no answer among the model's {len(known)} answers"
            " and score 0"
        )
    groups = [record.group for record in records]
    scores = [record.answers for record in records]
    metrics = with_groups(soft_accuracy, groups, answers, scores)
    people = [record.human_answers for record in records]
    if all(people):
        metrics |= vqa_accuracy(answers, people)
        few = sum(len(given) < PEOPLE_FOR_ALL for given in people)
        if few:
            _warn(
                f"{few} of {count} questions have answers from fewer than {PEOPLE_FOR_ALL}"
                " annotators; even unanimous answers may score below 1 in official_accuracy and"
                " published_accuracy"
            )
    return EvalResult(metrics, predictions)


def _warn(message: str) -> None:
    warnings.warn(f"task 'vqa': {message}", RuntimeWarning, stacklevel=3)
