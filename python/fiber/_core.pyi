"""Typed face of the Rust extension; `python -m mypy.stubtest fiber._core` checks it."""

# ruff: noqa: A002 - `filter` is Pillow's word for the kernel of a resize.

import sys
from collections.abc import Sequence
from os import PathLike
from typing import Any, Final, Literal, final

import numpy as np

__all__ = [
    "Buffer",
    "ColorJitter",
    "DecodeError",
    "ImageTransform",
    "Loader",
    "RandAugment",
    "Session",
    "Tokenizer",
    "WholeWordMasking",
    "__version__",
    "apply_transform",
    "augment_image",
    "build_profile",
    "cross_attention",
    "cross_attention_backward",
    "decode_image",
    "decode_jpeg",
    "draw_below",
    "jitter_image",
    "mirror_words",
    "normalize_image",
    "permutation",
    "positive_map",
    "probe_image",
    "read_image",
    "read_jpeg_header",
    "resize_image",
    "window_attention",
    "window_attention_backward",
]

__version__: Final[str]
#: "debug" where the extension was built without optimisation.
build_profile: Final[str]

class DecodeError(ValueError):
    """A picture whose bytes cannot be decoded; the message names the file and the reason."""

    #: "corrupt"; "unsupported" for a kind of picture that is not decoded and for too many pixels.
    status: str

@final
class Buffer:
    """An array of Rust's memory.

    It implements the buffer protocol, writable: `numpy.asarray(buffer)` and
    `torch.frombuffer(buffer, dtype=...)` share its memory.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of every dimension."""

    @property
    def dtype(
        self,
    ) -> Literal["uint8", "float16", "bfloat16", "float32", "int64", "bool"]:
        """Type of the values, by numpy's name."""

    # Older versions have the protocol, but not under this name.
    if sys.version_info >= (3, 12):
        def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class ImageTransform:
    """What happens to a picture, and to the boxes in it, on its way into a batch.

    Every transform resizes with antialiasing (`filter` "bilinear" or "bicubic"), so that no value
    differs from Pillow's where that takes rows first (docs/loader.md, "Pixels"); with
    `resize="fast"` values may differ by one level of 255 where that saves time, which it does with
    AVX2 and up to a fourfold reduction. Then it writes
    (value / 255 - mean) / std in single precision. `mean` and `std` are always red first, also
    where `channel_order` is "bgr"; the defaults are ImageNet's. In batches, mirroring swaps the
    words for left and right in the text too. `color_jitter`, then `rand_augment` work on the
    resized and mirrored picture; where there are boxes, a `rand_augment` whose operations move
    pixels is refused with a ValueError.
    """

    @staticmethod
    def squash(
        size: int,
        *,
        color_jitter: ColorJitter | None = None,
        rand_augment: RandAugment | None = None,
        filter: str = "bicubic",
        resize: str = "exact",
        channel_order: str = "rgb",
        mean: Sequence[float] = ...,
        std: Sequence[float] = ...,
    ) -> ImageTransform:
        """Resize to exactly size x size pixels; the aspect ratio is not kept."""

    @staticmethod
    def random_resized_crop(
        size: int,
        *,
        scale: tuple[float, float] = ...,
        ratio: tuple[float, float] = ...,
        flip_probability: float = 0.5,
        color_jitter: ColorJitter | None = None,
        rand_augment: RandAugment | None = None,
        filter: str = "bicubic",
        resize: str = "exact",
        channel_order: str = "rgb",
        mean: Sequence[float] = ...,
        std: Sequence[float] = ...,
    ) -> ImageTransform:
        """Cut out a random rectangle and resize it to size x size pixels.

        Boxes whose centre lies outside, or of which less than a tenth is left, are dropped.

        Args:
            size: Side in pixels.
            scale: Least and largest part of the picture's area; default (0.5, 1.0).
            ratio: Least and largest width / height; default (3 / 4, 4 / 3).
            flip_probability: Probability of mirroring left and right.
            color_jitter: See the class.
            rand_augment: See the class.
            filter: See the class.
            resize: See the class.
            channel_order: See the class.
            mean: See the class.
            std: See the class.
        """

    @staticmethod
    def shorter_side(
        sizes: Sequence[int],
        max_size: int,
        *,
        crop_probability: float = 0.0,
        crop_scale: tuple[float, float] = ...,
        flip_probability: float = 0.0,
        color_jitter: ColorJitter | None = None,
        rand_augment: RandAugment | None = None,
        divisor: int = 32,
        filter: str = "bilinear",
        resize: str = "exact",
        channel_order: str = "rgb",
        mean: Sequence[float] = ...,
        std: Sequence[float] = ...,
    ) -> ImageTransform:
        """Resize the shorter side to one of `sizes`, keeping the aspect ratio.

        Args:
            sizes: Lengths in pixels, one of which is drawn for each picture.
            max_size: Longest longer side in pixels; the shorter one gives way. It is rounded to
                whole pixels, as published, so that the longer one may be up to a third longer where
                it comes to a few. Where it comes to less than two, it is one pixel and the longer
                one at most this, and the aspect ratio is not kept.
            crop_probability: Probability that a part of about the picture's shape is cut out first.
                A box whose centre lies outside the part, or of which less than a tenth is left, is
                dropped; the others are cut. A part without any of the picture's boxes is not taken.
            crop_scale: Least and largest part of the area that is kept; default (0.5, 1.0).
            flip_probability: Probability of mirroring left and right.
            color_jitter: See the class.
            rand_augment: See the class.
            divisor: A batch is padded right and bottom, with zeros, to the largest height and
                width, rounded up to a multiple of this.
            filter: See the class.
            resize: See the class.
            channel_order: See the class.
            mean: See the class.
            std: See the class.
        """

    @property
    def is_square(self) -> bool:
        """Whether every picture comes out with the same height and width."""

    def describe(self) -> dict[str, Any]:
        """Every setting by name, ready for JSON; `kind` is the constructor's name."""

    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    __hash__: None  # type: ignore[assignment]

@final
class ColorJitter:
    """Brightness, contrast, saturation and hue at random, with torchvision's values.

    Each factor is drawn from its range, then the changes are carried out in a random order. Against
    `torchvision.transforms.v2.ColorJitter` of a uint8 tensor nothing differs but few values of
    contrast, by one level: torchvision rounds the mean of the picture.

    Args:
        brightness: Least and largest factor of every value.
        contrast: Least and largest factor of the distance from the mean grey.
        saturation: Least and largest factor of the distance from a pixel's own grey.
        hue: Least and largest turn, in parts of the circle from -0.5 to 0.5.

    Raises:
        ValueError: for what is no range.
    """

    def __new__(
        cls,
        *,
        brightness: tuple[float, float] = ...,
        contrast: tuple[float, float] = ...,
        saturation: tuple[float, float] = ...,
        hue: tuple[float, float] = ...,
    ) -> ColorJitter: ...
    def describe(self) -> dict[str, Any]:
        """Every setting by name, ready for JSON."""

    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    __hash__: None  # type: ignore[assignment]

@final
class RandAugment:
    """Operations drawn for each picture, with replacement, all of one magnitude.

    The values that come out are those of the published fine-tuning code with OpenCV 5.0, bit by
    bit: AutoContrast and Equalize work on each channel; Brightness and Sharpness take a factor (as
    published, Sharpness wraps around where it passes 0 or 255); ShearX and ShearY take a factor,
    TranslateX and TranslateY pixels, Rotate degrees, all in either direction, and what comes from
    outside of the picture is 128.

    Args:
        num_ops: How many operations are drawn; 0 leaves pictures as they are.
        magnitude: Strength of every operation, 0 to 10.
        probability: Probability that an operation that was drawn is carried out.
        operations: What is drawn from, a repeated name the more often; by default all ten, among
            them Identity, which does nothing.

    Raises:
        ValueError: for an unknown operation, and for a number outside its range.
    """

    def __new__(
        cls,
        *,
        num_ops: int = 2,
        magnitude: float = 7.0,
        probability: float = 0.5,
        operations: Sequence[str] = ...,
    ) -> RandAugment: ...
    def arguments(self) -> dict[str, float | None]:
        """Give the argument of each operation, without its sign; None where it takes none."""

    def describe(self) -> dict[str, Any]:
        """Every setting by name, ready for JSON."""

    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    __hash__: None  # type: ignore[assignment]

@final
class Tokenizer:
    """Texts to tokens, by any tokenizer.json, with the ids and offsets of the package `tokenizers`.

    A byte-level BPE with GPT-2's pattern and no normaliser (RoBERTa, GPT-2) goes through code of
    its own, everything else through the crate `tokenizers`. What the file says of truncation is not
    read: `max_tokens` cuts on the right, and what the file puts around every text always stays.

    The models of fiber read one kind only, see `check_for_models`; `from_vocabulary` and `train`
    make that kind.
    """

    @staticmethod
    def from_file(
        path: str | PathLike[str], *, pad_token: str | None = None, mask_token: str | None = None
    ) -> Tokenizer:
        """Read a tokenizer.json.

        Args:
            path: The file.
            pad_token: What fills rows up, if not what the file's `padding` says (where its id and
                its token agree) or a token with a known name (<pad>, [PAD], <|pad|> and the like).
                Where there is none of these, the token behind every text pads, else the one that
                ends texts (<|endoftext|>, </s> and the like), else the id 0; `text_mask` tells
                what is real.
            mask_token: What hides a word, if not <mask>, [MASK] or the like. A tokenizer without
                one does everything but masking.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is no tokenizer.json, or lacks a token that is named.
        """

    @staticmethod
    def from_json(
        json: str, *, pad_token: str | None = None, mask_token: str | None = None
    ) -> Tokenizer:
        """Read the text of a tokenizer.json; see `from_file`."""

    @staticmethod
    def from_vocabulary(
        vocab_json_path: str | PathLike[str], merges_path: str | PathLike[str]
    ) -> Tokenizer:
        """Read RoBERTa's two files, vocab.json and merges.txt.

        A <mask> in a text takes the spaces in front of it, as the published tokenizer.json says and
        `transformers` 4 does. `transformers` 5 makes another token of them where it reads these two
        files, unless it is given `mask_token=AddedToken("<mask>", lstrip=True)`.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if they do not fit, or models cannot read them.
        """

    @staticmethod
    def train(texts: Sequence[str], vocab_size: int) -> Tokenizer:
        """Learn a vocabulary like RoBERTa's from texts; deterministic.

        It is smaller than asked for where too few pairs repeat. Every byte has a token, so that
        any text can be encoded.

        Raises:
            ValueError: if `vocab_size` is below 261, the bytes and special tokens.
        """

    def save(self, path: str | PathLike[str]) -> None:
        """Write a tokenizer.json; it appears whole or not at all."""

    def to_json(self) -> str:
        """Give the text of a tokenizer.json.

        A padding or mask token that could not be found again by its name stands in its `padding`,
        which the package `tokenizers` reads too: it then pads what it encodes in batches.
        """

    @property
    def vocab_size(self) -> int:
        """Tokens in the vocabulary, special ones included."""

    @property
    def pad_id(self) -> int:
        """Id that fills rows up; see `from_file`."""

    @property
    def mask_id(self) -> int | None:
        """Id of the token that hides a word; None where there is none."""

    @property
    def unknown_id(self) -> int | None:
        """Id of the token for what the vocabulary lacks; None where there is none."""

    @property
    def start_ids(self) -> list[int]:
        """Ids in front of every text."""

    @property
    def end_ids(self) -> list[int]:
        """Ids behind every text."""

    @property
    def special_ids(self) -> list[int]:
        """All of the ids above and those that the file calls special, ascending; never masked."""

    @property
    def is_fast(self) -> bool:
        """Whether texts go through fiber's own byte-level BPE, not through the crate."""

    def check_for_models(self) -> None:
        """Refuse a vocabulary that fiber's models cannot read.

        They need RoBERTa's ids: those of <s> <pad> </s> <unk> are 0 to 3, <mask> has the last id,
        and <s> and </s> stand around every text.

        Raises:
            ValueError: with the first difference.
        """

    def encode(
        self, text: str, *, max_tokens: int | None = None
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Split a text into tokens, those around every text included.

        Args:
            text: Any text, "" too.
            max_tokens: Longest result; longer ones are cut, but for what stands around every text.

        Returns:
            Ids, and for each the half-open span of code points that it covers, as the file says:
            in RoBERTa's without the space in front of a word. What stands around every text
            covers (0, 0).

        Raises:
            ValueError: if `max_tokens` cannot hold what stands around every text, or a text holds
                what the vocabulary lacks and has no token for.
        """

    def encode_batch(
        self,
        texts: Sequence[str],
        *,
        max_tokens: int | None = None,
        pad_to: int | None = None,
        offsets: bool = False,
    ) -> dict[str, Buffer]:
        """Split B texts into padded arrays of L tokens.

        Args:
            texts: Any texts.
            max_tokens: Longest text, as in `encode`.
            pad_to: L; the longest text's tokens unless given.
            offsets: Whether spans are wanted.

        Returns:
            "token_ids" (B, L) int64, "text_mask" (B, L) bool, True = real token, and where wanted
            "offsets" (B, L, 2) int64, as `encode` gives them and (0, 0) for padding.

        Raises:
            ValueError: as `encode`, and if `pad_to` is below the longest text's tokens.
            MemoryError: if the system has no memory for the list of texts or for the arrays.
        """

    def encode_masked_batch(
        self,
        texts: Sequence[str],
        *,
        mlm_probability: float,
        seed: int,
        epoch: int,
        indices: Sequence[int],
        max_tokens: int | None = None,
        pad_to: int | None = None,
    ) -> dict[str, Buffer]:
        """Split B texts and mask words, as the loader does.

        Args:
            texts: Any texts.
            mlm_probability: Of a token to be picked that is not special: 80 % of those become the
                mask, 10 % another token (as published, also a special one where models can read the
                vocabulary, else none).
            seed: Start of the draws.
            epoch: Epoch of the draws.
            indices: Number of each text's sample; draws depend on nothing else.
            max_tokens: As in `encode_batch`.
            pad_to: As in `encode_batch`.

        Returns:
            "token_ids", "text_mask", and "masked_ids" and "mlm_labels" (B, L) int64; the label of
            a token that was not picked is -100.

        Raises:
            ValueError: as `encode_batch`, for a probability outside 0 to 1 or above 0 where there
                is no mask token, and if there is not one number for each text.
            MemoryError: as `encode_batch`.
        """

    def positive_map(
        self,
        text: str,
        char_spans: Sequence[Sequence[tuple[int, int]]],
        *,
        max_tokens: int | None = None,
    ) -> Buffer:
        """Tell for every box which tokens of a text name it; long texts are kept encoded.

        Args:
            text: The caption or prompt.
            char_spans: For each of G boxes, its half-open spans of code points.
            max_tokens: As in `encode`.

        Returns:
            (G, L) bool, as `fiber._core.positive_map` of the text's offsets.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """Join tokens to a text; special ones are left out.

        Raises:
            ValueError: for an id outside the vocabulary.
        """

    def __len__(self) -> int: ...
    def __reduce__(self) -> tuple[Any, ...]: ...

@final
class WholeWordMasking:
    """MLM masking of whole words; `fiber.data.masking.WholeWords` wraps it for tensors.

    Args:
        tokenizer: Byte-level BPE of fiber's models (`Tokenizer.check_for_models`).
        probability: Of a word to be picked.
        seed: Of the random numbers.

    Raises:
        ValueError: if `probability` is not in [0, 1], or the tokenizer is of another kind.
    """

    def __new__(
        cls, tokenizer: Tokenizer, *, probability: float, seed: int
    ) -> WholeWordMasking: ...
    def word_numbers(self, token_ids: np.ndarray) -> Buffer:
        """Number the words of texts.

        Args:
            token_ids: (B, L) int64, contiguous.

        Returns:
            (B, L) int64: tokens with equal numbers are one word, -1 at special tokens. Numbers
            start at 0 and have gaps.

        Raises:
            ValueError: for an id outside the vocabulary, or another shape.
        """

    def mask(self, token_ids: np.ndarray, *, first_sample: int) -> tuple[Buffer, Buffer]:
        """Pick words and mask them: 80 % of their tokens <mask>, 10 % a random token, 10 % kept.

        Args:
            token_ids: (B, L) int64, contiguous.
            first_sample: Index of the first text; with the seed it determines the random numbers.

        Returns:
            Input ids of the model and labels, (B, L) int64 each; the label of a token that was not
            picked is -100.

        Raises:
            ValueError: for an id outside the vocabulary, or another shape.
        """

@final
class Loader:
    """Threads that turn records into batches; see `fiber.data.DataLoader`."""

    def __new__(
        cls,
        batch_type: str,
        tokenizer: Tokenizer,
        transform: ImageTransform,
        *,
        max_tokens: int,
        seed: int,
        mlm_probability: float,
        mirrored_answers: Sequence[int],
        threads: int,
        keep: int,
        on_error: str,
        accept_truncated: bool,
        scaled_decoding: bool,
        apply_orientation: bool,
        background: tuple[int, int, int] | None,
        dtype: str,
        layout: str,
        max_pixels: int = ...,
    ) -> Loader: ...
    @property
    def picture_bytes(self) -> tuple[int, int]:
        """Bytes of all batches' pictures that are held, and the most that there ever were."""
    def open(self) -> Session:
        """Begin a pass."""

@final
class Session:
    """One pass over data: batches of records go in, finished batches come out in order."""

    def submit(self, records: Sequence[tuple[Any, ...]]) -> None:
        """Hand in the records of one batch; returns at once.

        Each is (key, epoch, index, images, text, image_id, boxes_xyxy, char_spans, answers or
        None, truth or None, annotated (height, width) or None); answers are (index in the
        vocabulary, score).
        """

    def replace(self, records: Sequence[tuple[int, tuple[Any, ...]]]) -> None:
        """Hand in other records for places of the batch that `next` named."""

    def finish(self) -> None:
        """Say that no more batches will be handed in."""

    def close(self) -> None:
        """Give up what is waiting."""

    def next(self) -> dict[str, Any] | list[tuple[int, str, str, str]] | None:
        """Wait for the next batch without the interpreter lock; None after the last one.

        A list instead names bad samples of the next batch, which waits for others: (place in the
        batch, key, status, reason).

        Raises:
            FileNotFoundError, DecodeError, ValueError: for a bad record, with its key.
            MemoryError: if the system has no memory for the batch, with its bytes and its shape;
                the next one can be had.
        """

def probe_image(data: bytes) -> tuple[int, int, str]:
    """Read (height, width, format) without decoding the pixels.

    The format is "jpeg", "png", "webp", "gif", "bmp" or "tiff", told from the content.
    """

def decode_image(
    data: bytes, *, max_pixels: int = ..., background: tuple[int, int, int] | None = None
) -> Buffer:
    """Decode a JPEG, PNG, WebP, GIF, BMP or TIFF file to (H, W, 3) uint8, red first.

    As Pillow's `convert("RGB")`: grey is repeated, orientation tags are not applied, of several
    frames the first is taken. Of 16 bits the upper eight are taken.

    Args:
        data: The bytes of a picture file.
        max_pixels: Largest picture; default 178,956,970, Pillow's limit.
        background: Red, green and blue that what is transparent is laid over; None drops alpha.

    Raises:
        DecodeError: for other formats, broken or truncated bytes, kinds of a format that are not
            supported, and too many pixels.
        MemoryError: if the system has no memory for the pixels.
    """

def read_jpeg_header(data: bytes) -> tuple[int, int, int]:
    """Read (height, width, EXIF orientation 1 to 8) of a JPEG; 1 where it has no valid one."""

def decode_jpeg(
    data: bytes,
    *,
    divisor: int = 1,
    stop_row: int | None = None,
    max_pixels: int = ...,
    instructions: str | None = None,
    beside: bytes | None = None,
) -> tuple[Buffer, str | None]:
    """Decode a JPEG to (H, W, 3) uint8, filled in where it is damaged, and say why.

    Every value is libjpeg-turbo's; CMYK and YCCK become RGB as in Pillow's `convert("RGB")`.

    Args:
        data: The bytes of a JPEG file.
        divisor: 1, 2, 4 or 8: decode to that part of height and width, rounded up.
        stop_row: The first row that is not needed.
        max_pixels: Largest picture in the file; default 178,956,970, Pillow's limit.
        instructions: "scalar", "neon", "avx2" or "avx512"; the processor's widest if None. All of
            them give the same picture.
        beside: Another JPEG file that is decoded at the same time, as the loader's threads do; what
            it holds changes nothing.

    Returns:
        The picture, and why some of it is filled in, or None where nothing is.

    Raises:
        DecodeError: for what is no JPEG, unsupported ("unsupported" in the message), hopeless, or
            larger than `max_pixels`.
        ValueError: for another divisor, and for instructions that the processor lacks.
    """

def read_image(
    path: str | PathLike[str],
    *,
    max_pixels: int = ...,
    background: tuple[int, int, int] | None = None,
) -> Buffer:
    """Read and decode a picture file; see `decode_image`.

    Raises:
        FileNotFoundError: if there is no such file.
        DecodeError: with the file's name.
    """

def resize_image(
    image: Buffer | np.ndarray,
    height: int,
    width: int,
    filter: str = "bicubic",
    *,
    resize: str = "exact",
    crop: tuple[int, int, int, int] | None = None,
    rows_at_once: int = 0,
    instructions: str | None = None,
) -> Buffer:
    """Resize a uint8 array (H, W, 3) with antialiasing, as Pillow does, rows before columns.

    Args:
        image: The array.
        height: Of the output, in pixels.
        width: Of the output, in pixels.
        filter: "bilinear" or "bicubic".
        resize: "exact", or "fast" for values that may be one level off; see `ImageTransform`.
        crop: (top, left, height, width) in pixels of what is resized; the whole picture if None.
        rows_at_once: How many rows go in at a time, as from a decoder; 0 for all. Values do not
            depend on it.
        instructions: "scalar", "neon", "avx2" or "avx512"; the processor's widest if None. All of
            them give the same values if `resize` is "exact".

    Raises:
        ValueError: for a size of 0 or of more than 178,956,970 pixels, a crop that leaves the
            picture, an unknown filter or precision, and for instructions that the processor lacks.
    """

def normalize_image(
    image: Buffer | np.ndarray,
    height: int,
    width: int,
    *,
    layout: str = "chw",
    dtype: str = "float32",
    flip: bool = False,
    channel_order: str = "rgb",
    mean: Sequence[float] = ...,
    std: Sequence[float] = ...,
    instructions: str | None = None,
) -> Buffer:
    """Write a uint8 array (H, W, 3) as it stands in a batch, with zeros on the right and below.

    Args:
        image: The array.
        height: Of the picture in the batch, in pixels; H or more.
        width: Of the picture in the batch, in pixels; W or more.
        layout: "chw" for (3, height, width), "hwc" for (height, width, 3).
        dtype: "float32"; "float16" and "bfloat16", rounded from it to nearest with ties to even; or
            "uint8", which is not normalised.
        flip: Whether left and right are mirrored.
        channel_order: "rgb" or "bgr".
        mean: Subtracted from values in [0, 1]; red first. ImageNet's by default.
        std: Divides what is left; red first. ImageNet's by default.
        instructions: "scalar", "neon", "avx2" or "avx512"; the processor's widest if None. All of
            them give the same bytes.

    Returns:
        The bytes of all values, without a shape.

    Raises:
        ValueError: for a picture that does not fit, and unknown names.
    """

def jitter_image(image: Buffer | np.ndarray, change: str, factor: float) -> Buffer:
    """Carry one change of `ColorJitter` out on a uint8 array (H, W, 3), red first.

    Args:
        image: The array.
        change: "brightness", "contrast", "saturation" or "hue".
        factor: 0 or more; of hue, -0.5 to 0.5.

    Raises:
        ValueError: for an unknown change and a factor outside its range.
    """

def augment_image(
    image: Buffer | np.ndarray, operation: str, argument: float | None = None
) -> Buffer:
    """Carry one operation of `RandAugment` out on a uint8 array (H, W, 3), red first.

    Args:
        image: Sides of 1 to 4,194,304 pixels.
        operation: "Rotate" and so on.
        argument: Its factor, pixels or degrees, with the sign: Rotate turns to the left, ShearX
            moves lower rows to the right, ShearY moves columns on the right down, TranslateX moves
            left, TranslateY up. None for an operation that takes none.

    Raises:
        ValueError: for an unknown operation, an argument that is missing or not taken, and an
            array of another shape.
    """

def apply_transform(
    image: Buffer | np.ndarray | bytes,
    transform: ImageTransform,
    boxes: Sequence[Sequence[float]] | None = None,
    *,
    seed: int = 0,
    epoch: int = 0,
    index: int = 0,
) -> tuple[Buffer, list[list[float]], tuple[int, int]]:
    """Run a transform on one picture.

    Args:
        image: A uint8 array (H, W, 3) or the bytes of a picture file.
        transform: What to do.
        boxes: (x0, y0, x1, y1) in pixels of the picture.
        seed: With `epoch` and `index`, what the random draws depend on.
        epoch: As in the loader, the epoch.
        index: As in the loader, the place of the record.

    Returns:
        A float32 array (3, H, W), padded to the transform's divisor; the boxes that are left, in
        its pixels; and (height, width) without the padding.

    Raises:
        ValueError: for an array of another shape, for a box that reaches more than a pixel outside
            the picture, and for boxes with a `rand_augment` that moves pixels.
    """

def positive_map(
    offsets: Sequence[tuple[int, int]], char_spans: Sequence[Sequence[tuple[int, int]]]
) -> Buffer:
    """Tell for every box which tokens name it.

    Args:
        offsets: Span of code points of each token, from `Tokenizer.encode`.
        char_spans: For each box, the spans of the text that name it.

    Returns:
        (boxes, tokens) bool: whether the token overlaps one of the box's spans.
    """

def mirror_words(
    text: str, char_spans: Sequence[tuple[int, int]] = ...
) -> tuple[str, list[tuple[int, int]]]:
    """Swap the words for left and right, and move spans of code points with them."""

def draw_below(bound: int, seed: int, epoch: int, index: int, attempt: int) -> int:
    """Draw a number below `bound`; the same arguments give the same one."""

def permutation(count: int, seed: int, epoch: int) -> Buffer:
    """Draw the order of an epoch: an int64 array that holds every number below `count` once."""

_Floats = np.ndarray

def window_attention(
    qkv: _Floats,
    bias_table: _Floats,
    qkv_bias: _Floats,
    out: _Floats,
    *,
    window: int,
    shift: int,
    sizes: Sequence[tuple[int, int]] | None,
    threads: int,
    instructions: Literal["scalar", "neon", "avx2", "avx512"] | None = None,
) -> None:
    """Write what tokens read inside their windows; see `fiber.kernels.window_attention`.

    Args:
        qkv: float32 (B, H, W, 3, h, d), d a multiple of 16; arrays are contiguous.
        bias_table: float32 ((2 window - 1) ** 2, h).
        qkv_bias: float32 (3, h, d).
        out: float32 (B, H, W, h, d), written.
        window: side of a window in tokens.
        shift: roll of the map in tokens.
        sizes: (height, width) of each sample's own map; None for the whole one.
        threads: at most so many.
        instructions: None for the widest that the processor has.

    Raises:
        ValueError: if sizes do not fit together.
    """

def window_attention_backward(
    grad: _Floats,
    qkv: _Floats,
    bias_table: _Floats,
    qkv_bias: _Floats,
    of_qkv: _Floats,
    of_bias_table: _Floats,
    of_qkv_bias: _Floats,
    *,
    window: int,
    shift: int,
    sizes: Sequence[tuple[int, int]] | None,
    threads: int,
    instructions: Literal["scalar", "neon", "avx2", "avx512"] | None = None,
) -> None:
    """Write the gradients of qkv, bias_table and qkv_bias, with one sum whatever the threads.

    Args:
        grad: of what was read.
        qkv: as in `window_attention`, like all that is not named here.
        bias_table: see there.
        qkv_bias: see there.
        of_qkv: written, in the shape of qkv.
        of_bias_table: written, in the shape of bias_table.
        of_qkv_bias: written, in the shape of qkv_bias.
        window: see there.
        shift: see there.
        sizes: see there.
        threads: see there.
        instructions: see there.
    """

def cross_attention(
    query: _Floats,
    key: _Floats,
    value: _Floats,
    out: _Floats,
    sums: _Floats,
    *,
    key_lengths: Sequence[int] | None,
    key_mask: np.ndarray | None,
    threads: int,
    instructions: Literal["scalar", "neon", "avx2", "avx512"] | None = None,
) -> None:
    """Write what queries read of the keys of their own sample.

    Args:
        query: float32 (B, n, h, d), d a multiple of 16; arrays are contiguous.
        key: float32 (B, m, h, d).
        value: float32 (B, m, h, d).
        out: float32 (B, n, h, d), written.
        sums: float32 (B, h, n), written: logarithms in base 2 of the sums of exponentials.
        key_lengths: the first so many keys of each sample are read.
        key_mask: uint8 (B, m), 0 for a key that is not read; without both every one is.
        threads: at most so many.
        instructions: None for the widest that the processor has.

    Raises:
        ValueError: if sizes do not fit together.
    """

def cross_attention_backward(
    grad: _Floats,
    query: _Floats,
    key: _Floats,
    value: _Floats,
    read: _Floats,
    sums: _Floats,
    of_query: _Floats,
    of_key: _Floats,
    of_value: _Floats,
    *,
    key_lengths: Sequence[int] | None,
    key_mask: np.ndarray | None,
    threads: int,
    instructions: Literal["scalar", "neon", "avx2", "avx512"] | None = None,
) -> None:
    """Write the gradients of query, key and value; those of keys that are not read are 0.

    Args:
        grad: of what was read.
        query: as in `cross_attention`, like all that is not named here.
        key: see there.
        value: see there.
        read: `out` of `cross_attention`.
        sums: see there.
        of_query: written, in the shape of query.
        of_key: written, in the shape of key.
        of_value: written, in the shape of value.
        key_lengths: see there.
        key_mask: see there.
        threads: see there.
        instructions: see there.
    """
