"""Evaluation of image-text models: captions, questions and statements about images."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from pathlib import PurePath

import numpy as np
from torch import Tensor

from fiber.checkpoints.model_dir import NO_ANSWERS
from fiber.data.record import Record, RecordSet
from fiber.evaluation.context import EvalContext, EvalResult, by_image, entry_id, with_groups
from fiber.metrics.captions import caption_scores
from fiber.metrics.language import masked_word_accuracy, sentence_key, statement_accuracy
from fiber.metrics.matching import matching_accuracy, swapped_accuracy
from fiber.metrics.vqa import PEOPLE_FOR_ALL, soft_accuracy, vqa_accuracy
from fiber.models.fiber.captioner import beam_search, written_tokens

#: Beams of evaluated captions, as published.
CAPTION_BEAMS = 5


def matching(context: EvalContext, records: RecordSet) -> EvalResult:
    """Evaluate ITM on one true and one false pair of each record."""
    model, backbone = context.image_text, context.image_text.backbone
    texts = [records[i] for i in range(len(records))]
    others = wrong_texts(texts)
    true_scores, false_scores, at = [], [], 0
    for batch, shown in context.batches(records, "image_text"):
        prefix = context.image_prefix(batch.images, shown)
        for scores, pairs in ((true_scores, texts), (false_scores, others)):
            ids, mask = context.texts([record.text for record in pairs[at : at + len(batch)]])
            fused = backbone.fuse(prefix, backbone.text_prefix(ids, mask), mask, wanted="pooled")
            scores.append(_match_scores(model.itm_logits(model.pooled(fused))))
        at += len(batch)
    scores = np.concatenate(true_scores + false_scores)
    labels = np.repeat([1, 0], len(texts))
    predictions = [
        {"image_key": image.key, "text_key": text.key, "score": score, "match": label}
        for image, text, score, label in zip(
            texts * 2, texts + others, scores.tolist(), labels.tolist(), strict=True
        )
    ]
    return EvalResult(matching_accuracy(scores, labels), predictions)


def wrong_texts(records: list[Record]) -> list[Record]:
    """Return, for each record, another one with another image and another text.

    Raises:
        ValueError: if there is none.
    """
    found, count = [], len(records)
    for place, record in enumerate(records):
        # Start half the set away: neighboring records may be alike.
        candidates = (records[(place + count // 2 + step) % count] for step in range(count))
        other = next(
            (r for r in candidates if r.image_id != record.image_id and r.text != record.text), None
        )
        if other is None:
            raise ValueError(f"record {record.key!r}: no other image has another caption")
        found.append(other)
    return found


def masked_words(context: EvalContext, records: RecordSet) -> EvalResult:
    """Evaluate MLM on captions with their images.

    Raises:
        ValueError: if no token was masked.
    """
    model = context.image_text
    predicted, labels, predictions = [], [], []
    for batch, shown in context.batches(records, "image_text"):
        fused = context.encode_pair(batch, shown, batch.masked_ids, wanted="text")
        assert fused.text is not None
        picked = batch.mlm_labels != -100
        guesses = model.mlm_logits(fused.text, picked).argmax(-1).cpu().numpy()
        predicted.append(guesses)
        labels.append(batch.mlm_labels[picked].cpu().numpy())
        rows, positions = picked.nonzero(as_tuple=True)
        predictions += [
            {"key": batch.keys[row], "position": position, "token": token}
            for row, position, token in zip(
                rows.tolist(), positions.tolist(), guesses.tolist(), strict=True
            )
        ]
    if not predictions:
        raise ValueError(
            f"no token of the {len(records)} texts was masked; expected texts with words, the first"
            f" is {records[0].text!r:.60}"
        )
    metrics = masked_word_accuracy(np.concatenate(predicted), np.concatenate(labels))
    return EvalResult(metrics, predictions)


def vqa(context: EvalContext, records: RecordSet) -> EvalResult:
    """Evaluate VQA; records without answers give predictions only, and a warning.

    `accuracy` is the mean score of the answers in the records. If every record has the answers of
    people (VQAv2, lines with lists of answers), `official_accuracy` and `published_accuracy` are
    added; a warning counts questions with fewer than the four people that a full score needs. A
    question without an answer in the model's vocabulary counts 0, as officially, with a warning;
    the published code drops such questions from its validation.

    Raises:
        ValueError: if the model has no answer vocabulary.
    """
    if not context.answers:
        raise ValueError(NO_ANSWERS)
    model, answers = context.image_text, []
    for batch, shown in context.batches(records, "question"):
        fused = context.encode_pair(batch, shown, batch.token_ids, wanted="pooled")
        best = model.vqa_logits(model.pooled(fused)).argmax(-1)
        answers += [context.answers[answer] for answer in best.tolist()]
    asked = [records[i] for i in range(len(records))]
    predictions = [
        {"question_id": entry_id(record.key), "answer": answer}
        for record, answer in zip(asked, answers, strict=True)
    ]
    unanswered = sum(record.answers is None for record in asked)
    if unanswered:
        warnings.warn(
            f"task 'vqa': {unanswered} of {len(asked)} questions have no answers: there are no"
            " metrics, only the predictions (--output, output)",
            RuntimeWarning,
            stacklevel=2,
        )
        return EvalResult({}, predictions)
    known = set(context.answers)
    missed = sum(known.isdisjoint(record.answers or ()) for record in asked)
    if missed:
        warnings.warn(
            f"task 'vqa': {missed} of {len(asked)} questions have no answer among the model's"
            f" {len(known)}; each counts 0",
            RuntimeWarning,
            stacklevel=2,
        )
    scores, groups = [record.answers for record in asked], [record.group for record in asked]
    metrics = with_groups(soft_accuracy, groups, answers, scores)
    people = [record.human_answers for record in asked]
    if all(people):
        metrics |= vqa_accuracy(answers, people)
        few = sum(len(given) < PEOPLE_FOR_ALL for given in people)
        if few:
            warnings.warn(
                f"task 'vqa': {few} of {len(asked)} questions were answered by fewer than"
                f" {PEOPLE_FOR_ALL} people; an answer that all of them gave may count less than 1"
                " in official_accuracy and published_accuracy",
                RuntimeWarning,
                stacklevel=2,
            )
    return EvalResult(metrics, predictions)


def nlvr2(context: EvalContext, records: RecordSet) -> EvalResult:
    """Evaluate statements about image pairs.

    A sentence is consistent if all of its pairs are answered correctly. Records share a sentence
    by NLVR2's identifiers, or by their text in other data.
    """
    model, answers = context.image_text, []
    for batch, _ in context.batches(records, "reasoning"):
        answers += (
            model.statement_logits(batch.images, batch.token_ids, batch.text_mask)
            .argmax(-1)
            .bool()
            .tolist()
        )
    asked = [records[i] for i in range(len(records))]
    predictions = [
        f"{entry_id(record.key)},{answer}" for record, answer in zip(asked, answers, strict=True)
    ]
    if any(record.truth is None for record in asked):
        return EvalResult({}, predictions)
    metrics = with_groups(
        statement_accuracy,
        [record.group for record in asked],
        np.array(answers),
        np.array([record.truth for record in asked]),
        _sentences(asked),
    )
    return EvalResult(metrics, predictions)


def _sentences(records: list[Record]) -> list[str]:
    """Return the sentence key of each statement."""
    identifiers = [str(entry_id(record.key)) for record in records]
    if all(re.fullmatch(r"[^-]+(-\d+){3}", identifier) for identifier in identifiers):
        sentences = [sentence_key(identifier) for identifier in identifiers]
        # Generated statements have one pair for each sentence of an identifier.
        if len(set(sentences)) < len(sentences):
            return sentences
    return [record.text for record in records]


def winoground(context: EvalContext, records: RecordSet) -> EvalResult:
    """Match two images with two captions that differ in word order.

    Raises:
        ValueError: if the number of records is no multiple of four.
    """
    if len(records) % 4:
        raise ValueError(
            f"got {len(records)} records; expected four for each pair: (image, caption) = (0, 0),"
            " (0, 1), (1, 0), (1, 1)"
        )
    model, scores = context.image_text, []
    for batch, shown in context.batches(records, "image_text"):
        fused = context.encode_pair(batch, shown, batch.token_ids, wanted="pooled")
        scores.append(_match_scores(model.itm_logits(model.pooled(fused))))
    # (cases, images, texts)
    cases = np.concatenate(scores).reshape(-1, 2, 2)
    groups = [records[4 * case].group for case in range(len(cases))]
    metrics = with_groups(swapped_accuracy, groups, cases.transpose(0, 2, 1))
    predictions = [
        {
            "key": records[4 * case].key.rsplit("/", 2)[0],
            "c0_i0": values[0][0],
            "c1_i0": values[0][1],
            "c0_i1": values[1][0],
            "c1_i1": values[1][1],
        }
        for case, values in enumerate(cases.tolist())
    ]
    return EvalResult(metrics, predictions)


def caption(context: EvalContext, records: RecordSet) -> EvalResult:
    """Caption each image once and compare with all of its reference captions.

    BLEU-4, ROUGE-L and CIDEr-D on the words of `metrics.captions.caption_tokens`; document
    frequencies are those of the references, as in COCO's evaluation.

    Predictions are in COCO's result format. `image_id` is the number at the end of the image's file
    name (391895 of COCO_val2014_000000391895.jpg), or the whole image_id if there is none or two
    images share it.
    """
    model, groups = context.image_text, by_image(records)
    captions: list[str] = []
    for batch, _ in context.batches([shown[0] for shown in groups.values()], "image_text"):
        tokens = model.backbone.encode_image(batch.images).stages[-1]
        found = beam_search(
            model, tokens, num_beams=CAPTION_BEAMS, max_tokens=model.config.max_tokens
        )
        captions += [
            context.tokenizer.decode(written_tokens(ids)).strip()
            for ids in found.token_ids.tolist()
        ]
    predictions = [
        {"image_id": number, "caption": text}
        for number, text in zip(_image_numbers(list(groups)), captions, strict=True)
    ]
    references = [[record.text for record in shown] for shown in groups.values()]
    return EvalResult(caption_scores(captions, references), predictions)


def _image_numbers(image_ids: list[str]) -> list[int | str]:
    """Return image ids as COCO's results have them: the number at the end of the file name."""
    found = [re.search(r"\d+$", PurePath(image_id).stem) for image_id in image_ids]
    numbers = [int(match[0]) if match else None for match in found]
    times = Counter(numbers)
    return [
        image_id if number is None or times[number] > 1 else number
        for number, image_id in zip(numbers, image_ids, strict=True)
    ]


def _match_scores(logits: Tensor) -> np.ndarray:
    """Compute match probabilities from ITM logits: (n, 2) -> (n,)."""
    return logits.float().softmax(-1)[:, 1].cpu().numpy()
