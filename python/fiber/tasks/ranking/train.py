"""Train a ranking head on captions among those of other images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from fiber.data import Tokenizer
from fiber.data.batch import RankingBatch
from fiber.data.record import RecordSet
from fiber.data.texts.false_texts import FalseTexts
from fiber.losses.bernoulli import entropy
from fiber.losses.ranking import ranking_loss
from fiber.models.abilities import RanksCaptions
from fiber.models.features import ImagePrefix
from fiber.training.config.run import RunConfig
from fiber.training.data import check_negatives
from fiber.training.objectives.draw import Draw, Place
from fiber.training.objectives.forward_passes import ONE_PASS, ForwardPasses
from fiber.training.objectives.pairs import PairBatch, random_itm
from fiber.training.objectives.split_backward import SplitGraph
from fiber.training.plan.traffic import negatives_traffic
from fiber.training.task_training import ImageSize, TaskTraining, Traffic
from fiber.training.training_data import TrainingData


class RankingTraining(TaskTraining):
    """Rank each image's caption among K captions of other images, resampled every epoch."""

    abilities: ClassVar[tuple[type, ...]] = (RanksCaptions,)
    causes: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("rank", "itm"), "too few steps, or a start without pre-training (--init)"
    )

    def check_records(self, name: str, records: RecordSet) -> None:
        check_negatives(name, records, ["itm"] if self.options.itm > 0 else [])

    def completion(
        self, records: RecordSet, config: RunConfig, tokenizer: Tokenizer
    ) -> Callable[[Any], RankingBatch]:
        count = self.options.false_texts
        try:
            texts = FalseTexts(records, count=count, seed=config.train.seed)
        except ValueError as error:
            name = self.task.name
            raise ValueError(
                f"data for task {name!r}, tasks.{name}.false_texts {count}: {error}"
            ) from None
        return partial(texts.add, tokenizer=tokenizer, max_tokens=config.model.max_tokens)

    def branches(
        self,
        model: Any,
        batch: RankingBatch,
        draw: Draw,
        split: SplitGraph | None = None,
        passes: ForwardPasses = ONE_PASS,
    ) -> Iterator[dict[str, Tensor]]:
        """Yield the ITM loss and the ranking loss of each caption among K false ones.

        The image is encoded once for all pairs, and the 1 + K texts once for both losses.

        Source: METER (Dou et al. 2022), fine-tuning for retrieval, which encodes the image for each
        pair and draws the negatives of ITM from the whole dataset.
        """
        micro = PairBatch.of(model, batch, draw, split, passes)
        # (B, 1 + K, L), its own text first
        ids = torch.cat((batch.token_ids[:, None], batch.false_ids), 1)
        masks = torch.cat((batch.text_mask[:, None], batch.false_mask), 1)
        texts = ids.shape[1]

        def encode_texts(ids: Tensor, masks: Tensor) -> Tensor:
            prefix = model.backbone.text_prefix(ids.flatten(0, 1), masks.flatten(0, 1))
            return prefix.unflatten(0, (-1, texts))

        image_prefix = micro.split.cut(micro.encode_image(Place.IMAGE, batch.images))
        encode = draw.within(Place.TEXT, encode_texts)
        # (B, 1 + K, L, D)
        text_prefix = micro.split.cut(passes.recomputed(encode, micro.rows, ids, masks))
        if self.options.itm > 0:
            yield from random_itm(micro, (image_prefix, text_prefix[:, 0], batch.text_mask))
        whole = passes.whole_rows(batch.token_ids)
        for tokens, prefix, mask, rows in passes.parts(
            image_prefix, text_prefix, masks, micro.rows
        ):
            copies = torch.arange(len(tokens), device=ids.device).repeat_interleave(texts)
            image = ImagePrefix(tokens).take(copies)
            with draw.dropout(Place.RANKING, rows):
                fused = model.backbone.fuse(
                    image, prefix.flatten(0, 1), mask.flatten(0, 1), wanted="pooled"
                )
                scores = model.rank_scores(model.pooled(fused)).view(len(tokens), texts)
            yield {"rank": ranking_loss(scores, whole=whole)}

    def num_branches(self, passes: ForwardPasses = ONE_PASS) -> int:
        return passes.count * (2 if self.options.itm > 0 else 1)

    def priors(self, config: RunConfig, data: TrainingData) -> dict[str, float]:
        found = {"rank": math.log(1 + self.options.false_texts)}
        # If captions train ITM, too, both are averaged, and both priors are near.
        return found | ({"itm": entropy(1 / 2)} if self.options.itm > 0 else {})

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
        texts, samples = 1 + task.false_texts, len(images)
        all_ids, all_masks = ids.repeat(texts, 1), mask.repeat(texts, 1)
        image = ImagePrefix(split.cut(backbone.image_prefix(images).tokens))
        text = split.cut(backbone.text_prefix(all_ids, all_masks))
        if task.itm > 0:
            rows = torch.zeros(samples, dtype=torch.int64)
            fused = backbone.fuse(
                ImagePrefix(image.tokens[rows]), text[rows], mask, wanted="pooled"
            )
            yield model.itm_logits(model.pooled(fused)).sum()
            del fused
        rows = torch.zeros(samples * texts, dtype=torch.int64)
        fused = backbone.fuse(image.take(rows), text, all_masks, wanted="pooled")
        yield model.rank_scores(model.pooled(fused)).sum()

    def traffic(self, config: RunConfig, gpus: int, tokens: int, image_size: ImageSize) -> Traffic:
        if self.options.itm == 0:
            return Traffic()
        return Traffic(
            0.0, negatives_traffic(config, self.task.name, gpus, tokens, image_size, texts=False)
        )
