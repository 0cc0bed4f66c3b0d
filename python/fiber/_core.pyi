"""Type stubs of the Rust extension, checked by `python -m mypy.stubtest fiber._core`.

Images are (H, W, 3) uint8 RGB arrays. `instructions` selects the SIMD instruction set: "scalar",
"neon", "avx2", "avx512", or None for the widest that the CPU supports. It does not change results
unless stated otherwise. An unsupported instruction set raises ValueError. `max_pixels` defaults to
178,956,970, the limit above which Pillow raises `DecompressionBombError`; `max_decode_bytes`, the
memory for pixels and coefficients while decoding, has none by default. An image that exceeds one
raises DecodeError.
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
    "LoaderRecord",
    "RandAugment",
    "Session",
    "Tokenizer",
    "__version__",
    "apply_transform",
    "augment_image",
    "build_profile",
    "cross_attention",
    "cross_attention_backward",
    "decode_id_map",
    "decode_image",
    "decode_jpeg",
    "decode_masks",
    "draw_below",
    "encode_rle",
    "half_products",
    "jitter_image",
    "linear_sum_assignment",
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
#: "release", or "debug" if the extension was built without optimization.
build_profile: Final[str]

class DecodeError(ValueError):
    """Raised if an image cannot be decoded. The message gives the file and the reason."""

    #: "corrupt", or "unsupported" if the image type is unsupported or there are too many pixels.
    status: str

@final
class Buffer:
    """Array whose memory is owned by Rust.

    It supports the buffer protocol and is writable: `numpy.asarray(buffer)` and
    `torch.frombuffer(buffer, dtype=...)` share its memory.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of each dimension."""

    @property
    def dtype(
        self,
    ) -> Literal["uint8", "float16", "bfloat16", "float32", "int64", "bool"]:
        """Name of the element type, as in torch (such as "float32")."""

    # Before Python 3.12, the buffer protocol has no such method.
    if sys.version_info >= (3, 12):
        def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class ImageTransform:
    """Resize, augment and normalize an image and transform its boxes accordingly.

    Resizing is antialiased (`filter` "bilinear" or "bicubic"). Results match Pillow exactly where
    Pillow resizes rows first (see "Pixels" in docs/loader.md). `resize="fast"` may differ by 1 (out
    of 255) but is faster with AVX2 when downscaling by up to 4x. Outputs are (value / 255 - mean) /
    std in float32. `mean` and `std` are always in RGB order, even if `channel_order="bgr"`, and
    default to the ImageNet values.

    `color_jitter` and then `rand_augment` are applied after resizing and flipping; a `rand_augment`
    with `policy="meter"` is applied to the whole image before everything else. In batches, a
    horizontal flip also swaps "left" and "right" in the text. If there are boxes, a `rand_augment`
    with operations that move pixels raises ValueError.

    `alpha="drop"` drops the alpha channel first, like Pillow's `convert("RGB")`. With
    `alpha="premultiply"`, colors are weighted by alpha while they are resized, and alpha is dropped
    after that, like a Pillow image in mode RGBA that is resized and then converted. An image that
    has the output size already is not weighted. `policy="meter"` drops alpha first, whatever
    `alpha` is.
    """

    @staticmethod
    def squash(
        size: int,
        *,
        color_jitter: ColorJitter | None = None,
        rand_augment: RandAugment | None = None,
        filter: str = "bicubic",
        resize: str = "exact",
        alpha: str = "drop",
        channel_order: str = "rgb",
        mean: Sequence[float] = ...,
        std: Sequence[float] = ...,
    ) -> ImageTransform:
        """Resize to `size` x `size` pixels without keeping the aspect ratio."""

    @staticmethod
    def center_crop(
        size: int,
        *,
        color_jitter: ColorJitter | None = None,
        rand_augment: RandAugment | None = None,
        filter: str = "bicubic",
        resize: str = "exact",
        alpha: str = "drop",
        channel_order: str = "rgb",
        mean: Sequence[float] = ...,
        std: Sequence[float] = ...,
    ) -> ImageTransform:
        """Resize the shorter side to `size` and cut out the central `size` x `size` pixels.

        What is outside the square is lost. Boxes raise ValueError.
        """

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
        alpha: str = "drop",
        channel_order: str = "rgb",
        mean: Sequence[float] = ...,
        std: Sequence[float] = ...,
    ) -> ImageTransform:
        """Crop a random rectangle and resize it to `size` x `size` pixels.

        The crop covers a fraction of the image's area sampled from the range `scale`, (0.5, 1.0) by
        default. Its aspect ratio (width / height) is sampled from the range `ratio`, (3 / 4, 4 / 3)
        by default. A box is dropped if its center is outside the crop or less than a tenth of it
        remains.
        """

    @staticmethod
    def scale_jitter(
        size: int,
        *,
        scale: tuple[float, float] = ...,
        padding: int = 128,
        flip_probability: float = 0.5,
        color_jitter: ColorJitter | None = None,
        rand_augment: RandAugment | None = None,
        filter: str = "bilinear",
        resize: str = "exact",
        alpha: str = "drop",
        channel_order: str = "rgb",
        mean: Sequence[float] = ...,
        std: Sequence[float] = ...,
    ) -> ImageTransform:
        """Resize to fit in a square of `s * size` pixels, keeping the aspect ratio, and cut out.

        `s` is uniform in the range `scale`, (0.1, 2.0) by default. At most `size` x `size` pixels
        are cut out; one random number determines both offsets. Smaller images are padded on the
        right and bottom to `size` x `size` with the byte `padding`, which is normalized like a
        pixel. Masks are 0 there. Boxes are not supported.

        Source: large-scale jittering (Ghiasi et al. 2021) as in detectron2's `ResizeScale` and
        `FixedSizeCrop`.
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
        alpha: str = "drop",
        channel_order: str = "rgb",
        mean: Sequence[float] = ...,
        std: Sequence[float] = ...,
    ) -> ImageTransform:
        """Resize the shorter side to a length sampled from `sizes`, keeping the aspect ratio.

        If the longer side would exceed `max_size` pixels, the image is resized to a smaller size.
        As in the published code, the shorter side is then rounded to whole pixels, so the longer
        side of a very narrow image may exceed `max_size` by up to a third. If the shorter side
        would be less than two pixels, it becomes one pixel and the longer side at most `max_size`,
        without keeping the aspect ratio.

        With probability `crop_probability`, the image is first cropped to a fraction of its area
        sampled from the range `crop_scale`, (0.5, 1.0) by default, keeping about the same aspect
        ratio. Boxes are clipped to the crop; a box is dropped if its center is outside the crop or
        less than a tenth of it remains. If no box would remain, the image is not cropped.

        Batches are zero-padded on the right and bottom to the largest height and width in the
        batch, rounded up to a multiple of `divisor`.
        """

    @property
    def is_square(self) -> bool:
        """True if every output has the same square size."""

    @property
    def keeps_alpha(self) -> bool:
        """True if the alpha channel of an image makes a difference."""

    def describe(self) -> dict[str, Any]:
        """Return all settings as a JSON-serializable dict; "kind" is the constructor's name."""

    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    __hash__: None  # type: ignore[assignment]

@final
class ColorJitter:
    """Randomly change brightness, contrast, saturation and hue, as torchvision does.

    Each argument is the (low, high) range that a factor is sampled from. For `hue`, it is the range
    of the hue shift as a fraction of the color circle, from -0.5 to 0.5. Changes are applied in
    random order. Results match `torchvision.transforms.v2.ColorJitter` on uint8 tensors, except
    that a few values may differ by 1 (out of 255) after a contrast change because torchvision
    rounds the image mean.

    Raises:
        ValueError: if a range is invalid.
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
        """Return all settings as a JSON-serializable dict."""

    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    __hash__: None  # type: ignore[assignment]

@final
class RandAugment:
    """Apply randomly sampled operations of the same magnitude to each image.

    `num_ops` operations (0 for none) are sampled with replacement from `operations`, by default all
    of the policy. A name that is repeated is sampled more often. Each sampled operation is applied
    with probability `probability`. Operations that move pixels do so in a random direction.

    `policy="fiber"`: results are bit-exact with FIBER's published fine-tuning code on OpenCV 5.0.
    The ten operations are applied to the resized image. AutoContrast and Equalize work per channel.
    Brightness and Sharpness take a factor; as in the published code, Sharpness wraps around below 0
    and above 255. ShearX and ShearY take a factor, TranslateX and TranslateY a number of pixels,
    and Rotate an angle in degrees, all with bilinear interpolation. Areas outside the original
    image are filled with 128. `magnitude` is from 0 to 10, by default 7, and `probability` is 0.5.

    `policy="meter"`: results are bit-exact with METER's published fine-tuning code on Pillow. The
    fourteen operations, which do not include Identity, are applied to the image as stored, before
    it is cropped and resized. Color and Contrast take a factor, too, Posterize a number of bits (at
    least 1, truncated), Solarize a threshold and SolarizeAdd a level. Shears, translations and
    rotations take the nearest pixel, and areas outside the original image are black. `magnitude` is
    from 0 to 30, by default 9, and `probability` is 1.

    Raises:
        ValueError: if the policy does not have an operation, or a number is out of range.
    """

    def __new__(
        cls,
        *,
        policy: str = "fiber",
        num_ops: int = 2,
        magnitude: float | None = None,
        probability: float | None = None,
        operations: Sequence[str] | None = None,
    ) -> RandAugment: ...
    def arguments(self) -> dict[str, float | None]:
        """Map each operation to the absolute value of its argument (None if it takes none)."""

    def describe(self) -> dict[str, Any]:
        """Return all settings as a JSON-serializable dict."""

    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    __hash__: None  # type: ignore[assignment]

@final
class Tokenizer:
    """Tokenizer for any tokenizer.json, with the same ids and offsets as the `tokenizers` package.

    Byte-level BPEs with GPT-2's pre-tokenization pattern and no normalizer (RoBERTa, GPT-2) use
    fiber's own implementation; all others use the `tokenizers` crate. Truncation settings in the
    file are ignored. Instead, `max_tokens` truncates on the right and always keeps the BOS/EOS
    template.

    fiber's models accept only RoBERTa-style tokenizers, such as those of `from_vocabulary` and
    `train`; see `check_for_models`.
    """

    @staticmethod
    def from_file(
        path: str | PathLike[str], *, pad_token: str | None = None, mask_token: str | None = None
    ) -> Tokenizer:
        """Read a tokenizer.json.

        `pad_token` defaults to the first of these that exists:

        - the token in the file's `padding`, if the vocabulary gives it the same id
        - a token with a known name (<pad>, [PAD], <|pad|> and the like)
        - the token appended to every text
        - an end-of-text token (<|endoftext|>, </s> and the like)
        - the token with id 0

        `mask_token` defaults to <mask>, [MASK] or the like. If there is no mask token, masking is
        unavailable.

        Raises:
            FileNotFoundError: if the file does not exist.
            ValueError: if the file is not a tokenizer.json, or does not contain `pad_token` or
                `mask_token`.
        """

    @staticmethod
    def from_json(
        json: str, *, pad_token: str | None = None, mask_token: str | None = None
    ) -> Tokenizer:
        """Parse the contents of a tokenizer.json; see `from_file`."""

    @staticmethod
    def from_vocabulary(
        vocab_json_path: str | PathLike[str], merges_path: str | PathLike[str]
    ) -> Tokenizer:
        """Read RoBERTa's vocab.json and merges.txt.

        <mask> absorbs the spaces before it, as in the published tokenizer.json and in
        `transformers` 4. When `transformers` 5 reads these two files, such spaces become a separate
        token unless `mask_token=AddedToken("<mask>", lstrip=True)` is passed.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if the files are inconsistent, or fiber's models cannot use the tokenizer.
        """

    @staticmethod
    def train(texts: Sequence[str], vocab_size: int) -> Tokenizer:
        """Train a byte-level BPE tokenizer like RoBERTa's.

        Training is deterministic. The vocabulary may be smaller than `vocab_size` if there are too
        few repeated pairs. Every byte has a token, so any text can be encoded.

        Raises:
            ValueError: if `vocab_size` is less than 261 (256 bytes plus 5 special tokens), or a
                text contains a surrogate.
        """

    def save(self, path: str | PathLike[str]) -> None:
        """Write a tokenizer.json atomically."""

    def to_json(self) -> str:
        """Return the contents of a tokenizer.json.

        A padding or mask token that cannot be found by name is recorded in the `padding` field,
        which also makes the `tokenizers` package pad batches.
        """

    @property
    def vocab_size(self) -> int:
        """Number of tokens, including special tokens."""

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
        """Ids prepended to every text."""

    @property
    def end_ids(self) -> list[int]:
        """Ids appended to every text."""

    @property
    def special_ids(self) -> list[int]:
        """Sorted ids of all special tokens, including those defined by the file.

        These tokens are never masked.
        """

    @property
    def is_fast(self) -> bool:
        """True if texts are encoded by fiber's byte-level BPE, not by `tokenizers`."""

    def check_for_models(self) -> None:
        """Check that fiber's models can use this tokenizer.

        The models expect RoBERTa's ids: 0 to 3 for <s> <pad> </s> <unk>, and the last id for
        <mask>. Every text must start with <s> and end with </s>.

        Raises:
            ValueError: if the models cannot use the tokenizer; the message gives the first
                mismatch.
        """

    def encode(
        self, text: str, *, max_tokens: int | None = None
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Encode a text, add the BOS/EOS template, and truncate the result to `max_tokens`.

        Truncation never removes the template.

        Returns:
            Token ids and their half-open code point spans, as defined by the file (for RoBERTa,
            without the space before a word). Template tokens have the span (0, 0).

        Raises:
            ValueError: if `max_tokens` cannot hold the template; if the text contains characters
                that are not in the vocabulary and there is no unknown token, or a surrogate; or,
                for a file with a regular expression that may take quadratic time, if the text is
                longer than 32 KiB, or less where the file's normalizer adds to texts. Errors of
                the `tokenizers` crate name the file.
        """

    def encode_batch(
        self,
        texts: Sequence[str],
        *,
        max_tokens: int | None = None,
        pad_to: int | None = None,
        offsets: bool = False,
    ) -> dict[str, Buffer]:
        """Encode B texts and pad them to L tokens.

        L is `pad_to`, by default the length of the longest text.

        Returns:
            "token_ids", (B, L) int64; "text_mask", (B, L) bool, True for real tokens; and, if
            `offsets` is set, "offsets", (B, L, 2) int64 code point spans, (0, 0) for padding.

        Raises:
            ValueError: for the reasons listed in `encode`, or if the longest text has more than
                `pad_to` tokens.
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
        mlm_unit: str = "token",
    ) -> dict[str, Buffer]:
        """Encode B texts and mask tokens for MLM, as the loader does.

        With `mlm_unit` "token", each token is selected with probability `mlm_probability`; with
        "word", each word, with all of its tokens; with "position", `round(mlm_probability *
        max_tokens)` of `max_tokens` positions are drawn without replacement, and those past the end
        of the text have no effect. Special tokens are never selected. Of the selected tokens, 80%
        become the mask token, 10% become a random token, and 10% are unchanged. As in the published
        code, the random token may be special if fiber's models can use the tokenizer. Random
        numbers depend only on `seed`, `epoch` and the text's sample index in `indices`. Other
        arguments are as in `encode_batch`.

        Returns:
            "token_ids" and "text_mask" as in `encode_batch`, and "masked_ids" and "mlm_labels" of
            shape (B, L), int64; tokens that were not selected have the label -100.

        Raises:
            ValueError: for the reasons listed in `encode_batch`; if `mlm_probability` is outside
                [0, 1], or is positive but there is no mask token; if `indices` does not have one
                index per text; if `mlm_unit` is "word" and `check_for_models` rejects the
                tokenizer; or if it is "position" and `max_tokens` is None.
            MemoryError: for the reasons listed in `encode_batch`.
        """

    def positive_map(
        self,
        text: str,
        char_spans: Sequence[Sequence[tuple[int, int]]],
        *,
        max_tokens: int | None = None,
    ) -> Buffer:
        """Map G boxes, given by their half-open code point spans, to the tokens that name them.

        Return the (G, L) bool array that `fiber._core.positive_map` returns for the text's offsets.
        Encodings of long texts are cached.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids to text, skipping special tokens.

        Raises:
            ValueError: if an id is outside the vocabulary.
        """

    def __len__(self) -> int: ...
    def __reduce__(self) -> tuple[Any, ...]: ...

@final
class LoaderRecord:
    """A record that is converted for `Session`."""

    @staticmethod
    def from_record(
        record: object,
        *,
        epoch: int,
        index: int,
        images: Sequence[str | PathLike[str] | bytes],
        answers: Sequence[tuple[int, float]] | None,
        masks: object = None,
    ) -> LoaderRecord:
        """Convert the attributes of a `fiber.data.Record` that batches need, by their names.

        `images` are its images, read if they are lazy, and `answers` are pairs of (answer index,
        score). `masks`, if given, are used in place of its masks. Random numbers depend on `epoch`
        and `index`.

        Raises:
            TypeError: if a field has the wrong type; the error gives the key and the field.
            ValueError: if a text has a surrogate; the error gives the key and the field.
        """

    @property
    def key(self) -> str:
        """Key of the record."""

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
        mlm_unit: str = "token",
        mlm_seed: int | None = None,
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
        max_decode_bytes: int | None = None,
    ) -> Loader: ...
    @property
    def image_bytes(self) -> tuple[int, int]:
        """Current and peak size of the image buffers of all batches, in bytes."""
    def open(self) -> Session:
        """Start a session."""

@final
class Session:
    """One pass over the data: records are submitted by batch, and batches are returned in order."""

    def submit(self, records: Sequence[LoaderRecord], *, first_sample: int | None = None) -> None:
        """Submit the records of one batch and return immediately.

        `first_sample` is the position of the batch's first sample in an endless stream, by which
        whole words are then masked.
        """

    def replace(self, records: Sequence[tuple[int, LoaderRecord]]) -> None:
        """Submit replacement records for the batch positions reported by `next`."""

    def finish(self) -> None:
        """Signal that no more batches will be submitted."""

    def close(self) -> None:
        """Discard pending batches."""

    def next(self) -> dict[str, Any] | list[tuple[int, str, str, str]] | None:
        """Wait for the next batch without holding the GIL; return None after the last one.

        If the next batch needs replacements for bad samples, instead return a list of tuples
        (position in the batch, key, status, reason), one per bad sample.

        Raises:
            FileNotFoundError, DecodeError, ValueError: if a record is bad; the message includes its
                key.
            MemoryError: if the batch cannot be allocated; the message gives its size and shape.
                Later batches are still available.
        """

def probe_image(data: bytes) -> tuple[int, int, str]:
    """Read the (height, width, format) of an encoded image without decoding its pixels.

    The format is "jpeg", "png", "webp", "gif", "bmp" or "tiff", detected from the content.
    """

def decode_image(
    data: bytes,
    *,
    max_pixels: int = ...,
    max_decode_bytes: int | None = None,
    background: tuple[int, int, int] | None = None,
    keep_alpha: bool = False,
) -> Buffer:
    """Decode a JPEG, PNG, WebP, GIF, BMP or TIFF file to (H, W, 3) uint8 RGB.

    As with Pillow's `convert("RGB")`, gray values are replicated, orientation tags are not applied,
    and only the first frame is read. Only the upper eight bits of 16-bit values are kept.
    Transparent pixels are blended over the RGB color `background`; None drops the alpha channel.
    With `keep_alpha`, an image in which a pixel is not opaque is (H, W, 4) RGBA instead.

    Raises:
        DecodeError: if the format or its variant is unsupported, the data is corrupt or truncated,
            or the image exceeds a limit.
        MemoryError: if the pixels cannot be allocated.
        ValueError: if both `background` and `keep_alpha` are given.
    """

def read_jpeg_header(data: bytes) -> tuple[int, int, int]:
    """Read the (height, width, EXIF orientation) of a JPEG; the orientation defaults to 1."""

def decode_jpeg(
    data: bytes,
    *,
    divisor: int = 1,
    stop_row: int | None = None,
    max_pixels: int = ...,
    max_decode_bytes: int | None = None,
    instructions: str | None = None,
    beside: bytes | None = None,
) -> tuple[Buffer, str | None]:
    """Decode a JPEG to (H, W, 3) uint8 RGB, filling in damaged parts.

    Values match libjpeg-turbo's; CMYK and YCCK become RGB as in Pillow's `convert("RGB")`. Height
    and width are divided by `divisor` (1, 2, 4 or 8) and rounded up. Only rows before `stop_row`
    are decoded. `beside` is a second JPEG to decode on the same thread, as the loader does; it does
    not change the result.

    Returns:
        The image, and the reason why damaged parts were filled in (None for an intact image).

    Raises:
        DecodeError: if the data is not a JPEG, is of an unsupported type ("unsupported" in the
            message), is too damaged, or exceeds a limit.
        ValueError: if `divisor` is invalid.
    """

def read_image(
    path: str | PathLike[str],
    *,
    max_pixels: int = ...,
    max_decode_bytes: int | None = None,
    background: tuple[int, int, int] | None = None,
    keep_alpha: bool = False,
) -> Buffer:
    """Read and decode an image file; see `decode_image`.

    Raises:
        FileNotFoundError: if the file does not exist.
        DecodeError: if the file cannot be decoded; the message includes the file name.
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
    """Resize an image with antialiasing as Pillow does, rows before columns.

    `crop` is (top, left, height, width) in pixels. `filter` and `resize` are as in
    `ImageTransform`; with "fast", results depend on `instructions`. `rows_at_once` is the number of
    rows processed at a time (0 means all rows), to simulate a decoder that yields a few rows at a
    time; it does not change the result.

    Raises:
        ValueError: if the output is empty or has more than 178,956,970 pixels, the crop is outside
            the image, or `filter` or `resize` is unknown.
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
    """Normalize and zero-pad (right and bottom) an image to `height` x `width`, as in a batch.

    `layout` is "chw" for (3, height, width) or "hwc" for (height, width, 3). `dtype` is "float32",
    "float16" or "bfloat16" (float32 rounded to nearest even), or "uint8" (not normalized). `flip`
    mirrors the image horizontally. Other arguments are as in `ImageTransform`.

    Returns:
        The values as a flat buffer of bytes.

    Raises:
        ValueError: if the image is larger than `height` x `width`, or a name is unknown.
    """

def jitter_image(image: Buffer | np.ndarray, change: str, factor: float) -> Buffer:
    """Apply a single `ColorJitter` change: "brightness", "contrast", "saturation" or "hue".

    `factor` is from 0 to 1e6. For "hue", it is a shift from -0.5 to 0.5 instead.

    Raises:
        ValueError: if the change is unknown or the factor is out of range.
    """

def augment_image(
    image: Buffer | np.ndarray,
    operation: str,
    argument: float | None = None,
    *,
    policy: str = "fiber",
) -> Buffer:
    """Apply one operation of `RandAugment` to an image with sides of 1 to 4,194,304 pixels.

    `argument` is a factor, a number of pixels, degrees, bits or levels, or None for operations
    without an argument. If it is positive, Rotate turns the image counterclockwise, TranslateX
    moves it left, and TranslateY moves it up. ShearX moves lower rows to the right and ShearY moves
    columns on the right down, or, with `policy="meter"`, to the left and up.

    Raises:
        ValueError: if the policy does not have the operation, the argument is missing or
            unexpected, or the shape of the array is wrong.
    """

def apply_transform(
    image: Buffer | np.ndarray | bytes,
    transform: ImageTransform,
    boxes: Sequence[Sequence[float]] | None = None,
    *,
    seed: int = 0,
    epoch: int = 0,
    index: int = 0,
    max_pixels: int = ...,
    max_decode_bytes: int | None = None,
) -> tuple[Buffer, list[list[float]], tuple[int, int]]:
    """Apply a transform to an array or an encoded image, and to (x0, y0, x1, y1) boxes.

    An array is (H, W, 3) RGB or (H, W, 4) RGBA. `seed`, `epoch` and `index` determine the random
    numbers, as in the loader.

    Returns:
        A (3, H, W) float32 array, padded to a multiple of the transform's divisor; the remaining
        boxes, in pixels of that array; and the array's (height, width) without padding.

    Raises:
        DecodeError: if encoded bytes cannot be decoded, or exceed a limit.
        ValueError: if the shape of the array is wrong, a box extends more than a pixel outside the
            image, or boxes are given with a `rand_augment` that moves pixels.
    """

def positive_map(
    offsets: Sequence[tuple[int, int]], char_spans: Sequence[Sequence[tuple[int, int]]]
) -> Buffer:
    """Return a (boxes, tokens) bool array that maps each box to the tokens that name it.

    A token names a box if the token's span in `offsets`, from `Tokenizer.encode`, overlaps one of
    the box's spans.
    """

def mirror_words(
    text: str, char_spans: Sequence[tuple[int, int]] = ...
) -> tuple[str, list[tuple[int, int]]]:
    """Swap "left" and "right" (also in compounds) in a text, and shift its code point spans."""

def half_products(rows: np.ndarray, queries: np.ndarray) -> Buffer:
    """Multiply rows of float16 numbers with queries.

    Args:
        rows: (n, D) uint16 bits of finite float16 numbers (`array.view(np.uint16)`), contiguous.
        queries: (Q, D) float32, contiguous.

    Returns:
        (Q, n) float32 products, summed in float32.

    Raises:
        ValueError: if the shapes do not fit.
    """

def linear_sum_assignment(costs: np.ndarray) -> Buffer:
    """Assign rows to columns of a float64 (rows, columns) matrix at the least total cost.

    Return (2, n) int64 indices of rows, ascending, and of their columns; n is the fewer of both. Of
    equal totals, the choice is that of `scipy.optimize.linear_sum_assignment`.

    Raises:
        ValueError: if a cost is NaN or negative infinity, or every assignment has an infinite cost.
    """

def decode_masks(masks: Sequence[object], height: int, width: int) -> Buffer:
    """Decode masks of `fiber.data.masks`, each on its own, at the size of their image.

    Returns:
        (masks, height, ceil(width / 8)) uint8, packed as by `numpy.packbits`.

    Raises:
        TypeError: if a mask is none of these.
        ValueError: if a mask is invalid or of another size; the error gives its index.
    """

def decode_id_map(map: object, image: bytes) -> tuple[Buffer, tuple[int, int]]:
    """Decode the masks of an `IdMap`, the content of a PNG, as `decode_masks` does.

    Returns:
        The masks, and the (height, width) of the map.

    Raises:
        DecodeError: if the PNG is broken or has 16 bits a sample.
        ValueError: if a pixel has the id of no mask, or a mask no pixel.
    """

def encode_rle(mask: np.ndarray) -> bytes:
    """Compress an (H, W) uint8 array, not 0 inside the mask, as COCO's run lengths."""

def draw_below(bound: int, seed: int, epoch: int, index: int, attempt: int) -> int:
    """Return a random integer in [0, bound), determined by the other arguments."""

def permutation(count: int, seed: int, epoch: int) -> Buffer:
    """Return the shuffled order of an epoch, an int64 permutation of range(count)."""

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
    """Compute attention within windows; see `fiber.kernels.window_attention`.

    `window` and `shift` are in tokens. `sizes` holds the (height, width) of each sample without
    padding; None means that there is no padding. At most `threads` threads are used. Arrays are
    contiguous float32.

    Shape:
        arrays: qkv (B, H, W, 3, h, d), head dim d a multiple of 16; bias_table
            ((2 window - 1) ** 2, h); qkv_bias (3, h, d).
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
    """Write the gradients of `window_attention` into `grads`, one for each of `arrays`.

    `grad` is the gradient of `out`. Results do not depend on the number of threads. Other arguments
    are as in `window_attention`.
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
    """Compute attention from queries to the keys of the same sample.

    `key_lengths` is the number of leading keys to attend to in each sample, and `key_mask` is
    nonzero for keys to attend to; if both are None, all keys are attended to. `threads` is as in
    `window_attention`. Arrays are contiguous float32.

    Shape:
        arrays: query (B, n, h, d), head dim d a multiple of 16; key and value (B, m, h, d).
        out: (B, n, h, d), output.
        logsumexp: (B, h, n), output, base-2 logsumexp of the scores.
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
    """Write the gradients of `cross_attention` into `grads`, one for each of `arrays`.

    `grad` is the gradient of `out`; `out` and `logsumexp` are the results of `cross_attention`.
    Gradients of masked keys are 0. Other arguments are as in `cross_attention`.
    """
