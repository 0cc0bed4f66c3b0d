"""Options of `DataLoader` and `Collator`: types, defaults, documentation and checks."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Required, SupportsFloat, SupportsIndex, TypedDict

import numpy as np

from fiber._core import ImageTransform, Tokenizer
from fiber.data.image_file import MAX_PIXELS
from fiber.messages import printable, shown

BatchType = Literal[
    "image_text", "question", "reasoning", "grounding", "grounding_masks", "segmentation"
]
ImageDtype = Literal["float32", "float16", "bfloat16", "uint8"]
OnError = Literal["raise", "skip", "resample"]
SampleOrder = Literal["uniform", "shards"]
MlmUnit = Literal["token", "word", "position"]

#: Maximum number of threads: 64 per core, but at least 1,024. More never help, and each takes
#: memory.
MAX_THREADS = max(1024, 64 * (os.cpu_count() or 1))


def check_threads(threads: int) -> None:
    """Raise ValueError if there are more threads than `MAX_THREADS`."""
    if threads > MAX_THREADS:
        raise ValueError(f"threads is {shown(threads)}; expected at most {MAX_THREADS}")


_DTYPES = ("float32", "float16", "bfloat16", "uint8")


@dataclass(frozen=True, kw_only=True)
class CollatorConfig:
    """Options of `Collator`, shared with `DataLoader`.

    Args:
        batch_type: Class of the batches: "image_text", "question", "reasoning" (two images per
            record), "grounding", "grounding_masks" or "segmentation".
        tokenizer: Any of the tokenizers described in docs/loader.md.
        transform: Transform applied to images and their boxes or masks. A horizontal flip also
            swaps "left" and "right" in texts and phrases (not in statements about two images).
        max_tokens: Maximum text length in tokens, including <s> and </s>; longer texts are
            truncated.
        answers: Answer vocabulary for "question" batches; if empty, batches have no targets.
        seed: Seed of all random numbers.
        mlm_probability: Fraction of tokens that "image_text" selects for masking. Must be 0 for a
            tokenizer without a mask token.
        mlm_unit: What "image_text" selects: each "token"; each "word", with all of its tokens (for
            byte-level BPEs; `DataLoader.stream` masks by the position of a sample in the stream);
            or "position", `round(mlm_probability * max_tokens)` of the `max_tokens` positions of a
            padded text, of which those without a word have no effect, as in METER's code.
        mlm_seed: Seed of masking; None (default) means `seed`.
        threads: Worker threads, at most `MAX_THREADS`; 0 means one per core.
        on_error: "raise" stops at a bad sample; "skip" drops it and reports it in `skipped`;
            "resample" (`DataLoader` only, not for iterables) also replaces it with a different
            record, chosen by (seed, epoch, index), so batches keep their size.
        accept_truncated: Accept JPEGs with missing or damaged data, which is filled in as libjpeg
            does; `statuses` reports them. If False, such JPEGs are bad samples.
        scaled_decoding: Decode a JPEG at 1/2, 1/4 or 1/8 of its size if the crop still has at least
            as many pixels as the output. This is faster but changes pixel values, so use it only
            for training. An image that RandAugment changes before the resize (`policy="meter"`) is
            decoded at full size.
        apply_orientation: Rotate images according to their EXIF orientation tag; boxes then refer
            to the rotated image, while masks, which refer to the stored pixels, are rotated with
            their image. The published pipelines ignore the tag.
        background: RGB color, 0 to 255, that transparent images are composited on. With None, the
            `alpha` of the transform applies, which by default drops the alpha channel, as Pillow's
            `convert("RGB")` does.
        max_pixels: Maximum number of pixels of an image file. A larger image is a bad sample with
            the status "unsupported".
        max_decode_bytes: Maximum memory in bytes for the pixels and coefficients of one image while
            it is decoded, checked before it is allocated; None (default) means no limit. Up to
            `threads` images are decoded at a time. A larger image is a bad sample, too.
        image_dtype: "float32", "float16" or "bfloat16" (normalized, rounded to nearest), or "uint8"
            (not normalized, padded with 0).
        channels_last: Return images in the memory format `torch.channels_last`.

    Raises:
        TypeError: if an argument has the wrong type; the error names it.
        ValueError: if an argument is out of range; the error names it.
    """

    batch_type: BatchType
    tokenizer: Tokenizer
    transform: ImageTransform
    max_tokens: int
    answers: Sequence[str] = ()
    seed: int = 0
    mlm_probability: float = 0.15
    mlm_unit: MlmUnit = "token"
    mlm_seed: int | None = None
    threads: int = 1
    on_error: OnError = "raise"
    accept_truncated: bool = False
    scaled_decoding: bool = False
    apply_orientation: bool = False
    background: Sequence[int] | None = None
    max_pixels: int = MAX_PIXELS
    max_decode_bytes: int | None = None
    image_dtype: ImageDtype = "float32"
    channels_last: bool = False

    def __post_init__(self) -> None:
        check_arguments(**{name: value for name, value in vars(self).items() if name in _KINDS})
        if self.on_error not in ("raise", "skip", "resample"):
            raise ValueError(
                f"on_error is {shown(self.on_error)}; expected 'raise', 'skip' or 'resample'"
            )
        if self.mlm_unit not in ("token", "word", "position"):
            raise ValueError(
                f"mlm_unit is {shown(self.mlm_unit)}; expected 'token', 'word' or 'position'"
            )
        if self.batch_type == "reasoning" and not self.transform.is_square:
            raise ValueError(
                f"batch_type 'reasoning' stacks two images, but {self.transform} may produce"
                " different sizes; expected a transform with a fixed, square output size"
            )
        object.__setattr__(self, "answers", tuple(self.answers))
        if len(set(self.answers)) < len(self.answers):
            twice = next(answer for answer, count in Counter(self.answers).items() if count > 1)
            raise ValueError(
                f"answers contains duplicate {shown(twice)}; expected distinct answers"
            )
        if self.background is not None:
            object.__setattr__(self, "background", tuple(self.background))


@dataclass(frozen=True, kw_only=True)
class LoaderConfig(CollatorConfig):
    """Options of `DataLoader`: those of `CollatorConfig`, and the following.

    Args:
        threads: Worker threads, at most `MAX_THREADS`; 0 (default) means one per core.
        batch_size: Samples per batch on this rank, or on all ranks together with `split_batches`.
        shuffle: Reshuffle every epoch. Not supported for iterables.
        order: How `shuffle` orders an epoch, for any number of ranks: "uniform" is a random
            permutation; "shards" shuffles the records of a few shards at a time
            (`fiber.data.storage.shard_order`) and needs records of a packed folder.
        prefetch: Number of batches prepared ahead.
        rank: Rank of this process, below `world_size`.
        world_size: Number of processes that share the data.
        split_batches: Split each batch of `batch_size` samples between the ranks, as evenly as
            possible: rank r of W takes samples r B // W to (r + 1) B // W.
        drop_last: Drop the last batch of an epoch unless it is full on every rank. Applies to
            iteration; `DataLoader.epoch` returns every record.
        pin_memory: Return tensors in page-locked memory if CUDA is available.
    """

    threads: int = 0
    batch_size: int
    shuffle: bool = False
    order: SampleOrder = "uniform"
    prefetch: int = 2
    rank: int = 0
    world_size: int = 1
    split_batches: bool = False
    drop_last: bool = False
    pin_memory: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in ("uniform", "shards"):
            raise ValueError(f"order is {shown(self.order)}; expected 'uniform' or 'shards'")
        if self.order == "shards" and not self.shuffle:
            raise ValueError("order is 'shards' and shuffle is False; expected shuffle=True")
        if self.rank >= self.world_size:
            raise ValueError(
                f"rank is {self.rank}; expected a rank below world_size ({self.world_size})"
            )
        if self.split_batches and self.batch_size < self.world_size:
            raise ValueError(
                f"batch_size is {self.batch_size}; with split_batches, expected world_size"
                f" ({self.world_size}) or more"
            )


class MlmOptions(TypedDict, total=False):
    """What is masked, besides `mlm_probability`; see `CollatorConfig`."""

    mlm_unit: MlmUnit
    mlm_seed: int | None


class CollatorOptions(MlmOptions, total=False):
    """Types of the keyword arguments of `Collator`; see `CollatorConfig`."""

    tokenizer: Required[Tokenizer]
    transform: Required[ImageTransform]
    max_tokens: Required[int]
    answers: Sequence[str]
    seed: int
    mlm_probability: float
    threads: int
    on_error: OnError
    accept_truncated: bool
    scaled_decoding: bool
    apply_orientation: bool
    background: Sequence[int] | None
    max_pixels: int
    max_decode_bytes: int | None
    image_dtype: ImageDtype
    channels_last: bool


class LoaderOptions(CollatorOptions, total=False):
    """Types of the keyword arguments of `DataLoader`; see `LoaderConfig`."""

    batch_size: Required[int]
    shuffle: bool
    order: SampleOrder
    prefetch: int
    rank: int
    world_size: int
    split_batches: bool
    drop_last: bool
    pin_memory: bool


def _is_a(*types: Any) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, types)


def _is_integer(value: Any) -> bool:
    return isinstance(value, SupportsIndex) and not isinstance(value, bool | np.bool_)


def _is_number(value: Any) -> bool:
    return isinstance(value, SupportsFloat | SupportsIndex) and not isinstance(
        value, bool | np.bool_
    )


def _are_strings(value: Any) -> bool:
    is_collection = isinstance(value, Collection) and not isinstance(value, str | bytes)
    return is_collection and all(isinstance(each, str) for each in value)


def _is_color(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or len(value) != 3:
        return False
    return all(_is_integer(each) and 0 <= each <= 255 for each in value)


#: Lower bound of each integer.
_LEAST = {
    **dict.fromkeys(("batch_size", "max_tokens", "prefetch", "world_size"), 1),
    **dict.fromkeys(("max_decode_bytes", "max_download_bytes", "max_pixels"), 1),
    **dict.fromkeys(("epoch", "keep", "mlm_seed", "rank", "seed", "start", "threads"), 0),
}
_FLAGS = (
    *("accept_truncated", "apply_orientation", "channels_last", "drop_last", "pin_memory"),
    "split_batches",
)
#: Description of the expected value of each argument, and its check.
_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "batch_type": ("the name of a batch class, such as 'image_text'", _is_a(str)),
    "tokenizer": ("a fiber.data.Tokenizer", _is_a(Tokenizer)),
    "transform": ("a fiber.data.ImageTransform", _is_a(ImageTransform)),
    "answers": ("a sequence of strings", _are_strings),
    "image_dtype": (f"one of {', '.join(map(repr, _DTYPES))}", _is_a(str)),
    "mlm_probability": ("a number from 0 to 1", _is_number),
    "timeout_seconds": ("a number of seconds above 0", _is_number),
    "background": ("None or three integers (red, green, blue) from 0 to 255", _is_color),
    **dict.fromkeys(_LEAST, ("an integer", _is_integer)),
    **dict.fromkeys(
        ("max_decode_bytes", "mlm_seed"),
        ("None or an integer", lambda value: value is None or _is_integer(value)),
    ),
    **dict.fromkeys(
        (*_FLAGS, "allow_url", "keep_alpha", "scaled_decoding", "shuffle"),
        ("True or False", _is_a(bool, np.bool_)),
    ),
}


def check_arguments(**values: Any) -> None:
    """Check the types of arguments and the bounds of integers.

    Raises:
        TypeError, ValueError: if an argument is invalid; the error gives its name, its value and
            what is expected.
    """
    for name, value in values.items():
        expected, fits = _KINDS[name]
        if not fits(value):
            # An argument of the user, such as a dtype, whose type alone would say little.
            # The caller's own object, such as a dtype of torch, not a value from a file.
            given = printable(repr(value), 80)
            raise TypeError(f"{name} is {given}; expected {expected}")
        if name in _LEAST and value is not None and value < _LEAST[name]:
            raise ValueError(f"{name} is {shown(value)}; expected {_LEAST[name]} or more")
    for name in ("seed", "mlm_seed", "epoch", "max_pixels", "max_decode_bytes"):
        if (values.get(name) or 0) >= 1 << 64:
            raise ValueError(f"{name} is {shown(values[name])}; expected a value below 2 ** 64")
    if not 0 < (seconds := values.get("timeout_seconds", 1)) <= threading.TIMEOUT_MAX:
        raise ValueError(f"timeout_seconds is {seconds}; expected {_KINDS['timeout_seconds'][0]}")
    check_threads(values.get("threads", 0))
    if (name := values.get("image_dtype", _DTYPES[0])) not in _DTYPES:
        raise ValueError(f"image_dtype is {shown(name)}; expected {_KINDS['image_dtype'][0]}")
