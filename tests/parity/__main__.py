"""`python -m tests.parity coarse|fine DIR`: compare with the recorded tensors of a folder."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

from tests.parity.comparison import Comparison


def main(arguments: list[str] | None = None) -> int:
    """Run every case of a folder and print its table; 0 only if all that is compared agrees."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument("kind", choices=("coarse", "fine"))
    parser.add_argument("directory", type=Path, help="folder of recorded cases")
    parsed = parser.parse_args(arguments)
    if not parsed.directory.is_dir():
        print(f"{parsed.directory}: no such folder", file=sys.stderr)
        return 2
    cases = [path for path in sorted(parsed.directory.glob("*.json")) if _is_case(path)]
    if not cases:
        print(
            f"{parsed.directory}: no case in it; a case is NAME.json with a top-level key 'config'"
            " beside NAME.safetensors",
            file=sys.stderr,
        )
        return 2
    # The other kind's module need not be importable.
    kind = importlib.import_module(f"tests.parity.{parsed.kind}")
    good = True
    for path in cases:
        comparison: Comparison = kind.compare_case(path)
        print(comparison, flush=True)
        good = good and comparison.ok
    print("all that was compared agrees" if good else "NOT equal to the recorded tensors")
    return 0 if good else 1


def _is_case(path: Path) -> bool:
    content = json.loads(path.read_text())
    return isinstance(content, dict) and "config" in content


if __name__ == "__main__":
    sys.exit(main())
