"""Evaluate the number of objects."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from typing import Any

from fiber_counting.counting.ability import CountsObjects

from fiber.data.record import Record
from fiber.evaluation.context import EvalContext, EvalResult


def counting(context: EvalContext, records: list[Record]) -> EvalResult:
    """Evaluate counts: the share that is right, and the mean distance from the true number.

    `chance_accuracy` is that of always giving the most frequent number of these records.
    """
    model = context.able(CountsObjects, "task 'counting'", "count")

    def count_all(batch: Any, shown: list[Record], at: int) -> list[int]:
        return model.count_logits(batch.images).argmax(-1).tolist()

    found = list(chain.from_iterable(context.run_batches(records, "grounding", count_all)))
    true = [len(record.boxes_xyxy) for record in records]
    pairs = list(zip(found, true, strict=True))
    metrics = {
        "accuracy": sum(own == right for own, right in pairs) / len(pairs),
        "mean_error": sum(abs(own - right) for own, right in pairs) / len(pairs),
        "chance_accuracy": max(Counter(true).values()) / len(true),
    }
    predictions = [
        {"image": record.image_id, "count": count}
        for record, count in zip(records, found, strict=True)
    ]
    return EvalResult(metrics, predictions)
