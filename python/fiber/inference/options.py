"""Argument types for the overloads of `Model.ground`, `detect`, `segment` and `caption`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, TypedDict

from fiber.data.prompts.classes import ClassLike

#: Phrases or classes for all images, or one list per image.
Phrases: TypeAlias = str | Sequence[str] | Sequence[Sequence[str]] | None
Classes: TypeAlias = ClassLike | Sequence[ClassLike] | Sequence[Sequence[ClassLike]] | None


class BoxOptions(TypedDict, total=False):
    """Options of `Model.ground` and `Model.detect`."""

    score_threshold: float | None
    presence_threshold: float | None
    nms_threshold: float
    max_detections: int
    class_agnostic: bool


class GroundOptions(BoxOptions, total=False):
    """Options of `Model.ground`."""

    caption: str | Sequence[str] | None
    spans: Sequence[Any] | None
    boxes_per_phrase: int
    masks: bool
    negatives: str | Sequence[str] | None


class DetectOptions(BoxOptions, total=False):
    """Options of `Model.detect`."""

    classes_per_prompt: int | None
    negatives: Sequence[ClassLike] | ClassLike | None


class SegmentOptions(TypedDict, total=False):
    """Options of `Model.segment`."""

    stuff: str | Sequence[str] | None
    kind: str | None
    phrases: Phrases
    together: bool
    score_threshold: float | None
    overlap_threshold: float | None
    max_instances: int | None


class CaptionOptions(TypedDict, total=False):
    """Options of `Model.caption`."""

    region: Any
    num_beams: int | None
    max_tokens: int | None
    sample: bool
    seed: int
