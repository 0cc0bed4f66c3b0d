"""Record what OpenCV and numpy make of pictures, for test_rand_augment.py.

    pip install opencv-python-headless==5.0.0.93 numpy
    python tests/rust/transform/record_rand_augment.py

writes rand_augment.json beside this file: for each size, operation and argument the CRC-32 of the
bytes. The operations are those of the published augmentation, written down anew from what they do.
Needs a processor with AVX2 and FMA, without which OpenCV gives other values; nothing of the package
is imported.
"""

import json
import zlib
from pathlib import Path

import numpy as np

#: (height, width): one pixel, one row, one column, sizes around OpenCV's blocks of 16 and 8 pixels,
#: and those of the recipes.
SIZES = [(1, 1), (1, 40), (40, 1), (2, 3), (3, 3), (16, 16), (17, 15), (33, 31), (37, 53), (64, 97)]
SIZES += [(384, 384), (90, 576), (576, 90)]
FILL = (128, 128, 128)


def pictures(height: int, width: int) -> dict[str, np.ndarray]:
    """Noise, a smooth grey picture of few values, and one value."""
    noise = np.random.default_rng([height, width]).integers(0, 256, (height, width, 3), np.uint8)
    rows, columns = np.indices((height, width))
    smooth = (60 + (rows * 3 + columns * 2) // 7 % 120).astype(np.uint8)
    grey = np.repeat(smooth[..., None], 3, axis=2)
    return {"noise": noise, "grey": grey, "flat": np.full_like(noise, 37)}


def cases() -> list[tuple[str, float | None]]:
    """Every operation with the arguments that magnitudes 7 and 10 and an odd one give."""
    found: list[tuple[str, float | None]] = [("AutoContrast", None), ("Equalize", None)]
    found += [(name, f) for name in ("Brightness", "Sharpness") for f in (0.1, 1.36, 1.9)]
    for names, arguments in (
        (("ShearX", "ShearY"), (0.21, 0.3, 0.0471)),
        (("TranslateX", "TranslateY"), (7.0, 10.0, 2.3)),
        (("Rotate",), (21.0, 30.0, 4.71)),
    ):
        found += [(name, sign * a) for name in names for a in arguments for sign in (1, -1)]
    return found


def by_channel(image: np.ndarray, table_of) -> np.ndarray:
    """Give every channel the values of a table of its own."""
    channels = [table_of(image[..., channel])[image[..., channel]] for channel in range(3)]
    return np.stack(channels, axis=-1)


def contrast_table(channel: np.ndarray) -> np.ndarray:
    low, high = int(channel.min()), int(channel.max())
    values = np.arange(256)
    if low == high:
        return values.astype(np.uint8)
    scale = 255 / (high - low)
    return (values * scale - low * scale).clip(0, 255).astype(np.uint8)


def equal_table(channel: np.ndarray) -> np.ndarray:
    counts = np.bincount(channel.ravel(), minlength=256)
    step = (counts.sum() - counts[counts > 0][-1]) // 255
    if step == 0:
        return np.arange(256, dtype=np.uint8)
    below = step // 2 + np.concatenate([[0], counts.cumsum()[:-1]])
    return (below // step).clip(0, 255).astype(np.uint8)


def sharpen(image: np.ndarray, factor: float) -> np.ndarray:
    import cv2

    kernel = np.ones((3, 3), np.float32)
    kernel[1, 1] = 5
    mean = cv2.filter2D(image, -1, kernel / 13)[1:-1, 1:-1].astype(np.float32)
    output = image.astype(np.float32)
    output[1:-1, 1:-1] = mean + factor * (output[1:-1, 1:-1] - mean)
    # By way of a wider integer the wrapping is the same everywhere.
    return output.astype(np.int32).astype(np.uint8)


def warp(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    import cv2

    height, width = image.shape[:2]
    return cv2.warpAffine(image, matrix, (width, height), borderValue=FILL)


def apply(image: np.ndarray, operation: str, argument: float | None) -> np.ndarray:
    """Carry one operation out."""
    import cv2

    height, width = image.shape[:2]
    if operation == "AutoContrast":
        return by_channel(image, contrast_table)
    if operation == "Equalize":
        return by_channel(image, equal_table)
    assert argument is not None
    if operation == "Brightness":
        values = np.arange(256, dtype=np.float32) * np.float32(argument)
        return values.clip(0, 255).astype(np.uint8)[image]
    if operation == "Sharpness":
        return sharpen(image, argument)
    if operation == "Rotate":
        return warp(image, cv2.getRotationMatrix2D((width / 2, height / 2), argument, 1))
    matrices = {
        "ShearX": [[1, argument, 0], [0, 1, 0]],
        "ShearY": [[1, 0, 0], [argument, 1, 0]],
        "TranslateX": [[1, 0, -argument], [0, 1, 0]],
        "TranslateY": [[1, 0, 0], [0, 1, -argument]],
    }
    return warp(image, np.array(matrices[operation], np.float32))


def main() -> None:
    """Write the file."""
    recorded = {}
    for height, width in SIZES:
        for kind, image in pictures(height, width).items():
            sums = [zlib.crc32(apply(image, *case).tobytes()) for case in cases()]
            recorded[f"{height} x {width} {kind}"] = sums
    path = Path(__file__).with_name("rand_augment.json")
    lines = [f"{json.dumps(name)}: {json.dumps(sums)}" for name, sums in recorded.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
