"""Train on boxes of phrases, expressions and class names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fiber.data import Tokenizer
from fiber.data.batch import GroundingBatch, GroundingMasksBatch
from fiber.data.datasets.registry import SOURCES
from fiber.data.loader_config import BatchType
from fiber.data.prompts.absent import AbsentPhrases, ObjectWords
from fiber.data.prompts.sampling import SampledPrompts
from fiber.data.record import ConcatRecords, RecordSet
from fiber.data.skip_report import classes_of, counted, skip_counts
from fiber.losses.grounding import grounding_losses, num_assigned
from fiber.messages import shown, shown_names
from fiber.models.abilities import FindsBoxes, FindsMasks
from fiber.tasks.fields import split_source
from fiber.tasks.grounding.fields import GroundingTask
from fiber.training.config.run import RunConfig
from fiber.training.objectives.draw import Draw, Place
from fiber.training.objectives.forward_passes import ONE_PASS, ForwardPasses
from fiber.training.objectives.split_backward import SplitGraph
from fiber.training.task_training import TaskTraining

#: Maximum number of records searched for a box before grounding data is rejected.
BOXLESS_RECORDS = 1000


class GroundingTraining(TaskTraining):
    """Boxes with the alignment of each to the words of the prompt."""

    abilities: ClassVar[tuple[type, ...]] = (FindsBoxes,)
    causes: ClassVar[Mapping[str, str]] = {
        "alignment": "optim.lr is too low, or boxes do not belong to their texts"
    }
    fall_soon: ClassVar[tuple[str, ...]] = ("alignment",)

    options: GroundingTask

    @property
    def layout(self) -> BatchType:
        return "grounding_masks" if self.options.reads_masks else "grounding"

    def needed_abilities(self) -> Sequence[type]:
        return (FindsMasks,) if self.options.reads_masks else (FindsBoxes,)

    def check_records(self, name: str, records: RecordSet) -> None:
        # Some of the images may have no box.
        checked = range(0, len(records), -(-len(records) // BOXLESS_RECORDS))
        if not any(records[index].boxes_xyxy for index in checked):
            raise ValueError(
                f"data for task {self.task.name!r}: expected records with boxes_xyxy, but the"
                f" {len(checked)} checked records have none; the first record is"
                f" {shown(records[0].key)}{_dropped_boxes(records)}"
            )
        if self.options.reads_masks and not any(records[index].box_masks for index in checked):
            raise ValueError(
                f"data for task {self.task.name!r}: expected records with masks of boxes"
                f" (box_masks), but the {len(checked)} checked records have none; the first record"
                f" is {shown(records[0].key)}; data of `fiber data scenes` that an earlier version"
                " generated must be generated again"
            )

    def classes(self, records: RecordSet) -> tuple[str, ...]:
        return classes_of(records)

    def sampled_records(
        self, records: RecordSet, sources: Sequence[str], config: RunConfig, tokenizer: Tokenizer
    ) -> RecordSet:
        parts = [records]
        if len(sources) > 1 and isinstance(records, ConcatRecords):
            parts = records.parts
        chance = self.options.absent_phrase_chance
        # Records of the first steps may lack objects that the phrases of others name.
        words = ObjectWords(parts) if chance and sources == self.options.sources else None
        sampled: list[RecordSet] = []
        for number, (source, part) in enumerate(zip(sources, parts, strict=True)):
            if SOURCES[split_source(source)[0]].has_classes:
                part = SampledPrompts(
                    part,
                    tokenizer,
                    max_tokens=config.model.max_tokens,
                    rules=self.options.prompt_rules(),
                    seed=config.train.seed,
                )
            elif words is not None:
                part = AbsentPhrases(
                    part, words, chance=chance, seed=config.train.seed, number=number
                )
            sampled.append(part)
        return ConcatRecords(sampled) if len(sampled) > 1 else sampled[0]

    def branches(
        self,
        model: Any,
        batch: GroundingBatch,
        draw: Draw,
        split: SplitGraph | None = None,
        passes: ForwardPasses = ONE_PASS,
    ) -> Iterator[dict[str, Tensor]]:
        whole = None
        if passes.count > 1:
            anchors, inside = model.locations(batch.images, batch.image_sizes)
            whole = passes.whole(num_assigned(anchors, inside, batch, model.config))
        rows = passes.parts(draw.rows(batch))
        for part, (own_rows,) in zip(passes.batches(batch), rows, strict=True):
            with draw.dropout(Place.PAIR, own_rows):
                output = model(part.images, part.token_ids, part.text_mask, part.image_sizes)
            masks = part.box_masks if isinstance(part, GroundingMasksBatch) else None
            yield grounding_losses(output, part, model.config, whole=whole, box_masks=masks)

    def cost_passes(
        self,
        model: Any,
        config: RunConfig,
        images: Tensor,
        ids: Tensor,
        mask: Tensor,
        split: SplitGraph,
    ) -> Iterator[Tensor]:
        # Without the sizes of images in the padded batch, which are values.
        leaves = tree_leaves(vars(model(images, ids, mask)))
        sums = [each.sum() for each in leaves if isinstance(each, Tensor) and each.requires_grad]
        yield torch.stack([each.float() for each in sums]).sum()


def _dropped_boxes(records: RecordSet) -> str:
    """Return the end of an error about records without boxes: which boxes their reader dropped."""
    dropped = {what: count for what, count in skip_counts(records).items() if "boxes" in what}
    if not dropped:
        return ""
    counts = shown_names([counted(count, what) for what, count in dropped.items()])
    return (
        f"; skipped or changed: {counts} (boxes in pixels of which a side is at most 1 are empty;"
        " those relative to the image size must be multiplied by it)"
    )
