"""The published list of VQAv2 answers, in the logit order of the published head.

Published checkpoints store only answer indices. The texts are derived from the annotations of
VQAv2's train and val splits, as in the published code, or read from the published Arrow files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fiber.data.datasets.registry import where_to_get
from fiber.data.formats.annotation_file import read_json, without_garbage_collection
from fiber.data.formats.arrow import table_answers
from fiber.data.record import AnyPath
from fiber.metrics.vqa import normalize_answer

#: Number of answers in the published head.
PUBLISHED_COUNT = 3129
#: Number of questions in the complete train and val splits.
WHOLE_QUESTIONS = 443_757 + 214_354
#: An answer is listed if it is the majority answer of at least this many questions.
MIN_QUESTIONS = 9

_ORIGINALS = ("v2_mscoco_train2014_annotations.json", "v2_mscoco_val2014_annotations.json")
_ARROW = ("vqav2_train.arrow", "vqav2_val.arrow")
_KIND = "VQAv2 annotations, original layout"


class PublishedAnswers(NamedTuple):
    """Answers in logit order, with notes on their origin."""

    answers: tuple[str, ...]
    #: Number and origin of the answers, and any deviations from the published list.
    notes: tuple[str, ...]


def published_answers(folder: AnyPath) -> PublishedAnswers:
    """Build the list of answers from a folder with VQAv2's JSON files or the published Arrow files.

    Raises:
        FileNotFoundError: if a file is missing; the error says where to get it.
        ValueError: if an entry is invalid, or no answer is frequent enough.
    """
    originals, stored = ([Path(folder) / name for name in names] for names in (_ORIGINALS, _ARROW))
    if any(path.is_file() for path in originals):
        return _from_originals(originals)
    if any(path.is_file() for path in stored):
        return _from_arrow(stored)
    raise FileNotFoundError(
        f"{folder} has no VQAv2 annotations; expected {' and '.join(_ORIGINALS)}, from"
        f" {where_to_get(_KIND)}, or {' and '.join(_ARROW)}"
    )


def frequent_answers(majority: Sequence[str]) -> tuple[str, ...]:
    """Return the normalized answers that are the majority answer to nine or more questions.

    `majority` contains the majority answer to each question in file order, train before val.

    Source: the published code's write_vqa.py.
    """
    # Normalize each distinct answer only once: most answers are repeated very often.
    normalized = {answer: normalize_answer(answer) for answer in set(majority)}
    counts = Counter(normalized[answer] for answer in majority)
    return tuple(answer for answer, count in counts.items() if count >= MIN_QUESTIONS)


@without_garbage_collection()
def _from_originals(paths: Sequence[Path]) -> PublishedAnswers:
    majority = []
    for path in paths:
        file = read_json(path, _KIND)
        for entry in file.walk("annotations"):
            majority.append(file.get(entry, "multiple_choice_answer", str))
    answers = frequent_answers(majority)
    if not answers:
        raise ValueError(
            f"{paths[0].parent}: no answer is the majority answer of at least {MIN_QUESTIONS} of"
            f" the {len(majority)} questions; expected the complete {' and '.join(_ORIGINALS)}"
        )
    notes = [f"{len(answers)} answers, from {len(majority)} questions"]
    if len(majority) == WHOLE_QUESTIONS:
        notes += _count_notes(len(answers))
    else:
        notes.append(
            "this is not the published list: the complete train and val splits have"
            f" {WHOLE_QUESTIONS} questions"
        )
    return PublishedAnswers(answers, tuple(notes))


def _from_arrow(paths: Sequence[Path]) -> PublishedAnswers:
    known = table_answers(*paths)
    if not known:
        raise ValueError(f"{paths[0].parent}: {' and '.join(_ARROW)} contain no answers")
    total = max(known) + 1
    missing = [label for label in range(total) if label not in known]
    # Each placeholder is distinct, since answers must be unique.
    answers = tuple(known.get(label, f"unknown {label}") for label in range(total))
    notes = [f"{total} answers, from {' and '.join(_ARROW)}"]
    if missing:
        notes.append(
            f"{len(missing)} of them do not occur in these files and are named 'unknown"
            f" {missing[0]}' and so on; {' and '.join(_ORIGINALS)} contain them"
        )
    return PublishedAnswers(answers, (*notes, *_count_notes(total)))


def _count_notes(count: int) -> list[str]:
    if count == PUBLISHED_COUNT:
        return []
    return [f"this is not the published list, which has {PUBLISHED_COUNT} answers"]
