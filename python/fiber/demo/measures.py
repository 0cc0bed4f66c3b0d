"""What the demo measures: two models on two splits, beside guessing and beside themselves hobbled.

Every number is kept in the demo's folder with a fingerprint of what it was made from, so that it
is measured again only when a model, the data or fiber itself has changed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fiber.data.records import Record, RecordSet
from fiber.demo.floors import Row
from fiber.demo.folder import DemoFolder, fingerprint
from fiber.demo.guesses import Guesser
from fiber.demo.plan import Plan
from fiber.training.checkpoint import StoredModel, load_model, provenance
from fiber.training.evaluate import TASKS, evaluate

SPLITS = ("val", "novel")


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One line of the table."""

    #: `Row.metric`; its first part is what `floors.REQUIRED` names.
    metric: str
    #: What a person reads.
    name: str
    #: Task of `fiber.training.evaluate`, and the name of its number.
    task: str
    key: str
    #: Model that is asked.
    stage: str
    #: Whether the model's answer goes through its fused layers.
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

#: Ways in which a model is asked, as two arguments of `evaluate`: pictures exchanged, fusion on.
WAYS = {"model": (False, True), "no fusion": (False, False), "permuted": (True, True)}


class Measures:
    """The measurements of one demo."""

    def __init__(
        self,
        folder: DemoFolder,
        plan: Plan,
        models: dict[str, Path],
        say: Callable[[str], None],
        *,
        prefix: str = "",
    ) -> None:
        """Prepare to measure.

        Args:
            folder: of the demo.
            plan: of the demo.
            models: folders of finished models by stage.
            say: where to say what is measured.
            prefix: of the names under which numbers are kept, for models beside the demo's own.
        """
        self.folder, self.plan, self.models, self.say = folder, plan, models, say
        self._prefix = prefix
        self._prints = {
            stage: fingerprint(path / "model.safetensors") for stage, path in models.items()
        }
        # Measurements of another version of fiber are made again.
        self._source = fingerprint(folder.data / "dataset.json", provenance())
        self._loaded: dict[str, StoredModel] = {}
        self._records: dict[tuple[str, str], list[Record]] = {}
        self._guesser: Guesser | None = None

    def rows(self, *, permute_pictures: bool = False) -> list[Row]:
        """Measure everything.

        Args:
            permute_pictures: exchange the pictures of what stands in the column of the model.
        """
        rows = []
        for split in SPLITS:
            for shown in SHOWN:
                whole, permuted = (self.numbers(shown, split, way) for way in ("model", "permuted"))
                guesses = self.guesses(shown, split)
                rows.append(
                    Row(
                        metric=shown.metric,
                        name=shown.name,
                        split=split,
                        model=(permuted if permute_pictures else whole)[shown.key],
                        chance=guesses["chance"][shown.key],
                        blind=guesses["blind"][shown.key],
                        no_fusion=(
                            self.numbers(shown, split, "no fusion")[shown.key]
                            if shown.fused
                            else None
                        ),
                        permuted=permuted[shown.key],
                    )
                )
        # A metric's two splits stand under each other.
        return sorted(rows, key=lambda row: [shown.metric for shown in SHOWN].index(row.metric))

    def numbers(self, shown: Shown, split: str, way: str) -> dict[str, float]:
        """Ask a model in one of `WAYS`."""

        def measure() -> dict[str, Any]:
            records = self.records(shown.task, split)
            self.say(f"{self._prefix}{shown.task} on {split}, {way}: {len(records)} records")
            permuted, fusion = WAYS[way]
            found = evaluate(
                self.model(shown.stage),
                shown.task,
                data=records,
                permute_images=permuted,
                fusion=fusion,
            )
            return {"metrics": found, "records": len(records)}

        known = self.folder.measured(
            f"{self._prefix}{shown.task}/{split}/{way}",
            fingerprint(self._prints[shown.stage], self._source, self._limit(shown.task)),
            measure,
        )
        return known["metrics"]

    def guesses(self, shown: Shown, split: str) -> dict[str, dict[str, float]]:
        """Work out what guessing reaches: by chance, and from the training split."""

        def measure() -> dict[str, Any]:
            self.say(f"counting what guessing {shown.task} on {split} reaches")
            return self.guesser.guess(shown.task, self.records(shown.task, split), split)

        return self.folder.measured(
            f"{shown.task}/{split}/guesses",
            fingerprint(self._source, self._limit(shown.task), self.plan.counted_captions),
            measure,
        )

    def throughput(self) -> tuple[int, float]:
        """Count what the table took: records that a model was asked about, and seconds."""
        records, seconds = 0, 0.0
        for split in SPLITS:
            for task, shown in {shown.task: shown for shown in SHOWN}.items():
                for way in ("model", "permuted", *(["no fusion"] if shown.fused else [])):
                    known = self.folder.known(f"{task}/{split}/{way}")
                    records += known.get("records", 0)
                    seconds += known.get("seconds", 0.0)
        return records, seconds

    def model(self, stage: str) -> StoredModel:
        """Load a model once."""
        if stage not in self._loaded:
            self._loaded[stage] = load_model(self.models[stage])
        return self._loaded[stage]

    @property
    def guesser(self) -> Guesser:
        """What counts on the training split; it reads it once."""
        if self._guesser is None:
            coarse = self.model("coarse")
            self._guesser = Guesser(self.folder.data, coarse, self.plan.counted_captions)
        return self._guesser

    def records(self, task: str, split: str) -> list[Record]:
        """Read the records of a split that are measured."""
        if (task, split) not in self._records:
            _, reader, _ = TASKS[task]
            everything = reader(self.folder.data, split)
            self._records[task, split] = sample(everything, self._limit(task))
        return self._records[task, split]

    def _limit(self, task: str) -> int:
        return self.plan.detection_records if task == "coco" else self.plan.records


def sample(records: RecordSet | Sequence[Record], limit: int) -> list[Record]:
    """Choose at most `limit` records, the same ones every time, in their order.

    They are drawn and not taken at regular distances, which could pick the same kind of question
    of every picture.
    """
    count = len(records)
    if count <= limit:
        return [records[i] for i in range(count)]
    return [records[i] for i in sorted(random.Random(0).sample(range(count), limit))]
