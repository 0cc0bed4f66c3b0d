"""Image preprocessing for METER models at inference, and the tokenizers that they take."""

from __future__ import annotations

from typing import Any

from fiber.data import ImageTransform, Tokenizer
from fiber.models.encoders.bert import check_bert_tokenizer
from fiber.models.meter.config import MeterConfig

#: Statistics of CLIP's training images, in RGB order. Models with Swin use those of ImageNet.
CLIP_STATISTICS: dict[str, Any] = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}


def image_options(config: MeterConfig) -> dict[str, Any]:
    """Return the arguments of `ImageTransform` that depend on the image encoder.

    CLIP's published reader resizes RGBA images, so that transparent pixels have no weight; Swin's
    drops alpha first.
    """
    if config.image_encoder == "clip":
        return {"alpha": "premultiply", **CLIP_STATISTICS}
    return {}


def meter_transform(config: MeterConfig) -> ImageTransform:
    """Build the transform that resizes the shorter side and cuts out the central square."""
    return ImageTransform.center_crop(config.image_size, **image_options(config))


def check_tokenizer(tokenizer: Tokenizer, config: MeterConfig) -> None:
    """Raise ValueError if the tokenizer is none for the model's text encoder."""
    if config.text_encoder == "bert":
        check_bert_tokenizer(tokenizer)
    else:
        tokenizer.check_for_models()
