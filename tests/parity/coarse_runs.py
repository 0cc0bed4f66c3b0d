"""What our model computes for every recorded name of a coarse case.

The losses are written out here from their definitions, so that a mistake in `fiber.losses` cannot
hide one in the model.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fiber.models.captioner import beam_search
from fiber.models.image_text import FiberImageText
from tests.parity.coarse_case import CoarseCase

#: Label of a position where no word is asked for.
NO_LABEL = -100


@contextmanager
def recorded_modules(model: FiberImageText, prefix: str, into: dict[str, Tensor]):
    """Store the output of every block and layer under its recorded name, below `prefix`."""
    backbone = model.backbone
    handles = []

    def record(module: nn.Module, *names: str) -> None:
        def hook(_module: nn.Module, _arguments: tuple, output: Tensor) -> None:
            tokens = output.flatten(1, 2) if output.dim() == 4 else output
            for name in names:
                into[f"{prefix}.{name}"] = tokens

        handles.append(module.register_forward_hook(hook))

    record(backbone.image.patch_embedding, "vit.patch_embed")
    last_place = backbone.image.places[-1]
    for number, (stage, block) in enumerate(backbone.image.places):
        names = [f"vit.stage{stage}.block{block}"]
        if (stage, block) == last_place:
            names.append(f"vit.stage{stage}")
        record(backbone.image.block(number), *names)
    for stage in range(len(backbone.image.stages) - 1):
        merging = backbone.image.stages[stage].merging
        record(merging, f"vit.stage{stage}.downsample", f"vit.stage{stage}")
    record(model.itc_image_norm, "vit.norm")
    record(backbone.text.embeddings, "txt.embeddings")
    for number, layer in enumerate(backbone.text.layers):
        record(layer, f"txt.layer{number}")
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run_dual(model: FiberImageText, case: CoarseCase) -> dict[str, Tensor]:
    """Contrastive mode."""
    found: dict[str, Tensor] = {}
    with recorded_modules(model, "itc", found):
        output = model.backbone.encode_image(case.input("image"))
        text = model.backbone.encode_text(case.input("text_ids"), case.input("text_masks").bool())
        found["itc.image_cls"] = model.image_vectors(output)
    found["itc.text_cls"] = model.text_vectors(text)
    tokens = model.itc_image_norm(output.stages[-1]).flatten(1, 2)
    found["itc.image_feats"] = model.itc_image_transform(tokens)
    found["itc.text_feats"] = model.itc_text_transform(text)
    return found


def run_fused(model: FiberImageText, case: CoarseCase) -> dict[str, Tensor]:
    """Fused mode on the unmasked and the masked text."""
    found: dict[str, Tensor] = {}
    images, mask = case.input("image"), case.input("text_masks").bool()
    with recorded_modules(model, "fused", found):
        output = model.backbone.encode_pair(images, case.input("text_ids"), mask)
    assert output.text is not None
    pooled = model.pooled(output)
    found["fused.text_feats"] = model.text_transform(output.text)
    found["fused.image_feats"] = model.image_transform(output.stages[-1].flatten(1, 2))
    found["fused.cls_feats"] = pooled
    found["fused.itm_logits"] = model.itm_logits(pooled)
    found["fused.rank_output"] = model.itm_logits(pooled)[:, 1:]
    found["fused.vqa_logits"] = model.vqa_logits(pooled)
    masked = model.backbone.encode_pair(images, case.input("text_ids_mlm"), mask)
    assert masked.text is not None
    found["mlm.logits"] = model.mlm_logits(masked.text)
    return found


def run_caption(model: FiberImageText, case: CoarseCase) -> dict[str, Tensor]:
    """Captioning mode."""
    found: dict[str, Tensor] = {}
    ids, mask = case.input("text_ids"), case.input("text_masks").bool()
    with recorded_modules(model, "caption", found):
        tokens = model.backbone.encode_image(case.input("image")).stages[-1]
        text = model.decode_text(tokens, ids, mask)
    found["caption.image_embeds"] = tokens.flatten(1, 2)
    found["caption.text_feats"] = model.text_transform(text)
    found["caption.cls_feats"] = model.text_pooler(model.text_transform(text[:, 0]))
    found["caption.logits"] = model.caption_logits(text)
    found["caption.labels"] = caption_labels(ids, mask)
    return found


def caption_labels(ids: Tensor, mask: Tensor) -> Tensor:
    """The next token of each position; -100 at the last one and where there is none."""
    labels = torch.full_like(ids, NO_LABEL)
    labels[:, :-1] = ids[:, 1:].masked_fill(~mask[:, 1:], NO_LABEL)
    return labels


def run_beams(model: FiberImageText, case: CoarseCase) -> dict[str, Tensor]:
    """Beam search of every recorded width."""
    tokens = model.backbone.encode_image(case.input("image")).stages[-1]
    found = {}
    for name, record in case.records.items():
        width = re.fullmatch(r"beam(\d+)\.text_ids", name)
        if width:
            found[name] = beam_search(
                model, tokens, num_beams=int(width[1]), max_tokens=record["shape"][1] + 1
            ).token_ids
    return found


class Losses:
    """Every recorded loss, by task; each call builds a fresh graph."""

    def __init__(self, model: FiberImageText, case: CoarseCase) -> None:
        self.model, self.case = model, case
        self.images = case.input("image")
        self.ids, self.mask = case.input("text_ids"), case.input("text_masks").bool()
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
        output = self.model.backbone.encode_pair(
            self.images, self.case.input("text_ids_mlm"), self.mask
        )
        assert output.text is not None
        labels = self.case.input("text_labels_mlm")
        picked = labels != NO_LABEL
        return F.cross_entropy(self.model.mlm_logits(output.text, picked), labels[picked])

    def itc(self) -> Tensor:
        """Contrast with the batch and a queue of past features, as published."""
        loss, _ = self._contrast()
        return loss

    def _contrast(self) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        model, case = self.model, self.case
        image = model.embed_images(self.images)
        text = model.embed_texts(self.ids, self.mask)
        image_keys = torch.cat((image.detach().t(), case.input("image_queue")), 1)
        text_keys = torch.cat((text.detach().t(), case.input("text_queue")), 1)
        image_to_text = image @ text_keys / model.temperature
        text_to_image = text @ image_keys / model.temperature
        targets = torch.arange(len(image))
        loss = F.cross_entropy(image_to_text, targets) + F.cross_entropy(text_to_image, targets)
        usable = len(image) + case.scalars["input.queue_total"]
        weights = []
        for logits in (image_to_text, text_to_image):
            weight = logits[:, :usable].detach().softmax(1)
            weight.fill_diagonal_(0)
            weights.append(weight + 1e-9)
        self.found["itc.neg_weights_i2t"], self.found["itc.neg_weights_t2i"] = weights
        return loss / 2, (weights[0], weights[1])

    def itm_hardneg(self) -> Tensor:
        """Match 3 B pairs; the hardest candidate stands in for the random draw, as recorded."""
        model, case, batch = self.model, self.case, len(self.images)
        with torch.no_grad():
            _, (image_to_text, text_to_image) = self._contrast()
        image_pool = torch.cat((self.images, case.input("image_input_queue")))
        text_pool = torch.cat((self.ids, case.input("text_input_queue")))
        mask_pool = torch.cat((self.mask, case.input("text_input_mask_queue").bool()))
        texts, pictures = image_to_text.argmax(1), text_to_image.argmax(1)
        self.indices["itc.neg_text_index_argmax"] = texts
        self.indices["itc.neg_image_index_argmax"] = pictures
        self.found["itc.text_neg"] = text_pool[texts]
        self.found["itc.text_mask_neg"] = mask_pool[texts].long()
        output = model.backbone.encode_pair(
            torch.cat((self.images, self.images, image_pool[pictures])),
            torch.cat((self.ids, text_pool[texts], self.ids)),
            torch.cat((self.mask, mask_pool[texts], self.mask)),
        )
        logits = model.itm_logits(model.pooled(output))
        labels = torch.zeros(3 * batch, dtype=torch.long)
        labels[:batch] = 1
        self.found["itm_hardneg.logits"] = logits
        self.found["itm_hardneg.labels"] = labels.float()
        return F.cross_entropy(logits, labels)

    def itm(self) -> Tensor:
        labels = self.case.stored("itm.labels").long()
        images = torch.where(
            labels[:, None, None, None] == 1, self.images, self.case.input("false_image")
        )
        output = self.model.backbone.encode_pair(images, self.ids, self.mask)
        logits = self.model.itm_logits(self.model.pooled(output))
        self.found["itm.logits"] = logits
        return F.cross_entropy(logits, labels)

    def vqa(self) -> Tensor:
        logits = self.model.vqa_logits(self._pooled(self.images))
        targets = torch.zeros_like(logits)
        answers, scores = [[1, 5], [2], [3, 9, 0]], [[1, 0.3], [0.6], [0.9, 0.3, 1]]
        for row, (labels, values) in enumerate(zip(answers, scores, strict=True)):
            if row < len(targets):
                targets[row, labels] = torch.tensor(values)
        loss = F.binary_cross_entropy_with_logits(logits, targets)
        return loss * targets.shape[1]

    def nlvr2(self) -> Tensor:
        logits = self.model.nlvr2_logits(
            self._pooled(self.images), self._pooled(self.case.input("image_1"))
        )
        self.found["nlvr2.logits"] = logits
        return F.cross_entropy(logits, torch.tensor([1, 0, 1])[: len(logits)])

    def caption_mle(self) -> Tensor:
        labels = caption_labels(self.ids, self.mask)
        return F.cross_entropy(self._caption_logits().flatten(0, 1), labels.flatten())

    def caption_gold(self) -> Tensor:
        """Off-policy caption loss; the frozen copy that weighs it equals the model itself.

        In evaluation it is the mean over all positions, in training it is divided by the number of
        positions without a target: both as published.
        """
        labels = caption_labels(self.ids, self.mask)
        logits, real = self._caption_logits(), labels != NO_LABEL
        entropy = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        if not self.model.training:
            return entropy.mean()
        probabilities = (logits.detach().softmax(-1) + 1e-9).log().exp()
        p = probabilities.gather(2, labels.clamp(min=0)[..., None])[..., 0] * real
        # Mean of p over the real positions from t on.
        following = real.flip(1).cumsum(1).flip(1)
        q = p.flip(1).cumsum(1).flip(1) / following.clamp(min=1)
        weights = (p * q).clamp(min=0.1)
        return ((weights * entropy).sum(1) / ((~real).sum(1) + 1e-9)).mean()

    def _pooled(self, images: Tensor) -> Tensor:
        return self.model.pooled(self.model.backbone.encode_pair(images, self.ids, self.mask))

    def _caption_logits(self) -> Tensor:
        tokens = self.model.backbone.encode_image(self.images).stages[-1]
        return self.model.caption_logits(self.model.decode_text(tokens, self.ids, self.mask))
