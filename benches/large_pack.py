"""Write a packed folder of many captions quickly, for benches of its index.

Command: python benches/large_pack.py DIR --captions 10000000

The images are the same few bytes, so ten million captions take 3 GB.
"""

import argparse
import io
import json
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from fiber.data.storage.pack_description import (
    BLOCK_BYTES,
    DESCRIPTION,
    FORMAT,
    IMAGES,
    VERSION,
    fingerprint_of_content,
)
from fiber.data.storage.pack_index import TAR_BLOCK, pack_entry
from fiber.data.tools.pack import HashedFile

#: Captions and images that are written at a time.
CHUNK = 10_000
WORDS = ("red", "small", "wooden", "old", "wet", "round", "tall", "broken", "painted", "empty")
NOUNS = ("cup", "chair", "boat", "door", "lamp", "dog", "tower", "bicycle", "tree", "train")


def write(folder: Path, captions: int, *, images: int, shard_images: int = 5000) -> None:
    """Write a packed folder.

    Args:
        folder: new folder.
        captions: number of records, in the order of their images.
        images: number of images, at most `captions`.
        shard_images: images of a shard.
    """
    if not 0 < images <= captions:
        raise ValueError(f"images is {images}; expected 1 to {captions}, the number of captions")
    (folder / "index").mkdir(parents=True)
    shards, places, crc32 = _write_shards(folder, images, shard_images)
    with _file(folder, f"index/train-{IMAGES}.bin") as file:
        for shard, start, size in places:
            file.write(pack_entry(start, size, shard, crc32))
    indexes = [{"split": "train", "source": IMAGES, **file.entry()}]
    name = "index/train-captions"
    with _file(folder, f"{name}.jsonl") as text, _file(folder, f"{name}.bin") as locations:
        for first in range(0, captions, CHUNK):
            lines, entries, start = [], [], text.tell()
            for number in range(first, min(first + CHUNK, captions)):
                image = number * images // captions
                line = _line(number, image)
                entries.append(pack_entry(start, len(line), image, zlib.crc32(line)))
                lines.append(line)
                start += len(line)
            text.write(b"".join(lines))
            locations.write(b"".join(entries))
    part = {"source": "captions", "split": "train", "records": captions, **text.entry()}
    part |= {"counts": {}, "counts_of_objects": {}, "notes": [], "classes": [], "shared": []}
    indexes.append({"split": "train", "source": "captions", **locations.entry()})
    content = {"format": FORMAT, "version": VERSION, "block_bytes": BLOCK_BYTES, "shards": shards}
    content |= {"indexes": indexes, "parts": [part], "files": []}
    content = {"fingerprint": fingerprint_of_content(content), **content}
    (folder / DESCRIPTION).write_text(json.dumps(content))


def _line(number: int, image: int) -> bytes:
    """A caption of ten words."""
    words = " ".join(WORDS[number // 10**power % 10] for power in range(4))
    noun, other = NOUNS[number % 10], NOUNS[number // 10 % 10]
    return (
        f'{{"images":[{image}],"key":"captions_train/{number}","text":"a {words} {noun} next to a'
        f' {other}","image_id":"images/train/{image:09d}.png"}}\n'
    ).encode()


@contextmanager
def _file(folder: Path, name: str) -> Iterator[HashedFile]:
    with (folder / name).open("wb") as file:
        yield HashedFile(file, name, BLOCK_BYTES)


def _write_shards(
    folder: Path, images: int, shard_images: int
) -> tuple[list[dict], list[tuple[int, int, int]], int]:
    """Return the descriptions of the shards, the place of every image, and their CRC-32."""
    stored = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 40)).save(stored, "PNG")
    data = stored.getvalue()
    padded = data.ljust(-(-len(data) // TAR_BLOCK) * TAR_BLOCK, b"\0")
    shards, places = [], []
    for shard, first in enumerate(range(0, images, shard_images)):
        last = min(first + shard_images, images)
        with _file(folder, f"train-{shard:06d}.tar") as file:
            for number in range(first, last):
                header = tarfile.TarInfo(f"{number:09d}.png")
                header.size = len(data)
                places.append((shard, file.tell() + TAR_BLOCK, len(data)))
                file.write(header.tobuf(tarfile.USTAR_FORMAT) + padded)
            file.write(bytes(2 * TAR_BLOCK))
        shards.append({**file.entry(), "split": "train", "pictures": last - first})
    return shards, places, zlib.crc32(data)


def main() -> None:
    """Write a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--captions", type=int, default=10_000_000)
    parser.add_argument("--images", type=int)
    options = parser.parse_args()
    images = options.images or max(1, options.captions // 10)
    write(options.folder, options.captions, images=images)


if __name__ == "__main__":
    main()
