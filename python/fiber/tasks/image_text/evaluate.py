"""Evaluate matching, masked words and captions that differ in word order."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
from torch import Tensor

from fiber.data.record import Record
from fiber.evaluation.context import EvalContext, EvalResult
from fiber.messages import shown
from fiber.metrics.groups import with_groups
from fiber.metrics.language import IGNORED, masked_word_accuracy
from fiber.metrics.matching import matching_accuracy, swapped_accuracy
from fiber.models.abilities import ScoresPairs


def matching(context: EvalContext, records: list[Record]) -> EvalResult:
    """Evaluate ITM on one matching and one mismatched pair per record."""
    model = context.able(ScoresPairs, "task 'matching'", "itm")
    backbone = model.backbone
    others = wrong_texts(records)

    def score(batch: Any, shown: list[Record], at: int) -> list[np.ndarray]:
        prefix, found = context.image_prefix(batch.images, shown), []
        for pairs in (shown, others[at : at + len(batch)]):
            ids, mask = context.texts([record.text for record in pairs])
            fused = backbone.fuse(prefix, backbone.text_prefix(ids, mask), mask, wanted="pooled")
            found.append(_match_scores(model.itm_logits(model.pooled(fused))))
        return found

    found = context.run_batches(records, "image_text", score)
    true_scores, false_scores = zip(*found, strict=True)
    scores = np.concatenate(true_scores + false_scores)
    labels = np.repeat([1, 0], len(records))
    predictions = [
        {"image_key": image.key, "text_key": text.key, "score": score, "match": label}
        for image, text, score, label in zip(
            records * 2, records + others, scores.tolist(), labels.tolist(), strict=True
        )
    ]
    return EvalResult(matching_accuracy(scores, labels), predictions)


def wrong_texts(records: list[Record]) -> list[Record]:
    """Return a negative for each record, i.e., a record with a different image and text.

    Raises:
        ValueError: if a record has no negative.
    """
    found, count = [], len(records)
    for place, record in enumerate(records):
        # Start half the dataset away, since neighboring records may be similar.
        for step in range(count):
            other = records[(place + count // 2 + step) % count]
            if other.image_id != record.image_id and other.text != record.text:
                found.append(other)
                break
        else:
            raise ValueError(
                f"no negative found for record {shown(record.key)}; expected at least one record"
                " with a"
                " different image and a different text"
            )
    return found


def masked_words(context: EvalContext, records: list[Record]) -> EvalResult:
    """Evaluate MLM on captions, given their images.

    Raises:
        ValueError: if no token is masked.
    """
    model = context.able(ScoresPairs, "task 'masked_words'", "mlm")

    def fill(batch: Any, shown: list[Record], at: int) -> tuple[np.ndarray, np.ndarray, list[Any]]:
        fused = context.encode_pair(batch, shown, batch.masked_ids, wanted="text")
        assert fused.text is not None
        picked = batch.mlm_labels != IGNORED
        tokens = model.mlm_logits(fused.text, picked).argmax(-1).cpu().numpy()
        places = zip(picked.nonzero().tolist(), tokens.tolist(), strict=True)
        filled = [
            {"key": batch.keys[row], "position": position, "token": token}
            for (row, position), token in places
        ]
        return tokens, batch.mlm_labels[picked].cpu().numpy(), filled

    found = context.run_batches(records, "image_text", fill)
    predicted, labels, filled = zip(*found, strict=True)
    predictions = list(chain.from_iterable(filled))
    if not predictions:
        raise ValueError(
            f"no token of the {len(records)} texts was masked; expected texts that contain words,"
            f" but the first text is {shown(records[0].text)}"
        )
    metrics = masked_word_accuracy(np.concatenate(predicted), np.concatenate(labels))
    return EvalResult(metrics, predictions)


def winoground(context: EvalContext, records: list[Record]) -> EvalResult:
    """Evaluate the matching of two images with two captions that differ in word order.

    Raises:
        ValueError: if the number of records is not a multiple of four.
    """
    if len(records) % 4:
        raise ValueError(
            f"got {len(records)} records, expected a multiple of 4, with the (image, caption) pairs"
            " (0, 0), (0, 1), (1, 0), (1, 1) of each example"
        )
    model = context.able(ScoresPairs, "task 'winoground'", "itm")

    def score(batch: Any, shown: list[Record], at: int) -> np.ndarray:
        fused = context.encode_pair(batch, shown, batch.token_ids, wanted="pooled")
        return _match_scores(model.itm_logits(model.pooled(fused)))

    scores = list(context.run_batches(records, "image_text", score))
    # (examples, images, texts)
    examples = np.concatenate(scores).reshape(-1, 2, 2)
    firsts = records[::4]
    groups = [record.group for record in firsts]
    metrics = with_groups(swapped_accuracy, groups, examples.transpose(0, 2, 1))
    names = ("c0_i0", "c1_i0", "c0_i1", "c1_i1")
    predictions = [
        {"key": record.key.rsplit("/", 2)[0], **dict(zip(names, values, strict=True))}
        for record, values in zip(firsts, examples.reshape(-1, 4).tolist(), strict=True)
    ]
    return EvalResult(metrics, predictions)


def _match_scores(logits: Tensor) -> np.ndarray:
    """Compute (n,) match probabilities from (n, 2) ITM logits."""
    return logits.float().softmax(-1)[:, 1].cpu().numpy()
