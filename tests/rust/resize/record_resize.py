"""Record what Pillow makes of pictures of random sizes, for test_resize.py.

    pip install "pillow<12" numpy
    python tests/rust/resize/record_resize.py

writes resize.json beside this file: for each size and kernel the CRC-32 of the bytes. The
published models were trained with a Pillow that takes rows first; 12.3 takes columns first for a
few sizes, 13 for more, and so gives other values there. Nothing of the package is imported.
"""

import json
import sys
import zlib
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

KERNELS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
#: (height, width, new height, new width): one pixel wide or high, the recipes', the same size.
SIZES = [(1, 1, 5, 7), (1, 40, 3, 90), (40, 1, 90, 3), (33, 31, 1, 1), (17, 19, 17, 19)]
SIZES += [(480, 640, 384, 384), (427, 640, 800, 1199), (1024, 683, 384, 384), (768, 1600, 64, 96)]


def cases() -> list[tuple[int, int, int, int]]:
    """The sizes above and 400 random ones, up and down, even and odd."""
    rng = np.random.default_rng(12)
    random = np.exp(rng.uniform(0, np.log(300), (400, 4))).astype(int)
    return SIZES + [(int(h), int(w), int(a), int(b)) for h, w, a, b in random]


def picture(height: int, width: int) -> np.ndarray:
    """Noise, with squares of the darkest and brightest values."""
    rng = np.random.default_rng([height, width])
    noise = rng.integers(0, 256, (height, width, 3), np.uint8)
    rows, columns = np.indices((height, width))
    noise[(rows // 7 + columns // 5) % 3 == 0] = 255
    noise[(rows // 7 + columns // 5) % 3 == 1] //= 64
    return noise


def main() -> None:
    """Write the file."""
    if int(PIL.__version__.split(".")[0]) >= 12:
        sys.exit(f"Pillow {PIL.__version__} may take columns first; expected a version below 12")
    recorded = []
    for height, width, new_height, new_width in cases():
        image = Image.fromarray(picture(height, width))
        resized = (image.resize((new_width, new_height), kernel) for kernel in KERNELS.values())
        sums = [zlib.crc32(np.asarray(output).tobytes()) for output in resized]
        recorded.append(sums)
    path = Path(__file__).with_name("resize.json")
    lines = ",\n".join(json.dumps(sums) for sums in recorded)
    path.write_text(f'{{"pillow": "{PIL.__version__}", "sums": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
