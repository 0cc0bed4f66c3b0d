"""Plant known mistakes one by one; which test sees it: `python -m tests.plant KIND`.

KIND is coarse, fine, meter, xdecoder, kernels, decoder or readers. Each mistake goes into a copy of
the package, which is built again where it is one of the Rust code; tests run on the copy until one
fails: those of `SUITES`, or of the one check that a mistake names. Exit code 0 only if the
untouched copy passes and every mistake is seen.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.plant import meter_mistakes, xdecoder_mistakes
from tests.plant.decoder_mistakes import DECODER
from tests.plant.kernel_mistakes import KERNELS
from tests.plant.meter_mistakes import METER, PARITY
from tests.plant.mistakes import MISTAKES, Check, Mistake
from tests.plant.reader_mistakes import READERS
from tests.processes import run_python

ROOT = Path(__file__).parents[2]

#: What must see the mistakes of a kind, as pytest takes it. Tests that plant mistakes themselves
#: would fail on a planted copy for their own reasons. Of each kind the smallest sensitive case.
#: Mistakes in the kernels are planted in plain PyTorch, so that is what the cases run.
SUITES = {
    "coarse": Check(
        "coarse", ("tests/parity/test_coarse.py", "-k", "test_micro_equals and not native")
    ),
    "fine": Check(
        "fine",
        ("tests/parity/test_fine.py", "-k", "test_the_committed_case_equals and not native"),
    ),
    "meter": PARITY["clip"],
    "xdecoder": xdecoder_mistakes.MICRO,
    "decoder": Check("decoder", ("tests/rust/jpeg/test_decoder.py", "-k", "values or rows")),
    "readers": Check(
        "readers",
        ("tests/fuzz/generated", "tests/fuzz/scaling", "-k", "hostile_values or linearly"),
    ),
}

#: Every mistake by its kind.
ALL: dict[str, tuple[Mistake, ...]] = {
    **MISTAKES,
    "meter": METER,
    "xdecoder": xdecoder_mistakes.XDECODER,
    "kernels": KERNELS,
    "decoder": DECODER,
    "readers": READERS,
}

#: Mistakes that no change makes, with the reason.
NOT_PLANTED = {
    "meter": meter_mistakes.NOT_PLANTED,
    "xdecoder": xdecoder_mistakes.NOT_PLANTED,
}


def main(arguments: list[str] | None = None) -> int:
    """Plant every mistake of a kind; 1 if one survives, 2 if the tests fail without any."""
    parser = argparse.ArgumentParser(prog="python -m tests.plant", description=__doc__)
    parser.add_argument("kind", choices=tuple(ALL))
    parser.add_argument("names", nargs="*", help="mistakes to plant, part of a name will do")
    options = parser.parse_args(arguments)
    chosen = [
        mistake
        for mistake in ALL[options.kind]
        if not options.names or any(name in mistake.name for name in options.names)
    ]
    if not chosen:
        known = "; ".join(mistake.name for mistake in ALL[options.kind])
        print(f"no such mistake; there are: {known}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        copy = copy_package(Path(folder))
        for check in dict.fromkeys(_check(mistake, options.kind) for mistake in chosen):
            seen_by = first_failure(copy, check)
            if seen_by:
                print(f"the tests fail without any mistake: {seen_by}", file=sys.stderr)
                return 2
        survivors = [
            mistake.name
            for mistake in chosen
            if not _plant(copy, mistake, _check(mistake, options.kind))
        ]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mistakes are seen")
    if not options.names:
        for name, reason in NOT_PLANTED.get(options.kind, {}).items():
            print(f"not planted: {name}: {reason}")
    return 1 if survivors else 0


def _check(mistake: Mistake, kind: str) -> Check:
    """Find what has to see a mistake."""
    return mistake.check or SUITES[kind]


def _plant(copy: Path, mistake: Mistake, check: Check) -> bool:
    """Put a mistake in, run the tests, take it out again; whether a test failed."""
    path = copy / mistake.file
    before = path.read_text(encoding="utf-8")
    path.write_text(mistake.planted(before), encoding="utf-8")
    extension = _extension(copy)
    built_before = extension.read_bytes()
    try:
        if path.suffix == ".rs":
            build_extension(copy)
        seen_by = first_failure(copy, check)
    finally:
        path.write_text(before, encoding="utf-8")
        if path.suffix == ".rs":
            # Not in place: a process may still have it mapped.
            extension.unlink(missing_ok=True)
            extension.write_bytes(built_before)
    print(f"{mistake.name:<52} {seen_by or 'SURVIVES'}", flush=True)
    return bool(seen_by)


def copy_package(folder: Path) -> Path:
    """Copy what the tests need, links resolved: the package, the tests, and the eager model."""
    skipped = shutil.ignore_patterns("__pycache__", "results", "corpus", "artifacts")
    for name in ("python", "tests", "benches", "rust"):
        shutil.copytree(ROOT / name, folder / name, ignore=skipped)
    for name in ("pyproject.toml", "Cargo.toml", "Cargo.lock"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def build_extension(copy: Path) -> None:
    """Build the extension of a copy, and put it into its package.

    Raises:
        RuntimeError: if it does not compile, which shows nothing of the tests, with what was said.
    """
    target = ROOT / "target" / "plant"
    # Quickly built rather than quick: crates that it depends on are kept from mistake to mistake.
    settings = {"CARGO_PROFILE_RELEASE_LTO": "false", "CARGO_PROFILE_RELEASE_CODEGEN_UNITS": "16"}
    command = [
        "cargo",
        "rustc",
        "--release",
        "--lib",
        "--features",
        "python",
        "--crate-type",
        "cdylib",
    ]
    done = subprocess.run(
        [*command, "--target-dir", str(target)],
        cwd=copy,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the planted extension does not compile: {done.stderr}")
    built = next(path for path in target.glob("release/libfiber_core.*") if path.suffix != ".d")
    # The name beside it is that of the extension which the copy came with.
    extension = _extension(copy)
    extension.unlink()
    shutil.copy(built, extension)


def _extension(copy: Path) -> Path:
    (extension,) = (copy / "python" / "fiber").glob("_core*.so")
    return extension


def first_failure(copy: Path, check: Check) -> str:
    """Run the tests of a check on a copy; the first one that fails, "" if none does.

    Raises:
        RuntimeError: if pytest ended without a verdict on a test, with what it said.
    """
    done = run_python(
        ["-m", "pytest", "-x", "-q", "-rf", "-p", "no:cacheprovider", *check.arguments],
        folder=copy,
        environment={
            "PYTHONPATH": str(copy / "python"),
            "PYTHONDONTWRITEBYTECODE": "1",
            **check.environment,
        },
        timeout=3600,
    )
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    # 1: a test failed. 0 means that tests ran and passed: without any it would be 5.
    if done.returncode == 1 and failed:
        return failed[1]
    if done.returncode == 0:
        return ""
    raise RuntimeError(f"pytest ended with {done.returncode}: {done.stdout}{done.stderr}")


if __name__ == "__main__":
    sys.exit(main())
