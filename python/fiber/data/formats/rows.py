"""Read texts, answers and boxes from table rows or sample JSON in common layouts.

    caption | captions | text | texts | sentences     text, list, or objects with `raw`
    question, answer                                  one correct answer
    question, answers                                 annotators' answers, or answers with scores
    questions, answers, answer_scores                 lists of the same length (published code)
    objects: {bbox, category}                         x, y, width, height, as in COCO
    boxes_xyxy, labels                                x0, y0, x1, y1, half-open

Error messages do not name the row; callers add its location.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from fiber.data.formats.annotation_boxes import Box
from fiber.data.formats.json_values import MAX_ID_LENGTH, is_id, is_number
from fiber.messages import shown

CAPTIONS = ("caption", "captions", "text", "texts", "sentences")
QUESTIONS = ("question", "questions")
ANSWERS = ("answers", "answer_scores", "answer", "multiple_choice_answer", "question_id")
BOXES = ("objects", "boxes_xyxy")
#: For each kind of row, fields of which at least one is required, and optional fields.
FIELDS = {
    "captions": (CAPTIONS, ()),
    "questions": (QUESTIONS, ANSWERS),
    "boxes": (BOXES, ("labels",)),
}
#: Possible names of the class field in `objects`.
CATEGORIES = ("category", "label", "category_id", "categories", "labels")
#: VQAv2 soft score of an answer given by 0, 1, 2, 3, or at least 4 of ten annotators.
ANSWER_SCORES = (0.0, 0.3, 0.6, 0.9, 1.0)
_ANNOTATORS = 10


def kinds_in(fields: Collection[str]) -> set[str]:
    """Return the kinds of rows that have some of the fields."""
    return {kind for kind, (own, _) in FIELDS.items() if set(own).intersection(fields)}


def captions_of(row: Mapping[str, Any]) -> list[str] | str:
    """Return the captions of a row as a list, or a single caption as a string.

    Raises:
        ValueError: if the field is neither a string nor a list of strings.
    """
    name = next(name for name in CAPTIONS if name in row)
    found = row[name]
    if found is None:
        return []
    if isinstance(found, str):
        return found
    if not isinstance(found, list):
        raise ValueError(f"has {name!r} {shown(found)}; expected a string or list of strings")
    texts: list[Any] = [one.get("raw") if isinstance(one, Mapping) else one for one in found]
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"has {shown(text)} in {name!r}; expected a string")
    return texts


def questions_of(row: Mapping[str, Any]) -> Iterator[tuple[str | int | None, dict[str, Any]]]:
    """Yield the id (None if not given) and the record fields of each question in a row.

    Raises:
        ValueError: if a question or answer is invalid.
    """
    number = row.get("question_id")
    if "questions" not in row:
        fields = {"text": _text(row["question"], "question"), **_answers(row)}
        yield None if number is None else check_id(number, "question_id"), fields
        return
    questions, answers, scores = row["questions"], row.get("answers"), row.get("answer_scores")
    _check_list(questions, "questions")
    for name, values in (("question_id", number), ("answers", answers), ("answer_scores", scores)):
        if values is not None and values != []:
            check_one_each(values, name, questions)
    for index, text in enumerate(questions):
        own = {}
        if answers and scores:
            own = {"answers": _scored(answers[index] or [], scores[index] or [])}
        elif answers:
            own = _answers({"answers": answers[index]})
        fields = {"text": _text(text, "questions"), **own}
        yield check_id(number[index], "question_id") if number else None, fields


def check_id(value: Any, name: str) -> str | int:
    """Return an id; raise ValueError if it is none; see `is_id`."""
    if not is_id(value):
        raise ValueError(
            f"has {name!r} {shown(value)}; expected a string of 1 to {MAX_ID_LENGTH} characters or"
            " an integer below 2**63"
        )
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"has {name!r} {shown(value)}; expected a nonempty string")
    return value


def _answers(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record fields `answers` (soft scores) and, if known, `human_answers`."""
    given_answers, scores = row.get("answers"), row.get("answer_scores")
    if isinstance(given_answers, Mapping):
        return {"answers": check_scores(given_answers)}
    if isinstance(given_answers, list) and given_answers:
        given = [one.get("answer") if isinstance(one, Mapping) else one for one in given_answers]
        answers = tuple(_text(answer, "answers") for answer in given)
        if scores:
            return {"answers": _scored(list(answers), scores)}
        return {"answers": scores_of(answers), "human_answers": answers}
    if given_answers:
        raise ValueError(f"has 'answers' {shown(given_answers)}; expected a list")
    one = row.get("answer", row.get("multiple_choice_answer"))
    return {} if one is None else {"answers": {_text(one, "answer"): 1.0}}


def _scored(answers: Any, scores: Any) -> dict[str, float]:
    _check_list(answers, "answers")
    _check_list(scores, "answer_scores")
    if len(answers) != len(scores):
        raise ValueError(
            f"has {len(answers)} 'answers' but {len(scores)} 'answer_scores'; expected equal counts"
        )
    return check_scores({_text(one, "answers"): s for one, s in zip(answers, scores, strict=True)})


def _check_list(values: Any, name: str) -> None:
    if not isinstance(values, list):
        raise ValueError(f"has {name!r} {shown(values)}; expected a list")


def check_one_each(values: Any, name: str, questions: Any) -> None:
    """Raise ValueError unless `values` is a list with one entry per question."""
    _check_list(questions, "questions")
    _check_list(values, name)
    if len(values) != len(questions):
        raise ValueError(
            f"has {len(questions)} 'questions' but {len(values)} {name!r}; expected equal counts"
        )


def check_scores(scores: Mapping[str, Any]) -> dict[str, float]:
    """Return soft scores as floats; raise ValueError for a score that is not in [0, 1]."""
    for answer, given in scores.items():
        if not is_number(given) or not 0 <= given <= 1:
            raise ValueError(
                f"has score {shown(given)} for answer {shown(answer)}; expected a number in [0, 1]"
            )
    return {answer: float(score) for answer, score in scores.items()}


def scores_of(answers: Sequence[str]) -> dict[str, float]:
    """Return VQAv2 soft scores of annotators' answers. Counts are scaled to ten annotators."""
    counts = Counter(answers)
    return {
        answer: ANSWER_SCORES[min(4, round(_ANNOTATORS * times / len(answers)))]
        for answer, times in counts.items()
    }


def boxes_of(row: Mapping[str, Any]) -> Iterator[tuple[Box, str | int]]:
    """Yield the boxes of a row, each with its class name or index.

    Raises:
        ValueError: if the numbers of boxes and classes differ, or a box is not four numbers.
    """
    is_xyxy = "boxes_xyxy" in row
    boxes, classes = box_lists(row)
    boxes, classes = ([] if each is None else each for each in (boxes, classes))
    if not isinstance(boxes, list) or not isinstance(classes, list) or len(boxes) != len(classes):
        given = f"boxes {shown(boxes)} and classes {shown(classes)}"
        raise ValueError(f"has {given}; expected one class per box")
    for number, (box, category) in enumerate(zip(boxes, classes, strict=True)):
        if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
            raise ValueError(f"has box {number} {shown(box)}; expected four numbers")
        if not isinstance(category, str | int) or isinstance(category, bool):
            raise ValueError(f"has class {shown(category)}; expected a name or an index")
        x0, y0, x1, y1 = map(float, box)
        yield (x0, y0, x1, y1) if is_xyxy else (x0, y0, x0 + x1, y0 + y1), category


def box_lists(row: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the boxes and the classes of a row; raise ValueError if there is no place for them."""
    if "boxes_xyxy" in row:
        return row["boxes_xyxy"], row.get("labels")
    return _object_lists(row["objects"])


def _object_lists(objects: Any) -> tuple[Any, Any]:
    """Return the boxes and classes in `objects`, a struct of lists or a list of structs."""
    if isinstance(objects, list) and all(isinstance(one, Mapping) for one in objects):
        return [one.get("bbox") for one in objects], [_category(one) for one in objects]
    if isinstance(objects, Mapping):
        return objects.get("bbox"), _category(objects)
    raise ValueError(f"has 'objects' {shown(objects)}; expected objects with 'bbox' and 'category'")


def _category(entry: Mapping[str, Any]) -> Any:
    return next((entry[name] for name in CATEGORIES if name in entry), None)
