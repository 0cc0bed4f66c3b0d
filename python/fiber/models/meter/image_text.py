"""METER model: backbone with image-text heads. Returns raw logits.

Shapes:
    images: (B, 3, S, S).
    token_ids: (B, L) int64.
    text_mask: (B, L) bool, True = real token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fiber.data.datasets.snli_ve import ENTAILMENT
from fiber.models.features import BackboneOutput, ImagePrefix
from fiber.models.image_text import Classifier, ImageTextModel, LanguageHead, Pooler
from fiber.models.init import init_linear
from fiber.models.meter.backbone import IMAGE, SECOND_IMAGE, MeterBackbone
from fiber.models.meter.config import MeterConfig
from fiber.models.meter.parameter_parts import DECAY, PARTS


class MeterImageText(ImageTextModel):
    """METER model with the heads in `config.image_text.heads`.

    Methods that need a missing head raise AttributeError.
    """

    parts = PARTS
    published_decay = DECAY

    def __init__(self, config: MeterConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = MeterBackbone(config)
        heads, width = set(config.heads), config.cross.width
        built: list[nn.Module] = []

        def build(module: nn.Module) -> nn.Module:
            built.append(module)
            return module

        self.text_pooler = build(Pooler(width))
        self.image_pooler = build(Pooler(width))
        if "itm" in heads:
            self.itm_head = build(nn.Linear(2 * width, 2))
        if "mlm" in heads:
            self.language_head = build(LanguageHead(width, config.vocab_size))
        if "vqa" in heads:
            self.vqa_head = build(Classifier(2 * width, 2 * width, config.num_answers))
        if "nlvr2" in heads:
            self.nlvr2_head = build(Classifier(4 * width, 2 * width, 2))
        if "snli" in heads:
            self.snli_head = build(Classifier(2 * width, 2 * width, len(ENTAILMENT)))
        if "rank" in heads:
            self.rank_head = build(nn.Linear(2 * width, 1))
        for module in built:
            init_linear(module, fan_in=config.weight_start == "fan_in")

    def forward(self, images: Tensor, token_ids: Tensor, text_mask: Tensor, head: str) -> Tensor:
        """Run the backbone and one head.

        For "nlvr2", images are (B, 2, 3, S, S), left image first.

        Returns:
            Logits of the head:

            - "itm" and "nlvr2": (B, 2), where column 1 means true.
            - "vqa": (B, answers).
            - "snli": (B, 3), in the order of `ENTAILMENT`.
            - "rank": (B,).
            - "mlm": (B, L, vocabulary).

        Raises:
            ValueError: if the model does not have the head.
        """
        if head not in self.config.heads:
            heads = ", ".join(map(repr, self.config.heads))
            raise ValueError(f"head: expected one of {heads}, got {head!r}")
        if head == "nlvr2":
            return self.statement_logits(images, token_ids, text_mask)
        if head == "mlm":
            fused = self.backbone.encode_pair(images, token_ids, text_mask, wanted="text")
            assert fused.text is not None
            return self.mlm_logits(fused.text)
        fused = self.backbone.encode_pair(images, token_ids, text_mask, wanted="pooled")
        logits = {
            "itm": self.itm_logits,
            "vqa": self.vqa_logits,
            "snli": self.snli_logits,
            "rank": self.rank_scores,
        }
        return logits[head](self.pooled(fused))

    @property
    def pooled_width(self) -> int:
        """See `ImageTextModel`."""
        return 2 * self.config.cross.width

    def pooled(self, output: BackboneOutput) -> Tensor:
        """See `ImageTextModel`."""
        assert output.text is not None
        image = output.stages[-1]
        # The class token of CLIP; Swin has none.
        is_clip = self.config.image_encoder == "clip"
        image = image[:, 0] if is_clip else image.mean(1)
        return torch.cat((self.text_pooler(output.text[:, 0]), self.image_pooler(image)), -1)

    def snli_logits(self, pooled: Tensor) -> Tensor:
        """Compute entailment logits: (B, 2 D) -> (B, 3), in the order of `ENTAILMENT`."""
        return self.snli_head(pooled)

    def rank_scores(self, pooled: Tensor) -> Tensor:
        """Compute retrieval scores: (B, 2 D) -> (B,)."""
        return self.rank_head(pooled)[:, 0]

    @property
    def scores_are_log_odds(self) -> bool:
        """False: pairs are ranked by a single logit."""
        return False

    def ranking_scores(self, pooled: Tensor) -> Tensor:
        """See `ImageTextModel`. Without a ranking head, pairs are ranked by the "match" logit.

        The published code initializes the ranking head with that row of the ITM head.
        """
        if "rank" in self.config.heads:
            return self.rank_scores(pooled)
        return self.itm_logits(pooled)[:, 1]

    def image_prefix(self, images: Tensor, is_right: Tensor | None = None) -> ImagePrefix:
        """See `ImageTextModel`. Right images of NLVR2 have a token type of their own."""
        types = None if is_right is None else torch.where(is_right, SECOND_IMAGE, IMAGE)
        return self.backbone.image_prefix(images, types)
