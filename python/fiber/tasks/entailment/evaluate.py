"""Evaluate hypotheses about images (SNLI-VE)."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np

from fiber.data.datasets.snli_ve import ENTAILMENT
from fiber.data.record import Record
from fiber.evaluation.context import EvalContext, EvalResult
from fiber.metrics.groups import with_groups
from fiber.models.abilities import ClassifiesEntailment


def entailment(context: EvalContext, records: list[Record]) -> EvalResult:
    """Evaluate the classes of hypotheses about images (SNLI-VE).

    Raises:
        ValueError: if the answer of a record is not a class.
    """
    for record in records:
        if len(known := [name for name in record.answers or () if name in ENTAILMENT]) != 1:
            raise ValueError(
                f"{record.key}: expected one of {', '.join(ENTAILMENT)} as the answer, got"
                f" {', '.join(known) or record.answers}"
            )
    model = context.able(ClassifiesEntailment, "task 'snli'")

    def classify(batch: Any, shown: list[Record], at: int) -> list[int]:
        fused = context.encode_pair(batch, shown, batch.token_ids, wanted="pooled")
        return model.snli_logits(model.pooled(fused)).argmax(-1).tolist()

    found = list(chain.from_iterable(context.run_batches(records, "image_text", classify)))
    labels = np.array([ENTAILMENT.index(next(iter(record.answers or ()))) for record in records])
    predictions = [
        {"key": record.key, "label": ENTAILMENT[place]}
        for record, place in zip(records, found, strict=True)
    ]
    groups = [record.group for record in records]
    metrics = with_groups(class_accuracy, groups, np.array(found), labels)
    return EvalResult(metrics, predictions)


def class_accuracy(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Compute the fraction of right classes."""
    return {"accuracy": float((predicted == labels).mean())}
