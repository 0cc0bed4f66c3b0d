"""`segment`: masks of classes and of phrases."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack, get_args, overload

import numpy as np

from fiber.config_io import nearest
from fiber.inference.boxes import BoxMethods
from fiber.inference.inputs import (
    ArrayInputs,
    ImageInput,
    Images,
    as_list,
    as_texts,
    not_empty,
    one_list_for_each,
)
from fiber.inference.masks.class_vectors import ClassVectorCache, ClassVectors
from fiber.inference.masks.reading import read_each
from fiber.inference.options import Phrases, SegmentOptions
from fiber.inference.suggestions import suggest_keywords_of_methods
from fiber.messages import shown
from fiber.models.mask_abilities import SegmentsMasks
from fiber.ops.arrays import functions_of
from fiber.postprocess.masks import (
    MaskSizes,
    final_instances,
    final_masks,
    final_panoptic,
    final_semantic,
)
from fiber.postprocess.segmentation import Kind, LabeledSegment, Segmentation, paint

if TYPE_CHECKING:
    from torch import Tensor


#: Default thresholds of panoptic segments: of the score, and of the share of a mask's pixels.
SCORE_THRESHOLD, OVERLAP_THRESHOLD = 0.8, 0.8
#: Default maximum number of instances.
MAX_INSTANCES = 100
_NO_CLASSES = (
    "segment: expected classes or phrases, got neither; pass the classes to find"
    ' (classes=["zebra", "grass"]) or phrases (phrases=["the left zebra"])'
)


@dataclass(frozen=True)
class _ClassQuestion:
    """Classes to find in each image, and how."""

    kind: Kind
    classes: tuple[str, ...]
    is_thing: tuple[bool, ...]
    score_threshold: float
    overlap_threshold: float
    max_instances: int


class _Found(NamedTuple):
    """Result for an image, without the image itself."""

    ids: np.ndarray
    segments: list[LabeledSegment]
    overlapping: np.ndarray | None = None


@suggest_keywords_of_methods
class MaskMethods(BoxMethods):
    """All methods of models: base class of models, which set the attributes."""

    _class_vectors: ClassVectorCache | None

    def _start_boxes(self) -> None:
        super()._start_boxes()
        # From the first call of `segment` or `class_vectors` on.
        self._class_vectors = None

    def class_vectors(self, classes: str | Sequence[str]) -> ClassVectors:
        """Compute the vectors of classes that `segment` finds, which can be saved.

        A model keeps those of the last vocabularies, so `segment` computes them once for a list of
        names.

        Args:
            classes: names of the classes.

        Raises:
            ValueError: if there are no names, or a name is empty, there twice, or has too many
                tokens for the text encoder.
        """
        network = self._able(SegmentsMasks, "mask", "class_vectors")
        with self._computing():
            return self._vectors(network).of(_class_names(classes))

    @overload
    def segment(
        self,
        images: ImageInput,
        classes: str | Sequence[str] | ClassVectors | None = None,
        **options: Unpack[SegmentOptions],
    ) -> Segmentation: ...
    @overload
    def segment(
        self,
        images: Images,
        classes: str | Sequence[str] | ClassVectors | None = None,
        **options: Unpack[SegmentOptions],
    ) -> list[Segmentation]: ...

    def segment(
        self,
        images: ImageInput | Images,
        classes: str | Sequence[str] | ClassVectors | None = None,
        *,
        stuff: str | Sequence[str] | None = None,
        kind: str | None = None,
        phrases: Phrases = None,
        together: bool = True,
        score_threshold: float | None = None,
        overlap_threshold: float | None = None,
        max_instances: int | None = None,
    ) -> Segmentation | list[Segmentation]:
        """Find masks of classes, or a mask for each phrase.

        Args:
            images: an image or a list of images. Each is computed alone.
            classes: class names for all images, or their vectors (`class_vectors`). Default: the
                classes that the model was trained on.
            stuff: those of the classes that have no instances, such as grass.
            kind: "panoptic" (default): each pixel belongs to one segment or none. "semantic": each
                pixel belongs to a class. "instance": masks of classes that are no stuff, which may
                overlap; those without a pixel are dropped.
            phrases: instead of classes, a phrase, a list of phrases for all images, or one list per
                image.
            together: ask all phrases of an image at once, as published: they influence one another.
                False asks each alone.
            score_threshold: minimum score in [0, 1], see `Segmentation`. Default: 0.8 for panoptic
                segments, 0 for instances.
            overlap_threshold: of a panoptic segment, least share of its mask's pixels that no
                better mask takes, in [0, 1] (default: 0.8).
            max_instances: maximum number of instances of an image (default: 100).

        Returns:
            The segments of each image. With phrases, a segment for each, in order; its mask may be
            empty.

        Raises:
            MissingHeadError: if the model finds no masks.
            ValueError: if there are neither classes nor phrases, or both; a class is there twice;
                stuff is no class; a text has too many tokens for the text encoder; an option is not
                for this kind or out of range.
        """
        network = self._able(SegmentsMasks, "mask", "segment")
        given, single = as_list(images)
        options = {
            "score_threshold": score_threshold,
            "overlap_threshold": overlap_threshold,
            "max_instances": max_instances,
        }
        with self._computing():
            if phrases is not None:
                _check_only_phrases(classes=classes, stuff=stuff, kind=kind, **options)
                lists = one_list_for_each(phrases, len(given), "phrase")  # type: ignore[arg-type]
                ask = _phrase_asker(network, self._inputs, lists, together)
                found = _for_each(self._inputs, given, "phrases", ask, network)
            else:
                if together is not True:
                    raise ValueError(f"segment: together={shown(together)} is for phrases")
                vectors = self._vectors_of(network, classes)
                question = _class_question(vectors.classes, stuff, kind, **options)
                ask = _class_asker(network, self._inputs, vectors, question)
                found = _for_each(self._inputs, given, question.kind, ask, network)
        return found[0] if single else found

    def _vectors_of(
        self, network: SegmentsMasks, classes: str | Sequence[str] | ClassVectors | None
    ) -> ClassVectors:
        kept = self._vectors(network)
        if isinstance(classes, ClassVectors):
            kept.check(classes)
            return classes
        if classes is None and not self.classes:
            raise ValueError(_NO_CLASSES)
        return kept.of(_class_names(self.classes if classes is None else classes))

    def _vectors(self, network: SegmentsMasks) -> ClassVectorCache:
        if self._class_vectors is None:
            self._class_vectors = ClassVectorCache(network, self._inputs)
        return self._class_vectors


#: Function of a memory of one image, its sizes and its index among the images.
_Ask = Callable[[Any, "MaskSizes", int], _Found]


def _for_each(
    inputs: ArrayInputs, images: list[Any], kind: Kind, ask: _Ask, network: SegmentsMasks
) -> list[Segmentation]:
    results: dict[int, Segmentation] = {}
    for image in read_each(network, inputs, images, kind):
        found = ask(image.memory, image.sizes, image.number)
        results[image.number] = Segmentation(
            kind, found.ids, tuple(found.segments), found.overlapping, image.original
        )
    return [results[index] for index in range(len(images))]


def _class_asker(
    network: SegmentsMasks, inputs: ArrayInputs, vectors: ClassVectors, asked: _ClassQuestion
) -> _Ask:
    outputs = {"panoptic": _panoptic, "semantic": _semantic, "instance": _instances}
    output = outputs[asked.kind]
    like = inputs.empty(0)
    tensor = functions_of(like).moved(vectors.vectors, like)

    def ask(memory: Any, sizes: MaskSizes, index: int) -> _Found:
        class_logits, mask_logits = network.class_masks(memory, tensor)
        return output(mask_logits[0], class_logits[0], sizes, asked)

    return ask


def _panoptic(
    mask_logits: Tensor, class_logits: Tensor, sizes: MaskSizes, asked: _ClassQuestion
) -> _Found:
    found = final_panoptic(
        mask_logits,
        class_logits,
        sizes,
        asked.is_thing,
        score_threshold=asked.score_threshold,
        overlap_threshold=asked.overlap_threshold,
    )
    segments = [
        LabeledSegment(each.id, asked.classes[each.label], each.label, each.is_thing, each.score)
        for each in found.segments
    ]
    ids = functions_of(found.ids).as_numpy(found.ids)
    return _Found(ids.astype(np.int32), segments)


def _semantic(
    mask_logits: Tensor, class_logits: Tensor, sizes: MaskSizes, asked: _ClassQuestion
) -> _Found:
    f = functions_of(mask_logits)
    best, labels = f.best(final_semantic(mask_logits, class_logits, sizes), 0)
    label_map, scores = f.as_numpy(labels), f.as_numpy(best)
    present, flat = np.unique(label_map, return_inverse=True)
    flat = flat.reshape(-1)
    means = np.bincount(flat, scores.reshape(-1).astype(np.float64)) / np.bincount(flat)
    segments = [
        LabeledSegment(number, asked.classes[label], label, asked.is_thing[label], mean)
        for number, (label, mean) in enumerate(
            zip(present.tolist(), means.tolist(), strict=True), start=1
        )
    ]
    return _Found((flat + 1).reshape(label_map.shape).astype(np.int32), segments)


def _instances(
    mask_logits: Tensor, class_logits: Tensor, sizes: MaskSizes, asked: _ClassQuestion
) -> _Found:
    found = final_instances(
        mask_logits, class_logits, sizes, asked.is_thing, max_instances=asked.max_instances
    )
    kept = found.masks.any(2).any(1) & (found.scores >= asked.score_threshold)
    masks = functions_of(found.masks).as_numpy(found.masks[kept])
    labels, scores = found.labels[kept].tolist(), found.scores[kept].tolist()
    segments = [
        LabeledSegment(number, asked.classes[label], label, True, score)
        for number, (label, score) in enumerate(zip(labels, scores, strict=True), start=1)
    ]
    return _Found(paint(masks, [each.id for each in segments]), segments, masks)


def _phrase_asker(
    network: SegmentsMasks, inputs: ArrayInputs, lists: list[list[str]], together: bool
) -> _Ask:
    if not isinstance(together, bool):
        raise TypeError(f"segment: together must be bool, got {shown(together)}")
    for text in dict.fromkeys(text for own in lists for text in own):
        inputs.check_length(text, "phrase")

    def ask(memory: Any, sizes: MaskSizes, index: int) -> _Found:
        phrases = lists[index]
        masks, scores = [], []
        for asked in [phrases] if together else [[phrase] for phrase in phrases]:
            texts = inputs.texts(asked)
            found, logits = network.find_phrases(memory, texts.token_ids, texts.text_mask)
            f = functions_of(logits)
            masks.append(f.as_numpy(final_masks(f.float32(logits[0]), *sizes) > 0))
            scores += found[0].tolist()
        joined = np.concatenate(masks)
        segments = [
            LabeledSegment(number + 1, phrase, number, True, score)
            for number, (phrase, score) in enumerate(zip(phrases, scores, strict=True))
        ]
        return _Found(paint(joined, [each.id for each in segments]), segments, joined)

    return ask


def _check_only_phrases(**others: Any) -> None:
    given = [name for name, value in others.items() if value is not None]
    if given:
        raise ValueError(
            f"segment: {' and '.join(given)} cannot be combined with phrases; expected either"
            " classes or phrases"
        )


def _class_names(classes: Any) -> tuple[str, ...]:
    """Check the names of classes, whose order and spelling are kept.

    Raises:
        TypeError: if a name is not a str.
        ValueError: if there are none, or a name is empty or there twice.
    """
    names = not_empty(as_texts(classes, "class"), "class")
    if not names:
        raise ValueError("classes: expected at least one name, got none")
    for number, name in enumerate(names):
        if name in names[:number]:
            raise ValueError(f"classes: {shown(name)} is there twice; expected each class once")
    return tuple(names)


def _class_question(
    classes: tuple[str, ...],
    stuff: Any,
    kind: Any,
    *,
    score_threshold: Any,
    overlap_threshold: Any,
    max_instances: Any,
) -> _ClassQuestion:
    """Check the options of classes.

    Raises:
        TypeError: if an option has the wrong type.
        ValueError: if stuff is no class, or an option is not for the kind or out of range.
    """
    kinds = [each for each in get_args(Kind) if each != "phrases"]
    chosen = "panoptic" if kind is None else kind
    if chosen not in kinds:
        raise ValueError(f"segment: kind {shown(kind)} does not exist; {nearest(str(kind), kinds)}")
    own: dict[str, tuple[Any, tuple[str, ...]]] = {
        "score_threshold": (score_threshold, ("panoptic", "instance")),
        "overlap_threshold": (overlap_threshold, ("panoptic",)),
        "max_instances": (max_instances, ("instance",)),
    }
    for name, (value, kinds_of) in own.items():
        if value is None:
            continue
        if chosen not in kinds_of:
            raise ValueError(
                f"segment: {name} is for kind {' or '.join(map(repr, kinds_of))}, got it with"
                f" {chosen!r}"
            )
        if name == "max_instances":
            if not isinstance(value, numbers.Integral):
                raise TypeError(f"{name} must be an integer, got {shown(value)}")
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        elif not isinstance(value, numbers.Real):
            raise TypeError(f"{name} must be a number between 0 and 1, got {shown(value)}")
        elif not 0 <= float(value) <= 1:
            raise ValueError(f"{name} must be between 0 and 1, such as 0.3, got {value}")
    return _ClassQuestion(
        kind=chosen,
        classes=classes,
        is_thing=_things(classes, stuff, chosen),
        score_threshold=_default(score_threshold, SCORE_THRESHOLD if chosen == "panoptic" else 0.0),
        overlap_threshold=_default(overlap_threshold, OVERLAP_THRESHOLD),
        max_instances=_default(max_instances, MAX_INSTANCES),
    )


def _default(value: Any, default: Any) -> Any:
    return default if value is None else value


def _things(classes: tuple[str, ...], stuff: Any, kind: str) -> tuple[bool, ...]:
    # Unlike those of other texts, the order does not matter.
    given = list(stuff) if isinstance(stuff, (set, frozenset)) else stuff
    named = [] if stuff is None else not_empty(as_texts(given, "stuff"), "stuff")
    for name in named:
        if name not in classes:
            raise ValueError(f"stuff {shown(name)} is no class; {nearest(name, classes)}")
        if named.count(name) > 1:
            raise ValueError(f"stuff: {shown(name)} is there twice; expected each class once")
    is_thing = tuple(name not in named for name in classes)
    if kind == "instance" and not any(is_thing):
        raise ValueError(
            "segment: all classes are stuff, which has no instances; expected a class that is no"
            " stuff, or another kind"
        )
    return is_thing
