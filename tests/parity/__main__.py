"""`python -m tests.parity KIND [DIR]`: compare with the recorded tensors of a folder.

KIND is coarse, fine, meter or xdecoder.

Without DIR the committed recordings of that kind under `tests/golden` are compared.

`python -m tests.parity coarse|fine --preset base` runs every mode of the base model without
recordings: outputs must be finite and of the published shapes; time and peak memory are printed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

from tests.golden import COARSE, FINE, METER, XDECODER
from tests.parity.comparison import Comparison

#: Cases that can be run without recordings: the published model, and the smallest recorded one.
PRESETS = ("base", "micro")
#: The recordings of the repository.
COMMITTED = {"coarse": COARSE, "fine": FINE, "meter": METER, "xdecoder": XDECODER}
#: Modules that compare the benches' eager model of a kind.
EAGER = {
    "coarse": "eager",
    "fine": "eager_detector",
    "meter": "eager_meter",
    "xdecoder": "eager_xdecoder",
}
#: Suffixes of recorded files.
_RECORDED = (".json", ".safetensors")


def main(arguments: list[str] | None = None) -> int:
    """Run every case of a folder and print its table; 0 only if all is compared and agrees."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument("kind", choices=tuple(COMMITTED))
    parser.add_argument(
        "directory",
        type=Path,
        nargs="?",
        help="folder of recorded cases (default: tests/golden/KIND)",
    )
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        help="instead of a folder: run the model of that case without recordings",
    )
    parser.add_argument(
        "--model",
        choices=("fiber", "eager"),
        default="fiber",
        help="eager: the plain model of that stage that the benches time the package against",
    )
    parsed = parser.parse_args(arguments)
    if parsed.kind not in ("coarse", "fine") and parsed.preset is not None:
        parser.error(f"{parsed.kind} has recorded cases only; expected no --preset")
    if parsed.preset is not None:
        if parsed.directory is not None:
            parser.error("expected a folder or --preset, got both")
        if parsed.model != "fiber":
            parser.error("--preset: expected the package's own model")
        return _run_preset(parsed.kind, parsed.preset)
    directory = parsed.directory or COMMITTED[parsed.kind]
    if not directory.is_dir():
        print(f"{directory}: no such folder", file=sys.stderr)
        return 2
    # The other kind's module need not be importable.
    kind = importlib.import_module(f"tests.parity.{parsed.kind}")
    is_own = getattr(kind, "is_case", lambda path: True)
    cases = [p for p in sorted(directory.glob("*.json")) if _is_case(p) and is_own(p)]
    if not cases:
        print(
            f"{directory}: no case in it; a case is NAME.json with a top-level key 'config'"
            " beside NAME.safetensors",
            file=sys.stderr,
        )
        return 2
    if parsed.model == "eager":
        return _compare_eager(parsed.kind, cases)
    good = True
    for path in cases:
        try:
            good = _print(kind.compare_case(path)) and good
        except FileNotFoundError as error:
            print(error, file=sys.stderr)
            good = False
    for name, compare in (*kind.UNIT_FILES.items(), *kind.SECTIONS.items()):
        if (directory / name).exists():
            good = _print(compare(directory / name)) and good
    unread = files_not_compared(directory, [path.stem for path in cases], kind)
    for name in unread:
        waits = next((why for end, why in kind.PENDING_FILES.items() if name.endswith(end)), None)
        print(f"{'NOT COMPARED' if waits is None else 'not compared'}: {name}", end="")
        print(f", waits for {waits}" if waits else "")
        good = good and waits is not None
    print("equal to the recorded tensors" if good else "NOT equal to the recorded tensors")
    return 0 if good else 1


def _run_preset(kind: str, name: str) -> int:
    """Run every mode of a case that has no recordings."""
    run = importlib.import_module(f"tests.parity.{kind}_preset_run")
    try:
        report = run.run_preset(name, lambda text: print(text, flush=True))
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print("finite and of the published shapes" if report.ok else "NOT as expected")
    return 0 if report.ok else 1


def _compare_eager(kind: str, cases: list[Path]) -> int:
    """Compare what the eager model is timed for: its passes and, coarse, gradients of losses."""
    eager = importlib.import_module(f"tests.parity.{EAGER[kind]}")
    good = True
    for path in cases:
        good = _print(eager.compare_case(path)) and good
    print("equal to the recorded tensors" if good else "NOT equal to the recorded tensors")
    return 0 if good else 1


def _print(comparison: Comparison) -> bool:
    print(comparison, flush=True)
    return comparison.ok


def files_not_compared(directory: Path, cases: list[str], kind: ModuleType) -> list[str]:
    """Name the recorded files that nothing reads.

    A case owns CASE.safetensors and every CASE_*; which of those it reads, its kind says.
    """
    return [
        path.name
        for path in sorted(directory.iterdir())
        if path.suffix in _RECORDED
        and path.name not in (*kind.UNIT_FILES, *kind.READ_UNIT_FILES)
        and not any(_is_read(path, case, kind) for case in cases)
    ]


def _is_read(path: Path, case: str, kind: ModuleType) -> bool:
    if path.stem == case:
        return True
    companions = (*kind.READ_COMPANIONS, *kind.NEVER_COMPARED_COMPANIONS)
    return path.stem.startswith(f"{case}_") and path.name.endswith(companions)


def _is_case(path: Path) -> bool:
    content = json.loads(path.read_text())
    return isinstance(content, dict) and "config" in content


if __name__ == "__main__":
    sys.exit(main())
