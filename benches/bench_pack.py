"""Time to open a packed folder of ten million captions, and the memory that a rank takes for it.

Command: python benches/bench_pack.py
Peer: the same index, read into an array that every rank holds in memory. Two processes, as ranks of
one node, open the folder at the same time, choose and read samples of an epoch, and wait for one
another. The memory is what `Private_*` of /proc/self/smaps_rollup grows by over the imports, the
larger of the two ranks. The order of the samples is included: "uniform" holds a permutation of all
records, "shards" that of 16 shards. The files are in the page cache.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import large_pack
from rows import interleave, refuse_debug_build, report

RANK = """
import json, sys, time
from pathlib import Path
import numpy as np
from fiber.data import DataLoader, ImageTransform, Tokenizer, open_source
from fiber.data.storage import packed
from fiber.data.storage.pack_index import ENTRY, IndexEntry

class IndexInMemory:
    def __init__(self, path, count):
        self._entries = np.fromfile(path, dtype=ENTRY)
    def __len__(self):
        return len(self._entries)
    def __getitem__(self, index):
        return IndexEntry(*self._entries[index].item())
    def numbers(self):
        return self._entries["number"]

def private_bytes():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))

folder, order, index = sys.argv[1:4]
rank, samples = map(int, sys.argv[4:])
if index == "memory":
    packed.FlatIndex = IndexInMemory
tokenizer = Tokenizer.train(["a red cup"], 300)
def sampler(records, order):
    loader = DataLoader(
        records, "image_text", tokenizer=tokenizer, transform=ImageTransform.squash(8),
        batch_size=100, max_tokens=30, shuffle=True, order=order, rank=rank, world_size=2,
        threads=1,
    )
    return loader._sampler
before = private_bytes()
print("ready", flush=True)
input()
start = time.perf_counter()
records = open_source("captions", folder, "train")
seconds = time.perf_counter() - start
batches = sampler(records, order).stream(0)
for _ in range(samples // 100):
    for sample in next(batches):
        record = records[sample.record_index]
        assert record.images[0] and record.text
print("read", flush=True)
input()
print(json.dumps([seconds, private_bytes() - before]), flush=True)
input()
"""


def measure(folder: Path, order: str, index: str, samples: int) -> tuple[float, float]:
    """Return the seconds to open a folder, and the bytes of private memory, of the larger rank."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(folder), order, index, str(rank), str(samples)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    answers = []
    for _ in range(3):
        # All ranks are alive while any of them measures, since they share pages.
        answers = [rank.stdout.readline() for rank in ranks if rank.stdout]
        for rank in ranks:
            if rank.stdin:
                rank.stdin.write("\n")
                rank.stdin.flush()
    if any(rank.wait() for rank in ranks):
        raise RuntimeError(f"a rank that reads {folder} failed")
    found = [json.loads(answer) for answer in answers]
    return max(seconds for seconds, _ in found), max(size for _, size in found)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--captions", type=int, default=10_000_000)
    parser.add_argument("--samples", type=int, default=20_000, help="read by each rank")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, help="another directory for the rows")
    options = parser.parse_args()
    refuse_debug_build()
    peer = "index in memory, uniform"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "packed"
        large_pack.write(folder, options.captions, images=max(1, options.captions // 10))
        sides = {
            peer: ("uniform", "memory"),
            "flat index, uniform": ("uniform", "flat"),
            "flat index, shards": ("shards", "flat"),
        }
        memory: dict[str, list[float]] = {side: [] for side in sides}

        def run(side: str) -> float:
            seconds, private = measure(folder, *sides[side], options.samples)
            memory[side].append(private / 1e6)
            return seconds

        seconds = interleave({side: lambda side=side: run(side) for side in sides}, options.rounds)
    where = {"results": options.results} if options.results else {}
    report("pack_open", "s", seconds, peer=peer, **where)
    # Without the round of warmup.
    memory = {side: found[1:] for side, found in memory.items()}
    report("pack_memory", "MB", memory, peer=peer, **where)


if __name__ == "__main__":
    main()
