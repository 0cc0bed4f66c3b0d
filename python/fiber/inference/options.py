"""Argument types for the overloads of `Model.ground`, `detect` and `caption`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, TypedDict

from fiber.data.prompts.classes import ClassLike

#: Phrases or classes for all images, or one list per image.
Phrases: TypeAlias = str | Sequence[str] | Sequence[Sequence[str]] | None
Classes: TypeAlias = ClassLike | Sequence[ClassLike] | Sequence[Sequence[ClassLike]] | None


class BoxOptions(TypedDict, total=False):
    """Options of `Model.ground` and `Model.detect`."""

    score_threshold: float
    nms_threshold: float
    max_detections: int


class GroundOptions(BoxOptions, total=False):
    """Options of `Model.ground`."""

    caption: str | Sequence[str] | None
    spans: Sequence[Any] | None
    boxes_per_phrase: int


class DetectOptions(BoxOptions, total=False):
    """Options of `Model.detect`."""

    classes_per_prompt: int | None


class CaptionOptions(TypedDict, total=False):
    """Options of `Model.caption`."""

    num_beams: int | None
    max_tokens: int | None
    sample: bool
    seed: int
