"""Find boxes for prompts, running the image encoder once per image.

Methods of models call `find_boxes`. Evaluations have their own batches: those of detection call
`boxes_of_images`, those of phrases `run_prompts`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, Unpack, overload

from fiber.checkpoints.vocabulary.files import NO_CLASSES
from fiber.data.prompts.classes import ClassLike, Prompt
from fiber.inference.image_text import ImageTextMethods
from fiber.inference.inputs import ArrayInputs, ImageBatch, ImageInput, Images, Texts, as_list
from fiber.inference.options import Classes, DetectOptions, GroundOptions, Phrases
from fiber.inference.prompts import detection_prompts, grounding_prompts, with_negatives
from fiber.inference.suggestions import suggest_keywords_of_methods
from fiber.inference.text_feature_cache import TextPrefixes
from fiber.messages import shown
from fiber.metrics.presence import Kind, Presence
from fiber.models.abilities import FindsBoxes, FindsMasks
from fiber.models.features import BackboneOutput, DetectorOutput, ImagePrefix
from fiber.ops.arrays import functions_of
from fiber.postprocess import Detections, FoundBoxes, join_chunks
from fiber.postprocess.box_masks import FoundMasks, join_masks
from fiber.postprocess.decisions import (
    COMPARED_BOXES,
    Decision,
    ImagePrompts,
    default_threshold,
)
from fiber.postprocess.thresholds import Thresholds

if TYPE_CHECKING:
    from fiber.data.batch import GroundingBatch

#: Maximum total image pixels in a batch of (image, prompt) pairs in the fused layers.
PAIR_PIXELS = 4_000_000

#: Default minimum score of a detected object, and of a box of a phrase, without a calibration.
SCORE_THRESHOLD, PHRASE_THRESHOLD = 0.3, 0.0

#: (row of a batch of images, prompt to ask about that image).
Pair = tuple[int, Prompt]
ResultT = TypeVar("ResultT")


@dataclass
class PassCounts:
    """Forward pass counters."""

    images: int = 0
    #: Number of image encoder batches. All images of a batch have the same padded size.
    encoder_passes: int = 0
    #: Number of (image, prompt) pairs that passed through the fused layers and the head.
    pairs: int = 0


def find_boxes(
    network: FindsBoxes,
    inputs: ArrayInputs,
    text_prefixes: TextPrefixes,
    images: Sequence[Any],
    prompts: Sequence[Sequence[Prompt]],
    thresholds: Thresholds,
    passes: PassCounts,
    masks: FindsMasks | None = None,
    decision: Decision | None = None,
    asked: Sequence[int] | None = None,
) -> list[Detections]:
    """Find boxes for the prompts of each image, best box first.

    `prompts` has one list per image. The labels of an image are numbered consecutively across its
    prompts. `passes` is updated in place. `masks` is the network, if masks are wanted. `decision`
    selects the answers among the boxes; by default all are. `asked` has the number of labels of
    each image before its negatives, by default all.
    """
    found: dict[int, Detections] = {}
    for batch in inputs.images(images):
        pairs = [(row, p) for row, index in enumerate(batch.indices) for p in prompts[index]]
        passes.images += len(batch.indices)
        passes.encoder_passes += 1
        passes.pairs += len(pairs)
        if masks is None:
            boxes = boxes_of_images(
                network, text_prefixes, batch, [pairs], thresholds.select, thresholds.max_detections
            )
            joined: list[tuple[FoundBoxes, Any]] = [(own, None) for own in boxes]
        else:
            joined = _masks_of_images(masks, text_prefixes, batch, pairs, thresholds)
        for row, (index, (boxes, own_masks)) in enumerate(zip(batch.indices, joined, strict=True)):
            labels = [label for prompt in prompts[index] for label in prompt.labels]
            presence = None
            if decision is not None:
                labels = labels if asked is None else labels[: asked[index]]
                of_image = ImagePrompts(prompts[index], len(labels))
                boxes, chosen, presence = decision.decide(boxes, of_image)
                own_masks = None if own_masks is None else own_masks[chosen]
            found[index] = Detections.from_found(
                boxes,
                labels,
                tuple(batch.original_sizes[row].tolist()),
                batch.originals[row],
                own_masks,
                presence,
            )
    return [found[index] for index in range(len(images))]


def boxes_of_images(
    network: FindsBoxes,
    text_prefixes: TextPrefixes,
    batch: ImageBatch | GroundingBatch,
    groups: Iterable[Sequence[Pair]],
    select: Callable[..., Iterable[FoundBoxes]],
    max_detections: int | None,
) -> list[FoundBoxes]:
    """Return the boxes that all prompts find in each image, best first; see `run_prompts`.

    Each image needs at least one prompt.
    """
    prefix = network.image_prefix(batch.images, batch.image_sizes)
    chunks: list[list[tuple[FoundBoxes, int]]] = [[] for _ in range(len(batch.images))]
    for (row, prompt), boxes in run_prompts(network, text_prefixes, batch, prefix, groups, select):
        chunks[row].append((boxes, prompt.first_label))
    return [join_chunks(*zip(*own, strict=True), max_detections=max_detections) for own in chunks]


def _masks_of_images(
    network: FindsMasks,
    text_prefixes: TextPrefixes,
    batch: ImageBatch,
    pairs: Sequence[Pair],
    thresholds: Thresholds,
) -> list[tuple[FoundBoxes, Any]]:
    """Return the boxes that all prompts find in each image, best first, with (n, H, W) masks."""
    prefix = network.mask_prefix(batch.images, batch.image_sizes)
    chunks: list[list[tuple[FoundMasks, int]]] = [[] for _ in range(len(batch.images))]
    select, predict = thresholds.select_masks, network.predict_masks
    found = run_prompts(network, text_prefixes, batch, prefix, [pairs], select, predict)
    for (row, prompt), own in found:
        chunks[row].append((own, prompt.first_label))
    limit = thresholds.max_detections
    joined = [join_masks(*zip(*own, strict=True), max_detections=limit) for own in chunks]
    return [(boxes, masks) for boxes, masks in joined]


def run_prompts(
    network: FindsBoxes,
    text_prefixes: TextPrefixes,
    batch: ImageBatch | GroundingBatch,
    prefix: ImagePrefix,
    groups: Iterable[Sequence[Pair]],
    select: Callable[..., Iterable[ResultT]],
    predict: Callable[[BackboneOutput], DetectorOutput] | None = None,
) -> Iterator[tuple[Pair, ResultT]]:
    """Yield each (image, prompt) pair and its result, in order.

    A forward pass has as many consecutive pairs of a group as fit in `PAIR_PIXELS`; their prompts
    are padded to the longest one.

    Args:
        network: the detector.
        text_prefixes: encodes prompts.
        batch: images of the same padded size.
        prefix: features of these images.
        groups: lists of pairs. Pairs of different groups do not share a forward pass.
        select: computes the result of each of n pairs from the output of the detector, the token
            maps of the prompts, and (n, 2) sizes of the images without padding and originally.
        predict: what the detector predicts; default: its `predict`.
    """
    f, predict = functions_of(prefix.tokens), predict or network.predict
    at_once = max(1, PAIR_PIXELS // (batch.images.shape[-1] * batch.images.shape[-2]))
    for some in (g[at : at + at_once] for g in groups for at in range(0, len(g), at_once)):
        rows = [row for row, _ in some]
        texts = text_prefixes.batch([prompt for _, prompt in some])
        # The output has no name, so that it is freed before the next forward pass.
        found = select(
            predict(
                network.backbone.fuse(
                    prefix.take(f.indices(rows, prefix.tokens), with_stages=True),
                    texts.prefix,
                    texts.text_mask,
                )
            ),
            texts.token_maps,
            batch.image_sizes[rows],
            batch.original_sizes[rows],
        )
        yield from zip(some, found, strict=True)


class _Options(NamedTuple):
    """What `Model.ground` and `Model.detect` decide by, besides thresholds of boxes."""

    kind: Kind
    #: Number of labels of each image that are asked for.
    asked: Sequence[int]
    least_presence: float | None
    class_agnostic: bool


@suggest_keywords_of_methods
class BoxMethods(ImageTextMethods):
    """All methods of models: base class of models, which set the attributes."""

    classes: tuple[str, ...]
    #: Forward pass counts of `ground` and `detect` since the model was loaded.
    passes: PassCounts
    #: Calibrations of the model; None if it was not calibrated (`fiber calibrate`).
    presence: Presence | None
    _text_prefixes: TextPrefixes | None

    def _start_boxes(self) -> None:
        """Set the attributes that no model chooses."""
        self.passes = PassCounts()
        # Kept features of prompts, from the first call of `ground` or `detect` on.
        self._text_prefixes = None

    @overload
    def ground(
        self, images: ImageInput, phrases: Phrases = None, **options: Unpack[GroundOptions]
    ) -> Detections: ...
    @overload
    def ground(
        self, images: Images, phrases: Phrases = None, **options: Unpack[GroundOptions]
    ) -> list[Detections]: ...

    def ground(
        self,
        images: ImageInput | Images,
        phrases: Phrases = None,
        *,
        caption: Texts | None = None,
        spans: Sequence[Any] | None = None,
        boxes_per_phrase: int = 1,
        score_threshold: float | None = None,
        presence_threshold: float | None = None,
        nms_threshold: float = 0.6,
        max_detections: int = 100,
        masks: bool = False,
        negatives: str | Sequence[str] | None = None,
        class_agnostic: bool = False,
    ) -> Detections | list[Detections]:
        """Find the best boxes for phrases, either independently or in the context of a caption.

        Args:
            images: an image or a list of images.
            phrases: a phrase, a list of phrases for all images, or one list per image. For example,
                "the star left of the ring" returns boxes of the star. A phrase that looks like a
                list ("a circle; the star", "a circle, the star", "a circle. the star.") is one
                phrase, with a warning.
            caption: sentence that contains the phrases, one for all images or one per image.
                Without `phrases` and `spans`, the caption's noun phrases are used (see
                `fiber.inference.noun_phrases`).
            spans: alternative to `phrases`, one list per caption. A span is a half-open (start,
                end) range of the caption's code points, or a list of ranges for a phrase in several
                parts.
            boxes_per_phrase: maximum number of boxes per phrase.
            score_threshold: minimum box score, in [0, 1]; see `Detections`. Default: the calibrated
                threshold of phrases or of captions, or 0 if the model has none.
            presence_threshold: minimum presence of a phrase, in [0, 1]; see `Detections`.
            nms_threshold: maximum IoU between two boxes of the same phrase.
            max_detections: maximum number of boxes per image.
            masks: if True, also return the mask of each box, from the same forward pass. The model
                needs the head "grounding_mask", which the recipe `scenes_fine_masks` trains.
            negatives: phrases that are not wanted, for all images. A box is dropped if a box of the
                same region (IoU 0.5 or more) fits one of them better.
            class_agnostic: if True, `nms_threshold` also applies to boxes of different phrases.

        Returns:
            Detections for each image, best box first.

        Raises:
            MissingHeadError: if the model finds no boxes, or no masks although they are wanted.
            ValueError: if `presence_threshold` is given and the model was not calibrated.
        """
        network = self._able(FindsBoxes, "grounding", "ground")
        if not isinstance(masks, bool):
            raise TypeError(f"masks must be True or False, got {shown(masks)}")
        finds_masks = (
            self._able(FindsMasks, "grounding_mask", "ground(masks=True)") if masks else None
        )
        given, single = as_list(images)
        prompts = grounding_prompts(phrases, caption, spans, len(given), self._inputs)
        kind: Kind = "phrase" if caption is None else "caption"
        if score_threshold is None:
            score_threshold = default_threshold(self.presence, kind, PHRASE_THRESHOLD)
        limits = Thresholds(score_threshold, nms_threshold, max_detections, boxes_per_phrase)
        asked = [sum(len(prompt.labels) for prompt in own) for own in prompts]
        if negatives is not None:
            prompts = with_negatives(prompts, negatives, self._inputs)
        options = _Options(kind, asked, presence_threshold, class_agnostic)
        return self._boxes(network, given, single, prompts, limits, options, finds_masks)

    @overload
    def detect(
        self, images: ImageInput, classes: Classes = None, **options: Unpack[DetectOptions]
    ) -> Detections: ...
    @overload
    def detect(
        self, images: Images, classes: Classes = None, **options: Unpack[DetectOptions]
    ) -> list[Detections]: ...

    def detect(
        self,
        images: ImageInput | Images,
        classes: Classes = None,
        *,
        classes_per_prompt: int | None = None,
        score_threshold: float | None = None,
        presence_threshold: float | None = None,
        nms_threshold: float = 0.6,
        max_detections: int = 100,
        negatives: Sequence[ClassLike] | ClassLike | None = None,
        class_agnostic: bool = False,
    ) -> Detections | list[Detections]:
        """Detect all objects of the given classes. Prompts contain as many classes as possible.

        Args:
            images: an image or a list of images.
            classes: class names for all images, or one list per image. Default: the classes that
                the model was trained on. A `fiber.data.ClassName`, or a mapping of its fields, adds
                a prefix and a suffix to a name. Names are case-sensitive and must be distinct. A
                single name that looks like a list is one name, with a warning.
            classes_per_prompt: maximum number of classes per prompt (40 in the published LVIS
                evaluation), or 0 or None for as many as fit.
            score_threshold: minimum box score, in [0, 1]; see `Detections`. Default: the calibrated
                threshold of classes, or 0.3 if the model has none.
            presence_threshold: minimum presence of a class, in [0, 1]; see `Detections`.
            nms_threshold: maximum IoU between two boxes of the same class.
            max_detections: maximum number of boxes per image.
            negatives: classes that are not wanted, for all images, which follow the others in the
                prompts. A box is dropped if a box of the same region (IoU 0.5 or more) fits one of
                them better.
            class_agnostic: if True, `nms_threshold` also applies to boxes of different classes.

        Returns:
            Detections for each image, best box first.

        Raises:
            ValueError: if `presence_threshold` is given and the model was not calibrated.
        """
        network = self._able(FindsBoxes, "grounding", "detect")
        given, single = as_list(images)
        if classes is None:
            if not self.classes:
                raise ValueError(NO_CLASSES)
            classes = self.classes
        inputs, count = self._inputs, len(given)
        prompts, asked = detection_prompts(classes, count, inputs, classes_per_prompt, negatives)
        if score_threshold is None:
            score_threshold = default_threshold(self.presence, "classes", SCORE_THRESHOLD)
        limits = Thresholds(score_threshold, nms_threshold, max_detections)
        options = _Options("classes", asked, presence_threshold, class_agnostic)
        return self._boxes(network, given, single, prompts, limits, options)

    def _boxes(
        self,
        network: FindsBoxes,
        images: list[Any],
        single: bool,
        prompts: list[list[Prompt]],
        thresholds: Thresholds,
        options: _Options,
        masks: FindsMasks | None = None,
    ) -> Detections | list[Detections]:
        thresholds.check()
        decision = Decision(
            kind=options.kind,
            presence=self.presence,
            score=thresholds.score,
            least_presence=options.least_presence,
            class_agnostic=options.class_agnostic,
            nms=thresholds.nms,
            boxes_per_phrase=thresholds.boxes_per_phrase,
            max_detections=thresholds.max_detections,
        )
        decision.check()
        asked = options.asked
        some_negatives = any(
            sum(len(prompt.labels) for prompt in own) > count
            for own, count in zip(prompts, asked, strict=True)
        )
        if self.presence is not None or some_negatives or options.class_agnostic:
            # Of boxes that are dropped, too, scores count; answers are selected among all.
            most = thresholds.boxes_per_phrase
            if most is not None and some_negatives:
                most = max(most, COMPARED_BOXES)
            thresholds = Thresholds(0.0, thresholds.nms, None, most)
        if self._text_prefixes is None:
            self._text_prefixes = TextPrefixes(network, self._inputs)
        with self._computing():
            given = (self._text_prefixes, images, prompts, thresholds, self.passes)
            inputs = self._inputs.of("grounding")
            found = find_boxes(network, inputs, *given, masks, decision, asked)
        return found[0] if single else found
