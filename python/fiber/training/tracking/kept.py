"""What a run keeps of what its initial model knew: old data, evaluated before and after (`--keep`).

The numbers are in kept.json of the run's folder.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fiber.atomic_io import read_json, write_json
from fiber.checkpoints.encoders import EncoderStates
from fiber.checkpoints.model_dir import StoredModel, load_model
from fiber.checkpoints.provenance import absolute
from fiber.checkpoints.vocabulary.files import MAX_JSON_BYTES, Vocabulary
from fiber.data.datasets.resolve import Data, is_readable
from fiber.data.formats.json_values import is_number
from fiber.evaluation.tasks import needed_head
from fiber.messages import printable, shown, shown_names
from fiber.progress import say
from fiber.tasks import find_evaluation
from fiber.training.checkpoint.folder import newest_checkpoint
from fiber.training.config.run import KEEP_SHARE, RunConfig
from fiber.training.data import fingerprint
from fiber.training.distributed.collectives import broadcast_object, wait_for_work
from fiber.training.distributed.processes import Processes
from fiber.training.run_dir import RunFolder
from fiber.training.training_data import TrainingData
from fiber.training.validation import Validation, open_kept

#: File of the numbers in the folder of a run, and types of its fields, besides the metrics.
KEPT = "kept.json"
_FIELDS = {
    **dict.fromkeys(("data", "task", "split", "fingerprint"), str),
    "records": int,
    "share": int | float,
}
#: Maximum number of characters of a path in a message.
_MAX_PATH = 500


@dataclass(frozen=True, kw_only=True)
class KeptData:
    """Held-out old data of a run, and how to evaluate it. All ranks call its methods."""

    initial: StoredModel
    #: Where the old data are; "" for rows in memory.
    path: str
    split: str
    share: float
    validation: Validation
    file: Path
    threads: int

    def start(self, folder: RunFolder, processes: Processes) -> dict[str, Any]:
        """Evaluate the initial model, or read what it reached if the run resumes from a step.

        Returns:
            Contents of kept.json, the same on all ranks.

        Raises:
            ValueError: if a run that resumes was started with other old data, or without any.
        """
        records = self.validation.records
        facts = {
            "data": self.path,
            "task": self.validation.task,
            "split": self.split,
            "records": len(records),
            "fingerprint": fingerprint(records),
            "share": self.share,
        }
        if is_begun(folder):
            stored = read_kept(folder)
            if stored is None:
                raise ValueError(
                    f"--keep (keep=...): the run in {folder.path} was started without old data;"
                    " resume it without, or start a new run in another folder"
                )
            for name in ("task", "records", "fingerprint", "share"):
                if stored.get(name) != facts[name]:
                    raise ValueError(
                        f"--keep (keep=...): the run in {folder.path} was started with other old"
                        f" data: {name} was {shown(stored.get(name))} and is {shown(facts[name])}"
                    )
            return stored
        return {**facts, "before": self._evaluate(self.initial, processes)}

    def write(self, facts: Mapping[str, Any], processes: Processes) -> None:
        """Write kept.json, on the first rank."""
        if processes.is_first:
            write_json(self.file, dict(facts))

    def finish(self, folder: RunFolder, processes: Processes, *, quiet: bool) -> dict[str, Any]:
        """Evaluate the finished model, add its metrics to kept.json, and print them.

        Nothing is evaluated if they are there already.

        Returns:
            Contents of kept.json.
        """
        facts = self.start(folder, processes)
        if "after" not in facts:
            facts = {**facts, "after": self._evaluate(load_model(folder.path), processes)}
            self.write(facts, processes)
        if not quiet:
            say(describe_kept(facts))
        return facts

    def _evaluate(self, model: StoredModel, processes: Processes) -> dict[str, float]:
        """Evaluate a model on the device of the run; it returns to the CPU."""
        own = Vocabulary(
            model.tokenizer or self.validation.vocabulary.tokenizer, model.answers, model.classes
        )
        validation = dataclasses.replace(self.validation, vocabulary=own)
        network = model.network.to(processes.device)
        try:
            local = validation.evaluate(network, self.threads, processes)
        finally:
            network.to("cpu")
        wait_for_work(processes)
        metrics = broadcast_object(local, processes)
        return {name: value for name, value in metrics.items() if name != "score"}


def check_keep(
    config: RunConfig, keep: Data | None, initial: StoredModel | EncoderStates | None
) -> None:
    """Check that a run can keep old data, before any data are read.

    Raises:
        TypeError: if the old data are neither a path nor rows.
        ValueError: if the run has no trained model to start from, or `data.keep_share` is set
            without old data.
    """
    if keep is None:
        if config.data.keep_share != KEEP_SHARE:
            raise ValueError(
                f"data.keep_share={config.data.keep_share:g} is for runs with old data; pass it"
                " (--keep DATA, keep=...)"
            )
        return
    if not is_readable(keep):
        raise TypeError(
            "--keep (keep=...): expected a data folder, a file or rows, got"
            f" {type(keep).__name__} {shown(keep)}"
        )
    if not isinstance(initial, StoredModel):
        start = "random weights" if initial is None else f"encoders alone ({initial.path})"
        raise ValueError(
            f"--keep (keep=...) keeps what a trained model knew, and this run starts from {start};"
            " pass the model (--init MODEL, init=...)"
        )


def open_kept_data(
    config: RunConfig,
    source: TrainingData,
    keep: Data | None,
    folder: RunFolder,
    initial: StoredModel | EncoderStates | None,
    threads: int,
) -> KeptData | None:
    """Open the old data of a run, after `check_keep`; None if it keeps none.

    Raises:
        ValueError: if the initial model has no head for the evaluation, or the run was started with
            old data, which are not given; see `open_kept`, too.
    """
    if keep is None:
        if (stored := read_kept(folder)) is not None:
            raise ValueError(
                f"the run in {folder.path} was started with old data; pass it again (--keep"
                f" {printable(stored['data'], _MAX_PATH) or 'DATA'}, keep=...)"
            )
        return None
    assert isinstance(initial, StoredModel), "see check_keep"
    validation = open_kept(config, source, keep, folder.checkpoints)
    heads = initial.config.heads
    if (head := needed_head(validation.task, heads)) not in heads:
        raise ValueError(
            f"--keep (keep=...): evaluating {shown(validation.task)} needs the head {shown(head)},"
            f" but {initial.path} only has {shown_names(heads)}"
        )
    return KeptData(
        initial=initial,
        path=absolute(keep) if isinstance(keep, (str, os.PathLike)) else "",
        split=config.validation.split,
        share=config.data.keep_share,
        validation=validation,
        file=folder.path / KEPT,
        threads=threads,
    )


def is_begun(folder: RunFolder) -> bool:
    """Return whether a run goes on from a step, or is finished."""
    return folder.is_finished or newest_checkpoint(folder.checkpoints) is not None


def read_kept(folder: RunFolder) -> dict[str, Any] | None:
    """Read kept.json of a run; None if there is none.

    Raises:
        ValueError: if a field has the wrong type; the message names the file and the field.
    """
    file = folder.path / KEPT
    if not file.is_file():
        return None
    found = read_json(file, MAX_JSON_BYTES)
    if not isinstance(found, dict):
        raise ValueError(f"{file}: expected a JSON object, got {shown(found)}")
    for name, kind in _FIELDS.items():
        if not isinstance(found.get(name), kind):
            raise ValueError(f"{file}: {name} is {shown(found.get(name))}; expected {kind}")
    for name in ("before", "after"):
        metrics = found.get(name, {})
        # A metric without samples is NaN.
        if not isinstance(metrics, dict) or not all(
            is_number(value) or value != value for value in metrics.values()
        ):
            raise ValueError(f"{file}: {name} is {shown(metrics)}; expected numbers by metric")
    return found


def describe_kept(facts: Mapping[str, Any]) -> str:
    """Describe in one line what a model reached on old data, and what it reaches after training."""
    names = find_evaluation(facts["task"]).chosen_by
    rows = [(name, facts["before"].get(name), facts["after"].get(name)) for name in names]
    numbers = ", ".join(
        f"{name} {before:.4f} before, {after:.4f} after ({after - before:+.4f})"
        for name, before, after in rows
        if before is not None and after is not None
    )
    where = facts["data"] or "the old data"
    return f"kept: {facts['task']} on {facts['split']} of {where}: {numbers}"
