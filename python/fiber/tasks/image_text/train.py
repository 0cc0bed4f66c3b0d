"""Train contrast, matching and masked words on captions."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fiber.data.batch import ImageTextBatch
from fiber.data.record import RecordSet
from fiber.losses.bernoulli import entropy
from fiber.losses.itc_queue import PairQueue
from fiber.models.abilities import CentersEmbeddings, EmbedsAlone, ScoresPairs
from fiber.models.features import ImagePrefix
from fiber.tasks.image_text.branches import image_text_branches
from fiber.tasks.image_text.fields import ImageTextTask
from fiber.training.config.run import RunConfig
from fiber.training.data import check_negatives
from fiber.training.distributed.full_tensor import local_rows, sharded_rows
from fiber.training.objectives.draw import Draw
from fiber.training.objectives.forward_passes import ONE_PASS, ForwardPasses
from fiber.training.objectives.split_backward import SplitGraph
from fiber.training.plan.traffic import (
    embedding_bytes,
    embedding_width,
    negatives_traffic,
    queue_image_bytes,
    queue_pair_bytes,
    ring,
)
from fiber.training.task_training import ImageSize, TaskTraining, Traffic
from fiber.training.training_data import TrainingData


class ImageTextTraining(TaskTraining):
    """ITC, ITM and MLM, and the queue of ITC."""

    causes: ClassVar[Mapping[str, str]] = {
        "itc": "the embeddings have collapsed, since optim.lr is too high or"
        " optim.warmup_fraction too low (or optim.lr is far too low)",
        "itm": "hard negatives are too hard before ITC has learned: try"
        " tasks.image_text.itm_negatives=random, or more steps",
        "mlm": "optim.lr is too low, or the texts have nothing in common",
    }
    fall_soon: ClassVar[tuple[str, ...]] = ("mlm",)

    #: Older pairs, for ITC with a queue. Each rank holds a part of the images.
    queue: PairQueue | None = None

    def needed_abilities(self) -> list[type]:
        scores = [ScoresPairs] if self.options.itm > 0 or self.options.mlm > 0 else []
        return [*scores, *([EmbedsAlone] if self.options.has_contrast else [])]

    @property
    def has_queue(self) -> bool:
        """True if ITC uses a queue."""
        return self.options.has_contrast and self.options.itc_form == "queue"

    def check_records(self, name: str, records: RecordSet) -> None:
        options = self.options
        check_negatives(name, records, [x for x in ("itc", "itm") if getattr(options, x) > 0])

    def start(self, config: RunConfig, device: torch.device) -> None:
        if self.has_queue:
            self.queue = PairQueue(
                self.options.queue_length,
                width=embedding_width(config),
                image_size=(config.model.image_size, config.model.image_size),
                max_tokens=config.model.max_tokens,
                device=device,
            )

    def init_from_data(
        self,
        model: Any,
        new: Collection[str],
        data: TrainingData,
        first_batch: Callable[[], Any],
    ) -> None:
        if not (self.options.has_contrast and isinstance(model, CentersEmbeddings)):
            return
        if model.embedding_weight in new:
            batch = first_batch()
            model.init_embeddings(batch.images, batch.token_ids, batch.text_mask)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        if self.queue is None:
            return {}
        state = self.queue.state_dict()
        return {"queue": {**state, "images": sharded_rows(state["images"], len(self.queue))}}

    def load_state_dict(self, state: Mapping[str, dict[str, Tensor]]) -> None:
        if self.queue is not None:
            found = {name: local_rows(tensor) for name, tensor in state["queue"].items()}
            self.queue.load_state_dict(found)

    def branches(
        self,
        model: Any,
        batch: ImageTextBatch,
        draw: Draw,
        split: SplitGraph | None = None,
        passes: ForwardPasses = ONE_PASS,
    ) -> Iterator[dict[str, Tensor]]:
        return image_text_branches(model, batch, self.options, draw, self.queue, split, passes)

    def num_branches(self, passes: ForwardPasses = ONE_PASS) -> int:
        per_part = (self.options.mlm > 0) + (self.options.itm > 0)
        # ITC is a single branch, since it compares all samples.
        return per_part * passes.count + (self.options.itc > 0)

    def priors(self, config: RunConfig, data: TrainingData) -> dict[str, float]:
        found, task = {}, self.options
        if task.itc > 0 and task.itc_form == "gather":
            found["itc"] = math.log(config.micro_batch_size(self.task.name))
        if task.itm > 0:
            found["itm"] = entropy(1 / 3 if task.itm_negatives == "both" else 1 / 2)
        return found

    def cost_passes(
        self,
        model: Any,
        config: RunConfig,
        images: Tensor,
        ids: Tensor,
        mask: Tensor,
        split: SplitGraph,
    ) -> Iterator[Tensor]:
        task, backbone = self.options, model.backbone
        image = ImagePrefix(split.cut(backbone.image_prefix(images).tokens))
        if task.mlm > 0:
            text = backbone.text_prefix(ids, mask)
            fused = backbone.fuse(image, text, mask, wanted="text")
            picked = torch.zeros(
                round(config.data.mlm_probability * ids.numel()), dtype=torch.int64
            )
            yield model.mlm_logits(fused.text, picked).sum()
            del text, fused
        if task.itc == 0 and task.itm == 0:
            return
        text = split.cut(backbone.text_prefix(ids, mask))
        if task.has_contrast:
            with torch.set_grad_enabled(task.itc > 0):
                vectors = (
                    model.image_vectors(backbone.complete_image(image)),
                    model.text_vectors(backbone.complete_text(text, mask, wanted="pooled")),
                )
            if task.itc > 0:
                yield vectors[0].sum() + vectors[1].sum()
            del vectors
        if task.itm > 0:
            rows = _itm_rows(task, len(images))
            tokens, texts, masks = image.tokens, text, mask
            if task.has_contrast and task.itc_form == "queue" and task.itm_negatives != "random":
                # A negative image and a negative text of each row are encoded again.
                tokens = torch.cat([tokens, backbone.image_prefix(images).tokens])
                texts, masks = (
                    torch.cat([texts, backbone.text_prefix(ids, mask)]),
                    mask.repeat(2, 1),
                )
            chosen = ImagePrefix(tokens[rows])
            fused = backbone.fuse(chosen, texts[rows], masks[rows], wanted="pooled")
            yield model.itm_logits(model.pooled(fused)).sum()

    def traffic(self, config: RunConfig, gpus: int, tokens: int, image_size: ImageSize) -> Traffic:
        task, samples = self.options, config.batch_size(self.task.name)
        contrast = ring(gpus) * samples * self._pair_bytes(config)
        # Images go to the rank that holds their slots, or that encodes them as negatives.
        images = ring(gpus) * samples / gpus * queue_image_bytes(config)
        if self.has_queue:
            contrast += images
        if task.itm == 0:
            return Traffic(contrast, 0.0)
        is_random = task.itm_negatives == "random" or not task.has_contrast
        if self.has_queue and not is_random:
            return Traffic(contrast, images)
        rows = negatives_traffic(
            config, self.task.name, gpus, tokens, image_size, texts=not is_random
        )
        return Traffic(contrast, rows)

    def _pair_bytes(self, config: RunConfig) -> float:
        """Return the bytes of a pair that all ranks gather for ITC."""
        if not self.options.has_contrast:
            return 0.0
        if self.has_queue:
            return queue_pair_bytes(config) - queue_image_bytes(config)
        # The gradients of the embeddings are reduce-scattered.
        return embedding_bytes(config) * (2 if self.options.itc > 0 else 1)

    def state_bytes(self, config: RunConfig, parameters: int, gpus: int) -> int:
        if not self.has_queue:
            return 0
        length, image = self.options.queue_length, queue_image_bytes(config)
        # Each GPU holds a part of the images.
        return length * (queue_pair_bytes(config) - image) + -(-length // gpus) * image


def _itm_rows(task: ImageTextTask, samples: int) -> Tensor:
    """Return an index of as many rows as ITM has pairs; their values do not matter."""
    if not task.has_contrast or task.itm_negatives == "random":
        return torch.zeros(samples, dtype=torch.int64)
    return torch.zeros((2 if task.itm_negatives == "half" else 3) * samples, dtype=torch.int64)
