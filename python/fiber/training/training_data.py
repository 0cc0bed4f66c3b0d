"""`TrainingData`: the records of a run's tasks, and the model's vocabulary."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fiber.checkpoints.vocabulary.files import Vocabulary
from fiber.data.record import MixedRecords, RecordSet
from fiber.training.config.run import RunConfig


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Records of every active task, and the model's vocabulary."""

    #: By task; those of its first steps, if they are others, by `first_part` of its name.
    records: Mapping[str, RecordSet]
    vocabulary: Vocabulary
    #: By name as `records`, functions that add to a batch of these what its layout has not; see
    #: `TaskTraining.completion`.
    completions: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    #: Messages about skipped or changed records, one per task and kind.
    skipped: tuple[str, ...] = ()
    #: Absolute path of the data folder or file; None for records passed by the caller.
    path: str | None = None

    def fit_model(self, config: RunConfig) -> RunConfig:
        """Return `config` with the vocabulary size and number of answers set from this data."""
        model = config.model.with_vocabulary(self.vocabulary.tokenizer.vocab_size)
        if self.vocabulary.answers:
            model = model.with_answers(len(self.vocabulary.answers))
        return dataclasses.replace(config, model=model)

    def longest(self, config: RunConfig) -> int:
        """Return the largest number of records of an active task's own sources.

        Those of `first_sources` are not counted: epochs are of a task's own sources. With old
        records beside new ones, an epoch is one pass over the new ones.
        """
        return max(map(_pass_length, (self.records[name] for name in config.tasks.active())))

    @cached_property
    def answer_priors(self) -> tuple[float, ...]:
        """Mean soft score of each answer over the questions, in [0, 1]."""
        index = {answer: i for i, answer in enumerate(self.vocabulary.answers)}
        totals = [0.0] * len(index)
        questions = self.records["question"]
        for record in (questions[i] for i in range(len(questions))):
            for answer, score in (record.answers or {}).items():
                if answer in index:
                    totals[index[answer]] += score
        return tuple(total / len(questions) for total in totals)

    def counts(self) -> dict[str, int]:
        """Return the number of records of each task."""
        return {name: len(records) for name, records in self.records.items()}


def _pass_length(records: RecordSet) -> int:
    return records.pass_length if isinstance(records, MixedRecords) else len(records)
