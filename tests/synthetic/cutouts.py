"""Cut-outs and photographs for tests, of noise."""

import zlib

import numpy as np
from PIL import Image

from fiber.synthetic.captions import with_article

NOUNS = ["frog", "owl", "tennis ball", "soccer ball", "mug", "red bus", "mouse", "violin", "tent"]


def write_stamp(path, caption, size=(60, 60), mode="RGBA", colors=200):
    """Write a cut-out with a transparent margin of 5 pixels and its caption."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(path.name.encode()))
    pixels = rng.integers(0, 256, (size[0] + 10, size[1] + 10, 4)).astype(np.uint8)
    if colors == 1:
        pixels[:] = 90
    pixels[..., 3] = 0
    pixels[5:-5, 5:-5, 3] = 255
    Image.fromarray(pixels).convert(mode).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(f"{caption}\nde.utf8=Ein Ding.\n", encoding="utf-8")


def write_pictures(root):
    """Make a folder with stamps and one with photographs: arguments of `stamps.generate`."""
    for number, noun in enumerate(NOUNS):
        size, caption = (60 + 7 * number, 95 - 6 * number), with_article(noun).capitalize()
        write_stamp(root / "stamps" / f"s{number}" / "a.png", f"{caption}.", size)
    write_stamp(root / "stamps" / "frog_2.png", "A frog (a green one).", (80, 51))
    (root / "photos" / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, shape in (("a.jpg", (90, 130, 3)), ("deep/b.PNG", (333, 201, 3))):
        Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8)).save(root / "photos" / name)
    return {"stamps": root / "stamps", "backgrounds": root / "photos"}
