"""Perceptual hashes: what two copies of an image have in common after edits that nobody sees.

A hash is the low frequencies of the cosine transform of a thumbnail, of its luma and of both
chroma channels. It is pHash (Zauner, "Implementation and benchmarking of perceptual image hash
functions", 2010) without rounding to bits, so that the hash of a crop follows from that of the
image, and the distance is in gray levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image

#: Height and width of the thumbnail, and stored frequencies of a side of luma and of chroma.
_SIDE, _LUMA, _CHROMA = 32, 12, 6
#: Number of values of a hash.
HASH_WIDTH = _LUMA**2 + 2 * _CHROMA**2
#: Compared frequencies of a side of luma and of chroma.
_LUMA_COMPARED, _CHROMA_COMPARED = 8, 4
#: Weight of chroma, which JPEG stores with fewer bits.
_CHROMA_WEIGHT = 0.5
#: Part of a side that a crop keeps, and its offsets along a side.
_KEPT, _OFFSETS = 0.95, (0.0, 0.05 / 3, 0.1 / 3, 0.05)
#: Gray levels that are added to the contrast of images, so that noise of plain ones counts little.
_NOISE = 4.0
#: Distance without regard to crops beyond which a pair is no candidate, and largest distance.
_FAR, MAX_DISTANCE = 0.6, 0.5
#: Rows that are compared with all others at a time, and candidates whose crops are.
_ROWS, _PAIRS = 512, 4096
#: Luma and both chroma channels of RGB (JFIF).
_CHANNELS = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32
)


def hash_images(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Compute the hash of each image.

    Args:
        images: uint8 arrays (H, W, 3), or (H, W, 4), of which alpha is put on white.

    Returns:
        (216,) float32 for each: coefficients of an orthonormal cosine transform, in gray levels.
    """
    return [_hash(image) for image in images]


def _hash(image: np.ndarray) -> np.ndarray:
    size = (_SIDE, _SIDE)
    if image.shape[2] == 4:
        # The resampling of Pillow weights colors with alpha.
        small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        alpha = small[..., 3:].astype(np.float32) / 255
        thumbnail = small[..., :3] * alpha + 255 * (1 - alpha)
    else:
        small = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
        thumbnail = np.asarray(small, np.float32)
    channels = thumbnail @ _CHANNELS.T
    places = (np.arange(_SIDE) + 0.5) / _SIDE
    luma, chroma = _cosines(_LUMA, places) / _SIDE, _cosines(_CHROMA, places) / _SIDE
    parts = [luma.T @ channels[..., 0] @ luma]
    parts += [chroma.T @ channels[..., channel] @ chroma for channel in (1, 2)]
    return np.concatenate([part.reshape(-1) for part in parts]).astype(np.float32)


def _cosines(count: int, places: np.ndarray) -> np.ndarray:
    """Return (n, count) values of orthonormal cosines at places from 0 to 1."""
    numbers = np.arange(count)
    scales = np.where(numbers == 0, 1.0, np.sqrt(2))
    return (scales * np.cos(np.pi * np.outer(places, numbers))).astype(np.float32)


@lru_cache(maxsize=64)
def _crop_matrix(stored: int, compared: int, offset: float, kept: float) -> np.ndarray:
    """Return (compared, stored): frequencies of a part of a side from those of the whole side."""
    places = (np.arange(64) + 0.5) / 64
    return _cosines(compared, places).T @ _cosines(stored, offset + kept * places) / 64


def _of_crop(hashes: np.ndarray, top: float, left: float, kept: float) -> np.ndarray:
    """Return the (n, 96) compared frequencies of a crop of each image."""
    count = len(hashes)
    luma = hashes[:, : _LUMA**2].reshape(count, _LUMA, _LUMA)
    chroma = hashes[:, _LUMA**2 :].reshape(count, 2, _CHROMA, _CHROMA)
    rows = _crop_matrix(_LUMA, _LUMA_COMPARED, top, kept)
    columns = _crop_matrix(_LUMA, _LUMA_COMPARED, left, kept)
    first = (rows @ luma @ columns.T).reshape(count, _LUMA_COMPARED**2)
    rows = _crop_matrix(_CHROMA, _CHROMA_COMPARED, top, kept)
    columns = _crop_matrix(_CHROMA, _CHROMA_COMPARED, left, kept)
    second = (rows @ chroma @ columns.T).reshape(count, 2 * _CHROMA_COMPARED**2)
    return np.concatenate([first, _CHROMA_WEIGHT * second], 1)


def _contrast(frequencies: np.ndarray) -> np.ndarray:
    """Return the (n,) standard deviations of images in gray levels, from (n, 96) frequencies."""
    means = [0, _LUMA_COMPARED**2, _LUMA_COMPARED**2 + _CHROMA_COMPARED**2]
    squares = (frequencies**2).sum(1) - (frequencies[:, means] ** 2).sum(1)
    return np.sqrt(np.maximum(squares, 0))


def _mirrored(hashes: np.ndarray) -> np.ndarray:
    """Return the hashes of the images mirrored left to right."""
    luma = np.tile((-1.0) ** np.arange(_LUMA), _LUMA)
    chroma = np.tile((-1.0) ** np.arange(_CHROMA), 2 * _CHROMA)
    return (hashes * np.concatenate([luma, chroma])).astype(np.float32)


def near_pairs(
    hashes: np.ndarray, distance: float, *, flips: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Find the pairs of images that are near, by hashes.

    The distance of two images is the root mean square of their difference in low frequencies, of
    which chroma counts half,
    divided by their contrast. Each is also compared with crops of 95 % of the other's sides, and
    the least distance counts. Work grows with the square of the number of images.

    Args:
        hashes: (n, 216) float32.
        distance: largest distance of a pair, at most 0.5.
        flips: also compare with mirrored images.

    Returns:
        (p,) rows, (p,) rows that are larger, (p,) distances, and (p,) bools, True if one of both is
        mirrored.
    """
    full = _of_crop(hashes, 0.0, 0.0, 1.0)
    contrast, squares = _contrast(full), (full**2).sum(1)
    pairs = [(np.zeros(0, np.int64),) * 2 + (np.zeros(0, np.float32), np.zeros(0, bool))]
    for is_mirrored in (False, True) if flips else (False,):
        others = _mirrored(hashes) if is_mirrored else hashes
        other_full = _of_crop(others, 0.0, 0.0, 1.0) if is_mirrored else full
        for start in range(0, len(hashes), _ROWS):
            own = slice(start, start + _ROWS)
            limits = _FAR * (np.sqrt(np.outer(contrast[own], contrast[start:])) + _NOISE)
            differences = squares[own, None] + squares[start:]
            differences -= 2 * (full[own] @ other_full[start:].T)
            first, second = np.nonzero(differences <= limits**2)
            is_later = second > first
            first, second = first[is_later] + start, second[is_later] + start
            for some in range(0, len(first), _PAIRS):
                a, b = first[some : some + _PAIRS], second[some : some + _PAIRS]
                levels = _levels(hashes[a], others[b])
                found = levels / (np.sqrt(contrast[a] * contrast[b]) + _NOISE)
                near = found <= distance
                flags = np.full(int(near.sum()), is_mirrored)
                pairs.append((a[near], b[near], found[near].astype(np.float32), flags))
    first, second, distances, mirrored = map(np.concatenate, zip(*pairs, strict=True))
    return first, second, distances, mirrored


def _levels(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return (p,) differences of pairs of images in gray levels, with the best of the crops."""
    one, other = (_of_crop(each, 0.0, 0.0, 1.0) for each in (first, second))
    best = ((one - other) ** 2).sum(1)
    for top in _OFFSETS:
        for left in _OFFSETS:
            for whole, cropped in ((one, second), (other, first)):
                crop = _of_crop(cropped, top, left, _KEPT)
                best = np.minimum(best, ((whole - crop) ** 2).sum(1))
    return np.sqrt(best)
