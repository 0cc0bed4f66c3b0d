"""JSON objects of results, as commands print and `fiber serve` returns them.

`Detections.to_dict` and `Segmentation.to_dict` make those of boxes and masks. Scores have four
decimals.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def about_image(name: str | None, shape: Sequence[int], model: str) -> dict[str, Any]:
    """Return the fields of an image, whose shape starts with height and width, and of the model."""
    return {"image": name, "width": shape[1], "height": shape[0], "model": model}


def answers_object(question: str, answers: Sequence[tuple[str, float]]) -> dict[str, Any]:
    """Return the answers to a question with their scores, best first."""
    scored = [{"answer": text, "score": round(score, 4)} for text, score in answers]
    return {"question": question, "answers": scored}


def match_object(text: str, score: float) -> dict[str, Any]:
    """Return the probability that a text matches an image."""
    return {"text": text, "score": round(score, 4)}


def hit_object(text: str, rank: int, score: float) -> dict[str, Any]:
    """Return a hit of a search; the best has rank 1."""
    return {"text": text, "rank": rank, "score": round(score, 4)}


def entailment_object(hypothesis: str, label: str, **probabilities: float) -> dict[str, Any]:
    """Return the class of a hypothesis, and the probability of each class."""
    scores = {name: round(score, 4) for name, score in probabilities.items()}
    return {"hypothesis": hypothesis, "label": label, **scores}


def truth_object(
    names: Sequence[str | None], model: str, statement: str, truth: bool
) -> dict[str, Any]:
    """Return whether a statement about the pair of images (left, right) is true."""
    left, right = names
    about = {"left": left, "right": right, "model": model}
    return {**about, "statement": statement, "truth": truth}
