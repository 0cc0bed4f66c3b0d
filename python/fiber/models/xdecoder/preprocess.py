"""Image preprocessing for X-Decoder models at inference, and the tokenizers that they take."""

from __future__ import annotations

from fiber.data import ImageTransform, Tokenizer
from fiber.models.xdecoder.config import XDecoderConfig


def square_transform(config: XDecoderConfig) -> ImageTransform:
    """Build the transform of captions and search: a square, whatever the shape of the image."""
    return ImageTransform.squash(config.image_size, filter="bilinear")


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
