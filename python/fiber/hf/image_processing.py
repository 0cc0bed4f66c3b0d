"""`FiberVLImageProcessor`: the image transform of fiber, in Rust, as an image processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from fiber import _core
from fiber.data import ImageTransform, load_image
from fiber.data.collate import transform_of
from fiber.hf.detector import raw_output
from fiber.messages import shown
from fiber.postprocess import detect_boxes


class FiberVLImageProcessor(BaseImageProcessor):
    """Decode, resize, normalize and pad images, as `fiber.load(...)` does.

    An image is a path, bytes, a PIL image or a uint8 array (H, W, 3); see `fiber.data.load_image`.

    Args:
        transform: settings of a `fiber.data.ImageTransform`, as `describe` returns them.
        kwargs: names of classes, which transformers stores.

    Raises:
        ValueError: if the settings are invalid.
    """

    model_input_names = ["pixel_values", "image_sizes"]  # noqa: RUF012 - as transformers has it

    def __init__(self, transform: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if transform is None:
            raise ValueError(
                "image processor: transform: expected the settings of an ImageTransform, got none;"
                " load it by from_pretrained(folder of a model)"
            )
        try:
            self._image_transform = transform_of(dict(transform))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"image processor: transform: invalid settings {shown(transform)}:"
                f" {type(error).__name__}: {error}"
            ) from error
        self.transform = self._image_transform.describe()

    @property
    def image_transform(self) -> ImageTransform:
        """The transform."""
        return self._image_transform

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of preprocessor_config.json."""
        return {"image_processor_type": type(self).__name__, "transform": self.transform}

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        """See `preprocess`."""
        return self.preprocess(images, *args, **kwargs)

    def preprocess(  # type: ignore[override]
        self, images: Any, return_tensors: str | None = "pt"
    ) -> BatchFeature:
        """Prepare one or more images, or pairs (left, right) of images.

        Args:
            images: an image, a list of images, or for NLVR2 a list of tuples of two images.
            return_tensors: "pt", or "np" for arrays.

        Returns:
            `pixel_values`, (B, 3, H, W) float32, or (B, 2, 3, H, W) for pairs, padded with 0 to the
            largest image; `image_sizes`, (B, 2) int64, (height, width) without padding, of the left
            images of pairs.

        Raises:
            FileNotFoundError, fiber.DecodeError: if an image cannot be read.
            ValueError: if `images` is an empty list or mixes images and pairs.
        """
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
        prepared = [self._prepare(image) for image in flat]
        tall, wide = (max(pixels.shape[axis] for pixels, _ in prepared) for axis in (1, 2))
        padded = [F.pad(p, (0, wide - p.shape[2], 0, tall - p.shape[1])) for p, _ in prepared]
        pixels, sizes = torch.stack(padded), torch.tensor([size for _, size in prepared])
        if all(pairs):
            pixels, sizes = pixels.unflatten(0, (-1, 2)), sizes[0::2]
        data = {"pixel_values": pixels, "image_sizes": sizes}
        if return_tensors == "np":
            data = {name: each.numpy() for name, each in data.items()}
        return BatchFeature(data, tensor_type=return_tensors)

    def _prepare(self, image: Any) -> tuple[Tensor, tuple[int, int]]:
        array = load_image(image, keep_alpha=self._image_transform.keeps_alpha)
        pixels, _, size = _core.apply_transform(array, self._image_transform)
        return torch.from_numpy(np.asarray(pixels)), size

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
        raw, sizes = raw_output(outputs), outputs.get("image_sizes")
        if sizes is None:
            raise ValueError("outputs: image_sizes is missing; pass it to the model")
        counts = raw.text_mask.sum(1).tolist()
        maps = [[list(range(1, int(count) - 1))] for count in counts]
        found = detect_boxes(
            raw,
            maps,
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


def _is_several(images: Any) -> bool:
    """Check for a list of images, or an array of several."""
    return isinstance(images, list) or (isinstance(images, np.ndarray) and images.ndim == 4)


def _is_pair(images: Any) -> bool:
    return isinstance(images, tuple) and len(images) == 2
