"""Compute chance and blind baselines for the metrics of `evidence.py` and `fusion.py`.

Command: python benches/evidence_guesses.py runs/evidence
         python benches/evidence_page.py
Rows: results/evidence_guesses.csv, one per metric and split, with the number of records of the
task. Data and records are those of `evidence.py` and `fusion.py`. Swapped words have no blind
baseline, since both captions of a pair have the same words.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import evidence
import fusion
from experiments import SPLITS, Rows, cpu_seconds, measured_records

from fiber.checkpoints.model_dir import load_model
from fiber.checkpoints.stages import packaged_model
from fiber.data import sources
from fiber.data.record import Record
from fiber.demo.guesses import Guesser
from fiber.evaluation.baselines import statement_blind, statement_chance
from fiber.synthetic.scenes import generate

#: Chance of two captions and two images with random scores, as in Winoground.
SWAPPED = {"text": 1 / 4, "image": 1 / 4, "group": 1 / 6}
#: Maximum number of captions for the blind baseline of masked words, which are not asked here.
NO_CAPTIONS = 0

Guesses = Mapping[str, Mapping[str, float]]


def guesses(folder: Path, task: str) -> dict[str, tuple[int, Guesses]]:
    """Return the number of records and {"chance": ..., "blind": ...} of a task, by split."""
    limit = evidence.TASKS[task][0] if task in evidence.TASKS else fusion.RECORDS[task]
    records = {split: measured_records(folder, task, split, limit) for split in SPLITS}
    if task == "winoground":
        found: Mapping[str, Guesses] = {split: {"chance": SWAPPED} for split in SPLITS}
    elif task == "nlvr2":
        training = sources.reasoning(folder, "train")
        found = {split: statements(training, records[split]) for split in SPLITS}
    else:
        # Only the tokenizer and the answers of the model are used, which are those of the data.
        model = load_model(packaged_model("scenes") / "coarse")
        found = Guesser(folder, model, NO_CAPTIONS).guess(task, records)
    return {split: (len(records[split]), found[split]) for split in SPLITS}


def statements(training: Sequence[Record], records: Sequence[Record]) -> Guesses:
    """Return the guesses of statements about two images."""
    texts = [record.text for record in records]
    blind = statement_blind(
        [record.text for record in training],
        [bool(record.truth) for record in training],
        texts,
        [bool(record.truth) for record in records],
    )
    return {"chance": statement_chance(texts), "blind": blind}


def make_rows(folder: Path) -> list[dict[str, Any]]:
    """Return a row per metric and split; a kind that a split does not ask for has none."""
    metrics = dict.fromkeys((*evidence.METRICS, *fusion.METRICS))
    rows = []
    for task in dict.fromkeys(task for task, _ in metrics):
        began = cpu_seconds()
        by_split = guesses(folder, task)
        seconds = cpu_seconds() - began
        for metric in (metric for own, metric in metrics if own == task):
            for split, (count, found) in by_split.items():
                if metric in found["chance"]:
                    known = {name: f"{values[metric]:.4f}" for name, values in found.items()}
                    rows.append(
                        {
                            "metric": f"{task}/{metric}",
                            "split": split,
                            "records": count,
                            "chance": known["chance"],
                            "blind": known.get("blind", ""),
                            "cpu_seconds": f"{seconds:.0f}",
                        }
                    )
    return rows


def main() -> None:
    """Compute all rows again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, help="folder of the data, created if needed")
    options = parser.parse_args()
    generate(options.data, **evidence.IMAGES, workers=2)
    rows = Rows("evidence_guesses", ("metric", "split"))
    rows.rows.clear()
    rows.add(make_rows(options.data))


if __name__ == "__main__":
    main()
