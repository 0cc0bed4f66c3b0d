"""Requests of each method: fields, and how those of a batch are computed together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from fiber.inference.by_head import METHOD_HEADS
from fiber.postprocess.json_objects import (
    about_image,
    answers_object,
    entailment_object,
    hit_object,
    match_object,
    truth_object,
)

if TYPE_CHECKING:
    import numpy as np

#: Names of images: of uploaded files, or None for images in base64.
Names = Sequence[str | None]

#: Maximum number of characters of a text, of phrases, of classes, of images to search, and of boxes
#: or instances. A computation that has started cannot be stopped.
MAX_TEXT, MAX_PHRASES, MAX_CLASSES, MAX_SEARCHED, MAX_FOUND = 4_000, 256, 4_096, 256, 1_000


def _split(value: Any) -> Any:
    """Split a text at semicolons, as on the command line; other values stay."""
    if not isinstance(value, str):
        return value
    items = [item.strip() for item in value.strip().removesuffix(";").split(";")]
    if not all(items):
        raise ValueError('expected one or more items without empty ones, as in "a mug; a laptop"')
    return items


def _from_json(value: Any) -> Any:
    """Parse a text as JSON; other values stay."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError("expected JSON, as in [[2, 12], [18, 24]]") from error


Text = Annotated[str, Field(max_length=MAX_TEXT)]
Score = Annotated[float, Field(ge=0, le=1)]
Phrases = Annotated[
    list[Text], BeforeValidator(_split), Field(min_length=1, max_length=MAX_PHRASES)
]
Classes = Annotated[
    list[Text], BeforeValidator(_split), Field(min_length=1, max_length=MAX_CLASSES)
]
Span = tuple[int, int]
Spans = Annotated[
    list[Span | list[Span]],
    BeforeValidator(_from_json),
    Field(min_length=1, max_length=MAX_PHRASES),
]
Count = Annotated[int, Field(ge=1, le=MAX_FOUND)]


class Request(BaseModel):
    """Fields of a request besides its images, named as options of the command.

    A list of texts may also be one text, which is split at semicolons.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    #: Method of the model, and path of the endpoint.
    method: ClassVar[str]
    #: Names of the images; the last of `images` stands for any number of them.
    image_fields: ClassVar[tuple[str, ...]] = ("image",)
    #: Fields that may differ between the requests of a batch.
    of_image: ClassVar[frozenset[str]] = frozenset()

    def batch_key(self) -> str | None:
        """Return what requests that may share a batch have in common; None if none may."""
        given = [name for name in sorted(self.of_image) if getattr(self, name) is not None]
        return f"{self.method} {given} {self.model_dump_json(exclude=set(self.of_image))}"

    @classmethod
    def compute(cls, model: Any, asked: Sequence[Asked]) -> list[Any]:
        """Return what the method of the model returns for each request of a batch.

        Args:
            model: a `fiber.Model`, or one of exported graphs.
            asked: requests with the same `batch_key`.
        """
        raise NotImplementedError

    def as_json(self, result: Any, names: Names, images: Sequence[np.ndarray], model: str) -> Any:
        """Return the JSON value that the command prints.

        Args:
            result: result of this request.
            names: names of its images.
            images: its images.
            model: name of the model.
        """
        return result.to_dict(image=names[0], model=model)


@dataclass(frozen=True)
class Asked:
    """A request with its images."""

    request: Any
    names: Names
    #: uint8 (H, W, 3) or, with alpha, (H, W, 4).
    images: Sequence[np.ndarray]


def _each(asked: Sequence[Asked], field: str) -> list[Any] | None:
    """Return a field of each request, or None if it was not given."""
    values = [getattr(each.request, field) for each in asked]
    return None if values[0] is None else values


def _images(asked: Sequence[Asked]) -> list[np.ndarray]:
    return [each.images[0] for each in asked]


class _BoxRequest(Request):
    threshold: Score | None = None
    presence: Score | None = None
    negatives: Phrases | None = None
    class_agnostic: bool = False
    max_detections: Count = 100

    def limits(self) -> dict[str, Any]:
        """Return the keywords of the model's method for these fields."""
        given = {
            "score_threshold": self.threshold,
            "presence_threshold": self.presence,
            "negatives": self.negatives,
            "class_agnostic": self.class_agnostic or None,
        }
        given = {name: value for name, value in given.items() if value is not None}
        return {**given, "max_detections": self.max_detections}


class GroundRequest(_BoxRequest):
    """Find boxes for phrases or a caption."""

    method = "ground"
    of_image = frozenset({"phrases", "caption", "spans"})

    phrases: Phrases | None = None
    caption: Text | None = None
    spans: Spans | None = None
    boxes_per_phrase: Count = 1
    masks: bool = False

    @classmethod
    def compute(cls, model: Any, asked: Sequence[Asked]) -> list[Any]:
        """See `Request`."""
        first: GroundRequest = asked[0].request
        return model.ground(
            _images(asked),
            _each(asked, "phrases"),
            caption=_each(asked, "caption"),
            spans=_each(asked, "spans"),
            boxes_per_phrase=first.boxes_per_phrase,
            masks=first.masks,
            **first.limits(),
        )


class DetectRequest(_BoxRequest):
    """Detect all objects of given classes."""

    method = "detect"
    of_image = frozenset({"classes"})

    classes: Classes | None = None
    classes_per_prompt: Annotated[int, Field(ge=0)] = 0

    @classmethod
    def compute(cls, model: Any, asked: Sequence[Asked]) -> list[Any]:
        """See `Request`."""
        first: DetectRequest = asked[0].request
        return model.detect(
            _images(asked),
            _each(asked, "classes"),
            classes_per_prompt=first.classes_per_prompt,
            **first.limits(),
        )


class SegmentRequest(Request):
    """Find masks of classes, or a mask for each phrase."""

    method = "segment"
    of_image = frozenset({"phrases"})

    phrases: Phrases | None = None
    alone: bool = False
    classes: Classes | None = None
    stuff: Classes | None = None
    kind: Literal["panoptic", "semantic", "instance"] | None = None
    threshold: Score | None = None
    overlap: Score | None = None
    max_instances: Count | None = None

    @classmethod
    def compute(cls, model: Any, asked: Sequence[Asked]) -> list[Any]:
        """See `Request`."""
        first: SegmentRequest = asked[0].request
        return model.segment(
            _images(asked),
            first.classes,
            stuff=first.stuff,
            kind=first.kind,
            phrases=_each(asked, "phrases"),
            together=not first.alone,
            score_threshold=first.threshold,
            overlap_threshold=first.overlap,
            max_instances=first.max_instances,
        )


class AnswerRequest(Request):
    """Answer a question about an image."""

    method = "answer"
    of_image = frozenset({"question"})

    question: Text
    top_k: Count = 3

    @classmethod
    def compute(cls, model: Any, asked: Sequence[Asked]) -> list[Any]:
        """See `Request`."""
        questions = [each.request.question for each in asked]
        return model.answer(_images(asked), questions, top_k=asked[0].request.top_k)

    def as_json(self, result: Any, names: Names, images: Sequence[np.ndarray], model: str) -> Any:
        """See `Request`."""
        about = about_image(names[0], images[0].shape, model)
        return about | answers_object(self.question, result)


class CaptionRequest(Request):
    """Caption an image."""

    method = "caption"

    num_beams: Annotated[int, Field(ge=1, le=32)] | None = None
    sample: bool = False
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0

    @classmethod
    def compute(cls, model: Any, asked: Sequence[Asked]) -> list[Any]:
        """See `Request`."""
        first: CaptionRequest = asked[0].request
        options = {"num_beams": first.num_beams, "sample": first.sample, "seed": first.seed}
        return model.caption(_images(asked), **options)

    def as_json(self, result: Any, names: Names, images: Sequence[np.ndarray], model: str) -> Any:
        """See `Request`."""
        return about_image(names[0], images[0].shape, model) | {"caption": result}


class MatchRequest(Request):
    """Score how well a text matches an image. Requests of one text share a batch."""

    method = "match"

    text: Text

    @classmethod
    def compute(cls, model: Any, asked: Sequence[Asked]) -> list[Any]:
        """See `Request`."""
        return model.match(_images(asked), asked[0].request.text).tolist()

    def as_json(self, result: Any, names: Names, images: Sequence[np.ndarray], model: str) -> Any:
        """See `Request`."""
        about = about_image(names[0], images[0].shape, model)
        return about | match_object(self.text, result)


class ReasonRequest(Request):
    """Decide whether a statement about two images is true."""

    method = "reason"
    image_fields = ("left", "right")
    of_image = frozenset({"statement"})

    statement: Text

    @classmethod
    def compute(cls, model: Any, asked: Sequence[Asked]) -> list[Any]:
        """See `Request`."""
        statements = [each.request.statement for each in asked]
        return model.reason([(each.images[0], each.images[1]) for each in asked], statements)

    def as_json(self, result: Any, names: Names, images: Sequence[np.ndarray], model: str) -> Any:
        """See `Request`."""
        return truth_object(names, model, self.statement, result)


class EntailRequest(Request):
    """Decide whether an image entails a hypothesis."""

    method = "entail"
    of_image = frozenset({"hypothesis"})

    hypothesis: Text

    @classmethod
    def compute(cls, model: Any, asked: Sequence[Asked]) -> list[Any]:
        """See `Request`."""
        hypotheses = [each.request.hypothesis for each in asked]
        return model.entail(_images(asked), hypotheses)

    def as_json(self, result: Any, names: Names, images: Sequence[np.ndarray], model: str) -> Any:
        """See `Request`."""
        about = about_image(names[0], images[0].shape, model)
        return about | entailment_object(self.hypothesis, **result._asdict())


class SearchRequest(Request):
    """Find the images that best match a text, among those of the request."""

    method = "search"
    image_fields = ("images",)

    text: Text
    top_k: Count = 10
    rerank: bool = True

    def batch_key(self) -> None:
        """Return None, since the images of a request are ranked among themselves."""

    @classmethod
    def compute(cls, model: Any, asked: Sequence[Asked]) -> list[Any]:
        """See `Request`."""
        return [
            model.search(
                each.request.text, each.images, each.request.top_k, rerank=each.request.rerank
            )
            for each in asked
        ]

    def as_json(self, result: Any, names: Names, images: Sequence[np.ndarray], model: str) -> Any:
        """See `Request`."""
        return [
            about_image(names[hit.index], images[hit.index].shape, model)
            | hit_object(self.text, rank, hit.score)
            for rank, hit in enumerate(result, start=1)
        ]


#: Requests by method.
REQUESTS: dict[str, type[Request]] = {
    each.method: each
    for each in (
        *(GroundRequest, DetectRequest, SegmentRequest, AnswerRequest, CaptionRequest),
        *(MatchRequest, ReasonRequest, EntailRequest, SearchRequest),
    )
}


def served_methods(model: Any) -> list[str]:
    """Return the methods that a model has the heads for."""
    return [name for name in REQUESTS if not set(METHOD_HEADS[name]).isdisjoint(model.heads)]
