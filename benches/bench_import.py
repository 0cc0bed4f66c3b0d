"""Time of `import fiber` in a new process, and of the first box that the packaged model finds.

Command: python benches/bench_import.py
Peers: `import transformers`, which also imports lazily; and the import of its Grounding DINO, which
has then neither weights nor a box. The empty process shows the start of Python itself, which every
side includes.
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

_PICTURE = "from PIL import Image; picture = Image.new('RGB', (96, 96), 'red'); "
DINO = "import Grounding DINO of transformers"
FIRST_BOX = {
    "load and ground a phrase": (
        _PICTURE + "import fiber; fiber.load('scenes').ground(picture, ['a red square'])"
    ),
    DINO: "from transformers import AutoProcessor, GroundingDinoForObjectDetection",
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
    for name, codes, peer in (
        ("import", SIDES, "import transformers"),
        ("first_box", FIRST_BOX, DINO),
    ):
        sides = {side: lambda code=code: milliseconds(code) for side, code in codes.items()}
        report(name, "ms", interleave(sides, options.rounds), peer=peer)


if __name__ == "__main__":
    main()
