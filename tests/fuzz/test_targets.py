"""Every target reads its corpus and some mutants, without atheris; the command runs a target."""

import importlib.util
import random
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from tests.fuzz.forked import limit, run_forked
from tests.fuzz.structured import KINDS
from tests.fuzz.targets import CORPUS, RUST_TARGETS, TARGETS, corpus, mutant
from tests.processes import run_python

ALL = TARGETS | RUST_TARGETS
#: Mutants of each target here; a second or two of them.
MUTANTS = {"model_dirs": 60, "containers": 100, "packs": 100}
#: Drawn inputs of each structured target.
STRUCTURED = 40
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", sorted(ALL.keys() - KINDS.keys()))
def test_corpus_and_mutants_are_read_or_rejected(name):
    """In a process with limits, so that an input that hangs or fills the memory fails this test."""
    mutants = MUTANTS.get(name, 200)
    done = run_python(["-m", "tests.fuzz.replay", name, mutants], folder=ROOT)
    *before, last = done.stdout.splitlines() or [""]
    assert done.returncode == 0, f"{before[-1:]} {last}: {done.stderr[-3000:]}"
    count = int(re.fullmatch(r"(\d+) inputs, \d+ rejected", last)[1])
    assert count == 1 + len(corpus(name)) + mutants


@pytest.mark.filterwarnings("ignore:torch.distributed is")
@pytest.mark.parametrize("name", sorted(KINDS))
def test_structured_inputs_are_read_or_rejected(name, tmp_path):
    """In forked processes with limits; what these targets read is imported here."""
    target = ALL[name]
    inputs = [b"", *(target.mutate(random.Random(i), []) for i in range(STRUCTURED))]
    for data in target.seeds():
        assert target.read(data, tmp_path)

    def read(data):
        warnings.simplefilter("ignore")
        limit(10, 1 << 30)
        try:
            return target.read(data, tmp_path)
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    results = list(run_forked(inputs, read))
    wrong = [found for found in results if not isinstance(found, bool)]
    assert not wrong, wrong[0]
    assert results[0] and not all(results)


def test_every_corpus_belongs_to_a_target():
    folders = {path.name for path in CORPUS.iterdir()}
    assert folders <= set(ALL)
    assert all(len(content) <= 1 << 16 for name in ALL for content in corpus(name).values())


def test_mutants_are_reproducible_and_differ():
    originals = [b'{"a": 12, "b": [1]}', b"other"]
    made = [mutant(random.Random(number), originals) for number in range(200)]
    assert made == [mutant(random.Random(number), originals) for number in range(200)]
    assert len(set(made)) > 100
    assert mutant(random.Random(0), [b""]) == mutant(random.Random(0), [b""])


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
def test_the_command_counts_executions_and_edges():
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "3", "pickles"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    name, executions, edges = done.stdout.splitlines()[-1].split()
    assert name == "pickles"
    # How many more depends on the machine.
    assert int(executions.replace(",", "")) >= 1 and int(edges) > 50
