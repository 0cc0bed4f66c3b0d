"""`FiberVLImageProcessor`: the image transform of fiber, in Rust, as an image processor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from fiber import _core
from fiber.config_io import nearest
from fiber.data import ImageTransform, load_image
from fiber.data.collate import transform_of
from fiber.data.texts.cleaning import CLEANERS
from fiber.hf.detector import raw_output
from fiber.messages import shown
from fiber.models.features import DetectorOutput
from fiber.models.masks.pixel_decoder import MASK_STRIDE
from fiber.models.registry import TRANSFORM_TASKS
from fiber.postprocess import detect_boxes
from fiber.postprocess.box_masks import ground_phrase_masks
from fiber.postprocess.masks import MaskSizes, final_instances, final_panoptic, final_semantic


class FiberVLImageProcessor(BaseImageProcessor):
    """Decode, resize, normalize and pad images, as `fiber.load(...)` does.

    An image is a path, bytes, a PIL image or a uint8 array (H, W, 3); see `fiber.data.load_image`.

    Args:
        transform: settings of a `fiber.data.ImageTransform`, as `describe` returns them.
        tasks: settings of the transforms of single tasks, by task: "caption" and "image_text", for
            captions and search, and "instances".
        text_cleaning: how the processor cleans texts: a name of
            `fiber.data.texts.cleaning.CLEANERS`, or "".
        kwargs: names of classes, which transformers stores.

    Raises:
        ValueError: if the settings are invalid.
    """

    model_input_names = ["pixel_values", "image_sizes"]  # noqa: RUF012 - as transformers has it

    def __init__(
        self,
        transform: Mapping[str, Any] | None = None,
        tasks: Mapping[str, Mapping[str, Any]] | None = None,
        text_cleaning: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if transform is None:
            raise ValueError(
                "image processor: transform: expected the settings of an ImageTransform, got none;"
                " load it by from_pretrained(folder of a model)"
            )
        if text_cleaning and text_cleaning not in CLEANERS:
            raise ValueError(
                f"image processor: text_cleaning: {nearest(str(text_cleaning), list(CLEANERS))},"
                f" got {shown(text_cleaning)}"
            )
        if tasks is not None and not isinstance(tasks, Mapping):
            raise ValueError(f"image processor: tasks: expected an object, got {shown(tasks)}")
        self._image_transform = _read_transform("transform", transform)
        self._task_transforms = {
            task: _read_transform(f"tasks.{task}", own) for task, own in (tasks or {}).items()
        }
        self.transform = self._image_transform.describe()
        self.tasks = {task: own.describe() for task, own in self._task_transforms.items()}
        self.text_cleaning = text_cleaning

    @property
    def image_transform(self) -> ImageTransform:
        """The transform."""
        return self._image_transform

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of preprocessor_config.json."""
        found = {"image_processor_type": type(self).__name__, "transform": self.transform}
        own = {"tasks": self.tasks, "text_cleaning": self.text_cleaning}
        return found | {name: value for name, value in own.items() if value}

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        """See `preprocess`."""
        return self.preprocess(images, *args, **kwargs)

    def preprocess(  # type: ignore[override]
        self, images: Any, return_tensors: str | None = "pt", task: str | None = None
    ) -> BatchFeature:
        """Prepare one or more images, or pairs (left, right) of images.

        Args:
            images: an image, a list of images, or for NLVR2 a list of tuples of two images.
            return_tensors: "pt", or "np" for arrays.
            task: "caption", "image_text" or "instances", if the model has another transform for
                it; "segment" and None are the default.

        Returns:
            `pixel_values`, (B, 3, H, W) float32, or (B, 2, 3, H, W) for pairs, padded with 0 to the
            largest image; `image_sizes`, (B, 2) int64, (height, width) without padding, of the left
            images of pairs.

        Raises:
            FileNotFoundError, fiber.DecodeError: if an image cannot be read.
            ValueError: if `images` is an empty list or mixes images and pairs, or there is no
                such task.
        """
        if task not in (None, "segment", *TRANSFORM_TASKS):
            raise ValueError(f"task: {nearest(str(task), ['segment', *TRANSFORM_TASKS])}")
        transform = self._task_transforms.get(task or "", self._image_transform)
        given = list(images) if _is_several(images) else [images]
        if not given:
            raise ValueError("images is an empty list; expected one or more images")
        pairs = [isinstance(each, tuple) for each in given]
        if any(pairs):
            wrong = next((row for row, each in enumerate(given) if not _is_pair(each)), None)
            if wrong is not None:
                raise ValueError(
                    f"images[{wrong}] is no pair of images, as others are; expected (left, right)"
                )
        flat = [image for each in given for image in (each if all(pairs) else (each,))]
        prepared = [_prepare(image, transform) for image in flat]
        tall, wide = (max(pixels.shape[axis] for pixels, _ in prepared) for axis in (1, 2))
        padded = [F.pad(p, (0, wide - p.shape[2], 0, tall - p.shape[1])) for p, _ in prepared]
        pixels, sizes = torch.stack(padded), torch.tensor([size for _, size in prepared])
        if all(pairs):
            pixels, sizes = pixels.unflatten(0, (-1, 2)), sizes[0::2]
        data = {"pixel_values": pixels, "image_sizes": sizes}
        if return_tensors == "np":
            data = {name: each.numpy() for name, each in data.items()}
        return BatchFeature(data, tensor_type=return_tensors)

    def post_process_object_detection(
        self,
        outputs: Any,
        threshold: float = 0.1,
        target_sizes: Tensor | Sequence[Sequence[int]] | None = None,
        nms_threshold: float = 0.6,
    ) -> list[dict[str, Tensor]]:
        """Turn the output of the detector into boxes, if each text is one label.

        The stock pipeline for zero-shot detection asks so. A label are all of the text's tokens but
        the first and last, which are <s> and </s>.

        Args:
            outputs: a `FiberVLDetectionOutput`, or a mapping with its fields, of images that were
                given with `image_sizes`.
            threshold: minimum score.
            target_sizes: (B, 2) (height, width) of the original images. Default: `image_sizes`.
            nms_threshold: IoU above which the lower-scoring of two boxes is removed.

        Returns:
            For each image `scores` (n,), `boxes` (n, 4) half-open xyxy pixels of the original
            image, and `labels` (n,), which are 0.
        """
        raw, sizes = raw_output(outputs), _sizes(outputs)
        found = detect_boxes(
            raw,
            _whole_texts(raw),
            sizes,
            sizes if target_sizes is None else target_sizes,
            score_threshold=0.0,
            nms_threshold=nms_threshold,
        )
        kept = [each.scores >= threshold for each in found]
        return [
            {
                "scores": each.scores[rows],
                "boxes": each.boxes_xyxy[rows],
                "labels": each.label_indices[rows],
            }
            for each, rows in zip(found, kept, strict=True)
        ]

    def post_process_grounded_masks(
        self,
        outputs: Any,
        threshold: float = 0.0,
        target_sizes: Tensor | Sequence[Sequence[int]] | None = None,
        nms_threshold: float = 0.6,
        boxes_per_text: int = 1,
    ) -> list[dict[str, Tensor]]:
        """Turn the output of a detector into the best boxes of each text and their masks.

        Args:
            outputs: see `post_process_object_detection`; of a model with the head "grounding_mask".
            threshold: minimum score.
            target_sizes: see `post_process_object_detection`.
            nms_threshold: see `post_process_object_detection`.
            boxes_per_text: maximum number of boxes of an image.

        Returns:
            What `post_process_object_detection` returns, and `masks` (n, H, W) bool on the CPU.

        Raises:
            ValueError: if the output has no masks.
        """
        raw, sizes = raw_output(outputs), _sizes(outputs)
        found = ground_phrase_masks(
            raw,
            _whole_texts(raw),
            sizes,
            sizes if target_sizes is None else target_sizes,
            boxes_per_phrase=boxes_per_text,
            score_threshold=threshold,
            nms_threshold=nms_threshold,
        )
        return [
            {
                "scores": boxes.scores,
                "boxes": boxes.boxes_xyxy,
                "labels": boxes.label_indices,
                "masks": torch.from_numpy(masks),
            }
            for boxes, masks in found
        ]

    def post_process_semantic_segmentation(
        self, outputs: Any, target_sizes: Tensor | Sequence[Sequence[int]] | None = None
    ) -> list[Tensor]:
        """Turn masks of classes into (H, W) int64 maps of the index of the class of each pixel.

        Args:
            outputs: a `FiberVLSegmentationOutput` of classes, or a mapping with its fields, of
                images that were given with `image_sizes`.
            target_sizes: (B, 2) (height, width) of the original images. Default: `image_sizes`.
        """
        return [
            final_semantic(masks, classes, sizes).argmax(0)
            for classes, masks, sizes in _masks_of_classes(outputs, target_sizes)
        ]

    def post_process_panoptic_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.8,
        overlap_mask_area_threshold: float = 0.8,
        label_ids_to_fuse: Iterable[int] = (),
        target_sizes: Tensor | Sequence[Sequence[int]] | None = None,
    ) -> list[dict[str, Any]]:
        """Turn masks of classes into segments, of which each pixel has one or none.

        Args:
            outputs: see `post_process_semantic_segmentation`.
            threshold: score that a segment must exceed.
            overlap_mask_area_threshold: least share of a mask that no better mask takes.
            label_ids_to_fuse: indices of classes without instances, which have one segment.
            target_sizes: see `post_process_semantic_segmentation`.

        Returns:
            For each image `segmentation`, (H, W) int64 with the ids of segments, 0 for none, and
            `segments_info`, for each its `id`, `label_id`, `was_fused` and `score`.
        """
        fused = set(label_ids_to_fuse)
        found = []
        for classes, masks, sizes in _masks_of_classes(outputs, target_sizes):
            is_thing = [label not in fused for label in range(classes.shape[-1] - 1)]
            panoptic = final_panoptic(
                masks,
                classes,
                sizes,
                is_thing,
                score_threshold=threshold,
                overlap_threshold=overlap_mask_area_threshold,
            )
            segments = [
                {
                    "id": each.id,
                    "label_id": each.label,
                    "was_fused": not each.is_thing,
                    "score": each.score,
                }
                for each in panoptic.segments
            ]
            found.append({"segmentation": panoptic.ids, "segments_info": segments})
        return found

    def post_process_instance_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.0,
        target_sizes: Tensor | Sequence[Sequence[int]] | None = None,
        max_instances: int = 100,
    ) -> list[dict[str, Any]]:
        """Turn masks of classes into instances, which may overlap, best first.

        Args:
            outputs: see `post_process_semantic_segmentation`, of images of the task "instances".
            threshold: minimum score.
            target_sizes: see `post_process_semantic_segmentation`.
            max_instances: maximum number of instances of an image, before empty masks are dropped.

        Returns:
            For each image `segmentation`, (n, H, W) bool, and `segments_info`, for each its `id`,
            the index of the mask, `label_id`, `was_fused`, which is False, and `score`.
        """
        found = []
        for classes, masks, sizes in _masks_of_classes(outputs, target_sizes):
            own = final_instances(masks, classes, sizes, max_instances=max_instances)
            kept = own.masks.flatten(1).any(1) & (own.scores >= threshold)
            pairs = zip(own.labels[kept].tolist(), own.scores[kept].tolist(), strict=True)
            segments = [
                {"id": number, "label_id": label, "was_fused": False, "score": score}
                for number, (label, score) in enumerate(pairs)
            ]
            found.append({"segmentation": own.masks[kept], "segments_info": segments})
        return found


def _is_several(images: Any) -> bool:
    """Check for a list of images, or an array of several."""
    return isinstance(images, list) or (isinstance(images, np.ndarray) and images.ndim == 4)


def _is_pair(images: Any) -> bool:
    return isinstance(images, tuple) and len(images) == 2


def _sizes(outputs: Any) -> Tensor:
    sizes = outputs.get("image_sizes")
    if sizes is None:
        raise ValueError("outputs: image_sizes is missing; pass it to the model")
    return sizes


def _whole_texts(output: DetectorOutput) -> list[list[list[int]]]:
    """Return the tokens of each text as those of one label, without <s> and </s>."""
    counts = output.text_mask.sum(1).tolist()
    return [[list(range(1, int(count) - 1))] for count in counts]


def _masks_of_classes(
    outputs: Any, target_sizes: Tensor | Sequence[Sequence[int]] | None
) -> Iterator[tuple[Tensor, Tensor, MaskSizes]]:
    """Yield the class logits, the mask logits and the sizes of each image."""
    classes, masks = outputs.get("class_queries_logits"), outputs.get("masks_queries_logits")
    if classes is None or masks is None:
        raise ValueError(
            "outputs: class_queries_logits or masks_queries_logits is missing; expected the masks"
            " of classes, for which input_ids have three dimensions"
        )
    inside = _sizes(outputs)
    wanted = inside if target_sizes is None else target_sizes
    if not len(masks) == len(inside) == len(wanted):
        raise ValueError(
            f"outputs has {len(masks)} images, image_sizes {len(inside)} and target_sizes"
            f" {len(wanted)}; expected equal numbers"
        )
    height, width = (MASK_STRIDE * side for side in masks.shape[-2:])
    for row, (own, original) in enumerate(zip(inside, wanted, strict=True)):
        sizes = ((int(size[0]), int(size[1])) for size in (own, original))
        yield classes[row], masks[row], MaskSizes((height, width), *sizes)


def _prepare(image: Any, transform: ImageTransform) -> tuple[Tensor, tuple[int, int]]:
    array = load_image(image, keep_alpha=transform.keeps_alpha)
    pixels, _, size = _core.apply_transform(array, transform)
    return torch.from_numpy(np.asarray(pixels)), size


def _read_transform(name: str, settings: Any) -> ImageTransform:
    try:
        return transform_of(dict(settings))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"image processor: {name}: invalid settings {shown(settings)}:"
            f" {type(error).__name__}: {error}"
        ) from error
