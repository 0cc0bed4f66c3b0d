"""METER in plain eager PyTorch, with the published computation: a peer for benches.

Used by `meter_cost.py` and `bench_meter.py`. Parameters have the published names, so a published
state dict loads unchanged; `python -m tests.parity meter DIR --model eager` compares it with
recorded tensors. As in the published code, every objective runs a whole pass of both towers, an
image runs through its tower once per text, every level computes all tokens of both sides,
vocabulary logits are computed at every position, and the cross-modal layers materialize their
attention probabilities. CLIP's tower is built from `nn.MultiheadAttention`, as the published one.

Letters: B pairs, L text tokens, T image tokens, D channels of a side.

Source: METER (Dou et al. 2022), structure of its published code; CLIP (Radford et al. 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benches.eager_fiber import (
    NO_LABEL,
    Dense,
    DenseWithNorm,
    Embeddings,
    Encoder,
    LanguageHead,
    Projections,
    Swin,
    padding_scores,
)
from fiber.config import FiberConfig, FusionConfig
from fiber.models.meter.config import CrossConfig, MeterConfig

#: Token types.
TEXT, IMAGE, SECOND_IMAGE = 0, 1, 2


class QuickGELU(nn.Module):
    """CLIP's approximation of GELU."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return x * torch.sigmoid(1.702 * x)


class ClipMlp(nn.Module):
    """Two linear layers around a QuickGELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, hidden)
        self.gelu = QuickGELU()
        self.c_proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.c_proj(self.gelu(self.c_fc(x)))


class ClipBlock(nn.Module):
    """Pre-norm block on sequences in the order of `nn.MultiheadAttention`, tokens first."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = ClipMlp(width, hidden)
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(T, B, D) -> (T, B, D)."""
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class ClipTransformer(nn.Module):
    """The blocks, under the name that CLIP gives them."""

    def __init__(self, blocks: Sequence[ClipBlock]) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*blocks)


class ClipVisual(nn.Module):
    """Patches and the class token through the blocks; every token is normalized and returned."""

    def __init__(self, config: MeterConfig) -> None:
        super().__init__()
        clip, width = config.clip, config.clip.width
        tokens = 1 + (config.image_size // clip.patch_size) ** 2
        self.conv1 = nn.Conv2d(3, width, clip.patch_size, stride=clip.patch_size, bias=False)
        self.class_embedding = nn.Parameter(width**-0.5 * torch.randn(width))
        self.positional_embedding = nn.Parameter(width**-0.5 * torch.randn(tokens, width))
        self.ln_pre = nn.LayerNorm(width)
        hidden = int(width * clip.mlp_ratio)
        blocks = [ClipBlock(width, clip.num_heads, hidden) for _ in range(clip.num_blocks)]
        self.transformer = ClipTransformer(blocks)
        self.ln_post = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, T, D), the class token first."""
        patches = self.conv1(images).flatten(2).transpose(1, 2)
        first = self.class_embedding + torch.zeros_like(patches[:, :1])
        x = self.ln_pre(torch.cat((first, patches), 1) + self.positional_embedding)
        x = self.transformer.resblocks(x.transpose(0, 1)).transpose(0, 1)
        return self.ln_post(x)


class Clip(nn.Module):
    """The image tower under the name that CLIP gives it."""

    def __init__(self, config: MeterConfig) -> None:
        super().__init__()
        self.visual = ClipVisual(config)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, T, D)."""
        return self.visual(images)


class SwinTokens(Swin):
    """The Swin tower of the coarse peer without fusion, its last map normalized."""

    def __init__(self, config: MeterConfig) -> None:
        unfused = FusionConfig(num_fused_layers=0)
        super().__init__(
            FiberConfig(image_size=config.image_size, swin=config.swin, fusion=unfused)
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, T, D)."""
        return self.norm(super().forward(images))


class Attention(nn.Module):
    """Attention, its output projection, residual and LayerNorm."""

    def __init__(self, width: int, heads: int, eps: float) -> None:
        super().__init__()
        self.self = Projections(width, heads, width)
        self.output = DenseWithNorm(width, width, eps)

    def forward(self, x: Tensor, read: Tensor, mask: Tensor) -> Tensor:
        """(B, Q, D) reads (B, K, D), `mask` (B, 1, 1, K) added to the scores -> (B, Q, D)."""
        return self.output.LayerNorm(x + self.output(self.self(x, read, mask)))


class Layer(nn.Module):
    """Self-attention and MLP of a post-norm layer."""

    def __init__(self, width: int, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, eps)
        self.intermediate = Dense(width, hidden)
        self.output = DenseWithNorm(hidden, width, eps)

    def mlp(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        return self.output.LayerNorm(x + self.output(F.gelu(self.intermediate(x))))


class TextLayer(Layer):
    """Layer of the text tower."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, L, D), `mask` added to the scores -> (B, L, D)."""
        return self.mlp(self.attention(x, x, mask))


class CrossLayer(Layer):
    """Layer of one side, which reads the other side between attention and MLP."""

    def __init__(self, cross: CrossConfig) -> None:
        super().__init__(cross.width, cross.num_heads, cross.ffn_width, cross.layer_norm_eps)
        self.crossattention = Attention(cross.width, cross.num_heads, cross.layer_norm_eps)

    def forward(self, x: Tensor, mask: Tensor, other: Tensor, other_mask: Tensor) -> Tensor:
        """(B, Q, D) and the other side (B, K, D), each with its mask -> (B, Q, D)."""
        return self.mlp(self.crossattention(self.attention(x, x, mask), other, other_mask))


class Roberta(nn.Module):
    """The text tower."""

    def __init__(self, config: MeterConfig) -> None:
        super().__init__()
        size = config.roberta
        self.embeddings = Embeddings(config)
        sizes = size.width, size.num_heads, size.ffn_width, size.layer_norm_eps
        self.encoder = Encoder([TextLayer(*sizes) for _ in range(size.num_layers)])

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(B, L) ids, (B, 1, 1, L) scores -> (B, L, D)."""
        x = self.embeddings(ids)
        for layer in self.encoder.layer:
            x = layer(x, mask)
        return x


class Features(NamedTuple):
    """What a whole pass gives."""

    #: (B, L, D) and (B, T, D), after the last level.
    text: Tensor
    image: Tensor
    #: (B, 2 D) pooled, text before image.
    pooled: Tensor


class EagerMeter(nn.Module):
    """Both towers, co-attention over their outputs, and the heads of the config."""

    def __init__(self, config: MeterConfig) -> None:
        super().__init__()
        self.config, cross, width = config, config.cross, config.cross.width
        self.is_clip = config.image_encoder == "clip"
        self.vit_model = Clip(config) if self.is_clip else SwinTokens(config)
        self.text_transformer = Roberta(config)
        self.cross_modal_text_transform = nn.Linear(config.roberta.width, width)
        self.cross_modal_image_transform = nn.Linear(config.image_width, width)
        self.token_type_embeddings = nn.Embedding(config.num_token_types, width)
        for side in ("text", "image"):
            layers = nn.ModuleList(CrossLayer(cross) for _ in range(cross.num_layers))
            self.add_module(f"cross_modal_{side}_layers", layers)
            self.add_module(f"cross_modal_{side}_pooler", Dense(width, width))
        heads = {
            "mlm": ("mlm_score", lambda: LanguageHead(width, config.vocab_size)),
            "itm": ("itm_score", lambda: nn.ModuleDict({"fc": nn.Linear(2 * width, 2)})),
            "rank": ("rank_output", lambda: nn.Linear(2 * width, 1)),
            "vqa": ("vqa_classifier", lambda: _classifier(2 * width, width, config.num_answers)),
            "nlvr2": ("nlvr2_classifier", lambda: _classifier(4 * width, width, 2)),
            "snli": ("snli_classifier", lambda: _classifier(2 * width, width, 3)),
        }
        for head in config.heads:
            name, build = heads[head]
            self.add_module(name, build())

    def infer(
        self, images: Tensor, ids: Tensor, text_mask: Tensor, image_type: int = IMAGE
    ) -> Features:
        """Run both towers and all levels: one whole pass."""
        mask = padding_scores(text_mask)
        types = self.token_type_embeddings.weight
        x = self.cross_modal_text_transform(self.text_transformer(ids, mask)) + types[TEXT]
        y = self.cross_modal_image_transform(self.vit_model(images)) + types[image_type]
        # No image token is hidden; the published code adds these zeros, too.
        image_mask = y.new_zeros(len(y), 1, 1, y.shape[1])
        levels = zip(self.cross_modal_text_layers, self.cross_modal_image_layers, strict=True)
        for text_layer, image_layer in levels:
            x, y = text_layer(x, mask, y, image_mask), image_layer(y, image_mask, x, mask)
        first = y[:, 0] if self.is_clip else y.mean(1)
        pooled = (
            torch.tanh(self.cross_modal_text_pooler(x[:, 0])),
            torch.tanh(self.cross_modal_image_pooler(first)),
        )
        return Features(x, y, torch.cat(pooled, -1))


def _classifier(width_in: int, width: int, classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width_in, 2 * width),
        nn.LayerNorm(2 * width),
        nn.GELU(),
        nn.Linear(2 * width, classes),
    )


class Batch(NamedTuple):
    """Pairs, and what the objectives draw for them."""

    #: (B, 3, S, S); `false_images` are those of other captions, drawn from the data set.
    images: Tensor
    false_images: Tensor
    #: (B, L) ids and bool mask.
    ids: Tensor
    text_mask: Tensor
    #: (B,) int64, 1 where a text keeps its image.
    itm_labels: Tensor
    #: (B, L) ids with masked tokens, and labels with -100 elsewhere.
    masked_ids: Tensor
    mlm_labels: Tensor
    #: (B, K, L) ids and bool mask of K false texts of each image.
    false_ids: Tensor
    false_mask: Tensor


def mlm_loss(model: EagerMeter, batch: Batch) -> Tensor:
    """MLM: a whole pass on the masked texts, and vocabulary logits at every position."""
    features = model.infer(batch.images, batch.masked_ids, batch.text_mask)
    logits = model.mlm_score(features.text)
    return F.cross_entropy(logits.flatten(0, 1), batch.mlm_labels.flatten(), ignore_index=NO_LABEL)


def itm_logits(model: EagerMeter, batch: Batch) -> Tensor:
    """A whole pass in which half of the texts have an image of another caption: (B, 2)."""
    is_true = batch.itm_labels[:, None, None, None] == 1
    images = torch.where(is_true, batch.images, batch.false_images)
    pooled = model.infer(images, batch.ids, batch.text_mask).pooled
    return model.itm_score["fc"](pooled)


def itm_loss(model: EagerMeter, batch: Batch) -> Tensor:
    """ITM, as in `itm_logits`."""
    return F.cross_entropy(itm_logits(model, batch), batch.itm_labels)


def pretraining_loss(model: EagerMeter, batch: Batch) -> Tensor:
    """MLM + ITM, as published: two whole passes."""
    return mlm_loss(model, batch) + itm_loss(model, batch)


def ranking_scores(model: EagerMeter, batch: Batch) -> Tensor:
    """Score the own text of each image and K false ones, the image repeated: (B, 1 + K)."""
    texts = 1 + batch.false_ids.shape[1]
    ids = torch.cat((batch.ids[:, None], batch.false_ids), 1).flatten(0, 1)
    mask = torch.cat((batch.text_mask[:, None], batch.false_mask), 1).flatten(0, 1)
    images = batch.images.repeat_interleave(texts, 0)
    return model.rank_output(model.infer(images, ids, mask).pooled).view(-1, texts)


def ranking_loss(model: EagerMeter, batch: Batch) -> Tensor:
    """Cross entropy of the own text of each image among those scored with it."""
    scores = ranking_scores(model, batch)
    targets = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
    return F.cross_entropy(scores, targets)


def retrieval_loss(model: EagerMeter, batch: Batch) -> Tensor:
    """Ranking + ITM, as published: 2 + K whole passes of each image."""
    return ranking_loss(model, batch) + itm_loss(model, batch)


def vqa_loss(
    model: EagerMeter, images: Tensor, ids: Tensor, text_mask: Tensor, targets: Tensor
) -> Tensor:
    """Binary cross entropy over the answers, their mean times their number, as published."""
    logits = model.vqa_classifier(model.infer(images, ids, text_mask).pooled)
    return F.binary_cross_entropy_with_logits(logits, targets) * targets.shape[1]
