"""CPU time of images, texts and boxes from files to batches, for every installed loader.

Command: python benches/bench_data.py [options of `fiber bench data`]
Runs `fiber bench data` with rows in benches/results. Peers, corpora and method: docs/bench.md.
"""

from __future__ import annotations

import sys

from rows import RESULTS

from fiber.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "data", "--rows", str(RESULTS / "data.csv"), *sys.argv[1:]]))
