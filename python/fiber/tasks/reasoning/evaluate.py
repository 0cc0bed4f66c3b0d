"""Evaluate statements about two images (NLVR2)."""

from __future__ import annotations

import re
from itertools import chain
from typing import Any

import numpy as np

from fiber.data.record import Record
from fiber.evaluation.context import EvalContext, EvalResult, entry_id
from fiber.metrics.groups import with_groups
from fiber.metrics.language import sentence_key, statement_accuracy
from fiber.models.abilities import ScoresPairs


def nlvr2(context: EvalContext, records: list[Record]) -> EvalResult:
    """Evaluate true-or-false statements about image pairs.

    A sentence is consistent if all of its image pairs are classified correctly. Records are grouped
    into sentences by NLVR2 identifier, or by text if there are no such identifiers.
    """
    model = context.able(ScoresPairs, "task 'nlvr2'", "nlvr2")

    def judge(batch: Any, shown: list[Record], at: int) -> list[bool]:
        logits = model.statement_logits(batch.images, batch.token_ids, batch.text_mask)
        return logits.argmax(-1).bool().tolist()

    answers = list(chain.from_iterable(context.run_batches(records, "reasoning", judge)))
    predictions = [
        f"{entry_id(record.key)},{answer}" for record, answer in zip(records, answers, strict=True)
    ]
    if any(record.truth is None for record in records):
        return EvalResult({}, predictions)
    sentences = [record.text for record in records]
    identifiers = [str(entry_id(record.key)) for record in records]
    if all(re.fullmatch(r"[^-]+(-\d+){3}", identifier) for identifier in identifiers):
        keys = [sentence_key(identifier) for identifier in identifiers]
        # Identifiers of generated statements have only one pair per sentence.
        if len(set(keys)) < len(keys):
            sentences = keys
    truths = np.array([record.truth for record in records])
    groups = [record.group for record in records]
    metrics = with_groups(statement_accuracy, groups, np.array(answers), truths, sentences)
    return EvalResult(metrics, predictions)
