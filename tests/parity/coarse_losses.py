"""The recorded objectives, computed with the package's losses on what our model gives.

A mistake in a loss cannot hide one in the model: everything that the losses read (vectors, logits,
weights and numbers of the negatives) is compared by itself, and `tests/losses` holds the losses
against hand-worked cases and against the recorded logits. Only what trains nobody is written out
here: the published evaluation form of the off-policy caption loss, and samples of which the
likeliest token was recorded in place of a drawn one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fiber.losses.caption import caption_loss, gold_loss, next_tokens
from fiber.losses.itc import Similarities, queue_itc_loss
from fiber.losses.itm import HardNegatives, itm_loss, join_pairs, pair_loss
from fiber.losses.mlm import mlm_loss
from fiber.losses.nlvr2 import nlvr2_loss
from fiber.losses.vqa import vqa_loss
from fiber.models.fiber.image_text import FiberImageText
from tests.parity.coarse_case import CoarseCase

#: Added to every weight of a negative in the published code.
WEIGHT_EPS = 1e-9
#: What was added to three biases of the language head before captions were sampled (README).
RAISED_BIASES = {7: 4.0, 9: 3.9, 2: 3.95}


class Losses:
    """Every recorded loss, by task, in the model's type; each call builds a fresh graph."""

    def __init__(self, model: FiberImageText, case: CoarseCase) -> None:
        self.model, self.case = model, case
        self.dtype = model.language_head.decoder.bias.dtype
        self.images = case.input("image").to(self.dtype)
        self.ids, self.mask = case.input("text_ids"), case.input("text_masks").bool()
        self.queue = case.queue(self.dtype)
        #: Numbers of this batch's pictures and texts. The published code has none: no two are equal
        #: and `enqueue` counts on, so that a repeated batch is a batch of new pairs.
        self.numbers = torch.arange(len(self.ids))
        #: Tensors found on the way, by recorded name.
        self.found: dict[str, Tensor] = {}
        #: Chosen negatives, by recorded name.
        self.indices: dict[str, Tensor] = {}

    def tasks(self) -> dict[str, Callable[[], Tensor]]:
        """Losses by recorded name."""
        return {
            "mlm": self.mlm,
            "itc": self.itc,
            "itm_hardneg": self.itm_hardneg,
            "itm": self.itm,
            "vqa": self.vqa,
            "nlvr2": self.nlvr2,
            "caption_mle": self.caption_mle,
            "caption_gold": self.caption_gold,
        }

    def mlm(self) -> Tensor:
        labels = self.case.input("text_labels_mlm")
        picked = labels >= 0
        output = self.model.backbone.encode_pair(
            self.images, self.case.input("text_ids_mlm"), self.mask
        )
        assert output.text is not None
        return mlm_loss(self.model.mlm_logits(output.text, picked), labels[picked])

    def itc(self) -> Tensor:
        """Contrast with the batch and a queue of past features, as published."""
        return self._contrast()[0]

    def _contrast(self) -> tuple[Tensor, Similarities]:
        loss, similarities = queue_itc_loss(
            *self._vectors(),
            self.model.temperature,
            self.numbers,
            self.numbers,
            self.queue,
            only_written=False,
        )
        for name, logits in (
            ("i2t", similarities.image_to_text),
            ("t2i", similarities.text_to_image),
        ):
            weights = logits.softmax(1).masked_fill(~similarities.is_negative, 0.0)
            self.found[f"itc.neg_weights_{name}"] = weights + WEIGHT_EPS
        return loss, similarities

    def _vectors(self) -> tuple[Tensor, Tensor]:
        return self.model.embed_images(self.images), self.model.embed_texts(self.ids, self.mask)

    @torch.no_grad()
    def enqueue(self) -> None:
        """Write the batch into the queue, as a training pass does after its contrastive loss."""
        numbers = self.numbers
        batch = (self.images, self.ids, self.mask)
        self.queue.enqueue(*self._vectors(), *batch, numbers, numbers)
        self.numbers = numbers + len(numbers)

    def pretraining(self) -> tuple[Tensor, Tensor, Tensor]:
        """MLM, ITC and ITM of one step, whose negatives are those of its contrast."""
        itc, similarities = self._contrast()
        return self.mlm(), itc, self._matching(similarities)

    def _hardest(self, similarities: Similarities) -> HardNegatives:
        """The likeliest negatives, which were recorded in place of drawn ones."""
        texts = self.found["itc.neg_weights_i2t"].argmax(1)
        pictures = self.found["itc.neg_weights_t2i"].argmax(1)
        self.indices["itc.neg_text_index_argmax"] = texts
        self.indices["itc.neg_image_index_argmax"] = pictures
        return HardNegatives(
            text_index=texts,
            image_index=pictures,
            exists=similarities.is_negative.any(1),
            counts=similarities.counts,
        )

    def itm_hardneg(self) -> Tensor:
        with torch.no_grad():
            _, similarities = self._contrast()
        return self._matching(similarities)

    def _matching(self, similarities: Similarities) -> Tensor:
        negatives, true = self._hardest(similarities), (self.images, self.ids, self.mask)
        image_index, text_index = negatives.image_index, negatives.text_index
        wrong = self.queue.candidate_rows(*true, image_index=image_index, text_index=text_index)
        self.found["itc.text_neg"] = wrong[1]
        self.found["itc.text_mask_neg"] = wrong[2].long()
        pairs = join_pairs(true, wrong)
        output = self.model.backbone.encode_pair(pairs.image_rows, pairs.text_rows, pairs.text_mask)
        logits = self.model.itm_logits(self.model.pooled(output))
        self.found["itm_hardneg.logits"] = logits
        return itm_loss(logits, len(self.images), negatives)

    def itm(self) -> Tensor:
        labels = self.case.stored("itm.labels").long()
        is_true = (labels == 1)[:, None, None, None]
        false_images = self.case.input("false_image").to(self.dtype)
        pooled = self._pooled(torch.where(is_true, self.images, false_images))
        logits = self.model.itm_logits(pooled)
        self.found["itm.logits"] = logits
        return pair_loss(logits, labels)

    def vqa(self) -> Tensor:
        logits = self.model.vqa_logits(self._pooled(self.images))
        targets = torch.zeros_like(logits)
        answers, scores = [[1, 5], [2], [3, 9, 0]], [[1, 0.3], [0.6], [0.9, 0.3, 1]]
        for row, labels, values in zip(targets, answers, scores, strict=False):
            row[labels] = torch.tensor(values)
        return vqa_loss(logits, targets)

    def nlvr2(self) -> Tensor:
        second = self.case.input("image_1").to(self.dtype)
        logits = self.model.nlvr2_logits(self._pooled(self.images), self._pooled(second))
        self.found["nlvr2.logits"] = logits
        return nlvr2_loss(logits, torch.tensor([1, 0, 1])[: len(logits)])

    def caption_mle(self) -> Tensor:
        return caption_loss(self._caption_logits(), self.ids, self.mask)

    def caption_gold(self) -> Tensor:
        """Off-policy caption loss; the frozen copy that weighs it equals the model itself.

        In evaluation it is the mean over all positions, those without a target being 0.
        """
        logits = self._caption_logits()
        if self.model.training:
            return gold_loss(logits, logits.detach(), self.ids, self.mask, divisor="padding")
        targets = next_tokens(logits, self.ids, self.mask)
        return caption_loss(logits, self.ids, self.mask) * (targets >= 0).sum() / targets.numel()

    def _pooled(self, images: Tensor) -> Tensor:
        return self.model.pooled(self.model.backbone.encode_pair(images, self.ids, self.mask))

    def _caption_logits(self) -> Tensor:
        tokens = self.model.backbone.encode_image(self.images).stages[-1]
        return self.model.caption_logits(self.model.decode_text(tokens, self.ids, self.mask))


@torch.no_grad()
def sampled_captions(model: FiberImageText, images: Tensor, samples: int, length: int) -> Tensor:
    """Captions as they were sampled for CIDEr-D, each draw replaced by the likeliest tokens.

    Args:
        model: three of whose biases are raised meanwhile.
        images: (B, 3, H, W).
        samples: of each picture; they differ in their first token.
        length: tokens of a caption, <s> included.

    Returns:
        (B * samples, length) int64, picture by picture.
    """
    start, pad, end = 0, 1, 2
    bias = model.language_head.decoder.bias
    before = bias.clone()
    for token, amount in RAISED_BIASES.items():
        bias[token] += amount
    tokens = model.backbone.encode_image(images).stages[-1].repeat_interleave(samples, 0)
    ids = torch.full((len(tokens), 1), start)
    ended = torch.zeros(len(tokens), dtype=torch.bool)
    while ids.shape[1] < length:
        text = model.decode_text(tokens, ids, torch.ones_like(ids, dtype=torch.bool))
        logits = model.caption_logits(text[:, -1])
        logits[:, model.config.roberta.mask_id] = -torch.inf
        chosen = logits.argmax(1)
        if ids.shape[1] == 1:
            chosen = logits[::samples].topk(samples).indices.flatten()
        chosen = chosen.masked_fill(ended, pad)
        ended |= (chosen == end) | (chosen == pad)
        ids = torch.cat([ids, chosen[:, None]], 1)
    bias.copy_(before)
    return ids
