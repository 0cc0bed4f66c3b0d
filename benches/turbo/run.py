"""JPEG decoding compared with libjpeg-turbo 3, CPU time on one thread.

Command: python benches/turbo/run.py
Requires cargo, cmake and nasm, which build libjpeg-turbo, and ../shared/assets/photos. Both sides
keep their handle and buffer; all values are compared before anything is timed. Images are 640 x 480
crops of the photographs: 4:2:0 and 4:4:4 of qualities 94 to 97, with as much detail as photographs
in datasets; 4:2:0 of qualities 75 to 85; and both samplings as progressive JPEGs of qualities 75
to 95.
"""

import argparse
import io
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image, ImageFilter

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import rows  # noqa: E402

PHOTOS = HERE.parents[1] / "../shared/assets/photos"
WIDTH, HEIGHT = 640, 480
#: Options of Pillow's JPEG writer by corpus; each file has one of the qualities.
CORPORA: tuple[tuple[str, dict[str, Any]], ...] = (
    ("coco640", {"subsampling": "4:2:0", "quality": (94, 95, 96, 97)}),
    ("coco444", {"subsampling": "4:4:4", "quality": (95, 96, 97)}),
    ("small420", {"subsampling": "4:2:0", "quality": (75, 80, 85)}),
    ("progressive420", {"subsampling": "4:2:0", "quality": (75, 85, 95), "progressive": True}),
    ("progressive444", {"subsampling": "4:4:4", "quality": (75, 85, 95), "progressive": True}),
)


def cut(photo: Image.Image, rng: random.Random) -> Image.Image:
    """Cut a part of a photograph, of at least a third of its width, and resize it to 640 x 480."""
    ratio = WIDTH / HEIGHT
    widest = min(photo.width, photo.height * ratio)
    width = min(widest, max(rng.uniform(0.3, 1) * widest, 1.15 * WIDTH))
    height = width / ratio
    left, top = rng.uniform(0, photo.width - width), rng.uniform(0, photo.height - height)
    box = (left, top, left + width, top + height)
    resized = photo.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS, box=box)
    return resized.filter(ImageFilter.UnsharpMask(0.8, 70, 0))


def write_corpus(folder: Path, options: dict[str, Any], count: int) -> float:
    """Write `count` files; returns their mean size in KiB."""
    rng = random.Random(1234)
    photos = [Image.open(path).convert("RGB") for path in sorted(PHOTOS.glob("*.jpg"))]
    total = 0
    for index in range(count):
        stream = io.BytesIO()
        image = cut(photos[index % len(photos)], rng)
        image.save(stream, "JPEG", **options | {"quality": rng.choice(options["quality"])})
        (folder / f"{index:04}.jpg").write_bytes(stream.getvalue())
        total += len(stream.getvalue())
    return total / count / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--files", type=int, default=60, help="files per corpus")
    parser.add_argument("--rounds", type=int, default=15, help="measured rounds")
    parser.add_argument("--divisors", type=int, nargs="+", default=[1], help="1, 2, 4, 8")
    arguments = parser.parse_args()
    if not PHOTOS.exists():
        sys.exit(f"{PHOTOS}: photographs not found")
    program = build()
    for name, options in CORPORA:
        with tempfile.TemporaryDirectory() as folder:
            size = write_corpus(Path(folder), options, arguments.files)
            print(f"{name}: {arguments.files} files of {WIDTH} x {HEIGHT}, {size:.0f} KiB each")
            for divisor in arguments.divisors:
                values = timed(program, folder, arguments.rounds, divisor)
                bench = name if divisor == 1 else f"{name}, 1/{divisor}"
                named = {f"{bench}: {side}": times for side, times in values.items()}
                rows.report("turbo", "ms per image", named, f"{bench}: libjpeg-turbo")


def build() -> str:
    """Build the program that decodes; returns its path, wherever cargo is told to put it."""
    command = ["cargo", "build", "--release", "--message-format=json-render-diagnostics"]
    told = subprocess.run(command, cwd=HERE, check=True, stdout=subprocess.PIPE, text=True).stdout
    messages = [json.loads(line) for line in told.splitlines()]
    return next(path for message in messages if (path := message.get("executable")))


def timed(program: str, folder: str, rounds: int, divisor: int) -> dict[str, list[float]]:
    """CPU milliseconds an image by side and round; one more round before them is not counted."""
    command = [program, folder, str(rounds + 1), str(divisor)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    sides = [line.split() for line in output.splitlines()]
    return {name: [float(time) for time in times[1:]] for name, *times in sides}


if __name__ == "__main__":
    main()
