"""`python -m tests.parity coarse|fine DIR`: compare with the recorded tensors of a folder."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

from tests.parity.comparison import Comparison

#: Suffixes of recorded files.
_RECORDED = (".json", ".safetensors")


def main(arguments: list[str] | None = None) -> int:
    """Run every case of a folder and print its table; 0 only if all that is compared agrees."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument("kind", choices=("coarse", "fine"))
    parser.add_argument("directory", type=Path, help="folder of recorded cases")
    parser.add_argument(
        "--model",
        choices=("fiber", "eager"),
        default="fiber",
        help="eager: the plain coarse model that the benches time the package against",
    )
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
    if parsed.model == "eager" and parsed.kind != "coarse":
        parser.error("--model eager: there is an eager model of the coarse stage only")
    # The other kind's module need not be importable.
    module = "eager" if parsed.model == "eager" else parsed.kind
    kind = importlib.import_module(f"tests.parity.{module}")
    good = True
    for path in cases:
        comparison: Comparison = kind.compare_case(path)
        print(comparison, flush=True)
        good = good and comparison.ok
    unread = files_of_no_case(parsed.directory, [path.stem for path in cases])
    if unread:
        print(f"not compared: {', '.join(unread)}")
    print("all that was compared agrees" if good else "NOT equal to the recorded tensors")
    return 0 if good else 1


def files_of_no_case(directory: Path, cases: list[str]) -> list[str]:
    """Name the recorded files that belong to no case; a case owns CASE.* and CASE_*."""
    recorded = [path for path in sorted(directory.iterdir()) if path.suffix in _RECORDED]
    return [
        path.name
        for path in recorded
        if not any(path.stem == case or path.stem.startswith(f"{case}_") for case in cases)
        and not path.stem.endswith("_inputs")
    ]


def _is_case(path: Path) -> bool:
    content = json.loads(path.read_text())
    return isinstance(content, dict) and "config" in content


if __name__ == "__main__":
    sys.exit(main())
