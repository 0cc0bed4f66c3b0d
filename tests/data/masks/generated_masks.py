"""Records with generated masks of every kind."""

import io

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from fiber.data import IdMap, PackedMask, Polygons, Record, Rle

KINDS = ("compressed", "counts", "polygons", "packed", "rgb", "gray")
#: Masks of a record.
MASKS = 8


def png(pixels: np.ndarray, **options) -> bytes:
    """Return an image as a PNG."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", **options)
    return out.getvalue()


def blob(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Return a mask with holes and several parts; now and then an empty or a full one."""
    if rng.random() < 0.05:
        return np.full(size, rng.random() < 0.5)
    coarse = rng.random((rng.integers(1, 9), rng.integers(1, 9))).astype(np.float32)
    smooth = Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)
    return np.asarray(smooth) > rng.uniform(0.2, 0.8)


def rings(rng: np.random.Generator, size: tuple[int, int]) -> Polygons:
    """Return polygons: stars, with points between pixels, on them, on the border and twice."""
    height, width = size
    found = []
    for _ in range(rng.integers(1, 4)):
        count = rng.integers(3, 12)
        angles = np.sort(rng.uniform(0, 2 * np.pi, count))
        radii = rng.uniform(0.1, 0.7, count) * min(size)
        x = rng.uniform(0, width) + radii * np.cos(angles)
        y = rng.uniform(0, height) + radii * np.sin(angles)
        if rng.random() < 0.3:
            # Crosses itself.
            rng.shuffle(x)
        points = np.stack([x.clip(-0.9, width + 0.9), y.clip(-0.9, height + 0.9)], 1)
        if rng.random() < 0.4:
            points = np.round(points * 2) / 2
        if rng.random() < 0.3:
            points = np.concatenate([points, points[:1]])
        found.append(tuple(map(float, points.ravel())))
    return Polygons(tuple(found))


def masks_of(kind: str, rng: np.random.Generator, size: tuple[int, int]):
    """Return `MASKS` masks of a kind, or a map with this many ids."""
    if kind in ("rgb", "gray"):
        most = 2**24 if kind == "rgb" else 256
        ids = np.concatenate([[0], rng.choice(np.arange(1, most), MASKS, replace=False)])
        chosen = rng.integers(0, MASKS + 1, size)
        # Every id has a pixel.
        chosen.ravel()[: MASKS + 1] = np.arange(MASKS + 1)
        coarse = np.repeat(np.repeat(chosen, 3, 0), 3, 1)[: size[0], : size[1]]
        coarse.ravel()[: MASKS + 1] = np.arange(MASKS + 1)
        values = ids[coarse]
        if kind == "rgb":
            pixels = np.stack([values % 256, values // 256 % 256, values // 256**2], -1)
        else:
            pixels = values
        image = png(pixels.astype(np.uint8))
        return IdMap(image, tuple(int(each) for each in ids[1:]), coding=kind)
    found = []
    for _ in range(MASKS):
        if kind == "polygons":
            found.append(rings(rng, size))
            continue
        mask = blob(rng, size)
        if kind == "packed":
            found.append(PackedMask(np.packbits(mask, axis=1).tobytes(), size))
            continue
        runs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
        if kind == "counts":
            down = mask.T.ravel()
            edges = np.flatnonzero(np.diff(down)) + 1
            lengths = np.diff([0, *edges, down.size]).tolist()
            runs = tuple([0, *lengths] if down[0] else lengths)
        elif rng.random() < 0.5:
            runs = runs.decode()
        found.append(Rle(runs, size))
    return tuple(found)


def records(count: int, seed: int = 0) -> list[Record]:
    """Return records of all kinds in turn, of different sizes, with phrases and classes."""
    found = []
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        size = (int(rng.integers(24, 90)), int(rng.integers(24, 90)))
        pixels = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
        chosen = tuple(sorted(map(int, rng.choice(MASKS, 3, replace=False))))
        found.append(
            Record(
                key=f"{index}",
                images=(png(pixels),),
                text="",
                image_size=size,
                labels=("a", "b", "c"),
                masks=masks_of(KINDS[index % len(KINDS)], rng, size),
                mask_labels=tuple(map(int, rng.integers(0, 3, MASKS))),
                mask_crowd=tuple(map(bool, rng.random(MASKS) < 0.1)) if index % 2 else (),
                phrases=("the left dog", "a cat and the right dog"),
                phrase_masks=(chosen, chosen[:1]),
            )
        )
    return found
