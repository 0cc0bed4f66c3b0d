"""Types of the Rust extension, checked by `python -m mypy.stubtest fiber._core`.

Images are uint8 RGB arrays (H, W, 3). `instructions` is "scalar", "neon", "avx2" or "avx512", or
None for the widest that the processor supports; results are equal unless stated otherwise, and
unsupported ones raise ValueError. `max_pixels` is 178,956,970 by default, Pillow's limit.
"""

# ruff: noqa: A002 - `filter` is Pillow's name for the resampling kernel.

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
#: "debug" if the extension was built without optimization.
build_profile: Final[str]

class DecodeError(ValueError):
    """Error for an image that cannot be decoded; the message names the file and the reason."""

    #: "corrupt", or "unsupported" for unsupported image types and too many pixels.
    status: str

@final
class Buffer:
    """Array in memory owned by Rust.

    Implements the writable buffer protocol: `numpy.asarray(buffer)` and `torch.frombuffer(buffer,
    dtype=...)` share its memory.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of each dimension."""

    @property
    def dtype(
        self,
    ) -> Literal["uint8", "float16", "bfloat16", "float32", "int64", "bool"]:
        """NumPy name of the element type."""

    # Older versions implement the protocol without this method.
    if sys.version_info >= (3, 12):
        def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class ImageTransform:
    """Preprocessing of an image and its boxes: resize, augmentation and normalization.

    Resizing is antialiased (`filter` "bilinear" or "bicubic"). Its values equal Pillow's where
    Pillow resizes rows first (docs/loader.md, "Pixels"). `resize="fast"` may differ by one level of
    255; it is faster with AVX2 and for reductions of up to four times. Outputs are (value / 255 -
    mean) / std in float32. `mean` and `std` are in RGB order, also with `channel_order="bgr"`; the
    defaults are ImageNet's.

    In batches, a horizontal flip also swaps the words for left and right in the text.
    `color_jitter`, then `rand_augment` are applied after resize and flip. With boxes, a
    `rand_augment` whose operations move pixels raises ValueError.
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
        """Resize to size x size pixels without keeping the aspect ratio."""

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
        """Crop a random rectangle and resize it to size x size pixels.

        The crop covers a fraction of the image's area in `scale`, (0.5, 1.0) by default, with a
        width / height in `ratio`, (3 / 4, 4 / 3) by default. Boxes whose center is outside the
        crop, or of which less than a tenth remains, are dropped.
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
        """Resize the shorter side to a length sampled from `sizes`, keeping the aspect ratio.

        `max_size` limits the longer side, in pixels, by reducing the shorter one. As published, the
        shorter side is rounded to whole pixels, so the longer one may exceed the limit by up to a
        third if the shorter one has only a few. A shorter side below two pixels becomes one pixel
        and the longer side at most `max_size`, without keeping the aspect ratio.

        With `crop_probability`, the image is first cropped to about its own shape, keeping a
        fraction of the area in `crop_scale`, (0.5, 1.0) by default. Boxes are clipped to the crop.
        A box whose center is outside, or of which less than a tenth remains, is dropped. A crop
        without any of the image's boxes is not used.

        Batches are zero-padded on the right and bottom to the largest height and width, rounded up
        to a multiple of `divisor`.
        """

    @property
    def is_square(self) -> bool:
        """True if all outputs have the same height and width."""

    def describe(self) -> dict[str, Any]:
        """Return all settings as JSON values; `kind` is the constructor's name."""

    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    __hash__: None  # type: ignore[assignment]

@final
class ColorJitter:
    """Random brightness, contrast, saturation and hue, with torchvision's values.

    Each argument is the range of a factor, for `hue` of a shift in fractions of the circle from
    -0.5 to 0.5. Factors are sampled, and the changes are applied in random order. Results equal
    `torchvision.transforms.v2.ColorJitter` on uint8 tensors, except that a few values of contrast
    differ by one level: torchvision rounds the mean of the image.

    Raises:
        ValueError: for an invalid range.
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
        """Return all settings as JSON values."""

    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    __hash__: None  # type: ignore[assignment]

@final
class RandAugment:
    """Random operations per image, sampled with replacement, all of one magnitude.

    Results equal those of the published fine-tuning code with OpenCV 5.0 bit by bit. AutoContrast
    and Equalize work per channel. Brightness and Sharpness take a factor; as published, Sharpness
    wraps around below 0 and above 255. ShearX and ShearY take a factor, TranslateX and TranslateY
    pixels, Rotate degrees, all in either direction; pixels from outside the image are 128.

    `num_ops` operations (0 disables) are sampled from `operations`, by default all ten, including
    Identity; repeated names are sampled more often. Each is applied with `probability`. `magnitude`
    is 0 to 10.

    Raises:
        ValueError: for an unknown operation or a number out of range.
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
        """Return the unsigned argument of each operation; None for operations without one."""

    def describe(self) -> dict[str, Any]:
        """Return all settings as JSON values."""

    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    __hash__: None  # type: ignore[assignment]

@final
class Tokenizer:
    """Tokenizer for any tokenizer.json, with the ids and offsets of the package `tokenizers`.

    Byte-level BPE with GPT-2's pattern and no normalizer (RoBERTa, GPT-2) runs in fiber's own code,
    everything else in the crate `tokenizers`. Truncation settings of the file are ignored:
    `max_tokens` truncates on the right and always keeps the BOS/EOS template.

    Models of fiber accept only one kind, see `check_for_models`; `from_vocabulary` and `train`
    produce it.
    """

    @staticmethod
    def from_file(
        path: str | PathLike[str], *, pad_token: str | None = None, mask_token: str | None = None
    ) -> Tokenizer:
        """Read a tokenizer.json.

        `pad_token` defaults to the first that exists of the file's `padding` (if its id and token
        agree), a token with a known name (<pad>, [PAD], <|pad|> and the like), the token after
        every text, the token that ends texts (<|endoftext|>, </s> and the like), and id 0.
        `mask_token` defaults to <mask>, [MASK] or the like; without one, masking is unavailable.

        Raises:
            FileNotFoundError: if the file does not exist.
            ValueError: if it is not a tokenizer.json, or lacks a named token.
        """

    @staticmethod
    def from_json(
        json: str, *, pad_token: str | None = None, mask_token: str | None = None
    ) -> Tokenizer:
        """Parse the text of a tokenizer.json; see `from_file`."""

    @staticmethod
    def from_vocabulary(
        vocab_json_path: str | PathLike[str], merges_path: str | PathLike[str]
    ) -> Tokenizer:
        """Read RoBERTa's vocab.json and merges.txt.

        <mask> in a text absorbs the spaces before it, as in the published tokenizer.json and in
        `transformers` 4. `transformers` 5 makes them another token when it reads these two files,
        unless given `mask_token=AddedToken("<mask>", lstrip=True)`.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if the files do not match, or models cannot use them.
        """

    @staticmethod
    def train(texts: Sequence[str], vocab_size: int) -> Tokenizer:
        """Train a vocabulary like RoBERTa's; deterministic.

        It is smaller than `vocab_size` if too few pairs repeat. Every byte has a token, so any text
        can be encoded.

        Raises:
            ValueError: if `vocab_size` is below 261, the bytes and special tokens.
        """

    def save(self, path: str | PathLike[str]) -> None:
        """Write a tokenizer.json atomically."""

    def to_json(self) -> str:
        """Return the text of a tokenizer.json.

        A padding or mask token that cannot be found by name is recorded in `padding`. The package
        `tokenizers` reads that field too and then pads batches.
        """

    @property
    def vocab_size(self) -> int:
        """Number of tokens, including special ones."""

    @property
    def pad_id(self) -> int:
        """Id of the padding token; see `from_file`."""

    @property
    def mask_id(self) -> int | None:
        """Id of the mask token, if any."""

    @property
    def unknown_id(self) -> int | None:
        """Id of the unknown token, if any."""

    @property
    def start_ids(self) -> list[int]:
        """Ids before every text."""

    @property
    def end_ids(self) -> list[int]:
        """Ids after every text."""

    @property
    def special_ids(self) -> list[int]:
        """The ids above and those marked special in the file, ascending; never masked."""

    @property
    def is_fast(self) -> bool:
        """True if texts are encoded by fiber's byte-level BPE, not by `tokenizers`."""

    def check_for_models(self) -> None:
        """Check that fiber's models can use the vocabulary.

        They need RoBERTa's ids: 0 to 3 for <s> <pad> </s> <unk>, the last id for <mask>, and <s>
        and </s> around every text.

        Raises:
            ValueError: with the first difference.
        """

    def encode(
        self, text: str, *, max_tokens: int | None = None
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Encode a text, including the BOS/EOS template, which truncation to `max_tokens` keeps.

        Returns:
            Ids and the half-open code point span of each, as defined by the file (for RoBERTa
            without the space before a word). Spans of the template are (0, 0).

        Raises:
            ValueError: if `max_tokens` cannot hold the template, or the text has characters that
                the vocabulary lacks and there is no unknown token.
        """

    def encode_batch(
        self,
        texts: Sequence[str],
        *,
        max_tokens: int | None = None,
        pad_to: int | None = None,
        offsets: bool = False,
    ) -> dict[str, Buffer]:
        """Encode B texts into padded arrays of L tokens: `pad_to`, or those of the longest text.

        Returns:
            "token_ids" (B, L) int64, "text_mask" (B, L) bool, True = real token, and with `offsets`
            the spans, "offsets" (B, L, 2) int64, (0, 0) for padding.

        Raises:
            ValueError: as `encode`, and if `pad_to` is less than the longest text's tokens.
            MemoryError: if the list of texts or the arrays cannot be allocated.
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
        """Encode B texts and mask tokens for MLM, as the loader does.

        A token that is not special is picked with `mlm_probability`. 80 % of picked tokens become
        the mask, 10 % another token (as published, also a special one if models can use the
        vocabulary). Random numbers depend only on the text's sample index in `indices`, `seed` and
        `epoch`. Other arguments as in `encode_batch`.

        Returns:
            "token_ids", "text_mask", and "masked_ids" and "mlm_labels" (B, L) int64; the label of a
            token that was not picked is -100.

        Raises:
            ValueError: as `encode_batch`; for a probability outside [0, 1], or above 0 without a
                mask token; and if there is not one index for each text.
            MemoryError: as `encode_batch`.
        """

    def positive_map(
        self,
        text: str,
        char_spans: Sequence[Sequence[tuple[int, int]]],
        *,
        max_tokens: int | None = None,
    ) -> Buffer:
        """Map G boxes, given by their half-open code point spans, to the tokens that name them.

        Returns (G, L) bool, as `fiber._core.positive_map` of the text's offsets. Encodings of long
        texts are cached.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids to text, skipping special tokens.

        Raises:
            ValueError: for an id outside the vocabulary.
        """

    def __len__(self) -> int: ...
    def __reduce__(self) -> tuple[Any, ...]: ...

@final
class WholeWordMasking:
    """MLM masking of whole words; `fiber.data.masking.WholeWords` wraps it for tensors.

    Raises:
        ValueError: if the `probability` of picking a word is not in [0, 1], or the tokenizer does
            not pass `Tokenizer.check_for_models`.
    """

    def __new__(
        cls, tokenizer: Tokenizer, *, probability: float, seed: int
    ) -> WholeWordMasking: ...
    def word_numbers(self, token_ids: np.ndarray) -> Buffer:
        """Number the words of contiguous (B, L) int64 ids.

        Returns:
            (B, L) int64: tokens with equal numbers are one word, -1 at special tokens. Numbers
            start at 0 and have gaps.

        Raises:
            ValueError: for an id outside the vocabulary, or another shape.
        """

    def mask(self, token_ids: np.ndarray, *, first_sample: int) -> tuple[Buffer, Buffer]:
        """Pick words and mask them: 80 % of their tokens <mask>, 10 % a random token, 10 % kept.

        Random numbers depend on the seed and the text's sample index, `first_sample` for the first.

        Returns:
            Input ids of the model and labels, (B, L) int64 each; the label of a token that was not
            picked is -100.

        Raises:
            ValueError: as `word_numbers`.
        """

@final
class Loader:
    """Thread pool that turns records into batches; see `fiber.data.DataLoader`."""

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
    def image_bytes(self) -> tuple[int, int]:
        """Bytes held by the images of all batches: current and peak."""
    def open(self) -> Session:
        """Start a session."""

@final
class Session:
    """One iteration over data: takes records batch by batch, returns finished batches in order."""

    def submit(self, records: Sequence[tuple[Any, ...]]) -> None:
        """Submit the records of one batch; returns immediately.

        A record is (key, epoch, index, images, text, image_id, boxes_xyxy, char_spans, answers or
        None, truth or None, annotated (height, width) or None); answers are (index in the
        vocabulary, score).
        """

    def replace(self, records: Sequence[tuple[int, tuple[Any, ...]]]) -> None:
        """Submit other records for the batch positions that `next` reported."""

    def finish(self) -> None:
        """Signal that no more batches will be submitted."""

    def close(self) -> None:
        """Discard pending batches."""

    def next(self) -> dict[str, Any] | list[tuple[int, str, str, str]] | None:
        """Wait for the next batch without holding the GIL; None after the last one.

        A list instead reports bad samples of the next batch, which waits for replacements:
        (position in the batch, key, status, reason).

        Raises:
            FileNotFoundError, DecodeError, ValueError: for a bad record, with its key.
            MemoryError: if the batch cannot be allocated, with its bytes and shape; the next batch
                is still available.
        """

def probe_image(data: bytes) -> tuple[int, int, str]:
    """Read (height, width, format) without decoding the pixels.

    The format is "jpeg", "png", "webp", "gif", "bmp" or "tiff", detected from the content.
    """

def decode_image(
    data: bytes, *, max_pixels: int = ..., background: tuple[int, int, int] | None = None
) -> Buffer:
    """Decode a JPEG, PNG, WebP, GIF, BMP or TIFF file to (H, W, 3) uint8 RGB.

    As Pillow's `convert("RGB")`: gray is repeated, orientation tags are not applied, and only the
    first frame is read. 16-bit values keep their upper eight bits. `background` is the RGB color
    under transparent pixels; None drops alpha.

    Raises:
        DecodeError: for other formats, corrupt or truncated data, unsupported variants of a format,
            and too many pixels.
        MemoryError: if the pixels cannot be allocated.
    """

def read_jpeg_header(data: bytes) -> tuple[int, int, int]:
    """Read (height, width, EXIF orientation 1 to 8) of a JPEG; 1 without a valid one."""

def decode_jpeg(
    data: bytes,
    *,
    divisor: int = 1,
    stop_row: int | None = None,
    max_pixels: int = ...,
    instructions: str | None = None,
    beside: bytes | None = None,
) -> tuple[Buffer, str | None]:
    """Decode a JPEG to (H, W, 3) uint8 RGB, filling in damaged parts.

    Values equal libjpeg-turbo's; CMYK and YCCK become RGB as in Pillow's `convert("RGB")`. Height
    and width are divided by `divisor` (1, 2, 4 or 8), rounded up. `stop_row` is the first row that
    is not needed. `beside` is another JPEG to decode concurrently, as in the loader; it has no
    effect.

    Returns:
        The image, and the reason why parts are filled in, or None.

    Raises:
        DecodeError: if the data is not a JPEG, unsupported ("unsupported" in the message), too
            damaged, or larger than `max_pixels`.
        ValueError: for another divisor.
    """

def read_image(
    path: str | PathLike[str],
    *,
    max_pixels: int = ...,
    background: tuple[int, int, int] | None = None,
) -> Buffer:
    """Read and decode an image file; see `decode_image`.

    Raises:
        FileNotFoundError: if the file does not exist.
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
    """Resize an image with antialiasing, as Pillow does, rows before columns.

    `crop` is (top, left, height, width) in pixels. `filter` and `resize` as in `ImageTransform`;
    with "fast", values depend on the instructions. `rows_at_once` rows are processed at a time, as
    from a decoder, all if 0; values do not depend on it.

    Raises:
        ValueError: for a size of 0 or of more than 178,956,970 pixels, a crop outside the image,
            and an unknown filter or precision.
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
    """Normalize an image as for a batch, zero-padded to `height` x `width` on the right and bottom.

    `layout` is "chw" for (3, height, width) or "hwc" for (height, width, 3). `dtype` is "float32";
    "float16" or "bfloat16", rounded from it to nearest, ties to even; or "uint8", which is not
    normalized. `flip` mirrors horizontally. Other arguments as in `ImageTransform`.

    Returns:
        The bytes of all values, without a shape.

    Raises:
        ValueError: for an image that does not fit, and unknown names.
    """

def jitter_image(image: Buffer | np.ndarray, change: str, factor: float) -> Buffer:
    """Apply one change of `ColorJitter`: "brightness", "contrast", "saturation" or "hue".

    `factor` is 0 or more, for hue -0.5 to 0.5.

    Raises:
        ValueError: for an unknown change or a factor out of range.
    """

def augment_image(
    image: Buffer | np.ndarray, operation: str, argument: float | None = None
) -> Buffer:
    """Apply one operation of `RandAugment` to an image with sides of 1 to 4,194,304 pixels.

    `argument` is a signed factor, pixels or degrees: Rotate turns left, ShearX moves lower rows
    right, ShearY moves right columns down, TranslateX moves left, TranslateY up. It is None for
    operations without an argument.

    Raises:
        ValueError: for an unknown operation, a missing or unexpected argument, and an array of
            another shape.
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
    """Apply a transform to an array (H, W, 3) or encoded image, and to boxes (x0, y0, x1, y1).

    `seed`, `epoch` and `index` determine the random numbers, as in the loader.

    Returns:
        A float32 array (3, H, W), padded to the transform's divisor; the remaining boxes in its
        pixels; and (height, width) without the padding.

    Raises:
        ValueError: for an array of another shape, a box more than a pixel outside the image, and
            boxes with a `rand_augment` that moves pixels.
    """

def positive_map(
    offsets: Sequence[tuple[int, int]], char_spans: Sequence[Sequence[tuple[int, int]]]
) -> Buffer:
    """Map each box to the tokens that name it: (boxes, tokens) bool.

    A token names a box if its span in `offsets`, from `Tokenizer.encode`, overlaps one of the
    box's.
    """

def mirror_words(
    text: str, char_spans: Sequence[tuple[int, int]] = ...
) -> tuple[str, list[tuple[int, int]]]:
    """Swap the words for left and right, and shift the spans of code points accordingly."""

def draw_below(bound: int, seed: int, epoch: int, index: int, attempt: int) -> int:
    """Return a random integer in [0, bound), determined by the other arguments."""

def permutation(count: int, seed: int, epoch: int) -> Buffer:
    """Return the order of an epoch: an int64 permutation of range(count)."""

_Floats = np.ndarray

def window_attention(
    arrays: Sequence[_Floats],
    out: _Floats,
    *,
    window: int,
    shift: int,
    sizes: Sequence[tuple[int, int]] | None,
    threads: int,
    instructions: Literal["scalar", "neon", "avx2", "avx512"] | None = None,
) -> None:
    """Compute attention inside windows; see `fiber.kernels.window_attention`.

    `window` and `shift` are in tokens; `sizes` holds the (height, width) of each sample's own map,
    None for the whole map. At most `threads` threads run. `instructions` None selects the widest
    set that the processor supports. Arrays are contiguous float32.

    Shape:
        arrays: qkv (B, H, W, 3, h, d), d a multiple of 16; bias_table ((2 window - 1) ** 2, h);
            qkv_bias (3, h, d).
        out: (B, H, W, h, d), output.

    Raises:
        ValueError: if shapes do not match.
    """

def window_attention_backward(
    grad: _Floats,
    arrays: Sequence[_Floats],
    grads: Sequence[_Floats],
    *,
    window: int,
    shift: int,
    sizes: Sequence[tuple[int, int]] | None,
    threads: int,
    instructions: Literal["scalar", "neon", "avx2", "avx512"] | None = None,
) -> None:
    """Compute the gradients of `window_attention` into `grads`, one per array, from that of `out`.

    Sums do not depend on the number of threads. Other arguments as in `window_attention`.
    """

def cross_attention(
    arrays: Sequence[_Floats],
    out: _Floats,
    logsumexp: _Floats,
    *,
    key_lengths: Sequence[int] | None,
    key_mask: np.ndarray | None,
    threads: int,
    instructions: Literal["scalar", "neon", "avx2", "avx512"] | None = None,
) -> None:
    """Compute attention of queries to the keys of their own sample.

    `key_lengths` selects the first keys of each sample, `key_mask` the keys that are not 0; without
    both all keys are attended to. `threads` and `instructions` as in `window_attention`. Arrays are
    contiguous float32.

    Shape:
        arrays: query (B, n, h, d), d a multiple of 16; key and value (B, m, h, d).
        out: (B, n, h, d), output.
        logsumexp: (B, h, n), output: base-2 logsumexp of the scores.
        key_mask: uint8 (B, m).

    Raises:
        ValueError: if shapes do not match.
    """

def cross_attention_backward(
    grad: _Floats,
    arrays: Sequence[_Floats],
    out: _Floats,
    logsumexp: _Floats,
    grads: Sequence[_Floats],
    *,
    key_lengths: Sequence[int] | None,
    key_mask: np.ndarray | None,
    threads: int,
    instructions: Literal["scalar", "neon", "avx2", "avx512"] | None = None,
) -> None:
    """Compute the gradients of `cross_attention` into `grads`, one per array.

    `grad` is the gradient of `out`; `out` and `logsumexp` are the results of `cross_attention`.
    Gradients of masked keys are 0. Other arguments as in `cross_attention`.
    """
