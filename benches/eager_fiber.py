"""FIBER's coarse model in plain eager PyTorch, with the published computation: a peer for benches.

Used by `bench_model.py` and `bench_retrieval.py`. Parameters have the published names, so a
published state dict loads unchanged; `python -m tests.parity coarse DIR --model eager` compares it
with recorded tensors. As in the published code, every objective runs its own forward passes, every
window of an image projects and reads the text again, and vocabulary logits are computed at every
position.

Letters: B pairs, L tokens, D text width, C channels, N tokens of a window, h heads, d head dim.

Source: FIBER (Dou et al. 2022), structure of its published code; Swin Transformer, RoBERTa.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fiber.config import FiberConfig

#: Mask value of a padding token, as in the published library version.
MASKED = -10000.0
#: Mask value of two tokens that are in one window only because of the cyclic shift.
SEPARATED = -100.0
PAD_ID = 1
NO_LABEL = -100


class Mlp(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.fc2(self.act(self.fc1(x)))


class WindowAttention(nn.Module):
    """Self-attention inside windows and, in a fused block, gated attention to the text."""

    def __init__(self, channels: int, heads: int, window: int, text_width: int | None) -> None:
        super().__init__()
        self.heads, self.scale = heads, (channels // heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.relative_position_index: Tensor
        self.register_buffer(
            "relative_position_index", relative_position_index(window), persistent=False
        )
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.is_fused = text_width is not None
        if text_width is not None:
            self.alpha_i2t = nn.Parameter(torch.zeros(1))
            self.qkv_text_i2t = nn.Linear(text_width, 2 * channels)
            self.qkv_i2t = nn.Linear(channels, channels)
            self.proj_i2t = nn.Linear(channels, channels)
            self.norm_i2t_i = nn.LayerNorm(channels)

    def forward(
        self, x: Tensor, mask: Tensor | None, text: Tensor | None, text_mask: Tensor | None
    ) -> Tensor:
        """Attend.

        Args:
            x: (B nW, N, C), the windows of an image one after the other.
            mask: (nW, N, N) scores to add in shifted windows.
            text: (B, L, D) to be read, or None.
            text_mask: (B, 1, 1, L) scores to add.
        """
        windows, tokens, channels = x.shape
        qkv = self.qkv(x).reshape(windows, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        scores = (query * self.scale) @ key.transpose(-2, -1)
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)]
        scores = scores + bias.view(tokens, tokens, -1).permute(2, 0, 1)
        if mask is not None:
            scores = scores.view(-1, len(mask), self.heads, tokens, tokens) + mask[:, None]
            scores = scores.view(windows, self.heads, tokens, tokens)
        x = (scores.softmax(-1) @ value).transpose(1, 2).reshape(windows, tokens, channels)
        x = self.proj(x)
        if text is None or text_mask is None:
            return x
        return x + self.alpha_i2t * self._read(x, text, text_mask)

    def _read(self, x: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        """Read the text from every window: (B nW, N, C) -> the same."""
        windows, tokens, channels = x.shape
        repeats, length = windows // len(text), text.shape[1]
        key_value = self.qkv_text_i2t(text).reshape(len(text), length, 2, self.heads, -1)
        key_value = key_value.permute(2, 0, 3, 1, 4).repeat_interleave(repeats, dim=1)
        key, value = key_value.unbind(0)
        query = self.qkv_i2t(self.norm_i2t_i(x)).reshape(windows, tokens, self.heads, -1)
        scores = (query.transpose(1, 2) * self.scale) @ key.transpose(-2, -1)
        scores = scores + text_mask.repeat_interleave(repeats, dim=0)
        read = (scores.softmax(-1) @ value).transpose(1, 2).reshape(windows, tokens, channels)
        return self.proj_i2t(read)


class SwinBlock(nn.Module):
    """Window attention and MLP, each behind a LayerNorm and added to the residual stream."""

    def __init__(
        self,
        channels: int,
        heads: int,
        window: int,
        side: int,
        *,
        shifted: bool,
        text_width: int | None,
    ) -> None:
        super().__init__()
        self.side, self.window = side, min(window, side)
        self.shift = window // 2 if shifted and side > window else 0
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, self.window, text_width)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, 4 * channels)
        mask = shift_mask(side, self.window, self.shift) if self.shift else None
        self.attn_mask: Tensor | None
        self.register_buffer("attn_mask", mask, persistent=False)

    def forward(
        self, x: Tensor, text: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        """(B, H W, C) -> (B, H W, C)."""
        batch, _, channels = x.shape
        grid = self.norm1(x).view(batch, self.side, self.side, channels)
        if self.shift:
            grid = torch.roll(grid, (-self.shift, -self.shift), (1, 2))
        windows = self.attn(to_windows(grid, self.window), self.attn_mask, text, text_mask)
        grid = from_windows(windows, self.window, self.side)
        if self.shift:
            grid = torch.roll(grid, (self.shift, self.shift), (1, 2))
        x = x + grid.reshape(batch, -1, channels)
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """Project patches of 4 x 4 pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, 4, stride=4)
        self.norm = nn.LayerNorm(channels)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, H / 4 * W / 4, C)."""
        return self.norm(self.proj(images).flatten(2).transpose(1, 2))


class PatchMerging(nn.Module):
    """Join each square of 2 x 2 tokens."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H W, C) -> (B, H W / 4, 2 C)."""
        grid = x.view(len(x), self.side, self.side, -1)
        corners = [grid[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, -1).flatten(1, 2)))


class SwinStage(nn.Module):
    """Blocks of one resolution."""

    def __init__(self, blocks: list[SwinBlock], downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample
        # The same blocks with their type.
        self.typed_blocks = tuple(blocks)


class Swin(nn.Module):
    """The image tower."""

    def __init__(self, config: FiberConfig) -> None:
        super().__init__()
        swin = config.swin
        first_fused = sum(swin.depths) - config.fusion.num_fused_layers
        self.patch_embed = PatchEmbed(swin.embed_dim)
        stages, number = [], 0
        for stage, depth in enumerate(swin.depths):
            channels, side = swin.channels[stage], config.image_size // (4 * 2**stage)
            blocks = []
            for block in range(depth):
                blocks.append(
                    SwinBlock(
                        channels,
                        swin.num_heads[stage],
                        swin.window_size,
                        side,
                        shifted=block % 2 == 1,
                        text_width=config.roberta.width if number >= first_fused else None,
                    )
                )
                number += 1
            last = stage == len(swin.depths) - 1
            stages.append(SwinStage(blocks, None if last else PatchMerging(channels, side)))
        self.layers = nn.ModuleList(stages)
        self.stages: tuple[SwinStage, ...] = tuple(stages)
        self.norm = nn.LayerNorm(swin.channels[-1])

    def forward(self, images: Tensor) -> Tensor:
        """Run without a text: (B, 3, H, W) -> (B, T, C), not normalized."""
        x = self.patch_embed(images)
        for stage in self.stages:
            for block in stage.typed_blocks:
                x = block(x)
            if stage.downsample is not None:
                x = stage.downsample(x)
        return x


class Dense(nn.Module):
    """A linear layer under the name that the text tower's library gives it."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width_in, width_out)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width_in) -> (..., width_out)."""
        return self.dense(x)


class DenseWithNorm(Dense):
    """The same beside a LayerNorm, which the caller applies."""

    def __init__(self, width_in: int, width_out: int, eps: float = 1e-5) -> None:
        super().__init__(width_in, width_out)
        self.LayerNorm = nn.LayerNorm(width_out, eps=eps)


class Projections(nn.Module):
    """Multi-head attention without its output projection."""

    def __init__(self, width: int, heads: int, width_read: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width_read, width)
        self.value = nn.Linear(width_read, width)

    def forward(self, x: Tensor, read: Tensor, mask: Tensor | None) -> Tensor:
        """Attend from (B, L, D) to (B, T, width_read), `mask` added to the scores."""
        query, key, value = (
            linear(source).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear, source in ((self.query, x), (self.key, read), (self.value, read))
        )
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        if mask is not None:
            scores = scores + mask
        return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Attention and its output projection."""

    def __init__(self, width: int, heads: int, width_read: int) -> None:
        super().__init__()
        self.self = Projections(width, heads, width_read)
        self.output = DenseWithNorm(width, width)

    def forward(self, x: Tensor, read: Tensor, mask: Tensor | None) -> Tensor:
        """(B, L, D), (B, T, width_read) -> (B, L, D), without residual."""
        return self.output(self.self(x, read, mask))


class TextLayer(nn.Module):
    """Self-attention, in a fused layer attention to the image, and MLP."""

    def __init__(self, width: int, heads: int, ffn_width: int, image_width: int | None) -> None:
        super().__init__()
        self.alpha_t2i = nn.Parameter(torch.zeros(1))
        self.attention = Attention(width, heads, width)
        if image_width is not None:
            self.crossattention_t2i = Attention(width, heads, image_width)
        self.intermediate = Dense(width, ffn_width)
        self.output = DenseWithNorm(ffn_width, width)

    def forward(
        self, x: Tensor, mask: Tensor, image: Tensor | None = None, *, last_norm: bool = True
    ) -> Tensor:
        """(B, L, D), `mask` added to the scores, (B, T, C) to be read -> (B, L, D)."""
        attended = self.attention(x, x, mask)
        if image is not None:
            read = self.crossattention_t2i(attended, image, None)
            attended = attended + self.alpha_t2i * read
        x = self.attention.output.LayerNorm(attended + x)
        x = x + self.output(F.gelu(self.intermediate(x)))
        return self.output.LayerNorm(x) if last_norm else x


class Embeddings(nn.Module):
    """Word, position and token-type vectors."""

    def __init__(self, config: FiberConfig) -> None:
        super().__init__()
        roberta = config.roberta
        self.word_embeddings = nn.Embedding(roberta.vocab_size, roberta.width)
        self.position_embeddings = nn.Embedding(roberta.max_positions, roberta.width)
        self.token_type_embeddings = nn.Embedding(1, roberta.width)
        self.LayerNorm = nn.LayerNorm(roberta.width)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, L) -> (B, L, D)."""
        real = (ids != PAD_ID).long()
        positions = real.cumsum(1) * real + PAD_ID
        summed = self.word_embeddings(ids) + self.token_type_embeddings(torch.zeros_like(ids))
        return self.LayerNorm(summed + self.position_embeddings(positions))


class Encoder(nn.Module):
    """The layers, under the name that the library gives them."""

    def __init__(self, layers: list[TextLayer]) -> None:
        super().__init__()
        self.layer = nn.ModuleList(layers)


class Roberta(nn.Module):
    """The text tower."""

    def __init__(self, config: FiberConfig, image_widths: list[int | None]) -> None:
        super().__init__()
        roberta = config.roberta
        self.embeddings = Embeddings(config)
        layers = [
            TextLayer(roberta.width, roberta.num_heads, roberta.ffn_width, width)
            for width in image_widths
        ]
        self.encoder = Encoder(layers)
        self.layers = tuple(layers)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Run without an image: (B, L) ids, (B, 1, 1, L) scores -> (B, L, D)."""
        x = self.embeddings(ids)
        for layer in self.layers:
            x = layer(x, mask)
        return x


class LanguageHead(nn.Module):
    """Vocabulary logits."""

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__()
        self.transform = DenseWithNorm(width, width, eps=1e-12)
        self.decoder = nn.Linear(width, vocab_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""
        return self.decoder(self.transform.LayerNorm(F.gelu(self.transform(x)))) + self.bias


class Features(NamedTuple):
    """What a fused pass gives."""

    #: (B, L, D) and (B, T, D), transformed.
    text: Tensor
    image: Tensor
    #: (B, 2 D) pooled, text before image.
    pooled: Tensor


class EagerFiber(nn.Module):
    """Both towers and every head of the coarse stage."""

    def __init__(self, config: FiberConfig) -> None:
        super().__init__()
        self.config = config
        roberta, swin = config.roberta, config.swin
        width, channels = roberta.width, swin.channels
        # The stage of each fused image block, and so the width that its text layer reads.
        places = [stage for stage, depth in enumerate(swin.depths) for _ in range(depth)]
        fused = [channels[stage] for stage in places[-config.fusion.num_fused_layers :]]
        plain = roberta.num_layers - len(fused)
        self.num_plain_layers = plain
        self.vit_model = Swin(config)
        self.text_transformer = Roberta(config, [*[None] * plain, *fused])
        self.cross_modal_text_transform = nn.Linear(width, width)
        self.cross_modal_image_transform = nn.Linear(channels[-1], width)
        self.cross_modal_text_pooler = Dense(width, width)
        self.cross_modal_image_pooler = Dense(width, width)
        self.cross_modal_text_transform_itc = nn.Linear(width, width)
        self.cross_modal_image_transform_itc = nn.Linear(channels[-1], width)
        self.cross_modal_text_pooler_itc = Dense(width, width)
        self.cross_modal_image_pooler_itc = Dense(width, width)
        self.temp = nn.Parameter(torch.tensor(0.07))
        self.mlm_score = LanguageHead(width, roberta.vocab_size)
        self.itm_score = nn.ModuleDict({"fc": nn.Linear(2 * width, 2)})
        answers = config.image_text.num_answers
        self.vqa_classifier = _classifier(2 * width, 2 * width, answers)
        self.nlvr2_classifier = _classifier(4 * width, 2 * width, 2)
        # Of the published ten the text layers use those at their own number.
        self.cross_modal_att_layers = nn.ModuleList(
            nn.Linear(channels[-1], channels[-2]) for _ in range(roberta.num_layers - 2)
        )

    def embed_images(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D) of unit length."""
        tokens = self.cross_modal_image_transform_itc(self.vit_model.norm(self.vit_model(images)))
        return F.normalize(torch.tanh(self.cross_modal_image_pooler_itc(tokens.mean(1))), dim=-1)

    def embed_texts(self, ids: Tensor, text_mask: Tensor) -> Tensor:
        """(B, L) ids and bool mask -> (B, D) of unit length."""
        text = self.text_transformer(ids, padding_scores(text_mask))
        first = self.cross_modal_text_transform_itc(text)[:, 0]
        return F.normalize(torch.tanh(self.cross_modal_text_pooler_itc(first)), dim=-1)

    def fuse(self, images: Tensor, ids: Tensor, text_mask: Tensor) -> Features:
        """Run both towers, fused in their last blocks: one whole pass."""
        mask = padding_scores(text_mask)
        layers = self.text_transformer.layers
        text = self.text_transformer.embeddings(ids)
        for layer in layers[: self.num_plain_layers]:
            text = layer(text, mask)
        x, number = self.vit_model.patch_embed(images), self.num_plain_layers
        for stage in self.vit_model.stages:
            for block in stage.typed_blocks:
                if block.attn.is_fused:
                    last_norm = number < len(layers) - 1
                    new_x = block(x, text, mask)
                    text = layers[number](text, mask, x, last_norm=last_norm)
                    x, number = new_x, number + 1
                else:
                    x = block(x)
            if stage.downsample is not None:
                x = stage.downsample(x)
        text, image = self.cross_modal_text_transform(text), self.cross_modal_image_transform(x)
        pooled = (
            torch.tanh(self.cross_modal_text_pooler(text[:, 0])),
            torch.tanh(self.cross_modal_image_pooler(image.mean(1))),
        )
        return Features(text, image, torch.cat(pooled, -1))

    def decode_text(self, images: Tensor, ids: Tensor, text_mask: Tensor) -> Tensor:
        """Caption mode: (B, L, D), transformed; position t depends on tokens 0 to t."""
        tokens = self.vit_model(images)
        length = ids.shape[1]
        future = torch.full((length, length), -torch.inf, device=ids.device).triu(1)
        lowest = torch.finfo(tokens.dtype).min
        mask = future + (~text_mask[:, None, None]).float() * lowest
        text = self.text_transformer.embeddings(ids)
        for number, layer in enumerate(self.text_transformer.layers):
            if number < self.num_plain_layers:
                text = layer(text, mask)
                continue
            narrow = layer.crossattention_t2i.self.key.in_features < tokens.shape[-1]
            read = self.cross_modal_att_layers[number](tokens) if narrow else tokens
            text = layer(text, mask, read)
        return self.cross_modal_text_transform(text)

    def itm_logits(self, pooled: Tensor) -> Tensor:
        """(B, 2 D) -> (B, 2)."""
        return self.itm_score["fc"](pooled)


def _classifier(width_in: int, width: int, classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width_in, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, classes)
    )


def padding_scores(text_mask: Tensor) -> Tensor:
    """(B, L) bool, True = real token -> (B, 1, 1, L) scores to add."""
    return (~text_mask[:, None, None]).float() * MASKED


def to_windows(grid: Tensor, window: int) -> Tensor:
    """(B, H, W, C) -> (B nW, N, C)."""
    batch, height, width, channels = grid.shape
    grid = grid.view(batch, height // window, window, width // window, window, channels)
    return grid.permute(0, 1, 3, 2, 4, 5).reshape(-1, window**2, channels)


def from_windows(windows: Tensor, window: int, side: int) -> Tensor:
    """(B nW, N, C) -> (B, H, W, C)."""
    count, channels = side // window, windows.shape[-1]
    grid = windows.view(-1, count, count, window, window, channels)
    return grid.permute(0, 1, 3, 2, 4, 5).reshape(-1, side, side, channels)


def relative_position_index(window: int) -> Tensor:
    """Rows of the bias table for every pair of tokens: (N, N)."""
    ticks = torch.arange(window)
    rows, columns = (axis.flatten() for axis in torch.meshgrid(ticks, ticks, indexing="ij"))
    down = rows[:, None] - rows + window - 1
    right = columns[:, None] - columns + window - 1
    return down * (2 * window - 1) + right


def shift_mask(side: int, window: int, shift: int) -> Tensor:
    """Scores to add in the windows of a rolled map: (nW, N, N)."""
    regions = torch.zeros(1, side, side, 1)
    cuts = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for number, (rows, columns) in enumerate((r, c) for r in cuts for c in cuts):
        regions[:, rows, columns] = number
    numbers = to_windows(regions, window).squeeze(-1)
    return (numbers[:, None] != numbers[:, :, None]).float() * SEPARATED


class Batch(NamedTuple):
    """One batch of pre-training."""

    #: (B, 3, H, W).
    images: Tensor
    #: (B, L) ids, the same with masked words, labels with -100 elsewhere, and bool mask.
    ids: Tensor
    masked_ids: Tensor
    labels: Tensor
    text_mask: Tensor


def pretraining_loss(model: EagerFiber, batch: Batch) -> Tensor:
    """MLM + ITC + ITM with hard negatives: fused(B), dual(B), fused(3B), as published.

    The contrast is within the batch. (The published queue adds a product with stored vectors and,
    for hard negatives, older images; its passes are the same.)
    """
    images, ids, mask = batch.images, batch.ids, batch.text_mask
    features = model.fuse(images, batch.masked_ids, mask)
    logits = model.mlm_score(features.text)
    mlm = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=NO_LABEL)

    image_vectors, text_vectors = model.embed_images(images), model.embed_texts(ids, mask)
    similarity = image_vectors @ text_vectors.T / model.temp
    targets = torch.arange(len(images), device=images.device)
    itc = (F.cross_entropy(similarity, targets) + F.cross_entropy(similarity.T, targets)) / 2

    with torch.no_grad():
        weights = [s.softmax(1).fill_diagonal_(0) + 1e-9 for s in (similarity, similarity.T)]
        texts, pictures = (torch.multinomial(weight, 1)[:, 0] for weight in weights)
    pairs = model.fuse(
        torch.cat((images, images, images[pictures])),
        torch.cat((ids, ids[texts], ids)),
        torch.cat((mask, mask[texts], mask)),
    )
    is_true = torch.zeros(3 * len(images), dtype=torch.int64, device=images.device)
    is_true[: len(images)] = 1
    itm = F.cross_entropy(model.itm_logits(pairs.pooled), is_true)
    return mlm + itc + itm
