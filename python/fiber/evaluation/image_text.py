"""Evaluate image-text models on captions, questions and statements about images."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from itertools import chain
from pathlib import PurePath
from typing import Any

import numpy as np
from torch import Tensor

from fiber.checkpoints.model_dir import NO_ANSWERS
from fiber.data.datasets.snli_ve import ENTAILMENT
from fiber.data.record import Record
from fiber.evaluation.context import EvalContext, EvalResult, by_image, entry_id
from fiber.messages import shown
from fiber.metrics.captions import caption_scores
from fiber.metrics.groups import with_groups
from fiber.metrics.language import IGNORED, masked_word_accuracy, sentence_key, statement_accuracy
from fiber.metrics.matching import matching_accuracy, swapped_accuracy
from fiber.metrics.vqa import PEOPLE_FOR_ALL, soft_accuracy, vqa_accuracy
from fiber.models.abilities import ClassifiesEntailment, ScoresPairs, WritesCaptions
from fiber.models.fiber.captioner import beam_search, written_tokens

#: Beam size for captioning, as in the published code.
CAPTION_BEAMS = 5


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


def caption(context: EvalContext, records: list[Record]) -> EvalResult:
    """Caption each image and compare the caption with all of the image's references.

    Computes BLEU-4, ROUGE-L and CIDEr-D on tokens from `metrics.captions.caption_tokens`. Document
    frequencies come from the references, as in COCO's evaluation.

    Predictions are in COCO's result format. `image_id` is the number at the end of the image's file
    name (391895 for COCO_val2014_000000391895.jpg). If there is no such number, or if two images
    share the number, `image_id` is the record's `image_id`.
    """
    model, groups = context.able(WritesCaptions, "task 'caption'"), by_image(records)

    def write(batch: Any, shown: list[Record], at: int) -> list[str]:
        tokens = model.image_tokens(batch.images)
        found = beam_search(
            model, tokens, num_beams=CAPTION_BEAMS, max_tokens=model.config.max_tokens
        )
        rows = found.token_ids.tolist()
        return [context.tokenizer.decode(written_tokens(ids)).strip() for ids in rows]

    images = [shown[0] for shown in groups.values()]
    captions = list(chain.from_iterable(context.run_batches(images, "image_text", write)))
    predictions = [
        {"image_id": number, "caption": text}
        for number, text in zip(_image_numbers(list(groups)), captions, strict=True)
    ]
    references = [[record.text for record in shown] for shown in groups.values()]
    return EvalResult(caption_scores(captions, references), predictions)


def _image_numbers(image_ids: list[str]) -> list[int | str]:
    """Return the unique number that ends each image's file name, or else the full image id."""
    found = [re.search(r"\d+$", PurePath(image_id).stem) for image_id in image_ids]
    numbers = [int(match[0]) if match else None for match in found]
    times = Counter(numbers)
    return [
        image_id if number is None or times[number] > 1 else number
        for number, image_id in zip(numbers, image_ids, strict=True)
    ]


def _match_scores(logits: Tensor) -> np.ndarray:
    """Compute (n,) match probabilities from (n, 2) ITM logits."""
    return logits.float().softmax(-1)[:, 1].cpu().numpy()
