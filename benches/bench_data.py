"""CPU time of pictures, texts and boxes on their way into a batch, beside every installed loader.

Command: python benches/bench_data.py [options of `fiber bench data`]
Peers, corpora and method: docs/bench.md. It is `fiber bench data` with rows in benches/results.
"""

from __future__ import annotations

import sys

from rows import RESULTS

from fiber.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "data", "--rows", str(RESULTS / "data.csv"), *sys.argv[1:]]))
