"""What is encoded: by which encoder, with which options, to show which features, how many times."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import alter
from .encoders import Encode
from .pictures import pictures

SCANS = Path(__file__).with_name("scans")
#: Sampling factors of the first component by the name of the sampling; the others have 1 x 1.
SAMPLINGS = {0x11: "4:4:4", 0x21: "4:2:2", 0x22: "4:2:0", 0x12: "4:4:0", 0x41: "4:1:1"}
#: What simplejpeg's face to libjpeg-turbo refuses or does not turn into RGB; Pillow's does not.
NOT_BY_SIMPLEJPEG = {"CMYK", "YCCK", "uncommon sampling"}
#: What our decoder refuses as unsupported, though libjpeg-turbo may not.
REFUSED = {"12-bit", "arithmetic"}


@dataclass(frozen=True)
class File:
    """A JPEG file of the corpus."""

    name: str
    """Encoder, options and number."""
    encoder: str
    features: frozenset[str]
    data: bytes


@dataclass(frozen=True)
class Plan:
    """How some files are made."""

    encoder: str
    features: str
    """Names with a comma between them; the sampling is read from the file."""
    arguments: tuple[str, ...] = ()
    options: tuple[tuple[str, object], ...] = ()
    count: int = 25


def plan(encoder: str, features: str, *arguments: str, count: int = 25, **options: object) -> Plan:
    return Plan(encoder, features, arguments, tuple(options.items()), count)


FACTOR = "IMWRITE_JPEG_SAMPLING_FACTOR"
PLANS = (
    plan("Pillow", "baseline", quality=90, subsampling=0),
    plan("Pillow", "baseline", quality=75, subsampling=1),
    plan("Pillow", "baseline", quality=60, subsampling=2),
    plan("Pillow", "baseline", quality=100, subsampling=0, optimize=True),
    plan("Pillow", "progressive", quality=85, subsampling=2, progressive=True),
    plan("Pillow", "progressive", quality=97, subsampling=0, progressive=True),
    plan("Pillow", "baseline,restart", quality=80, restart_marker_blocks=3),
    plan("Pillow", "progressive,restart", quality=80, progressive=True, restart_marker_rows=1),
    plan("Pillow", "baseline,grey", mode="L", quality=85),
    plan("Pillow", "progressive,grey", mode="L", quality=85, progressive=True),
    plan("Pillow", "baseline,CMYK", mode="CMYK", quality=92),
    plan("Pillow", "progressive,CMYK", mode="CMYK", quality=70, progressive=True),
    plan("Pillow", "16-bit tables", quality=1, qtables=[list(range(200, 456, 4))] * 2),
    *(
        plan("simplejpeg", "baseline", quality=quality, colorsubsampling=sampling)
        for quality in (50, 95)
        for sampling in ("444", "422", "420", "440", "411")
    ),
    plan("simplejpeg", "baseline,grey", quality=90, gray=True, colorsubsampling="Gray"),
    *(
        plan("OpenCV", "baseline", **{FACTOR: factor, "IMWRITE_JPEG_QUALITY": 88})
        for factor in (0x411111, 0x221111, 0x211111, 0x121111, 0x111111)
    ),
    plan("OpenCV", "progressive", IMWRITE_JPEG_PROGRESSIVE=1, **{FACTOR: 0x411111}),
    plan("OpenCV", "progressive", IMWRITE_JPEG_PROGRESSIVE=1, IMWRITE_JPEG_OPTIMIZE=1),
    plan("OpenCV", "baseline,restart", IMWRITE_JPEG_RST_INTERVAL=4),
    plan("imagecodecs", "baseline", level=90, subsampling="440"),
    plan("imagecodecs", "baseline", level=80, subsampling="411", optimize=True),
    plan("imagecodecs", "baseline,CMYK", level=85, inks=True, outcolorspace="CMYK"),
    plan("imagecodecs", "baseline,YCCK", level=85, inks=True, outcolorspace="YCCK"),
    plan("imagecodecs", "baseline,YCCK", level=60, inks=True, outcolorspace="YCCK", optimize=True),
    plan("imagecodecs", "12-bit", level=90, bitspersample=12),
    plan("jpeglib", "baseline", version="6b"),
    plan("jpeglib", "progressive", version="9f", progressive=True),
    plan("jpeglib", "progressive", version="mozjpeg403", quality=60),
    plan("cjpeg", "baseline", "-quality", "93", "-sample", "1x2"),
    plan("cjpeg", "baseline", "-quality", "70", "-sample", "4x1"),
    plan("cjpeg", "progressive", "-progressive", "-sample", "4x1"),
    plan("cjpeg", "progressive", "-progressive", "-sample", "1x2"),
    plan("cjpeg", "progressive", "-progressive", "-sample", "2x1"),
    plan("cjpeg", "baseline,uncommon sampling", "-sample", "3x1"),
    plan("cjpeg", "baseline,uncommon sampling", "-sample", "2x2,1x2,2x1"),
    plan("cjpeg", "baseline,uncommon sampling", "-sample", "1x1,2x2,2x2"),
    plan("cjpeg", "baseline,uncommon sampling", "-sample", "2x3,1x1,2x1"),
    plan("cjpeg", "baseline,restart", "-restart", "1"),
    plan("cjpeg", "baseline,restart", "-restart", "5B", "-sample", "2x1"),
    plan("cjpeg", "extended,16-bit tables", "-quality", "1"),
    plan("cjpeg", "extended,16-bit tables", "-quality", "3", "-sample", "1x1"),
    plan("cjpeg", "progressive,16-bit tables", "-quality", "2", "-progressive"),
    plan("cjpeg", "baseline,RGB", "-rgb", "-quality", "90"),
    plan("cjpeg", "baseline,separate scans", "-scans", str(SCANS / "separate.txt")),
    plan("cjpeg", "baseline,separate scans", "-scans", str(SCANS / "pairs.txt"), "-sample", "1x2"),
    plan("cjpeg", "progressive,incomplete", "-scans", str(SCANS / "means.txt")),
    plan("cjpeg", "progressive,incomplete", "-scans", str(SCANS / "partial.txt"), "-sample", "2x1"),
    plan("cjpeg", "arithmetic", "-arithmetic"),
    plan("cjpeg", "arithmetic", "-arithmetic", "-progressive", "-sample", "1x1"),
    plan("ImageMagick", "baseline", "-quality", "91", "-sampling-factor", "4:4:0"),
    plan("ImageMagick", "progressive", "-interlace", "JPEG", "-quality", "80"),
    plan("ImageMagick", "baseline,YCCK", "-colorspace", "CMYK", "-quality", "88"),
    plan("ImageMagick", "baseline,grey", "-colorspace", "Gray"),
)


def files(
    encoders: Mapping[str, Encode], photos: list[np.ndarray], most: int = 1000
) -> Iterator[File]:
    """Make every file that the encoders at hand can make, the altered ones included.

    Args:
        encoders: by name; plans of others are left out.
        photos: what pictures are cut from, from `pictures.sources`.
        most: the most pictures of a plan.
    """
    for number, one in enumerate(PLANS):
        encode = encoders.get(one.encoder)
        if encode is None:
            continue
        for index, picture in enumerate(pictures(photos, min(most, one.count), offset=7 * number)):
            data = encode(picture, *one.arguments, **dict(one.options))
            settings = " ".join([*one.arguments, *(f"{key}={value}" for key, value in one.options)])
            name = f"{one.encoder} {settings[:60]} #{index} {picture.shape[:2]}"
            features = set(one.features.split(","))
            if features & REFUSED:
                # Nothing else of them is looked at, so nothing else is counted.
                yield File(name, one.encoder, frozenset(features), data)
                continue
            if any(size % 8 for size in picture.shape[:2]):
                features.add("odd size")
            yield from with_altered(File(name, one.encoder, frozenset(features), data), index)


def with_altered(file: File, index: int) -> Iterator[File]:
    """Name the sampling of a file, and add what an encoder does not write."""
    factors = alter.sampling(file.data)
    name = SAMPLINGS.get(factors[0])
    if name and len(factors) == 3 and set(factors[1:]) == {0x11}:
        file = File(file.name, file.encoder, file.features | {name}, file.data)
    yield file

    def altered(label: str, feature: str, data: bytes) -> File:
        features = file.features - {"baseline"} if feature == "extended" else file.features
        return File(f"{file.name}, {label}", file.encoder, features | {feature}, data)

    if "CMYK" in file.features:
        bare = alter.without(file.data, 0xEE)
        yield altered("no Adobe segment", "CMYK without Adobe", bare)
    if file.features >= {"baseline", "4:2:0"} and index % 5 == 0:
        yield altered("as extended", "extended", alter.extended(file.data))
    if file.features >= {"baseline", "4:2:0"} and file.encoder == "Pillow" and index % 2 == 0:
        for feature, alter_to in (("arithmetic", alter.arithmetic), ("12-bit", alter.of_12_bits)):
            name = f"{file.name}, marked as {feature}"
            yield File(name, file.encoder, frozenset({feature}), alter_to(file.data))
    if file.features >= {"baseline", "4:4:4"} and file.encoder == "Pillow":
        for step in range(0, 8, 2):
            orientation = 1 + (index + step) % 8
            order = "<>"[index // 2 % 2]
            data = alter.with_orientation(file.data, orientation, order)
            yield altered(f"orientation {orientation}", f"orientation {orientation}", data)
    if file.encoder == "simplejpeg" and index % 3 == 0:
        yield altered("no Huffman tables", "standard tables", alter.without(file.data, 0xC4))
    if (
        not file.features & NOT_BY_SIMPLEJPEG
        and index % 4 == 0
        and len(file.data) > alter.data_start(file.data) + 40
    ):
        rng = np.random.default_rng(index)
        yield altered("truncated", "truncated", alter.truncated(file.data, rng))
        yield altered("damaged", "damaged", alter.damaged(file.data, rng))
