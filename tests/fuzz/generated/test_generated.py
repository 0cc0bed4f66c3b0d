"""Readers refuse what the generator makes, or read it, within limits; and the generator itself."""

import gc
import io
import json
import pickle
import random
import time
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch

from fiber.checkpoints.inert_pickle import read_pickle
from tests.fuzz import seeds
from tests.fuzz.forked import Ended, limit, run_forked
from tests.fuzz.generated import cases, found, runs, trees
from tests.fuzz.generated.cases import Case, documents
from tests.fuzz.generated.encodings import from_pickle, to_json, to_pickle
from tests.fuzz.generated.trees import Built, Call, Global, Pairs, Raw, tree_of
from tests.fuzz.generated.values import ALL, GROWING, SHARED
from tests.fuzz.generated.verdict import ALLOWED, verdict
from tests.fuzz.structured import Steered

KINDS = sorted({document.kind for document in documents()})
#: Small cases of each document that are read here, besides those in `found`.
CASES = 16
#: Limits of a case.
MAX_SECONDS, MAX_BYTES = 4, 500_000_000


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_values_are_refused_or_read(kind, tmp_path):
    problems = []
    for number, document in enumerate(each for each in documents() if each.kind == kind):
        folder = tmp_path / str(number)
        folder.mkdir()
        document.prepare(folder)
        found_before = found.SMALL.get(document.name, ())
        chosen = cases.sample(cases.small_cases(document), CASES, found_before)
        outcomes = run_forked(chosen, lambda case, folder=folder: read(case, folder))
        for case, outcome in zip(chosen, outcomes, strict=True):
            outcome = outcome.reason if isinstance(outcome, Ended) else outcome
            if outcome not in ALLOWED:
                problems.append(f"{document.name}: {case.name}: {outcome}")
    assert not problems, "\n".join(problems)


def read(case: Case, folder: Path) -> str:
    warnings.simplefilter("ignore")
    case.write(folder, 1)
    limit(MAX_SECONDS, MAX_BYTES)
    return verdict(case.document.read, folder)
