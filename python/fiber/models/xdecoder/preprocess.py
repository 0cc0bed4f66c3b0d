"""Image preprocessing for X-Decoder models at inference, and the tokenizers that they take."""

from __future__ import annotations

from fiber.data import ImageTransform, Tokenizer
from fiber.models.xdecoder.config import XDecoderConfig

#: Tasks whose images are squares: captions and search.
_SQUARE_TASKS = ("caption", "image_text")
#: Task whose images have a size of their own.
INSTANCES = "instances"
#: Maximum ratio of the longer side to the wanted shorter side. The published code has no limit, so
#: that a narrow image takes any amount of memory.
_MAX_RATIO = 8


def xdecoder_transform(config: XDecoderConfig, task: str | None) -> ImageTransform:
    """Build the transform of a task, or by default of segmentation.

    Captions and search see a square, whatever the shape of the image, as in the published
    evaluation. Masks are found in images whose shorter side has the size of the published
    demonstration, and whose other side is rounded down.
    """
    if task in _SQUARE_TASKS:
        return ImageTransform.squash(config.image_size, filter="bilinear")
    size = config.instance_size if task == INSTANCES else config.segment_size
    return ImageTransform.shorter_side(
        [size], _MAX_RATIO * size, divisor=config.size_step, filter="bicubic"
    )


def check_tokenizer(tokenizer: Tokenizer, config: XDecoderConfig) -> None:
    """Check that a tokenizer, of any kind, is one for a causal text encoder.

    Text vectors are read at the end of a text, and captions start with the token that texts start
    with.

    Raises:
        ValueError: if texts do not have one token before them and one after them, or there are
            more tokens than the text encoder has.
    """
    if len(tokenizer.start_ids) != 1 or len(tokenizer.end_ids) != 1:
        raise ValueError(
            f"texts start with ids {tokenizer.start_ids} and end with {tokenizer.end_ids}; expected"
            " one token before them and one after them, as in CLIP's tokenizer"
        )
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens; expected at most"
            f" {config.vocab_size}, those of the text encoder"
        )
