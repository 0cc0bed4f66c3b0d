"""Captions of images and of regions in them, written greedily."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fiber.inference.inputs import ArrayInputs, naming
from fiber.messages import shown
from fiber.models.caption_abilities import WritesRegionCaptions

if TYPE_CHECKING:
    from torch import Tensor

_EXPECTED = "expected an (H, W) array of bools, or of 0 and 1"


def caption_regions(
    network: WritesRegionCaptions,
    inputs: ArrayInputs,
    images: Sequence[Any],
    regions: Sequence[np.ndarray] | None,
    steps: int,
) -> list[str]:
    """Write a caption of each image or region.

    Each image is computed alone, so that its caption does not depend on the others.

    Args:
        network: the network.
        inputs: preprocessing for captions.
        images: images to read.
        regions: (H, W) bool, one for each image; None means everywhere.
        steps: maximum number of tokens of a caption after the first.

    Raises:
        ValueError: if a region has another size than its image, or is too small. The message has
            the index of the image, if there are several.
    """
    tokenizer = inputs.needed_tokenizer()
    (start_id,), (end_id,) = tokenizer.start_ids, tokenizer.end_ids
    texts = [""] * len(images)
    for batch in inputs.images(images):
        for row, index in enumerate(batch.indices):
            pixels, region = batch.images[row : row + 1], None
            with naming(f"images[{index}]" if len(images) > 1 else ""):
                if regions is not None:
                    size = tuple(batch.image_sizes[row].tolist())
                    own = batch.originals[row].shape[:2]
                    region = _input_region(regions[index], own, size, pixels)
                ids = network.write_captions(
                    network.read_image(pixels),
                    start_id=start_id,
                    end_id=end_id,
                    steps=steps,
                    region=region,
                )
            texts[index] = network.caption_text(tokenizer, ids[0].tolist(), end_id)
    return texts


def as_regions(region: Any, count: int, single: bool) -> list[np.ndarray]:
    """Convert a region, or a list of regions, to one bool array for each image.

    Raises:
        TypeError: if a region is no array of bools or of 0 and 1.
        ValueError: if the number of regions is not that of the images, or a region is empty.
    """
    if single:
        given = [region]
    elif isinstance(region, np.ndarray) and region.ndim != 3:
        raise ValueError(
            f"region: got one region of shape {region.shape} for {count} images; expected a list"
            " with a region for each"
        )
    else:
        given = list(region)
        if len(given) != count:
            raise ValueError(f"region: got {len(given)} regions for {count} images")
    return [_as_region(each, "region" if single else f"region {i}") for i, each in enumerate(given)]


def _as_region(region: Any, place: str) -> np.ndarray:
    values = np.asarray(region)
    if values.ndim != 2:
        raise ValueError(f"{place} has shape {values.shape}; {_EXPECTED}")
    if values.dtype != bool:
        if values.dtype.kind not in "iu":
            raise TypeError(f"{place} has dtype {values.dtype}; {_EXPECTED}")
        others = values[(values != 0) & (values != 1)]
        if len(others):
            raise ValueError(f"{place} has the value {shown(int(others[0]))}; {_EXPECTED}")
    if not values.any():
        raise ValueError(f"{place} is empty; expected a region with pixels")
    return values.astype(bool)


def _input_region(
    region: np.ndarray, image_size: tuple[int, ...], input_size: tuple[int, ...], pixels: Tensor
) -> Tensor:
    """Resize a region to the input of the network, with False in the padding: (1, H, W) bool."""
    import torch

    if region.shape != image_size:
        raise ValueError(
            f"region has {region.shape[1]} x {region.shape[0]} pixels; expected"
            f" {image_size[1]} x {image_size[0]}, the size of its image"
        )
    # The nearest pixel, as Pillow's resize.
    rows, columns = (
        ((np.arange(to) + 0.5) * (side / to)).astype(np.int64)
        for side, to in zip(image_size, input_size, strict=True)
    )
    padded = torch.zeros(1, *pixels.shape[-2:], dtype=torch.bool, device=pixels.device)
    resized = torch.from_numpy(region[rows][:, columns]).to(pixels.device)
    padded[0, : input_size[0], : input_size[1]] = resized
    return padded
