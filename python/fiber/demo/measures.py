"""Evaluation of the demo: two models on two splits, with baselines and ablated inputs.

Results are stored in the demo's folder with a fingerprint of their inputs. They are computed again
only when a model, the data or fiber itself has changed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fiber.checkpoints.model_dir import StoredModel, load_model
from fiber.data.record import Record, RecordSet
from fiber.demo.floors import MetricRow
from fiber.demo.folder import DemoFolder, fingerprint
from fiber.demo.guesses import Guesser
from fiber.demo.plan import Plan
from fiber.env import provenance
from fiber.evaluation.evaluate import evaluate
from fiber.evaluation.tasks import TASKS

SPLITS = ("val", "novel")


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One metric of the table."""

    #: See `MetricRow.metric`.
    metric: str
    #: Display name.
    name: str
    #: Task of `fiber.evaluation.evaluate`, and the key in its result.
    task: str
    key: str
    #: Model to evaluate, "coarse" or "fine".
    stage: str
    #: Whether the prediction uses the fused layers.
    fused: bool = True


SHOWN = (
    Shown(
        metric="retrieval/text_to_image_recall_at_10",
        name="text finds picture, R@10",
        task="retrieval",
        key="text_to_image_recall_at_10",
        stage="coarse",
        fused=False,
    ),
    Shown(
        metric="retrieval/image_to_text_recall_at_10",
        name="picture finds text, R@10",
        task="retrieval",
        key="image_to_text_recall_at_10",
        stage="coarse",
        fused=False,
    ),
    Shown(
        metric="matching/accuracy",
        name="matching, accuracy",
        task="matching",
        key="accuracy",
        stage="coarse",
    ),
    Shown(
        metric="masked_words/accuracy",
        name="masked words, accuracy",
        task="masked_words",
        key="accuracy",
        stage="coarse",
    ),
    Shown(
        metric="vqa/accuracy",
        name="questions, accuracy",
        task="vqa",
        key="accuracy",
        stage="coarse",
    ),
    Shown(
        metric="referring/accuracy_at_1",
        name="expressions, IoU 0.5",
        task="refcoco",
        key="accuracy_at_1",
        stage="fine",
    ),
    Shown(
        metric="phrases/any_recall_at_1",
        name="phrases, R@1",
        task="flickr",
        key="any_recall_at_1",
        stage="fine",
    ),
    Shown(metric="detection/ap50", name="detection, AP50", task="coco", key="ap50", stage="fine"),
)

#: Modes of evaluation, as arguments `permute_images` and `fusion` of `evaluate`.
WAYS = {"model": (False, True), "no fusion": (False, False), "permuted": (True, True)}


class Measures:
    """Evaluation results of one demo."""

    def __init__(
        self,
        folder: DemoFolder,
        plan: Plan,
        models: dict[str, Path],
        say: Callable[[str], None],
        *,
        prefix: str = "",
    ) -> None:
        """Prepare the evaluation.

        `models` are folders of finished models by stage; `say` logs progress; `prefix` goes before
        the keys of stored results, to separate other models from the demo's own.
        """
        self.folder, self.plan, self.models, self.say = folder, plan, models, say
        self._prefix = prefix
        self._prints = {
            stage: fingerprint(path / "model.safetensors") for stage, path in models.items()
        }
        # Results of another version of fiber are computed again.
        self._source = fingerprint(folder.data / "dataset.json", provenance())
        self._loaded: dict[str, StoredModel] = {}
        self._records: dict[tuple[str, str], list[Record]] = {}

    def rows(self, *, permute_pictures: bool = False) -> list[MetricRow]:
        """Evaluate everything; `permute_pictures` permutes the images in the model's column."""
        rows = []
        for shown in SHOWN:
            for split in SPLITS:
                whole, unfused, permuted = (
                    self.numbers(shown, split, way) if way in self.ways(shown, split) else None
                    for way in WAYS
                )
                assert whole is not None and permuted is not None
                guesses = self.guesses(shown)[split]
                rows.append(
                    MetricRow(
                        metric=shown.metric,
                        name=shown.name,
                        split=split,
                        model=(permuted if permute_pictures else whole)[shown.key],
                        chance=guesses["chance"][shown.key],
                        blind=guesses["blind"][shown.key],
                        no_fusion=unfused[shown.key] if unfused else None,
                        permuted=permuted[shown.key],
                    )
                )
        return rows

    def ways(self, shown: Shown, split: str) -> list[str]:
        """Modes in which a metric is evaluated on a split."""
        unfused = shown.fused and split in self.plan.unfused_splits
        return [way for way in WAYS if way != "no fusion" or unfused]

    def numbers(self, shown: Shown, split: str, way: str) -> dict[str, float]:
        """Evaluate a model in one of `WAYS`."""

        def measure() -> dict[str, Any]:
            records = self.records(shown.task, split)
            if way == "model":
                self.say(f"{self._prefix}{shown.task} on {split}: {len(records)} records")
            permuted, fusion = WAYS[way]
            found = evaluate(
                self.model(shown.stage),
                shown.task,
                data=records,
                permute_images=permuted,
                fusion=fusion,
                rerank=False,
            )
            return {"metrics": found, "records": len(records)}

        known = self.folder.measured(
            f"{self._prefix}{shown.task}/{split}/{way}",
            fingerprint(self._prints[shown.stage], self._source, self.plan.records[shown.task]),
            measure,
        )
        return known["metrics"]

    def guesses(self, shown: Shown) -> dict[str, dict[str, dict[str, float]]]:
        """Compute the baselines: {split: {"chance": ..., "blind": ...}}."""

        def measure() -> dict[str, Any]:
            self.say(f"{shown.task}: counting in the training split what guessing reaches")
            guesser = Guesser(self.folder.data, self.model("coarse"), self.plan.counted_captions)
            return guesser.guess(
                shown.task, {split: self.records(shown.task, split) for split in SPLITS}
            )

        return self.folder.measured(
            f"{shown.task}/guesses",
            fingerprint(self._source, self.plan.records[shown.task], self.plan.counted_captions),
            measure,
        )

    def throughput(self) -> tuple[int, float]:
        """Return the number of records evaluated for the table, and the seconds."""
        known = [
            self.folder.known(f"{shown.task}/{split}/{way}")
            for shown in {shown.task: shown for shown in SHOWN}.values()
            for split in SPLITS
            for way in self.ways(shown, split)
        ]
        return sum(k.get("records", 0) for k in known), sum(k.get("seconds", 0.0) for k in known)

    def model(self, stage: str) -> StoredModel:
        """Load the model of a stage once."""
        if stage not in self._loaded:
            self._loaded[stage] = load_model(self.models[stage])
        return self._loaded[stage]

    def records(self, task: str, split: str) -> list[Record]:
        """Read the records of a split to evaluate."""
        if (task, split) not in self._records:
            _, reader, _ = TASKS[task]
            everything = reader(self.folder.data, split)
            self._records[task, split] = sample(everything, self.plan.records[task])
        return self._records[task, split]


def sample(records: RecordSet | Sequence[Record], limit: int) -> list[Record]:
    """Choose at most `limit` records, the same ones every time, in their order.

    The choice is random: regular strides could pick the same kind of question for every image.
    """
    count = len(records)
    if count <= limit:
        return [records[i] for i in range(count)]
    return [records[i] for i in sorted(random.Random(0).sample(range(count), limit))]
