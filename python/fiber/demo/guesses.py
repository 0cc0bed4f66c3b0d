"""Baselines for each demo task: chance, and blind baselines from the training split."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fiber.checkpoints.model_dir import StoredModel
from fiber.data import DataLoader, sources
from fiber.data.record import Record
from fiber.evaluation import baselines, box_baselines
from fiber.metrics.detection import TrueBoxes
from fiber.metrics.grounding import referring_accuracy
from fiber.metrics.groups import with_groups
from fiber.metrics.matching import mean
from fiber.models.registry import inference_transform

Numbers = dict[str, float]
#: Chance and blind baseline.
Guesses = tuple[Numbers, Numbers]
Records = Sequence[Record]
#: Image id, phrase, and the phrase's (g, 4) boxes in pixels.
Phrase = tuple[str, str, np.ndarray]


class Guesser:
    """Computes the baselines of every task."""

    def __init__(self, data: Path, coarse: StoredModel, counted_captions: int) -> None:
        """Set the dataset and the model that provides the tokenizer and the answers.

        The blind MLM baseline uses at most `counted_captions` training captions.
        """
        self.data, self.coarse, self.counted_captions = data, coarse, counted_captions
        # Blind box baselines use normalized [0, 1] coordinates.
        self._side = json.loads((data / "dataset.json").read_text())["parameters"]["image_size"]

    def guess(
        self, task: str, by_split: Mapping[str, Sequence[Record]]
    ) -> dict[str, dict[str, Numbers]]:
        """Return {"chance": {metric: value}, "blind": {metric: value}} for each split.

        "blind" is the maximum of each metric over the blind baselines. As in `evaluate`, metrics of
        a group of questions or expressions are named "group/metric".
        """
        # Method and source of training records for the blind baseline, by task.
        methods: dict[str, tuple[Callable[..., Guesses], Callable[..., Any] | None]] = {
            "retrieval": (self._retrieval, None),
            "matching": (self._matching, None),
            "masked_words": (self._masked_words, sources.captions),
            "vqa": (self._vqa, sources.questions),
            "refcoco": (self._referring, sources.referring),
            "flickr": (self._phrases, sources.phrases),
            "coco": (self._detection, sources.detection),
        }
        compute, source = methods[task]
        training = source(self.data, "train") if source else []
        if task == "flickr":
            training = _phrases(training)
        guesses = {}
        for split, records in by_split.items():
            chance, blind = compute(training, records, split)
            guesses[split] = {"chance": chance, "blind": blind}
        return guesses

    def _retrieval(self, training: Records, records: Records, split: str) -> Guesses:
        places = {image: i for i, image in enumerate(dict.fromkeys(r.image_id for r in records))}
        chance = baselines.retrieval_chance([places[r.image_id] for r in records], len(places))
        # Blind retrieval is random.
        return chance, chance

    def _matching(self, training: Records, records: Records, split: str) -> Guesses:
        # One matching and one mismatched pair per caption, as in training.
        pairs = np.repeat([1, 0], len(records))
        return baselines.matching_chance(), baselines.matching_blind([1, 0], pairs)

    def _masked_words(self, training: Records, records: Records, split: str) -> Guesses:
        tokenizer, config = self.coarse.tokenizer, self.coarse.config
        assert tokenizer is not None and tokenizer.mask_id is not None
        # Use the loader settings of the evaluation, so that the same tokens are masked.
        loader = DataLoader(
            records,
            "image_text",
            tokenizer=tokenizer,
            transform=inference_transform(config),
            batch_size=len(records),
            max_tokens=config.max_tokens,
            seed=0,
        )
        batch = next(iter(loader.epoch()))
        blind = baselines.masked_word_blind(
            (
                tokenizer.encode(record.text, max_tokens=config.max_tokens)[0]
                for record in training[: self.counted_captions]
            ),
            batch.masked_ids.numpy(),
            batch.text_mask.numpy(),
            batch.mlm_labels.numpy(),
            tokenizer.mask_id,
        )
        return baselines.masked_word_chance(tokenizer.vocab_size), blind

    def _vqa(self, training: Records, records: Records, split: str) -> Guesses:
        groups, scores = [r.group for r in records], [r.answers or {} for r in records]
        texts = [r.text for r in records]
        counted = [r.text for r in training], [r.answers or {} for r in training]
        chance = self._vqa_chance(training, records, split)
        blind = partial(baselines.vqa_blind, *counted)
        return chance, _best(
            with_groups(blind, groups, texts, scores, per_question=True),
            with_groups(blind, groups, texts, scores, per_question=False),
        )

    def _vqa_chance(self, training: Records, records: Records, split: str) -> Numbers:
        """Return the better of a random answer and a random object's word, by kind of question.

        The answers are those that the model knows and the training split has for this kind. That of
        all questions takes the better one for each kind.
        """
        groups = [r.group for r in records]
        objects, known = self._words_of_objects(split), set(self.coarse.answers)
        chance, of_each = {}, []
        for group in sorted(set(groups)):
            own = [r for r in records if r.group == group]
            scores = [r.answers or {} for r in own]
            candidates = {a for r in training if r.group == group for a in r.answers or {}}
            near = [objects.get(r.image_id, []) for r in own]
            better = max(
                baselines.vqa_chance(sorted(candidates & known), scores)["accuracy"],
                baselines.vqa_object_chance(candidates, near, scores)["accuracy"],
            )
            of_each += [better] * len(own)
            if any(groups):
                chance[f"{group or 'other'}/accuracy"] = better
        return {"accuracy": mean(np.array(of_each)), **chance}

    def _words_of_objects(self, split: str) -> dict[str, list[set[str]]]:
        """Return the words that captions have for each object, by image."""
        words: dict[str, dict[tuple[float, ...], set[str]]] = {}
        for record in sources.phrases(self.data, split):
            own = words.setdefault(record.image_id, {})
            for phrase, boxes in zip(record.labels, sources.label_boxes(record), strict=True):
                for box in boxes:
                    own.setdefault(tuple(record.boxes_xyxy[box]), set()).update(phrase.split())
        return {image: list(own.values()) for image, own in words.items()}

    def _referring(self, training: Records, records: Records, split: str) -> Guesses:
        groups, texts = [r.group for r in records], [r.text for r in records]
        truths = np.array([r.boxes_xyxy[0] for r in records])
        objects = self._objects(split)
        near = [objects[r.image_id] for r in records]
        boxes = np.array([r.boxes_xyxy[0] for r in training]).reshape(-1, 1, 4) / self._side
        counted = list(zip((r.text for r in training), boxes, strict=True))
        # Guess once for all groups, which takes longer than the rest.
        own, overall = (
            box_baselines.guess_boxes(counted, texts, 1, per_text=per_text)
            for per_text in (True, False)
        )
        return with_groups(box_baselines.referring_chance, groups, near, truths), _best(
            with_groups(referring_accuracy, groups, own, truths / self._side, ks=(1,)),
            with_groups(referring_accuracy, groups, overall, truths / self._side, ks=(1,)),
        )

    def _phrases(self, training: list[Phrase], records: Records, split: str) -> Guesses:
        own, objects = _phrases(records), self._objects(split)
        truths = [boxes for _, _, boxes in own]
        counted = [p for _, p, _ in training], [boxes / self._side for _, _, boxes in training]
        queries = [p for _, p, _ in own], [boxes / self._side for boxes in truths]
        near = [objects[image] for image, _, _ in own]
        return box_baselines.phrase_chance(near, truths, ks=(1,)), _best(
            box_baselines.phrase_blind(*counted, *queries, ks=(1,), per_text=True),
            box_baselines.phrase_blind(*counted, *queries, ks=(1,), per_text=False),
        )

    def _detection(self, training: Records, records: Records, split: str) -> Guesses:
        chance = box_baselines.detection_chance(
            [TrueBoxes(r.boxes_xyxy, r.box_labels) for r in records]
        )
        blind = box_baselines.detection_blind(
            [self._unit_truth(r) for r in training], [self._unit_truth(r) for r in records]
        )
        return chance, blind

    def _unit_truth(self, record: Record) -> TrueBoxes:
        boxes = np.array(record.boxes_xyxy).reshape(-1, 4) / self._side
        return TrueBoxes(boxes, record.box_labels)

    def _objects(self, split: str) -> dict[str, list]:
        return {r.image_id: list(r.boxes_xyxy) for r in sources.detection(self.data, split)}


def _phrases(records: Sequence[Record]) -> list[Phrase]:
    return [
        (record.image_id, phrase, np.array([record.boxes_xyxy[box] for box in own]))
        for record in records
        for phrase, own in zip(record.labels, sources.label_boxes(record), strict=True)
        if own
    ]


def _best(*guesses: Numbers) -> Numbers:
    """Return the maximum of each metric."""
    return {name: max(guess[name] for guess in guesses) for name in guesses[0]}
