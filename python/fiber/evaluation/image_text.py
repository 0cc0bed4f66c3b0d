"""Measurements of the coarse model: pictures with captions, questions and statements."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from pathlib import PurePath

import numpy as np
from torch import Tensor

from fiber.checkpoints.model_dir import NO_ANSWERS
from fiber.data.record import Record, RecordSet
from fiber.evaluation.context import Measured, Subject, by_picture, entry_id, with_groups
from fiber.metrics.captions import caption_scores
from fiber.metrics.language import masked_word_accuracy, sentence_key, statement_accuracy
from fiber.metrics.matching import matching_accuracy, swapped_accuracy
from fiber.metrics.vqa import PEOPLE_FOR_ALL, soft_accuracy, vqa_accuracy
from fiber.models.fiber.captioner import beam_search, written_tokens

#: Beams of the captions that are measured, as published.
CAPTION_BEAMS = 5


def matching(subject: Subject, records: RecordSet) -> Measured:
    """Tell a picture's caption from that of another picture: one true and one false pair each."""
    model, backbone = subject.image_text, subject.image_text.backbone
    texts = [records[i] for i in range(len(records))]
    others = wrong_texts(texts)
    true_scores, false_scores, at = [], [], 0
    for batch, shown in subject.batches(records, "image_text"):
        prefix = subject.image_prefix(batch.images, shown)
        for scores, pairs in ((true_scores, texts), (false_scores, others)):
            ids, mask = subject.texts([record.text for record in pairs[at : at + len(batch)]])
            fused = backbone.fuse(prefix, backbone.text_prefix(ids, mask), mask, wanted="pooled")
            scores.append(_match_scores(model.itm_logits(model.pooled(fused))))
        at += len(batch)
    scores = np.concatenate(true_scores + false_scores)
    labels = np.repeat([1, 0], len(texts))
    predictions = [
        {"image_key": shown.key, "text_key": said.key, "score": score, "match": label}
        for shown, said, score, label in zip(
            texts * 2, texts + others, scores.tolist(), labels.tolist(), strict=True
        )
    ]
    return Measured(matching_accuracy(scores, labels), predictions)


def wrong_texts(records: list[Record]) -> list[Record]:
    """For each record, one further on that shows another picture and says something else.

    Raises:
        ValueError: if all records show one picture or say one thing.
    """
    found, count = [], len(records)
    for place, record in enumerate(records):
        # From half the set away, so that neighbours, which may be alike, are not paired.
        candidates = (records[(place + count // 2 + step) % count] for step in range(count))
        other = next(
            (r for r in candidates if r.image_id != record.image_id and r.text != record.text), None
        )
        if other is None:
            raise ValueError(f"record {record.key!r}: no other picture has another caption")
        found.append(other)
    return found


def masked_words(subject: Subject, records: RecordSet) -> Measured:
    """Guess masked tokens of captions beside their pictures.

    Raises:
        ValueError: if no text has a word that was masked.
    """
    model = subject.image_text
    predicted, labels, predictions = [], [], []
    for batch, shown in subject.batches(records, "image_text"):
        fused = subject.encode_pair(batch, shown, batch.masked_ids, wanted="text")
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
    return Measured(metrics, predictions)


def vqa(subject: Subject, records: RecordSet) -> Measured:
    """Answer questions; without answers in the records there are predictions only, and a warning.

    `accuracy` is the mean score of the answers in the records. Where every record tells what people
    answered (VQAv2, lines with lists of answers), both named forms stand beside it; with the scores
    of ten people each it is the published one. A warning says how many questions have fewer than
    the four people that the named forms need for a full score. A question that no answer of the
    model fits counts 0, as officially, and a warning says how many there are; the published code
    leaves such questions out of its validation.

    Raises:
        ValueError: if the model has no list of answers.
    """
    if not subject.answers:
        raise ValueError(NO_ANSWERS)
    model, said = subject.image_text, []
    for batch, shown in subject.batches(records, "question"):
        fused = subject.encode_pair(batch, shown, batch.token_ids, wanted="pooled")
        best = model.vqa_logits(model.pooled(fused)).argmax(-1)
        said += [subject.answers[answer] for answer in best.tolist()]
    asked = [records[i] for i in range(len(records))]
    predictions = [
        {"question_id": entry_id(record.key), "answer": answer}
        for record, answer in zip(asked, said, strict=True)
    ]
    unanswered = sum(record.answers is None for record in asked)
    if unanswered:
        warnings.warn(
            f"task 'vqa': {unanswered} of {len(asked)} questions have no answers: there are no"
            " metrics, only the predictions (--output, output)",
            RuntimeWarning,
            stacklevel=2,
        )
        return Measured({}, predictions)
    known = set(subject.answers)
    missed = sum(known.isdisjoint(record.answers or ()) for record in asked)
    if missed:
        warnings.warn(
            f"task 'vqa': {missed} of {len(asked)} questions have no answer among the model's"
            f" {len(known)}; each counts 0",
            RuntimeWarning,
            stacklevel=2,
        )
    scores, groups = [record.answers for record in asked], [record.group for record in asked]
    metrics = with_groups(soft_accuracy, groups, said, scores)
    people = [record.human_answers for record in asked]
    if all(people):
        metrics |= vqa_accuracy(said, people)
        few = sum(len(given) < PEOPLE_FOR_ALL for given in people)
        if few:
            warnings.warn(
                f"task 'vqa': {few} of {len(asked)} questions were answered by fewer than"
                f" {PEOPLE_FOR_ALL} people; what all of them said may count less than 1 in"
                " official_accuracy and published_accuracy",
                RuntimeWarning,
                stacklevel=2,
            )
    return Measured(metrics, predictions)


def nlvr2(subject: Subject, records: RecordSet) -> Measured:
    """Say whether statements about two pictures are true.

    A sentence is consistent if it was answered rightly for all of its pairs; NLVR2's identifiers
    tell which records these are, elsewhere it is the text.
    """
    model, said = subject.image_text, []
    for batch, _ in subject.batches(records, "reasoning"):
        said += (
            model.statement_logits(batch.images, batch.token_ids, batch.text_mask)
            .argmax(-1)
            .bool()
            .tolist()
        )
    asked = [records[i] for i in range(len(records))]
    predictions = [
        f"{entry_id(record.key)},{answer}" for record, answer in zip(asked, said, strict=True)
    ]
    if any(record.truth is None for record in asked):
        return Measured({}, predictions)
    metrics = with_groups(
        statement_accuracy,
        [record.group for record in asked],
        np.array(said),
        np.array([record.truth for record in asked]),
        _sentences(asked),
    )
    return Measured(metrics, predictions)


def _sentences(records: list[Record]) -> list[str]:
    """Name the sentence of each statement."""
    identifiers = [str(entry_id(record.key)) for record in records]
    if all(re.fullmatch(r"[^-]+(-\d+){3}", identifier) for identifier in identifiers):
        sentences = [sentence_key(identifier) for identifier in identifiers]
        # Statements of `fiber data` have one pair for each sentence of an identifier.
        if len(set(sentences)) < len(sentences):
            return sentences
    return [record.text for record in records]


def winoground(subject: Subject, records: RecordSet) -> Measured:
    """Match two pictures with two captions that differ in the order of words.

    Raises:
        ValueError: if the records do not come in fours.
    """
    if len(records) % 4:
        raise ValueError(
            f"got {len(records)} records; expected four for each pair: (picture, caption) = (0, 0),"
            " (0, 1), (1, 0), (1, 1)"
        )
    model, scores = subject.image_text, []
    for batch, shown in subject.batches(records, "image_text"):
        fused = subject.encode_pair(batch, shown, batch.token_ids, wanted="pooled")
        scores.append(_match_scores(model.itm_logits(model.pooled(fused))))
    # [case, picture, text]
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
    return Measured(metrics, predictions)


def caption(subject: Subject, records: RecordSet) -> Measured:
    """Describe each picture once, and compare with all of its captions.

    BLEU-4, ROUGE-L and CIDEr-D of words as `metrics.captions.caption_tokens` gives them; document
    frequencies are those of the captions that are compared with, as in COCO's evaluation.

    Predictions are in COCO's result format; `image_id` is the number that the picture's file name
    ends in (391895 of COCO_val2014_000000391895.jpg), or its whole image_id where that has none or
    is another picture's too.
    """
    model, groups = subject.image_text, by_picture(records)
    said: list[str] = []
    for batch, _ in subject.batches([shown[0] for shown in groups.values()], "image_text"):
        tokens = model.backbone.encode_image(batch.images).stages[-1]
        found = beam_search(
            model, tokens, num_beams=CAPTION_BEAMS, max_tokens=model.config.max_tokens
        )
        said += [
            subject.tokenizer.decode(written_tokens(ids)).strip()
            for ids in found.token_ids.tolist()
        ]
    predictions = [
        {"image_id": number, "caption": text}
        for number, text in zip(_image_numbers(list(groups)), said, strict=True)
    ]
    references = [[record.text for record in shown] for shown in groups.values()]
    return Measured(caption_scores(said, references), predictions)


def _image_numbers(image_ids: list[str]) -> list[int | str]:
    """Name pictures as COCO's results do: by the number at the end of the file's name."""
    found = [re.search(r"\d+$", PurePath(image_id).stem) for image_id in image_ids]
    numbers = [int(match[0]) if match else None for match in found]
    times = Counter(numbers)
    return [
        image_id if number is None or times[number] > 1 else number
        for number, image_id in zip(numbers, image_ids, strict=True)
    ]


def _match_scores(logits: Tensor) -> np.ndarray:
    """Probability that picture and text belong together: (n, 2) -> (n,)."""
    return logits.float().softmax(-1)[:, 1].cpu().numpy()
