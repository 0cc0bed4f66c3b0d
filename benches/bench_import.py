"""Time of `import fiber` in a new process.

Command: python benches/bench_import.py
Peer: `import transformers`, which also imports lazily. The empty process shows the start of Python
itself, which every side includes.
"""

import argparse
import subprocess
import sys
import time

from rows import interleave, refuse_debug_build, report

SIDES = {
    "empty process": "pass",
    "import fiber": "import fiber",
    "import transformers": "import transformers",
    "import torch": "import torch",
}


def milliseconds(code: str) -> float:
    """Run code in a new interpreter."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return 1000 * (time.perf_counter() - began)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args()
    refuse_debug_build()
    sides = {name: lambda code=code: milliseconds(code) for name, code in SIDES.items()}
    report("import", "ms", interleave(sides, options.rounds), peer="import transformers")


if __name__ == "__main__":
    main()
