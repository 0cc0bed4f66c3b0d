"""What `fiber map` adds to the network, and the time of an exact search.

Command: python benches/bench_bulk.py
The loop: processor time to embed images that are decoded, 16 at a time on one core, by the batches
of `fiber map` and by the method of the model that they call; and by `fiber map` with decoding and
Parquet files. The search: seconds for 1,000,000 rows of 256 float16 numbers, mapped into memory and
in the page cache, for one query and for each of 32 at a time, against NumPy's product of float32.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rows import interleave, refuse_debug_build, report

import fiber
from fiber.bulk.annotator import Annotator
from fiber.bulk.store import nearest_rows
from fiber.synthetic.scenes import generate

TOP_K = 20


def measure_loop(folder: Path, images: int, rounds: int, where: dict[str, Path]) -> None:
    """Report the processor time of one image."""
    generate(folder / "data", train=images, val=1, novel=1)
    paths = sorted((folder / "data" / "images" / "train").rglob("*.jpg"))
    torch.set_num_threads(1)
    model = fiber.load("scenes", device="cpu")
    annotate = Annotator(model, "embed").for_thread()
    batches = [[fiber.data.load_image(p) for p in paths[i : i + 16]] for i in range(0, images, 16)]
    number = 0

    def timed(run) -> float:
        start = time.process_time()
        run()
        return (time.process_time() - start) / images * 1e3

    def bare() -> None:
        for batch in batches:
            model.embed_images(batch)

    def loop() -> None:
        for batch in batches:
            annotate({"image": batch, "key": list(range(len(batch)))})

    def whole() -> None:
        nonlocal number
        number += 1
        source = folder / "data" / "images" / "train"
        fiber.map(source, "embed", folder / f"out-{number}", model=model, threads=1)

    peer = "the model's method"
    sides = {peer: bare, "batches of fiber map": loop, "fiber map with files": whole}
    measured = {name: lambda run=run: timed(run) for name, run in sides.items()}
    report("bulk_loop", "ms an image", interleave(measured, rounds), peer=peer, **where)


def measure_search(folder: Path, rows: int, rounds: int, where: dict[str, Path]) -> None:
    """Report the seconds of a query."""
    width, draws = 256, np.random.default_rng(0)
    with (folder / "rows.f16").open("wb") as file:
        for _ in range(0, rows, 10_000):
            values = draws.standard_normal((10_000, width), dtype=np.float32)
            values /= np.linalg.norm(values, axis=1, keepdims=True)
            file.write(values.astype(np.float16).tobytes())
    matrix = np.memmap(folder / "rows.f16", np.float16, mode="r", shape=(rows, width))
    queries = draws.standard_normal((32, width)).astype(np.float32)

    def ours(count: int) -> float:
        start = time.perf_counter()
        nearest_rows([matrix], queries[:count], TOP_K, None)
        return (time.perf_counter() - start) / count * 1e3

    def numpy_product() -> float:
        start = time.perf_counter()
        scores = np.concatenate(
            [matrix[i : i + 65536].astype(np.float32) @ queries[0] for i in range(0, rows, 65536)]
        )
        np.argpartition(-scores, TOP_K)[:TOP_K]
        return (time.perf_counter() - start) * 1e3

    peer = "NumPy, one query"
    sides = {peer: numpy_product, "one query": lambda: ours(1), "each of 32": lambda: ours(32)}
    report("bulk_search", "ms a query", interleave(sides, rounds), peer=peer, **where)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, help="another directory for the rows")
    options = parser.parse_args()
    refuse_debug_build()
    where = {"results": options.results} if options.results else {}
    with tempfile.TemporaryDirectory() as name:
        measure_search(Path(name), options.rows, options.rounds, where)
        measure_loop(Path(name), options.images, options.rounds, where)


if __name__ == "__main__":
    main()
