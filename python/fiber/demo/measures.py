"""Evaluate the demo's models on two splits, with baselines and with permuted images.

Results are cached in the demo's folder. A fingerprint of the model, the data and fiber's version
detects outdated results.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from signal import SIG_IGN, SIGINT, signal
from typing import Any, NamedTuple

import torch

from fiber.atomic_io import read_json
from fiber.checkpoints.model_dir import StoredModel, load_model
from fiber.data.record import Record, RecordSet
from fiber.demo.abilities import (
    EXPRESSIONS,
    PAIRS,
    QUESTIONS,
    Ability,
    kind_name,
    sorted_groups,
)
from fiber.demo.floors import MetricRow
from fiber.demo.folder import DemoFolder, fingerprint, timed
from fiber.demo.guesses import Guesser
from fiber.demo.plan import Plan
from fiber.env import provenance
from fiber.evaluation.evaluate import evaluate
from fiber.evaluation.tasks import reader_of
from fiber.progress import say

SPLITS = ("val", "novel")


class Measurement(NamedTuple):
    """A result that a demo keeps. The fields are the arguments of `DemoFolder.measured`."""

    name: str
    made_from: str
    compute: Callable[[], dict[str, Any]]


class Shown(NamedTuple):
    """One metric of the table."""

    #: Task name in `MetricRow.metric`.
    group: str
    #: Task of `fiber.evaluation.evaluate`, and the metric's key in its result.
    task: str
    key: str
    #: Display name.
    name: str
    #: Model to evaluate, "coarse" or "fine".
    stage: str
    #: What the metric means in plain words, and what is counted; empty if it is not a headline.
    headline: str = ""
    how: str = ""

    @property
    def metric(self) -> str:
        """Value of `MetricRow.metric`."""
        return f"{self.group}/{self.key}"


_TEXT_TO_IMAGE, _IMAGE_TO_TEXT = "text_to_image_recall_at_10", "image_to_text_recall_at_10"
SHOWN = (
    Shown(
        *("retrieval", "retrieval", _TEXT_TO_IMAGE, "text to image, R@10", "coarse"),
        headline="Picks the picture that a caption describes",
        how="captions whose own picture is among the first ten of all pictures",
    ),
    Shown("retrieval", "retrieval", _IMAGE_TO_TEXT, "image to text, R@10", "coarse"),
    Shown(
        *("matching", "matching", "accuracy", "matching, accuracy", "coarse"),
        headline="Tells whether a caption fits a picture",
        how="pairs of caption and picture judged rightly; half of them fit",
    ),
    Shown("masked_words", "masked_words", "accuracy", "masked tokens, accuracy", "coarse"),
    Shown(
        *("vqa", "vqa", "accuracy", "questions, accuracy", "coarse"),
        headline="Answers a question about a picture",
        how="questions whose first answer is right",
    ),
    Shown(
        *("referring", "refcoco", "accuracy_at_1", "expressions, IoU 0.5", "fine"),
        headline="Finds the one object that a phrase describes",
        how="phrases whose box fits the true box (IoU of at least 0.5)",
    ),
    Shown(
        *("phrases", "flickr", "any_recall_at_1", "phrases, R@1", "fine"),
        headline="Finds the objects that a caption mentions",
        how="phrases of captions whose first box fits a true box (IoU of at least 0.5)",
    ),
    Shown(
        *("detection", "coco", "ap50", "detection, AP50", "fine"),
        headline="Finds and names all objects",
        how="average precision of all boxes, at an IoU of 0.5",
    ),
)

#: Evaluation modes, as the `permute_images` argument of `evaluate`.
MODES = {"model": False, "permuted": True}
#: Maximum number of records with permuted images. These show that a floor needs the images, for
#: which a few hundred are enough.
PERMUTED_RECORDS = 400


@dataclass(frozen=True)
class Evaluator:
    """Evaluates a demo's models and baselines.

    Sent to another process, it loads models and records there, once for all that is evaluated.
    """

    data: Path
    plan: Plan
    #: Models by stage.
    models: Mapping[str, Path]
    _loaded: dict[str, StoredModel] = field(default_factory=dict, init=False)
    _records: dict[tuple[str, str], list[Record]] = field(default_factory=dict, init=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (self.data, self.plan, self.models)

    def metrics(self, shown: Shown, split: str, mode: str) -> dict[str, Any]:
        """Evaluate a model in one of `MODES`."""
        records = self.records(shown.task, split)
        if MODES[mode]:
            records = sample(records, PERMUTED_RECORDS)
        if mode == "model":
            say(f"{shown.task} on {split}: {len(records)} records")
        found = evaluate(
            self.model(shown.stage),
            shown.task,
            data=records,
            permute_images=MODES[mode],
            rerank=False,
        )
        return {"metrics": found, "records": len(records)}

    def baselines(self, shown: Shown) -> dict[str, Any]:
        """Return the baselines as {split: {"chance": ..., "blind": ...}}."""
        say(f"{shown.task}: computing the blind baselines from the training split")
        guesser = Guesser(self.data, self.model("coarse"), self.plan.counted_captions)
        return guesser.guess(
            shown.task, {split: self.records(shown.task, split) for split in SPLITS}
        )

    def model(self, stage: str) -> StoredModel:
        """Return the model of a stage, loaded on first use."""
        if stage not in self._loaded:
            self._loaded[stage] = load_model(self.models[stage])
        return self._loaded[stage]

    def records(self, task: str, split: str) -> list[Record]:
        """Return the records of a split to evaluate."""
        if (task, split) not in self._records:
            reader = reader_of(task)
            everything = reader(self.data, split)
            self._records[task, split] = sample(everything, self.plan.records[task])
        return self._records[task, split]


#: Evaluators that this process has received, by data folder.
_RECEIVED: dict[Path, Evaluator] = {}


def _received(data: Path, plan: Plan, models: Mapping[str, Path]) -> Evaluator:
    return _RECEIVED.setdefault(data, Evaluator(data, plan, models))


class Measures:
    """Evaluation results of one demo."""

    def __init__(self, folder: DemoFolder, evaluator: Evaluator) -> None:
        """Set up evaluation of finished models."""
        self.folder, self.evaluator, self.plan = folder, evaluator, evaluator.plan
        self._data = read_json(folder.data / "dataset.json")["parameters"]["generator"]
        self._prints = {
            stage: fingerprint(path / "model.safetensors")
            for stage, path in evaluator.models.items()
        }
        # Do not reuse results from a different version of fiber.
        self._source = fingerprint(folder.data / "dataset.json", provenance())

    def measure(self, workers: int) -> None:
        """Compute all results that are missing or outdated, in as many processes.

        Processes are spawned, so a script that uses workers needs `if __name__ == "__main__":`.
        With 0 or 1, results are computed when they are asked for.
        """
        # Those of boxes, which take longest, first.
        tasks = {shown.task: shown for shown in reversed(SHOWN)}.values()
        measurements = [self._baselines_of(shown) for shown in tasks]
        measurements += [
            self._metrics_of(shown, split, mode)
            for shown in tasks
            for split in SPLITS
            for mode in MODES
        ]
        missing = [m for m in measurements if not self.folder.find(m.name, m.made_from)]
        if workers < 2 or len(missing) < 2:
            return
        pool = ProcessPoolExecutor(
            workers,
            mp_context=get_context("spawn"),
            initializer=_start_worker,
            initargs=(max(1, torch.get_num_threads() // workers),),
        )
        try:
            running = {pool.submit(timed, each.compute): each for each in missing}
            for future in as_completed(running):
                each = running[future]
                self.folder.store(each.name, each.made_from, future.result())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def rows(self, *, permute_images: bool = False) -> list[MetricRow]:
        """Evaluate all metrics.

        With `permute_images`, the model column contains results on permuted images.
        """
        return [self._row(shown, split, permute_images) for shown in SHOWN for split in SPLITS]

    def _row(self, shown: Shown, split: str, permute_images: bool) -> MetricRow:
        values = {mode: self.metrics(shown, split, mode)[shown.key] for mode in MODES}
        baselines = self._baselines(shown)[split]
        return MetricRow(
            metric=shown.metric,
            name=shown.name,
            split=split,
            model=values["permuted" if permute_images else "model"],
            chance=baselines["chance"][shown.key],
            blind=baselines["blind"][shown.key],
            permuted=values["permuted"],
            count=self._count(shown, split),
        )

    def _count(self, shown: Shown, split: str) -> int:
        # Matching has one matching and one mismatched pair per caption.
        per_record = 2 if shown.group == "matching" else 1
        return per_record * len(self.evaluator.records(shown.task, split))

    def abilities(self) -> list[Ability]:
        """Return the accuracy on each kind of word, and on pairs of images and texts."""
        found = []
        for split in SPLITS:
            for task, name in ((EXPRESSIONS, "refcoco"), (QUESTIONS, "vqa")):
                shown = next(shown for shown in SHOWN if shown.task == name)
                records = self.evaluator.records(shown.task, split)
                counts = Counter(record.group for record in records)
                texts = {record.group: record.text for record in reversed(records)}
                found += [
                    self._ability(shown, split, task, group, counts[group], texts[group])
                    for group in sorted_groups(task, list(counts))
                ]
            for group in ("retrieval", "matching"):
                shown = next(shown for shown in SHOWN if shown.group == group)
                count = self._count(shown, split)
                found.append(self._ability(shown, split, PAIRS, group, count))
        return found

    def _ability(
        self, shown: Shown, split: str, task: str, group: str, count: int, example: str = ""
    ) -> Ability:
        key = shown.key if task == PAIRS else f"{group}/{shown.key}"
        baselines = self._baselines(shown)[split]
        return Ability(
            task=task,
            group=group,
            name=kind_name(task, group, self._data),
            split=split,
            count=count,
            model=self.metrics(shown, split, "model")[key],
            chance=baselines["chance"][key],
            blind=baselines["blind"][key],
            example=example,
        )

    def metrics(self, shown: Shown, split: str, mode: str) -> dict[str, float]:
        """Return the metrics of a model in one of `MODES`."""
        return self.folder.measured(*self._metrics_of(shown, split, mode))["metrics"]

    def _metrics_of(self, shown: Shown, split: str, mode: str) -> Measurement:
        inputs = (self._prints[shown.stage], self._source, self.plan.records[shown.task])
        return Measurement(
            f"{shown.task}/{split}/{mode}",
            fingerprint(*inputs),
            partial(self.evaluator.metrics, shown, split, mode),
        )

    def _baselines(self, shown: Shown) -> dict[str, dict[str, dict[str, float]]]:
        """Return the baselines as {split: {"chance": ..., "blind": ...}}."""
        return self.folder.measured(*self._baselines_of(shown))

    def _baselines_of(self, shown: Shown) -> Measurement:
        inputs = (self._source, self.plan.records[shown.task], self.plan.counted_captions)
        return Measurement(
            f"{shown.task}/guesses", fingerprint(*inputs), partial(self.evaluator.baselines, shown)
        )

    def throughput(self) -> tuple[int, float]:
        """Return the number of records evaluated for the table, and the time taken in seconds."""
        known = [
            self.folder.known(f"{shown.task}/{split}/{mode}")
            for shown in {shown.task: shown for shown in SHOWN}.values()
            for split in SPLITS
            for mode in MODES
        ]
        return sum(k.get("records", 0) for k in known), sum(k.get("seconds", 0.0) for k in known)


def _start_worker(threads: int) -> None:
    # Ctrl-C is sent to the whole process group; only the parent process handles it.
    signal(SIGINT, SIG_IGN)
    torch.set_num_threads(threads)


def sample(records: RecordSet | Sequence[Record], limit: int) -> list[Record]:
    """Sample at most `limit` records with a fixed seed, preserving their order.

    Sampling at regular intervals could select the same kind of question for every image.
    """
    count = len(records)
    if count <= limit:
        return [records[i] for i in range(count)]
    return [records[i] for i in sorted(random.Random(0).sample(range(count), limit))]
