"""Check user inputs, and convert them to arrays for a model."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np

from fiber import _core
from fiber.checkpoints.vocabulary.files import NO_TOKENIZER
from fiber.data import ImageTransform, Tokenizer, load_image
from fiber.data.image import EXPECTED, TEXT_KINDS, read_open_file, wrong_array
from fiber.data.image_file import DEFAULT_LIMITS, DecodeLimits
from fiber.data.loader_config import check_arguments
from fiber.data.text_lengths import has_words, is_longer
from fiber.data.texts.cleaning import CLEANERS
from fiber.messages import caller_level, shown

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

#: One image: a path, encoded bytes, a file opened in binary mode, a PIL image, or an (H, W, 3) or
#: (H, W, 4) uint8 array.
ImageInput: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image | np.ndarray"
)
Images: TypeAlias = Sequence[ImageInput]
ImagePair: TypeAlias = tuple[ImageInput, ImageInput]
#: One or more texts.
Texts: TypeAlias = str | Sequence[str]

#: End of messages about sets.
_NO_ORDER = "has no fixed order, in which results could be returned, so pass a list of its items"

#: Number of images decoded at a time, and the maximum batch size of the image encoder.
IMAGES_AT_ONCE = 16


def as_list(images: Any) -> tuple[list[Any], bool]:
    """Convert one or more images to a list. The second return value is True for a single image.

    Raises:
        TypeError: if `images` is neither an image nor a list of images.
        ValueError: if an array has the wrong shape.
    """
    if isinstance(images, (str, os.PathLike, bytes, bytearray, memoryview)):
        return [images], True
    if isinstance(images, np.ndarray):
        # Treat an array of paths, or of images of different sizes, as a list.
        if images.ndim in (3, 4) or (images.ndim == 1 and images.dtype.kind in TEXT_KINDS):
            return ([images], True) if images.ndim == 3 else (list(images), False)
        raise wrong_array(images, "(n, H, W, 3) for n images")
    # Recognize a PIL image without importing PIL, and an open file, which is an iterable of lines.
    if (hasattr(images, "convert") and hasattr(images, "size")) or hasattr(images, "read"):
        return [images], True
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(images, torch.Tensor) and images.ndim <= 3:
        # `load_image` rejects it. Iterating over it would give its channels.
        return [images], True
    # Sets have no order to return results in.
    if hasattr(images, "__iter__") and not isinstance(images, (Mapping, set, frozenset)):
        return list(images), False
    hint = ""
    if isinstance(images, Mapping):
        hint = "; pass list(images.values())"
    elif isinstance(images, (set, frozenset)):
        hint = f"; a set {_NO_ORDER}"
    raise TypeError(f"image is a {type(images).__name__}; {EXPECTED}, or a list of these{hint}")


def as_texts(texts: str | Sequence[str], what: str) -> list[Any]:
    """Convert one or more texts to a list.

    Raises:
        TypeError: if `texts` is neither a str nor a list of str.
    """
    if isinstance(texts, str):
        return [texts]
    check_has_order(texts, what)
    is_scalar = isinstance(texts, np.ndarray) and not texts.ndim
    if isinstance(texts, (bytes, Mapping)) or is_scalar or not hasattr(texts, "__iter__"):
        kind = type(texts).__name__
        hint = "; pass array.item()" if is_scalar else ""
        raise TypeError(f"{what}: expected a str or a list of str, got {kind} {shown(texts)}{hint}")
    return list(texts)


def check_has_order(texts: object, what: str) -> None:
    """Raise TypeError if texts are a set, whose order differs from process to process."""
    if isinstance(texts, (set, frozenset)):
        raise TypeError(
            f"{what}: expected a str or a list of str, got a set of {len(texts)}; a set {_NO_ORDER}"
        )


def check_top_k(top_k: int) -> None:
    """Raise TypeError or ValueError unless `top_k` is a positive integer."""
    if not isinstance(top_k, (int, np.integer)):
        raise TypeError(f"top_k must be an integer, got {type(top_k).__name__} {shown(top_k)}")
    if top_k < 1:
        raise ValueError(f"top_k must be 1 or more, got {top_k}")


def one_for_each(texts: str | Sequence[str], count: int, what: str) -> list[str]:
    """Return one text per image, given a single text for all images or one text per image.

    Raises:
        ValueError: if the number of texts is wrong, or a text is empty.
    """
    given = as_texts(texts, what)
    if isinstance(texts, str):
        given = given * count
    if not given and count:
        raise ValueError(
            f"{what}: got an empty list; expected one text for all images, or a list of one per"
            " image"
        )
    if len(given) != count:
        more = f"; to give one image several, repeat it: [image] * {len(given)}" * (count == 1)
        raise ValueError(
            f"{what}: got {len(given)} for {count} image{'s' * (count != 1)}; expected one for all"
            f" images or one per image{more}"
        )
    return not_empty(given, what)


def one_list_for_each(
    texts: str | Sequence[str] | Sequence[Sequence[str]], count: int, what: str
) -> list[list[str]]:
    """Return one list of texts per image, given a single list for all images or one per image.

    Raises:
        ValueError: if the number of lists is wrong, or a list is empty.
    """
    given: list[Any] = as_texts(texts, what)  # type: ignore[arg-type]
    if not given:
        raise ValueError(f"{what}s: got an empty list; expected a list of one or more texts")
    if not any(map(is_list, given)):
        given = [not_empty(given, what)] * count
    for index, each in enumerate(given):
        check_has_order(each, f"{what} list {index}")
        if not is_list(each) or not each:
            like = "" if is_list(each) else ", as other items are lists"
            raise ValueError(
                f"{what} list {index} is {shown(each)}; expected a list of one or more texts{like}"
            )
    if len(given) != count:
        raise ValueError(
            f"got {len(given)} lists of texts for {count} image{'s' * (count != 1)}; expected one"
            f" list of {what}s for all images, or one list per image"
        )
    return [list(each) for each in given]


def is_list(given: object) -> bool:
    """Check whether an item of a list is a list itself, not a text or another value."""
    return isinstance(given, Collection) and not isinstance(given, (str, bytes, Mapping))


def not_empty(texts: Sequence[str], what: str) -> list[str]:
    """Strip whitespace from texts, and check that none is empty.

    Raises:
        TypeError: if an entry is not a str.
        ValueError: if a text is empty or contains a lone surrogate.
    """
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{what} {index} is {shown(text)}; expected a str")
        if not text.strip():
            raise ValueError(f"{what} {index} is empty; expected text that contains words")
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ValueError(
                f"{what} {index} contains a lone surrogate: {shown(text)}; expected valid Unicode"
            )
    return [text.strip() for text in texts]


@contextlib.contextmanager
def naming(place: str) -> Iterator[None]:
    """Begin the message of an error with the place of an image among several, unless empty."""
    try:
        yield
    except (OSError, TypeError, ValueError) as error:
        if place and isinstance(error, OSError) and error.strerror is not None:
            error.strerror = f"{place}: {error.strerror}"
        elif place:
            error.args = (f"{place}: {error}",)
        raise


@dataclass(frozen=True)
class ImageBatch:
    """Batch of images padded to the same size: tensors of a network, or arrays of numpy."""

    #: (B,) indices into the user's list.
    indices: list[int]
    #: (B, 3, H, W), normalized.
    images: Tensor
    #: (B, 2) int64 (height, width) without padding, in pixels.
    image_sizes: Tensor
    #: (B, 2) int64 (height, width) of the original images, in pixels.
    original_sizes: Tensor
    #: Original images, (H, W, 3) uint8.
    originals: list[np.ndarray]


@dataclass(frozen=True)
class TextBatch:
    """Batch of texts, padded to the longest one: tensors of a network, or arrays of numpy."""

    #: (B, L) int64.
    token_ids: Tensor
    #: (B, L) bool, True = real token.
    text_mask: Tensor
    #: Half-open character spans of each text's tokens; (0, 0) for <s> and </s>.
    offsets: list[list[tuple[int, int]]]


class ArrayInputs:
    """Image and text preprocessing for a model that computes with arrays of numpy.

    Args:
        transforms: returns the image preprocessing for a task by name, or the default for None.
        tokenizer: tokenizer of the model, if it has one.
        max_tokens: maximum number of tokens of a text, including <s> and </s>.
        limits: limits of decoding one image; see `fiber.data.load_image`.
        no_tokenizer: message of the error for a missing tokenizer.
        cleaning: how texts are cleaned, a name of `fiber.data.texts.cleaning.CLEANERS`, or "".
    """

    def __init__(
        self,
        transforms: Callable[[str | None], ImageTransform],
        tokenizer: Tokenizer | None,
        max_tokens: int,
        limits: DecodeLimits = DEFAULT_LIMITS,
        no_tokenizer: str = NO_TOKENIZER,
        *,
        cleaning: str = "",
    ) -> None:
        self._transforms = transforms
        self.transform = transforms(None)
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        check_arguments(**limits._asdict())
        self.limits = limits
        self.no_tokenizer = no_tokenizer
        self._clean = CLEANERS[cleaning] if cleaning else None

    def of(self, task: str) -> Self:
        """Return a copy that transforms images as a task does."""
        own = copy(self)
        own.transform = self._transforms(task)
        return own

    def _threads(self) -> int:
        """Return the number of threads that decode images."""
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1

    def _converters(self) -> tuple[Callable[[np.ndarray], Any], Callable[[np.ndarray], Any]]:
        """Return functions that convert arrays for the model, and sizes of images."""
        return lambda values: values, lambda values: values

    def images(self, images: Sequence[Any], *, in_pairs: bool = False) -> Iterator[ImageBatch]:
        """Decode and transform images in batches.

        Only images with the same padded size share a batch. Otherwise, results would depend on the
        other images in a batch, since the model attends to padding.

        Args:
            images: images to read.
            in_pairs: images 2 n and 2 n + 1 are pair n of the user, for messages.

        Raises:
            FileNotFoundError, fiber.DecodeError: if an image cannot be read. The message names the
                image, and its index if there are several.
            ValueError: if an array has the wrong shape or dtype, or no pixels.
            TypeError: if an image has an unsupported type.
        """
        place = "pairs[{0}][{1}]" if in_pairs else "images[{2}]"
        place = place if len(images) > 1 else ""
        convert, convert_sizes = self._converters()
        with ThreadPoolExecutor(max_workers=self._threads()) as pool:
            for start in range(0, len(images), IMAGES_AT_ONCE):
                by_size: dict[tuple[int, ...], list[tuple[int, Any]]] = {}
                some, places = [], []
                for index, image in enumerate(images[start : start + IMAGES_AT_ONCE], start):
                    places.append(place.format(index // 2, index % 2, index))
                    # Here, since threads cannot read one file at the same time.
                    with naming(places[-1]):
                        some.append(read_open_file(image))
                for index, prepared in enumerate(pool.map(self._prepare, some, places), start):
                    by_size.setdefault(prepared[1].shape, []).append((index, prepared))
                for same in by_size.values():
                    arrays, pixels, sizes = zip(*(prepared for _, prepared in same), strict=True)
                    originals = np.array([array.shape[:2] for array in arrays], np.int64)
                    yield ImageBatch(
                        indices=[index for index, _ in same],
                        images=convert(np.stack(pixels)),
                        image_sizes=convert_sizes(np.array(sizes, np.int64)),
                        original_sizes=convert_sizes(originals),
                        originals=list(arrays),
                    )

    def cleaned(self, text: str) -> str:
        """Return a text as it is tokenized: cleaned, if the family does."""
        return text if self._clean is None else self._clean(text).text

    def check_length(self, text: str, what: str) -> None:
        """Check that a text is not truncated.

        Raises:
            ValueError: if it has more tokens than the model takes; the message starts with `what`.
        """
        tokenizer, cleaned = self.needed_tokenizer(), self.cleaned(text)
        if is_longer(cleaned, tokenizer, self.max_tokens):
            count = len(tokenizer.encode(cleaned)[0])
            raise ValueError(
                f"{what} {shown(text)} has {count} tokens; expected at most {self.max_tokens},"
                " those of the text encoder"
            )

    def texts(self, texts: Sequence[str], *, warn_truncated: bool = True) -> TextBatch:
        """Tokenize texts and truncate long ones, by default with a warning.

        Spans of tokens refer to the texts as given, before they are cleaned.

        Raises:
            ValueError: if the model has no tokenizer, or a text contains only special tokens
                such as <s> and <pad>.
        """
        tokenizer, limit = self.needed_tokenizer(), self.max_tokens
        cleaned = None if self._clean is None else [self._clean(text) for text in texts]
        texts = texts if cleaned is None else [each.text for each in cleaned]
        arrays = tokenizer.encode_batch(texts, max_tokens=limit, offsets=True)
        token_ids, text_mask, offsets = (
            np.asarray(arrays[name]) for name in ("token_ids", "text_mask", "offsets")
        )
        counts, special_ids = text_mask.sum(1), set(tokenizer.special_ids)
        for text, ids, count in zip(texts, token_ids, counts, strict=True):
            if not has_words(ids[:count].tolist(), special_ids):
                raise ValueError(f"text {shown(text)} contains only special tokens; expected words")
            if not warn_truncated or count < limit:
                continue
            if (complete := len(tokenizer.encode(text)[0])) > limit:
                warnings.warn(
                    f"text {text[:60]!r}... has {complete} tokens and is truncated to the model's"
                    f" maximum of {limit} tokens",
                    UserWarning,
                    stacklevel=caller_level(),
                )
        places = [
            [(start, end) for start, end in spans[:count].tolist()]
            for spans, count in zip(offsets, counts, strict=True)
        ]
        if cleaned is not None:
            places = [
                [each.original_span(span) for span in spans]
                for each, spans in zip(cleaned, places, strict=True)
            ]
        convert, _ = self._converters()
        return TextBatch(convert(token_ids), convert(text_mask), places)

    def empty(self, width: int) -> Any:
        """Return a float32 array of shape (0, `width`) for the model."""
        return self._converters()[0](np.zeros((0, width), np.float32))

    def needed_tokenizer(self) -> Tokenizer:
        """Return the tokenizer.

        Raises:
            ValueError: if the model has no tokenizer.
        """
        if self.tokenizer is None:
            raise ValueError(self.no_tokenizer)
        return self.tokenizer

    def _prepare(self, image: Any, place: str) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
        """Return the decoded image, its (3, H, W) pixels, and its unpadded (height, width).

        The decoded image has no alpha, whatever the transform makes of it. `place` is the index of
        the image for messages, or empty.
        """
        keep_alpha = self.transform.keeps_alpha
        with naming(place):
            array = load_image(image, keep_alpha=keep_alpha, **self.limits._asdict())
            if not array.size:
                raise ValueError(
                    f"image of shape {array.shape} has no pixels; expected (H, W, 3) with positive"
                    " H and W"
                )
        pixels, _, size = _core.apply_transform(array, self.transform)
        return load_image(array), np.asarray(pixels), size
