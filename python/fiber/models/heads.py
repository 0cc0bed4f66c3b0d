"""Head modules and the recipes that train them."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from fiber.config import FiberConfig, preset

#: LayerNorm epsilon of the language head, from the RoBERTa config of the published code; all other
#: LayerNorms use 1e-5.
LANGUAGE_HEAD_EPS = 1e-12


#: Recipe that trains each head, by preset; models that match no preset use "base". "meter" are all
#: METER models.
HEAD_RECIPES: dict[str, dict[str, str]] = {
    "base": {
        "itc": "retrieval_coco",
        "itm": "retrieval_coco_itm",
        "mlm": "pretrain",
        "vqa": "vqav2",
        "nlvr2": "nlvr2",
        "caption": "caption_coco",
        "grounding": "grounding",
    },
    "small": {
        "itc": "small_retrieval",
        "itm": "small_matching",
        "mlm": "scenes_coarse",
        "vqa": "small_vqa",
        "nlvr2": "small_nlvr2",
        "caption": "small_caption",
        "grounding": "scenes_fine",
    },
    "meter": {
        "itm": "meter_pretrain_published",
        "mlm": "meter_pretrain_published",
        "vqa": "meter_vqav2_published",
        "nlvr2": "meter_nlvr2_published",
        "snli": "meter_snli_ve_published",
        "rank": "meter_retrieval_coco_published",
    },
}


class MissingHeadError(ValueError):
    """Raised if the model lacks the head that a task or method needs."""


class HasHeads(Protocol):
    """Config of any model."""

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads."""
        ...


@runtime_checkable
class HintsAtHeads(HasHeads, Protocol):
    """Config of a family that says where a head is found, and which heads rank pairs."""

    @property
    def pair_heads(self) -> tuple[str, ...]:
        """Heads that rank pairs for retrieval, best first."""
        ...

    def head_hint(self, head: str) -> str:
        """Return a sentence about a head that the model lacks."""
        ...


def need_head(config: HasHeads, head: str | tuple[str, ...], asked: str) -> None:
    """Check that a model has the head, or one of the heads, that a method or task (`asked`) needs.

    Raises:
        MissingHeadError: if it does not; the message lists its heads, and the family's files or a
            recipe with the missing one.
    """
    heads = (head,) if isinstance(head, str) else head
    if set(heads).intersection(config.heads):
        return
    named = " or ".join(map(repr, heads))
    message = f"{asked} needs the head {named}; this model has {', '.join(config.heads)}."
    if isinstance(config, HintsAtHeads):
        message += "".join(f" {config.head_hint(head)}" for head in heads)
    if isinstance(config, FiberConfig):
        is_small = config.roberta.width == preset("small").roberta.width
        kind = "small" if is_small else "base"
    else:
        kind = getattr(config, "family", "")
    # Some heads exist in one family only.
    trained = HEAD_RECIPES.get(kind, {})
    if recipes := [f"`fiber train {trained[head]}`" for head in heads if head in trained]:
        message += f" To train this head, run {' or '.join(recipes)} (see also `fiber recipes`)."
    raise MissingHeadError(message)


class Pooler(nn.Module):
    """Linear layer followed by tanh, applied to one vector per sample."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, vectors: Tensor) -> Tensor:
        """Apply a linear layer and tanh: (B, D) -> (B, D)."""
        return torch.tanh(self.linear(vectors))


class LanguageHead(nn.Module):
    """Vocabulary head for MLM and captioning. Its weights are not tied to the word embeddings."""

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__()
        self.transform = nn.Linear(width, width)
        self.activation = nn.GELU()
        self.norm = nn.LayerNorm(width, eps=LANGUAGE_HEAD_EPS)
        self.decoder = nn.Linear(width, vocab_size)

    def forward(self, text: Tensor) -> Tensor:
        """Compute logits: (..., D) -> (..., vocabulary)."""
        return self.decoder(self.norm(self.activation(self.transform(text))))


class Classifier(nn.Module):
    """Classifier MLP: linear, LayerNorm, GELU, linear."""

    def __init__(self, width_in: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width_in, width)
        self.norm = nn.LayerNorm(width, eps=1e-5)
        self.activation = nn.GELU()
        self.output = nn.Linear(width, num_classes)

    def forward(self, vectors: Tensor) -> Tensor:
        """Compute logits: (B, width_in) -> (B, num_classes)."""
        return self.output(self.activation(self.norm(self.hidden(vectors))))
