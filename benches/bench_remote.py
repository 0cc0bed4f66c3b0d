"""Batches and bare reads of a packed folder at a URL, from a cache that has all of it.

Command: python benches/bench_remote.py
Peer: the same folder as local files. Both sides read the same epoch of generated scenes, in turns,
from the page cache; the URL is of the local file system, so the cache was filled over fsspec. Rows
of remote_batches.csv are of images that `DataLoader` decodes, crops and resizes to 224 x 224
pixels; rows of remote_reads.csv are of records that are read with their images and checked, without
decoding. Times are CPU time of all threads, which limits both sides since they wait for no disk;
other load of the machine does not count.
"""

import argparse
import tempfile
import time
from pathlib import Path

from rows import interleave, refuse_debug_build, report

from fiber.data import DataLoader, ImageTransform, Tokenizer, open_source, pack, remote_pack
from fiber.data.tools.pack import SHARD_BYTES
from fiber.env import usable_cores
from fiber.synthetic.scenes import generate

PEER = "local files"


def batch_microseconds(folder: Path) -> float:
    """Return the CPU time per image of an epoch in the order "shards"."""
    records = open_source("captions", folder, "train")
    loader = DataLoader(
        records,
        "image_text",
        tokenizer=Tokenizer.from_file(folder / "tokenizer.json"),
        transform=ImageTransform.random_resized_crop(224),
        batch_size=64,
        max_tokens=30,
        shuffle=True,
        order="shards",
        scaled_decoding=True,
        threads=usable_cores(),
    )
    with loader:
        start, count = time.process_time(), 0
        for batch in loader.epoch():
            count += len(batch)
        return 1e6 * (time.process_time() - start) / count


def read_microseconds(folder: Path) -> float:
    """Return the CPU time per record that is read with its image."""
    records = open_source("captions", folder, "train")
    start = time.process_time()
    for index in range(len(records)):
        records[index].images[0]
    return 1e6 * (time.process_time() - start) / len(records)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--shard-bytes", type=int, default=SHARD_BYTES >> 8)
    parser.add_argument("--results", type=Path, help="another directory for the rows")
    options = parser.parse_args()
    refuse_debug_build()
    where = {"results": options.results} if options.results else {}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        scenes = generate(root / "scenes", train=options.images, val=6, novel=6)
        pack(scenes, root / "packed", splits=["train"], shard_bytes=options.shard_bytes)
        cached = remote_pack(f"file://{root}/packed", root / "cache", 10)
        folders = {PEER: root / "packed", "warm cache": cached}
        for unit, bench, measure in (
            ("us of CPU", "remote_batches", batch_microseconds),
            ("us of CPU", "remote_reads", read_microseconds),
        ):
            sides = {
                side: lambda folder=folder, measure=measure: measure(folder)
                for side, folder in folders.items()
            }
            # The round of warmup fills the cache.
            report(bench, unit, interleave(sides, options.rounds), peer=PEER, **where)


if __name__ == "__main__":
    main()
