"""JPEG corpora cropped from photographs. The same photographs yield identical files.

Image i of a corpus depends only on the plan, the list of photographs, i and Pillow's version, so a
shorter corpus is a prefix of a longer one.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import PIL
from PIL import Image, ImageFilter

from fiber.atomic_io import write_file, write_json
from fiber.benchmarks.photos import HOW_TO_GET

#: Increment when a code change makes the same plan produce different files.
VERSION = 1
_JPEG_SUFFIXES = {".jpg", ".jpeg"}


@dataclass(frozen=True, kw_only=True)
class CorpusPlan:
    """Parameters of a corpus."""

    name: str
    #: Number of images in a full run and in a quick run.
    count: int
    quick_count: int
    #: (width, height) in pixels, sampled uniformly. Repeat an entry to sample it more often.
    shapes: tuple[tuple[int, int], ...]
    #: JPEG qualities, sampled uniformly.
    qualities: tuple[int, ...]
    #: Chroma subsampling, in Pillow's notation.
    subsampling: str = "4:2:0"
    #: Number of candidate crops for most images; the one with the largest file is kept, since
    #: dataset images have more detail than the average crop of a large photograph.
    candidates: int = 3
    #: Strength of the unsharp mask after downscaling, in percent; 0 for none.
    sharpening: int = 70
    #: Minimum size of a crop, as a fraction of the largest possible crop with that aspect ratio.
    least_part: float = 0.3
    #: Minimum shorter side and area of a photograph, in pixels.
    least_side_pixels: int = 0
    least_area_pixels: int = 0
    #: Corpora with the same seed have the same crops.
    seed: str


_COCO640 = CorpusPlan(
    name="coco640",
    count=512,
    quick_count=128,
    # Weighted roughly by their frequency in COCO.
    shapes=((640, 480),) * 11 + ((480, 640),) * 4 + ((640, 427),) * 3 + ((427, 640), (500, 375)),
    qualities=(94, 95, 96, 97),
    seed="coco",
)
PLANS = {
    plan.name: plan
    for plan in (
        _COCO640,
        replace(_COCO640, name="coco444", count=256, qualities=(95, 96, 97), subsampling="4:4:4"),
        CorpusPlan(
            name="det1333",
            count=128,
            quick_count=64,
            shapes=(*[(1333, 800)] * 3, (1200, 800), (1067, 800)),
            qualities=(90, 92, 95),
            sharpening=60,
            least_side_pixels=1500,
            seed="det",
        ),
        CorpusPlan(
            name="big12",
            count=48,
            quick_count=16,
            shapes=((4000, 3000),),
            qualities=(92, 95),
            candidates=1,
            sharpening=80,
            least_part=0.98,
            least_area_pixels=7_500_000,
            seed="big",
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """JPEG files of a corpus."""

    name: str
    files: tuple[Path, ...]
    #: (height, width) of each image in pixels.
    sizes: tuple[tuple[int, int], ...]
    #: Description of the source, for reports.
    source: str

    def first(self, count: int) -> Corpus:
        """Return a corpus of the first `count` images."""
        return replace(self, files=self.files[:count], sizes=self.sizes[:count])

    def __str__(self) -> str:
        mean_bytes = statistics.fmean(path.stat().st_size for path in self.files)
        mean_pixels = statistics.fmean(height * width for height, width in self.sizes)
        return (
            f"{self.name}: {len(self.files)} images, mean {mean_bytes / 1000:.0f} KB,"
            f" {mean_pixels / 1e6:.2f} megapixels, {self.source}"
        )


def make_corpus(
    plan: CorpusPlan, count: int, photographs: Sequence[Path], cache: Path, threads: int = 1
) -> Corpus:
    """Create the first `count` images of a corpus, or load them from the cache.

    A corpus is a subfolder of `cache` named by its fingerprint. `photographs` must be in the order
    returned by `find_photographs`; `threads` of them are decoded in parallel.

    Raises:
        FileNotFoundError: if no photograph is large enough for the plan.
        OSError: if a photograph cannot be read; the message names it.
    """
    usable = [path for path in photographs if _is_large_enough(path, plan)]
    if not usable:
        raise FileNotFoundError(
            f"none of {len(photographs)} photographs is large enough for the corpus {plan.name};"
            f" expected a shorter side of {plan.least_side_pixels} pixels or more and an area of"
            f" {plan.least_area_pixels} pixels or more; {HOW_TO_GET}"
        )
    folder = cache / f"{plan.name}-{_fingerprint(plan, usable)}"
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{index:05d}.jpg" for index in range(count)]
    missing: dict[int, list[int]] = {}
    for index, path in enumerate(files):
        if not path.is_file():
            missing.setdefault(index % len(usable), []).append(index)

    def crop_photograph(number: int) -> None:
        with _open(usable[number]) as photograph:
            pixels = photograph.convert("RGB")
        for index in missing[number]:
            data = _make_image(plan, index, pixels)
            write_file(files[index], lambda part, data=data: part.write_bytes(data))

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(crop_photograph, missing))
    names = [path.name for path in usable]
    about = {"plan": asdict(plan), "pillow": PIL.__version__, "photographs": names}
    write_json(folder / "corpus.json", about)
    return _describe(plan.name, files, f"{plan.subsampling}, of {len(usable)} photographs")


def own_corpus(folder: Path, count: int) -> Corpus:
    """Return a corpus of the first `count` JPEG files below a folder, sorted by path.

    Raises:
        FileNotFoundError: if the folder is missing or contains no .jpg or .jpeg files.
        ValueError: if a file is not a JPEG file.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected a folder of JPEG files")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _JPEG_SUFFIXES)
    if not found:
        raise FileNotFoundError(f"{folder}: no .jpg or .jpeg files found")
    return _describe("images", found[:count], f"the first of {len(found)} files in {folder}")


def _describe(name: str, files: Sequence[Path], source: str) -> Corpus:
    sizes = []
    for path in files:
        with _open(path) as image:
            if image.format not in ("JPEG", "MPO"):
                raise ValueError(f"{path} is a {image.format} file; expected JPEG")
            sizes.append((image.height, image.width))
    return Corpus(name=name, files=tuple(files), sizes=tuple(sizes), source=source)


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except Image.UnidentifiedImageError:
        raise ValueError(f"{path}: Pillow cannot identify this file; expected an image") from None


def _is_large_enough(path: Path, plan: CorpusPlan) -> bool:
    with _open(path) as photograph:
        width, height = photograph.size
    is_long_enough = min(width, height) >= plan.least_side_pixels
    return is_long_enough and width * height >= plan.least_area_pixels


def _fingerprint(plan: CorpusPlan, photographs: Sequence[Path]) -> str:
    settings = {key: value for key, value in asdict(plan).items() if "count" not in key}
    names = [(path.name, path.stat().st_size) for path in photographs]
    text = json.dumps([VERSION, PIL.__version__, settings, names])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _make_image(plan: CorpusPlan, index: int, photograph: Image.Image) -> bytes:
    """Crop, downscale, sharpen and encode one image."""
    draw = random.Random(f"{plan.seed} {index}")
    shape = draw.choice(plan.shapes)
    tries = plan.candidates if draw.random() < 0.8 else 1
    crops = [_crop(photograph, shape, plan.least_part, draw) for _ in range(tries)]
    if plan.sharpening:
        crops = [c.filter(ImageFilter.UnsharpMask(0.8, plan.sharpening, 0)) for c in crops]
    # Compare at a fixed quality, so that corpora with the same seed keep the same crop.
    kept = max(crops, key=lambda c: len(_encoded(c, 95, "4:2:0"))) if tries > 1 else crops[0]
    quality = plan.qualities[int(draw.random() * len(plan.qualities))]
    return _encoded(kept, quality, plan.subsampling)


def _encoded(image: Image.Image, quality: int, subsampling: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    return buffer.getvalue()


def _crop(
    photograph: Image.Image, shape: tuple[int, int], least_part: float, draw: random.Random
) -> Image.Image:
    width, height = shape
    # Take a random fraction of the largest rectangle of this shape, but larger than the output.
    full_width = min(photograph.width, photograph.height * width / height)
    part = min(1.0, max(draw.uniform(least_part, 1.0), 1.15 * width / full_width))
    crop_width, crop_height = full_width * part, full_width * part * height / width
    left = draw.uniform(0, photograph.width - crop_width)
    top = draw.uniform(0, max(0.0, photograph.height - crop_height))
    right = min(left + crop_width, photograph.width)
    box = (left, top, right, min(top + crop_height, photograph.height))
    image = photograph.resize(shape, Image.Resampling.LANCZOS, box=box)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw.random() < 0.5 else image
