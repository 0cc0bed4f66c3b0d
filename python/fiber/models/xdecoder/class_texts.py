"""Texts that classes are encoded by, and what becomes of their vectors.

Source: the prompts of CLIP (Radford et al. 2021) for ImageNet, and one without words around the
name.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fiber.models.masks.class_texts import ClassTexts

#: Templates that the vectors of a class are the mean over; the first is the bare name.
TEMPLATES = (
    "{}.",
    "a photo of a {}.",
    "a bad photo of a {}.",
    "a photo of many {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "a embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
    "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
    "a plushie {}.",
    "a photo of the nice {}.",
    "a photo of the small {}.",
    "a photo of the weird {}.",
    "the cartoon {}.",
    "art of the {}.",
    "a drawing of the {}.",
    "a photo of the large {}.",
    "a black and white photo of a {}.",
    "the plushie {}.",
    "a dark photo of a {}.",
    "itap of a {}.",
    "graffiti of the {}.",
    "a toy {}.",
    "itap of my {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "a tattoo of the {}.",
)

#: How classes are asked for. The parts that are left out are ends of class names of COCO.
CLASS_TEXTS = ClassTexts(
    templates=TEMPLATES, background="background", removed=("-other", "-merged", "-stuff")
)


def class_texts(name: str) -> tuple[str, ...]:
    """Return the texts of a class: its name in each template, without the suffixes of COCO."""
    return CLASS_TEXTS.of(name)


def mean_vectors(vectors: Tensor) -> Tensor:
    """Average the text vectors of each class: (K, T, D) of K classes, T texts -> (K, D) unit."""
    unit = vectors / vectors.norm(dim=-1, keepdim=True)
    mean = unit.mean(1)
    return mean / mean.norm(dim=-1, keepdim=True)


def with_background(names: Sequence[str]) -> tuple[str, ...]:
    """Append the background to the names of classes; see `ClassTexts.with_background`."""
    return CLASS_TEXTS.with_background(names)
