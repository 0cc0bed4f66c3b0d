"""Train on masks of classes and of phrases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fiber.data import Tokenizer
from fiber.data.record import RecordSet
from fiber.losses.distributed import all_rank_max
from fiber.losses.itc import text_fingerprints
from fiber.losses.masks.point_sampling import seeded_points
from fiber.losses.masks.region_text import have_all, unit
from fiber.losses.masks.segmentation import (
    CLASS_NAME_WEIGHT,
    EXPRESSION_WEIGHT,
    LossOptions,
    MaskTargets,
    mask_losses,
    phrase_losses,
)
from fiber.messages import shown
from fiber.models.abilities import need_ability
from fiber.models.features import PhraseTexts
from fiber.models.mask_abilities import ReadsClassNames, TrainsMasks
from fiber.models.registry import build_empty
from fiber.tasks.segmentation.fields import SegmentationTask
from fiber.training.config.run import RunConfig
from fiber.training.objectives.draw import Draw, Place
from fiber.training.objectives.forward_passes import ONE_PASS, ForwardPasses
from fiber.training.objectives.split_backward import SplitGraph
from fiber.training.task_training import TaskTraining
from fiber.training.training_data import TrainingData


class Texts(NamedTuple):
    """Tokens of texts."""

    #: (n, L) int64, padded, and (n, L) bool, True = real token.
    token_ids: Tensor
    text_mask: Tensor

    def rows(self, rows: Tensor) -> Texts:
        """Return some texts, cut to the longest of them."""
        mask = self.text_mask[rows]
        longest = int(mask.sum(1).max()) if len(mask) else 0
        return Texts(self.token_ids[rows][:, :longest], mask[:, :longest])

    def to(self, device: torch.device) -> Texts:
        """Move the tensors to a device."""
        return Texts(*(each.to(device) for each in self))


class Phrases(NamedTuple):
    """Phrases of the images of a batch, with class names in place of missing ones."""

    texts: Texts
    #: (p, H, W) bool of each image.
    masks: list[Tensor]
    #: Weight of the alignment of each image.
    weights: list[float]

    @property
    def per_image(self) -> Tensor:
        """(B,) int64: number of phrases of each image."""
        device = self.texts.token_ids.device
        return torch.tensor([len(each) for each in self.masks], device=device)


class _Asked(NamedTuple):
    """Phrases as a network reads them."""

    texts: PhraseTexts
    #: (P, D), and the factor of their cosines.
    vectors: Tensor
    scale: Tensor

    @classmethod
    def of(cls, model: TrainsMasks, phrases: Phrases) -> _Asked:
        """Encode phrases."""
        encoded, ids = model.encode_text(*phrases.texts), text_fingerprints(*phrases.texts)
        texts = PhraseTexts(encoded.tokens, phrases.texts.text_mask, ids, phrases.per_image)
        # Padding takes part in attention, so that of an image must not depend on its rank.
        longest = max(int(mask.sum()) for _, mask in texts.distinct())
        texts = texts._replace(least_tokens=all_rank_max(longest, ids.device))
        return cls(texts, encoded.vectors, model.scale())


class _PhraseTargets(NamedTuple):
    """A batch with the number of its phrases, in place of the loader's."""

    phrases_per_image: Tensor
    masks_per_image: Tensor
    mask_labels: Tensor
    masks_of: Any
    phrase_masks_of: Any


class SegmentationTraining(TaskTraining):
    """Masks matched with the queries of a network, and with phrases.

    A class has one of its texts in each step, drawn at random.
    """

    abilities: ClassVar[tuple[type, ...]] = (TrainsMasks,)
    causes: ClassVar[Mapping[str, str]] = {
        "mask_class": "optim.lr is too low, or masks do not belong to their classes",
        "phrase_alignment": "optim.lr is too low, or masks do not belong to their phrases",
    }
    fall_soon: ClassVar[tuple[str, ...]] = ("mask_class",)
    cost_note: ClassVar[str] = "images differ in size, and FLOPs leave out texts of classes"

    options: SegmentationTask
    #: Texts of all classes and of the background, T of each in turn, and T.
    class_texts: Texts | None = None
    texts_per_class: int = 0

    def check_model(self, model: Any) -> None:
        need_ability(model, TrainsMasks, f"tasks.{self.task.name}", "mask")

    def check_records(self, name: str, records: RecordSet) -> None:
        labels = records[0].labels
        for index in (0, len(records) // 2, len(records) - 1):
            record: Any = records[index]
            if record.labels != labels:
                raise ValueError(
                    f"data for task {name!r}: records {shown(records[0].key)} and"
                    f" {shown(record.key)} have different labels; expected the same class names in"
                    " every record"
                )
        if not labels:
            raise ValueError(
                f"data for task {name!r}: expected records with labels, the names of all classes;"
                f" the first one, {shown(records[0].key)}, has none"
            )

    def classes(self, records: RecordSet) -> tuple[str, ...]:
        return records[0].labels

    def prepare(self, config: RunConfig, data: TrainingData) -> None:
        network: ReadsClassNames = build_empty(config.model)  # type: ignore[assignment]
        names = self.classes(data.records[self.task.name])
        self.read_classes(network, names, data.vocabulary.tokenizer)

    def read_classes(
        self, network: ReadsClassNames, names: Sequence[str], tokenizer: Tokenizer
    ) -> None:
        """Tokenize the texts of classes.

        Raises:
            ValueError: if a text has too many tokens for the network.
        """
        prompts = network.class_prompts(names)
        limit, flat = network.config.max_tokens, [text for own in prompts for text in own]
        for text in flat:
            if (count := len(tokenizer.encode(text)[0])) > limit:
                raise ValueError(
                    f"the text {shown(text)} of a class has {count} tokens; expected at most"
                    f" {limit}, those of the text encoder"
                )
        arrays = tokenizer.encode_batch(flat, max_tokens=limit)
        ids, mask = (np.asarray(arrays[name]).copy() for name in ("token_ids", "text_mask"))
        self.class_texts = Texts(torch.from_numpy(ids), torch.from_numpy(mask).bool())
        self.texts_per_class = len(prompts[0])

    def branches(
        self,
        model: TrainsMasks,
        batch: Any,
        draw: Draw,
        split: SplitGraph | None = None,
        passes: ForwardPasses = ONE_PASS,
    ) -> Iterator[dict[str, Tensor]]:
        device, rows = batch.images.device, draw.rows(batch)
        classes = self._step_texts(torch.Generator().manual_seed(_seed(draw))).to(device)
        phrases = None
        if self.options.has_phrases:
            found = self.phrases_of(batch, classes, draw, rows)
            # As published, losses of phrases are 0 if an image has none.
            phrases = found if have_all(found.per_image) else None
        with draw.dropout(Place.PAIR, rows):
            vectors = unit(model.encode_text(*classes).vectors)
            asked = None if phrases is None else _Asked.of(model, phrases)
            predictions = model.predict_masks(
                batch.images, vectors, None if asked is None else asked.texts
            )
        masks = [batch.masks_of(row) for row in range(len(batch))]
        points = seeded_points(_seed(draw), rows.tolist(), device)
        options = LossOptions(
            num_points=self.options.num_points, phrase_layers=self.options.phrase_layers
        )
        total: dict[str, list[Tensor]] = {}
        for number, each in enumerate(predictions):
            losses, _ = mask_losses(each, batch, masks, points, options)
            if phrases is not None and asked is not None and number < options.phrase_layers:
                of_phrases, _ = phrase_losses(
                    each,
                    _with_phrases(batch, phrases),
                    phrases.masks,
                    asked.vectors,
                    asked.texts.ids,
                    asked.scale,
                    points,
                    options,
                    phrases.weights,
                )
                losses |= of_phrases
            for name, loss in losses.items():
                total.setdefault(name, []).append(loss)
        nothing = [0.0 * predictions[0].mask_logits.sum()]
        names = self.options.losses if self.options.has_phrases else total
        yield {name: torch.stack(total.get(name, nothing)).sum() for name in names}

    def num_branches(self, passes: ForwardPasses = ONE_PASS) -> int:
        return 1

    def phrases_of(self, batch: Any, class_texts: Texts, draw: Draw, rows: Tensor) -> Phrases:
        """Return the phrases of images, with class names in place of missing ones.

        Of the phrases of an image, a random number from 1 to `max_phrases` are drawn at random.
        Names are those of at most `max_class_names` classes of the image, drawn at random, with a
        phrase for each mask of a class. An image without masks has no phrases.
        """
        counts = batch.phrases_per_image.tolist()
        given = Texts(batch.phrase_ids, batch.phrase_mask)
        starts = np.cumsum([0, *counts]).tolist()
        labels = batch.mask_labels.split(batch.masks_per_image.tolist())
        ids, texts, masks, weights = [], [], [], []
        for row, number in enumerate(rows.tolist()):
            random = torch.Generator().manual_seed(_seed(draw, number + 1))
            if counts[row]:
                most = int(torch.randint(1, self.options.max_phrases + 1, (), generator=random))
                chosen = torch.randperm(counts[row], generator=random)[:most].sort().values
                own = given.rows((starts[row] + chosen).to(given.token_ids.device))
                masks.append(batch.phrase_masks_of(row)[chosen.to(given.token_ids.device)])
                weights.append(EXPRESSION_WEIGHT)
            else:
                present = labels[row].unique()
                order = torch.randperm(len(present), generator=random)[
                    : self.options.max_class_names
                ]
                chosen = torch.isin(labels[row], present[order.to(present.device)])
                own = class_texts.rows(labels[row][chosen])
                masks.append(batch.masks_of(row)[chosen])
                weights.append(CLASS_NAME_WEIGHT)
            ids.append(own.token_ids)
            texts.append(own.text_mask)
        longest = max(each.shape[1] for each in ids)
        joined = Texts(_padded(ids, longest), _padded(texts, longest))
        return Phrases(joined, masks, weights)

    def _step_texts(self, random: torch.Generator) -> Texts:
        """Draw a text of each class and of the background."""
        if self.class_texts is None:
            raise RuntimeError(
                "the texts of classes are not known; call read_classes before a step"
            )
        count = len(self.class_texts.token_ids) // self.texts_per_class
        chosen = torch.randint(self.texts_per_class, (count,), generator=random)
        return self.class_texts.rows(torch.arange(count) * self.texts_per_class + chosen)

    def is_counted(self, config: RunConfig) -> bool:
        return False

    def cost_passes(
        self,
        model: Any,
        config: RunConfig,
        images: Tensor,
        ids: Tensor,
        mask: Tensor,
        split: SplitGraph,
    ) -> Iterator[Tensor]:
        # Matching depends on values. A phrase of an image and a class are as long as its text.
        encoded = model.encode_text(ids, mask)
        per_image = torch.ones(len(ids), dtype=torch.int64)
        named = PhraseTexts(encoded.tokens, mask, per_image, per_image)
        found = model.predict_masks(
            images, unit(encoded.vectors), named if self.options.has_phrases else None
        )
        tensors = [each for prediction in found for each in prediction if each is not None]
        yield torch.stack([each.float().sum() for each in tensors]).sum()


def _with_phrases(batch: MaskTargets, phrases: Phrases) -> _PhraseTargets:
    return _PhraseTargets(
        phrases.per_image,
        batch.masks_per_image,
        batch.mask_labels,
        batch.masks_of,
        phrases.masks.__getitem__,
    )


def _padded(rows: Sequence[Tensor], length: int) -> Tensor:
    """Join (n, l) tensors to (N, length), padded with zeros."""
    return torch.cat([torch.nn.functional.pad(each, (0, length - each.shape[1])) for each in rows])


def _seed(draw: Draw, image: int = 0) -> int:
    """Return the seed of a step, or of what is drawn for one of its images."""
    values = np.random.SeedSequence((draw.seed % 2**63, draw.number, image)).generate_state(
        1, np.uint64
    )
    return int(values[0]) >> 1
