"""Run the fuzz targets in Python and Rust one after the other, each for some seconds.

Command: python -m tests.fuzz SECONDS [TARGET ...]
Needs atheris (pip) and cargo-fuzz (cargo install); `make fuzz SECONDS=3600` installs both. Inputs
that reach new code are kept in target/fuzz/TARGET, where the next run goes on. The exit code is 1
after a finding; the input is then in target/fuzz/findings.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

from tests.fuzz.targets import CORPUS, RUST_TARGETS, TARGETS, mutant

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "target" / "fuzz"
FINDINGS = KEPT / "findings"
#: Seconds after which an input counts as endless. Other programs may take the processor.
_TIMEOUT = 120


class Outcome(NamedTuple):
    """What a run of a target did."""

    executions: int
    #: Edges of the control flow that were reached.
    edges: int
    #: Output of a run that found something.
    finding: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run targets and print executions and edges of each; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("seconds", type=int, help="time for each target")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="default: all")
    options = parser.parse_args(arguments)
    known = [*TARGETS, *RUST_TARGETS]
    if unknown := set(options.targets) - set(known):
        parser.error(f"unknown target {min(unknown)!r}; expected some of {', '.join(known)}")
    FINDINGS.mkdir(parents=True, exist_ok=True)
    failed = False
    print(f"{'target':16}{'executions':>12}{'edges':>8}", flush=True)
    for name in options.targets or known:
        outcome = run(name, options.seconds)
        print(f"{name:16}{outcome.executions:12,}{outcome.edges:8,}", flush=True)
        if outcome.finding:
            failed = True
            print(f"{name} found a defect; the input is in {FINDINGS}:\n{outcome.finding}")
    return int(failed)


def run(name: str, seconds: int) -> Outcome:
    """Fuzz one target."""
    kept = KEPT / name
    kept.mkdir(parents=True, exist_ok=True)
    target = (TARGETS | RUST_TARGETS)[name]
    sound = target.seeds()
    # Structured inputs have no content that mutants could start from.
    more = [] if target.mutate is mutant else [target.mutate(Random(i), sound) for i in range(200)]
    for number, seed in enumerate([*sound, *more]):
        (kept / f"seed-{number}").write_bytes(seed)
    stored = CORPUS / name
    folders = [str(kept), *([str(stored)] if stored.is_dir() else [])]
    flags = [
        f"-max_total_time={seconds}",
        f"-timeout={_TIMEOUT}",
        f"-artifact_prefix={FINDINGS}/{name}-",
        "-max_len=65536",
        "-rss_limit_mb=8192",
        "-print_final_stats=1",
    ]
    with tempfile.TemporaryDirectory() as temporary:
        environment = os.environ | {"TMPDIR": temporary}
        if name in TARGETS:
            command = [sys.executable, "-m", "tests.fuzz.guided", name, *folders, *flags]
            done = _output(command, ROOT, environment)
        else:
            places = ["--fuzz-dir", ".", "--target-dir", str(KEPT / "build")]
            cargo = ["cargo", "fuzz", "run", *places, name, *folders, "--", *flags]
            environment["RUSTC_BOOTSTRAP"] = "1"
            done = _output(cargo, ROOT / "rust" / "fuzz", environment)
    text = done.stdout + done.stderr
    executions = re.findall(r"stat::number_of_executed_units:\s+(\d+)", text)
    edges = re.findall(r" cov: (\d+) ", text)
    if done.returncode == 0 and not (executions and edges):
        raise RuntimeError(f"{name} printed no statistics:\n{text[-2000:]}")
    counts = (int(found[-1]) if found else 0 for found in (executions, edges))
    # The traceback of atheris, or the last lines of a process that was ended.
    _, found, traceback = text.rpartition("=== Uncaught Python exception")
    finding = (found + traceback)[:4000] if found else text[-4000:]
    return Outcome(*counts, finding if done.returncode else "")


def _output(
    command: list[str], folder: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    if shutil.which(command[0]) is None:
        raise FileNotFoundError(f"{command[0]} is not installed")
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


if __name__ == "__main__":
    sys.exit(main())
