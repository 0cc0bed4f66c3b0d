"""The published list of VQAv2 answers, in the order of the published head's logits.

A published checkpoint knows its answers by number only. Their texts are made again from what they
were made of, the annotations of VQAv2's train and val, or read from the published Arrow files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from fiber.data.formats.annotation_file import read_json, where_to_get, without_garbage_collection
from fiber.data.formats.arrow import table_answers
from fiber.metrics.vqa import normalize_answer

#: Answers of the published head.
PUBLISHED_COUNT = 3129
#: Questions of the original train and val.
WHOLE_QUESTIONS = 443_757 + 214_354
#: Questions whose majority gave an answer, for it to be in the list.
MIN_QUESTIONS = 9

_ORIGINALS = ("v2_mscoco_train2014_annotations.json", "v2_mscoco_val2014_annotations.json")
_ARROW = ("vqav2_train.arrow", "vqav2_val.arrow")
_KIND = "VQAv2 annotations, original files"


class PublishedAnswers(NamedTuple):
    """Answers in the order of the logits, and what there is to say of them."""

    answers: tuple[str, ...]
    #: Sentences: how many there are and of what they were made; what is doubtful.
    told: tuple[str, ...]


def published_answers(folder: str | PathLike[str]) -> PublishedAnswers:
    """Make the list from the files of a folder: the original ones, if any of them is there.

    Args:
        folder: with v2_mscoco_train2014_annotations.json and v2_mscoco_val2014_annotations.json, or
            with vqav2_train.arrow and vqav2_val.arrow.

    Raises:
        FileNotFoundError: if a file is missing, with its name and where to get it.
        ValueError: if an entry is not as expected, by name, or no answer is frequent enough.
    """
    originals, stored = ([Path(folder) / name for name in names] for names in (_ORIGINALS, _ARROW))
    if any(path.is_file() for path in originals):
        return _from_originals(originals)
    if any(path.is_file() for path in stored):
        return _from_arrow(stored)
    raise FileNotFoundError(
        f"{folder} holds no annotations of VQAv2; expected {' and '.join(_ORIGINALS)}, from"
        f" {where_to_get(_KIND)}, or {' and '.join(_ARROW)}"
    )


def frequent_answers(majority: Sequence[str]) -> tuple[str, ...]:
    """List the answers of at least nine questions, normalised, in the order of first appearance.

    Args:
        majority: what most people answered, for each question of train and then of val, in the
            order of their files.

    Source: the published code's write_vqa.py.
    """
    # The same few answers are given again and again.
    normalized = {answer: normalize_answer(answer) for answer in set(majority)}
    counts = Counter(normalized[answer] for answer in majority)
    return tuple(answer for answer, count in counts.items() if count >= MIN_QUESTIONS)


def _from_originals(paths: Sequence[Path]) -> PublishedAnswers:
    majority = [answer for path in paths for answer in _majority(path)]
    answers = frequent_answers(majority)
    if not answers:
        raise ValueError(
            f"{paths[0].parent}: none of the {len(majority)} questions' answers is that of"
            f" {MIN_QUESTIONS} or more; expected the whole of {' and '.join(_ORIGINALS)}"
        )
    count = f"{len(answers)} answers, from {len(majority)} questions"
    if len(majority) != WHOLE_QUESTIONS:
        doubt = (
            f"the original train and val have {WHOLE_QUESTIONS} questions together: this is not the"
            " published list"
        )
        return PublishedAnswers(answers, (count, doubt))
    return PublishedAnswers(answers, (count, *_doubt(len(answers))))


@without_garbage_collection
def _majority(path: Path) -> list[str]:
    """Read what most people answered to each question of a file."""
    file = read_json(path, _KIND)
    return [file.get(entry, "multiple_choice_answer", str) for entry in file.walk("annotations")]


def _from_arrow(paths: Sequence[Path]) -> PublishedAnswers:
    known = table_answers(*paths)
    if not known:
        raise ValueError(f"{paths[0].parent}: {' and '.join(_ARROW)} hold no answers")
    total = max(known) + 1
    missing = [label for label in range(total) if label not in known]
    # Each a text of its own, as a list of answers must have.
    answers = tuple(known.get(label, f"unknown {label}") for label in range(total))
    told = [f"{total} answers, from {' and '.join(_ARROW)}"]
    if missing:
        told.append(
            f"{len(missing)} of them are the answer to no question of these files and are named"
            f" 'unknown {missing[0]}' and so on; {' and '.join(_ORIGINALS)} tell them"
        )
    return PublishedAnswers(answers, (*told, *_doubt(total)))


def _doubt(count: int) -> Iterator[str]:
    if count != PUBLISHED_COUNT:
        yield f"the published list has {PUBLISHED_COUNT}: this is another one"
