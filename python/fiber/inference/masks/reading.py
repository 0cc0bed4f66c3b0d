"""Read images for masks, one at a time.

Sums in batches of other sizes are rounded in other ways, and masks are thresholds, so that the
answer for an image would depend on its company.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from fiber.inference.inputs import ArrayInputs
from fiber.models.mask_abilities import ReadsImages
from fiber.postprocess.masks import MaskSizes

#: Tasks whose images have the size for a kind of result, if it is not that of "segment".
_TASKS = {"instance": "instances"}


class MaskImage(NamedTuple):
    """An image as a network reads it."""

    #: Number of the image among those given.
    number: int
    #: See `ReadsImages.read_image`.
    memory: Any
    sizes: MaskSizes
    #: The image itself, for pictures.
    original: Any


def read_each(
    network: ReadsImages, inputs: ArrayInputs, images: Sequence[Any], kind: str
) -> Iterator[MaskImage]:
    """Read each image alone, at the size for a kind of result. They come grouped by their size."""
    for batch in inputs.of(_TASKS.get(kind, "segment")).images(list(images)):
        for row, index in enumerate(batch.indices):
            pixels = batch.images[row : row + 1]
            inside, wanted = (
                (int(sizes[row][0]), int(sizes[row][1]))
                for sizes in (batch.image_sizes, batch.original_sizes)
            )
            sizes = MaskSizes((pixels.shape[-2], pixels.shape[-1]), inside, wanted)
            yield MaskImage(index, network.read_image(pixels), sizes, batch.originals[row])
