"""Detection pictures as grounding: for each picture, the classes that its text asks for.

A text holds some 80 class names, a vocabulary hundreds or thousands. So every picture gets a text
of its own: the classes of its boxes and others drawn as negatives, anew in every epoch, as a
function of (seed, epoch, record) only.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

import numpy as np

from fiber.data.prompts.classes import SEPARATOR, Encoder, Prompt, class_prompt, clean_class_name
from fiber.data.prompts.published import (
    BACKGROUND,
    ClassCaption,
    keep_positives,
    optimized_prompt,
    optimized_prompt_in_order,
    simple_prompt,
)
from fiber.data.prompts.rules import PromptRules
from fiber.data.record import ConcatRecords, Record, RecordSet
from fiber.data.rng import Draws

# Stream of draws of which classes a prompt asks for.
_PROMPTS = 253
# Epochs after which the draws repeat, and records of one set: both are parts of a draw's index.
_EPOCHS, _RECORDS = 2**16, 2**32


class DrawnPrompts:
    """Records of pictures with class boxes, each with a text drawn for the epoch.

    Negatives are never classes that the picture has boxes of, nor a class of the same words
    ("bow_(ribbon)" beside "bow_(weapon)"), nor the background. Where not even the classes of the
    boxes fit into a text, some of them are drawn and the boxes of the others left out.

    Args:
        records: as `sources.detection` reads them: `labels` are all classes of the file, and
            `box_labels` says which of them a box shows.
        tokenizer: of the model.
        max_tokens: longest text of the model, <s> and </s> included.
        rules: which classes are asked for.
        seed: of the draws, in [0, 2 ** 64).

    Attributes:
        dropped_boxes: boxes of the records given by `in_epoch` so far whose class the text does not
            name.

    Raises:
        ValueError: for more than 2 ** 32 records; later, for a class that does not fit into a text
            by itself, with the record.
    """

    def __init__(
        self,
        records: RecordSet,
        tokenizer: Encoder,
        *,
        max_tokens: int,
        rules: PromptRules,
        seed: int = 0,
    ) -> None:
        if len(records) > _RECORDS:
            raise ValueError(f"{len(records)} records; expected at most {_RECORDS}")
        self.records, self.tokenizer, self.max_tokens = records, tokenizer, max_tokens
        self.rules, self.seed = rules, seed
        self.dropped_boxes = 0
        self._vocabulary = _Vocabulary(())

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return self._drawn(0, index)[0]

    def in_epoch(self, epoch: int, index: int) -> Record:
        """Give a record with the text that an epoch has for it; the draws repeat after 65,536."""
        record, dropped = self._drawn(epoch, index)
        self.dropped_boxes += dropped
        return record

    def _drawn(self, epoch: int, index: int) -> tuple[Record, int]:
        """Give the record with its text, and the number of boxes that it lost."""
        index = range(len(self))[index]
        record = self.records[index]
        if self._vocabulary.labels is not record.labels:
            self._vocabulary = _Vocabulary(record.labels)
        draws = Draws(self.seed, _PROMPTS, (epoch % _EPOCHS) * _RECORDS + index)
        present = sorted(set(record.box_labels))
        if self.rules.class_rule == "fitting":
            prompt, place = self._fitting(record.key, present, draws)
        else:
            prompt, place = self._published(present, draws)
        kept = [box for box, label in enumerate(record.box_labels) if label in place]
        places = [place[record.box_labels[box]] for box in kept]
        drawn = dataclasses.replace(
            record,
            text=prompt.text,
            boxes_xyxy=tuple(record.boxes_xyxy[box] for box in kept),
            char_spans=tuple(prompt.spans[spot] for spot in places),
            box_labels=tuple(places),
            labels=prompt.labels,
            label_spans=prompt.spans,
            # What counts through all classes, for metrics, does not count through those drawn.
            label_ids=(),
            label_groups=(),
            objects=None,
        )
        return drawn, len(record.box_labels) - len(kept)

    def _fitting(
        self, key: str, present: Sequence[int], draws: Draws
    ) -> tuple[Prompt, dict[int, int]]:
        """Draw a prompt; also where in it each class with boxes stands, if it does."""
        words = self._vocabulary
        named: dict[str, int] = {}
        for label in present:
            named.setdefault(words.keys[label], label)
        others = [label for label in words.candidates if words.keys[label] not in named]
        positives = draws.shuffled(list(named.values()))
        count, kept = self._counts(len(positives), len(others), draws)
        # First what is to stay, for texts that do not hold everything; a class has a token or more.
        wanted = positives[:kept] + draws.some(others, min(count, self.max_tokens))
        order = draws.shuffled(wanted) if self.rules.shuffle_classes else sorted(wanted)
        chosen = set(wanted[: self._longest(wanted, order)])
        if wanted and not chosen:
            raise ValueError(
                f"record {key!r}: class {words.labels[wanted[0]]!r:.60} alone is longer than"
                f" {self.max_tokens} tokens"
            )
        order = [label for label in order if label in chosen]
        spots = {words.keys[label]: spot for spot, label in enumerate(order)}
        place = {label: spots[words.keys[label]] for label in present if words.keys[label] in spots}
        return class_prompt([words.labels[label] for label in order]), place

    def _counts(self, positives: int, others: int, draws: Draws) -> tuple[int, int]:
        """Draw how many negatives and positives are wanted."""
        limit, rules = others, self.rules
        if rules.max_negatives is not None:
            limit = min(limit, rules.max_negatives)
        if rules.max_classes is not None:
            limit = min(limit, max(rules.max_classes - positives, 0))
        one, none, every, drop = rules.negative_chances
        outer, kept = draws.unit(), positives
        if outer < one:
            count = min(1, limit)
        elif outer < one + none:
            count = 0
        elif outer < one + none + every or limit == 0:
            count = limit
        else:
            count = 1 + draws.below(limit)
            if positives and draws.coin(drop):
                kept = 1 + draws.below(positives)
        # A text without any class asks for nothing and teaches nothing.
        return max(count, min(1, others)) if kept == 0 else count, kept

    def _longest(self, wanted: Sequence[int], order: Sequence[int]) -> int:
        """How many of the first of `wanted` fit into a text, in the order that they have there."""
        texts = self._vocabulary.texts
        low, high = 0, len(wanted)
        # What usually fits is tried first.
        middle = high
        while low < high:
            chosen = set(wanted[:middle])
            text = SEPARATOR.join(texts[label] for label in order if label in chosen)
            if len(self.tokenizer.encode(text)[0]) <= self.max_tokens:
                low = middle
            else:
                high = middle - 1
            middle = (low + high + 1) // 2
        return low

    def _published(self, present: Sequence[int], draws: Draws) -> tuple[Prompt, dict[int, int]]:
        """Draw a prompt by a published rule, whose ids count classes from 1."""
        labels, rules = self._vocabulary.labels, self.rules
        names = {label + 1: name for label, name in enumerate(labels)}
        generator = random.Random(draws.below(2**32))
        if rules.class_rule == "simple":
            caption = simple_prompt(names, generator=generator if rules.shuffle_classes else None)
        elif not rules.shuffle_classes:
            caption = optimized_prompt_in_order({0: BACKGROUND, **names})
        else:
            budget = self.max_tokens - 2
            names = {0: BACKGROUND, **names}
            kept, positive_tokens = keep_positives(
                [label + 1 for label in present],
                names,
                count_tokens=self._count,
                budget=budget,
                generator=generator,
            )
            caption = optimized_prompt(
                names,
                kept,
                chances=rules.negative_chances,
                max_negatives=len(labels) if rules.max_negatives is None else rules.max_negatives,
                count_tokens=self._count,
                budget=budget,
                positive_tokens=positive_tokens,
                generator=generator,
                numpy_generator=np.random.RandomState(draws.below(2**32)),
            )
        return _as_prompt(caption, names)

    def _count(self, text: str) -> int:
        return len(self.tokenizer.encode(text)[0]) - 2


class _Vocabulary:
    """The classes of a file, as texts show them."""

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.labels = labels
        self.texts = [clean_class_name(label) for label in labels]
        #: Classes of one key are the same to a reader.
        self.keys = [text.strip().casefold() for text in self.texts]
        first: dict[str, int] = {}
        for label, key in enumerate(self.keys):
            first.setdefault(key, label)
        #: What may be drawn as a negative, once for each key.
        self.candidates = [label for label in first.values() if labels[label] != BACKGROUND]


def dropped_boxes(records: RecordSet) -> int:
    """Count the boxes that drawn texts did not ask for so far, in a set or the parts of one."""
    if isinstance(records, ConcatRecords):
        return sum(dropped_boxes(part) for part in records.parts)
    return records.dropped_boxes if isinstance(records, DrawnPrompts) else 0


def _as_prompt(caption: ClassCaption, names: dict[int, str]) -> tuple[Prompt, dict[int, int]]:
    """Turn ids from 1 into places from 0."""
    prompt = Prompt(
        caption.text,
        tuple(names[label] for label in caption.spans),
        tuple((span,) for span in caption.spans.values()),
    )
    return prompt, {label - 1: spot for spot, label in enumerate(caption.spans)}
