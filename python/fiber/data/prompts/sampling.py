"""Convert detection data to grounding data by sampling the classes in each image's prompt.

About 80 class names fit into a prompt, but datasets may have hundreds or thousands of classes.
Every image therefore gets its own prompt: the classes of its boxes and sampled negatives, resampled
every epoch as a function of only (seed, epoch, record).
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from fiber.data.masks.mask import IdMap
from fiber.data.prompts.classes import (
    SEPARATOR,
    ClassName,
    Encoder,
    Prompt,
    class_prompt,
    clean_class_name,
    join_classes,
)
from fiber.data.prompts.published import BACKGROUND, keep_positives, optimized_order
from fiber.data.prompts.rules import PromptRules
from fiber.data.record import ConcatRecords, MixedRecords, Record, RecordSet
from fiber.data.rng import MAX_RECORDS, Rng
from fiber.data.storage.shard_order import ShardMap, shard_map_of
from fiber.messages import shown

# Random number stream for prompts.
_PROMPTS = 253


class SampledPrompts:
    """Detection records whose prompts are resampled every epoch.

    With `class_rule="fitting"`, negatives exclude the background, the classes of the image's boxes,
    and classes with the same prompt text as one of these ("bow_(ribbon)" and "bow_(weapon)"). The
    published rules do not exclude all of these; see `PromptRules`.

    If a prompt omits some classes of the boxes, because they do not fit or because `rules`
    subsamples them, `in_epoch` drops the boxes of these classes and counts them in `dropped_boxes`.

    `records` are those of `sources.detection`: `labels` are all classes of the file, and
    `box_labels` are indices into `labels`. `max_tokens` is the maximum text length in tokens,
    including <s> and </s>. `seed` is in [0, 2 ** 64).

    Raises:
        ValueError: if there are more than 2 ** 32 records, or, on access with "fitting", if the
            first sampled class does not fit into `max_tokens` by itself.
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
        if len(records) > MAX_RECORDS:
            raise ValueError(f"records must have at most {MAX_RECORDS} items, got {len(records)}")
        self.records, self.tokenizer, self.max_tokens = records, tokenizer, max_tokens
        self.rules, self.seed = rules, seed
        self.dropped_boxes = 0
        self._vocabulary = _Vocabulary(())

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return self._sample(0, index)[0]

    def in_epoch(self, epoch: int, index: int) -> Record:
        """Return a record with its prompt for an epoch. Prompts repeat after 65,536 epochs."""
        record, dropped = self._sample(epoch, index)
        self.dropped_boxes += dropped
        return record

    def shard_map(self) -> ShardMap:
        """See `ShardedRecords`; raise ValueError if the records have no shards."""
        return shard_map_of(self.records)

    def _sample(self, epoch: int, index: int) -> tuple[Record, int]:
        """Return a record with its prompt, and the number of boxes dropped."""
        index = range(len(self))[index]
        record = self.records[index]
        if self._vocabulary.labels is not record.labels:
            self._vocabulary = _Vocabulary(record.labels)
        rng = Rng.of_record(self.seed, _PROMPTS, epoch, index)
        present = sorted(set(record.box_labels))
        if self.rules.class_rule == "fitting":
            prompt, new_index = self._fitting(record.key, present, rng)
        else:
            prompt, new_index = self._published(present, rng)
        kept = [box for box, label in enumerate(record.box_labels) if label in new_index]
        fields = prompt.record_fields(
            (record.boxes_xyxy[box] for box in kept),
            [new_index[record.box_labels[box]] for box in kept],
        )
        # Drop the fields for metrics, which need all classes rather than a sample.
        fields |= _masks_of(record, kept, fields["box_labels"])
        sampled = dataclasses.replace(record, label_ids=(), label_groups=(), objects=None, **fields)
        return sampled, len(record.box_labels) - len(kept)

    def _fitting(self, key: str, present: Sequence[int], rng: Rng) -> tuple[Prompt, dict[int, int]]:
        """Sample a prompt, and return it with the new index of each class that has boxes."""
        labels, keys = self._vocabulary.labels, self._vocabulary.keys
        named: dict[str, int] = {}
        for label in present:
            named.setdefault(keys[label], label)
        others = [label for label in self._vocabulary.candidates if keys[label] not in named]
        positives = rng.shuffled(list(named.values()))
        count, kept = self._counts(len(positives), len(others), rng)
        # In order of priority, in case not all classes fit. Each has at least one token.
        wanted = positives[:kept] + rng.sample(others, min(count, self.max_tokens))
        order = rng.shuffled(wanted) if self.rules.shuffle_classes else sorted(wanted)
        chosen = set(wanted[: self._longest(wanted, order)])
        if wanted and not chosen:
            raise ValueError(
                f"record {shown(key)}: class {shown(labels[wanted[0]])} alone is longer than"
                f" {self.max_tokens} tokens"
            )
        order = [label for label in order if label in chosen]
        index_of = {keys[label]: index for index, label in enumerate(order)}
        new_index = {label: index_of[keys[label]] for label in present if keys[label] in index_of}
        return class_prompt([labels[label] for label in order]), new_index

    def _counts(self, positives: int, others: int, rng: Rng) -> tuple[int, int]:
        """Sample the numbers of negatives and positives, before limiting the prompt's length."""
        rules = self.rules
        limit = min(others, others if rules.max_negatives is None else rules.max_negatives)
        if rules.max_classes is not None:
            limit = min(limit, max(rules.max_classes - positives, 0))
        one, none, every, drop = rules.negative_chances
        outer, kept = rng.random(), positives
        if outer < one:
            count = min(1, limit)
        elif outer < one + none:
            count = 0
        elif outer < one + none + every or limit == 0:
            count = limit
        else:
            count = 1 + rng.integer(limit)
            if positives and rng.bernoulli(drop):
                kept = 1 + rng.integer(positives)
        if rules.absent_chance and others and rng.bernoulli(rules.absent_chance):
            kept = 0
        # A prompt without any class has no training signal.
        return max(count, min(1, others)) if kept == 0 else count, kept

    def _longest(self, wanted: Sequence[int], order: Sequence[int]) -> int:
        """Return the length of the longest prefix of `wanted` whose prompt fits `max_tokens`.

        The prompt lists the classes of the prefix in the order of `order`.
        """
        texts = self._vocabulary.texts
        low, high = 0, len(wanted)
        # Start with all classes, which usually fit.
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

    def _published(self, present: Sequence[int], rng: Rng) -> tuple[Prompt, dict[int, int]]:
        """Sample a prompt by a published rule. Published class ids start at 1."""
        rules, names = self.rules, (BACKGROUND, *self._vocabulary.labels)
        generator = random.Random(rng.integer(2**32))
        order = list(range(1, len(names)))
        if rules.shuffle_classes and rules.class_rule == "simple":
            generator.shuffle(order)
        elif rules.shuffle_classes:
            budget = self.max_tokens - 2
            kept, positive_tokens = keep_positives(
                [label + 1 for label in present],
                names,
                count_tokens=self._count,
                budget=budget,
                generator=generator,
            )
            order = optimized_order(
                kept,
                names,
                chances=rules.negative_chances,
                max_negatives=len(order) if rules.max_negatives is None else rules.max_negatives,
                count_tokens=self._count,
                budget=budget,
                positive_tokens=positive_tokens,
                generator=generator,
                numpy_generator=np.random.RandomState(rng.integer(2**32)),
            )
        chosen = [names[label] for label in order]
        new_index = {label - 1: index for index, label in enumerate(order)}
        return join_classes([ClassName(name) for name in chosen], chosen), new_index

    def _count(self, text: str) -> int:
        """Count tokens without <s> and </s>."""
        return len(self.tokenizer.encode(text)[0]) - 2


def _masks_of(record: Record, kept: Sequence[int], labels: Sequence[int]) -> dict[str, Any]:
    """Return the masks of the boxes that are kept, with their new labels, as fields of `Record`."""
    if not record.masks:
        return {}
    of_boxes = record.box_masks or (-1,) * len(record.boxes_xyxy)
    found: dict[int, int] = {}
    for box, label in zip(kept, labels, strict=True):
        if of_boxes[box] != -1:
            found.setdefault(of_boxes[box], label)
    masks = record.masks
    if isinstance(masks, IdMap):
        others = (number for mask, number in enumerate(masks.ids) if mask not in found)
        ids = tuple(masks.ids[mask] for mask in found)
        masks = masks._replace(ids=ids, void=(*masks.void, *others))
    else:
        masks = tuple(masks[mask] for mask in found)
    numbers = {mask: number for number, mask in enumerate(found)}
    return {
        "masks": masks,
        "mask_labels": tuple(found.values()),
        "mask_crowd": (),
        "box_masks": tuple(numbers.get(of_boxes[box], -1) for box in kept) if found else (),
        "phrases": (),
        "phrase_masks": (),
    }


class _Vocabulary:
    """The class names of a file and their texts in prompts."""

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.labels = labels
        self.texts = [clean_class_name(label) for label in labels]
        #: Classes with the same key have the same text.
        self.keys = [text.strip().casefold() for text in self.texts]
        first: dict[str, int] = {}
        for label, key in enumerate(self.keys):
            first.setdefault(key, label)
        #: Possible negatives, one per key.
        self.candidates = [label for label in first.values() if labels[label] != BACKGROUND]


def dropped_boxes(records: RecordSet) -> int:
    """Return the number of boxes dropped by the `SampledPrompts` in a record set."""
    if isinstance(records, ConcatRecords):
        return sum(dropped_boxes(part) for part in records.parts)
    if isinstance(records, MixedRecords):
        return dropped_boxes(records.new) + dropped_boxes(records.old)
    return records.dropped_boxes if isinstance(records, SampledPrompts) else 0
