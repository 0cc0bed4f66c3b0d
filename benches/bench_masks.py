"""Decode 20 masks of a 640 x 480 panoptic PNG, jitter them to 1024 x 1024 pixels and pack them.

Command: python benches/bench_masks.py
Peer: Pillow and NumPy. As in published data paths, the map is decoded and its ids are resized once;
then each mask is compared out of it and packed. CPU time of the process, a thread. fiber's time is
that of its loader with masks less that of the same loader without them: both decode and resize the
images. Masks of both sides are compared before anything is timed.
"""

import argparse
import io
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rows import RESULTS, interleave, refuse_debug_build, report

sys.path.insert(0, str(Path(__file__).parents[1]))

from fiber.data import DataLoader, IdMap, ImageTransform, Record, SegmentationBatch, Tokenizer
from tests.data.masks.reference import ImageRng, Sampled, sample

PEER, OURS = "Pillow and NumPy", "fiber"
#: (height, width) of the maps, and the side that they are jittered to, in pixels.
SIZE, SIDE = (480, 640), 1024
MASKS = 20
#: Maps of a measurement, each with another jitter.
IMAGES = 16
SEED = 0


def png(pixels: np.ndarray) -> bytes:
    """Write a PNG."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def draw_map(draws: np.random.Generator, size: tuple[int, int]) -> IdMap:
    """Draw a map whose masks are the surroundings of points, with a rough border, and a void."""
    height, width = size
    points = draws.uniform((0, 0), size, (MASKS + 1, 2))
    rough = np.asarray(
        Image.fromarray(draws.normal(0, 25, (9, 12)).astype(np.float32)).resize((width, height))
    )
    rows, columns = np.indices(size)
    distances = [np.hypot(rows - y + rough, columns - x - rough) for y, x in points]
    ids = np.concatenate([[0], draws.choice(np.arange(1, 2**24), MASKS, replace=False)])
    chosen = ids[np.argmin(distances, 0)]
    pixels = np.stack([chosen % 256, chosen // 256 % 256, chosen // 256**2], -1)
    seen = [int(each) for each in ids[1:] if (chosen == each).any()]
    return IdMap(png(pixels.astype(np.uint8)), tuple(seen))


def draw_records(size: tuple[int, int], count: int) -> list[Record]:
    """Draw records with maps; their images are plain."""
    draws, image = np.random.default_rng(SEED), png(np.full((*size, 3), 90, np.uint8))
    maps = [draw_map(draws, size) for _ in range(count)]
    return [
        Record(
            key=str(number),
            text="",
            images=(image,),
            image_size=size,
            masks=each,
            labels=("segment",),
            mask_labels=(0,) * len(each.ids),
        )
        for number, each in enumerate(maps)
    ]


def by_pillow(id_map: IdMap, sampled: Sampled, side: int) -> np.ndarray:
    """Decode, resize, cut, mirror, pad and pack: (masks, side, side / 8)."""
    assert isinstance(id_map.image, bytes)
    pixels = np.asarray(Image.open(io.BytesIO(id_map.image)), np.int32)
    ids = Image.fromarray(pixels[..., 0] + 256 * pixels[..., 1] + 256**2 * pixels[..., 2])
    resized = np.asarray(ids.resize(sampled.resized[::-1], Image.Resampling.NEAREST))
    top, left, height, width = sampled.window
    cut = resized[top : top + height, left : left + width]
    if sampled.flip:
        cut = cut[:, ::-1]
    padded = np.zeros((side, side), np.int32)
    padded[:height, :width] = cut
    return np.packbits([padded == each for each in id_map.ids], axis=-1)


def loader_of(records: Sequence[Record], side: int) -> DataLoader:
    """Make a loader with one thread, whose images cost as little as possible."""
    return DataLoader(
        records,
        "segmentation",
        tokenizer=Tokenizer.train(["a cat"], 300),
        transform=ImageTransform.scale_jitter(side),
        batch_size=1,
        max_tokens=4,
        seed=SEED,
        threads=1,
        image_dtype="uint8",
    )


def load(loader: DataLoader) -> list[np.ndarray]:
    """Load all masks, packed, one array for each image."""
    found = []
    for batch in loader.epoch(0):
        assert isinstance(batch, SegmentationBatch)
        found.append(batch.masks.numpy())
    return found


def milliseconds(work: Callable[[], object], count: int) -> float:
    """CPU time of the process for one of `count` maps."""
    began = time.process_time()
    work()
    return 1e3 * (time.process_time() - began) / count


def main() -> None:
    """Check, measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=9, help="rounds, at least 2")
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory of CSV files")
    parser.add_argument("--micro", action="store_true", help="a few small maps, to try the bench")
    options = parser.parse_args()
    if options.micro and options.results == RESULTS:
        parser.error("--micro: expected --results, since rows of small maps are no results")
    refuse_debug_build()
    size, side, count = ((48, 64), 104, 4) if options.micro else (SIZE, SIDE, IMAGES)
    records = draw_records(size, count)
    bare = [Record(key=each.key, text="", images=each.images, image_size=size) for each in records]
    loader, without = loader_of(records, side), loader_of(bare, side)
    settings = ImageTransform.scale_jitter(side).describe()
    drawn = [sample(settings, size, ImageRng(SEED, 0, number)) for number in range(count)]
    maps = [each.masks for each in records]

    def peer() -> list[np.ndarray]:
        return [by_pillow(own, sampled, side) for own, sampled in zip(maps, drawn, strict=True)]

    for number, (own, theirs) in enumerate(zip(load(loader), peer(), strict=True)):
        if not np.array_equal(own, theirs):
            sys.exit(f"the masks of map {number} differ from those of {PEER}")
    print(f"{OURS}: all {sum(map(len, peer()))} masks equal those of {PEER}")
    sides = {
        OURS: lambda: (
            milliseconds(lambda: load(loader), count) - milliseconds(lambda: load(without), count)
        ),
        PEER: lambda: milliseconds(peer, count),
    }
    report("masks", "ms", interleave(sides, options.rounds), PEER, options.results)


if __name__ == "__main__":
    main()
