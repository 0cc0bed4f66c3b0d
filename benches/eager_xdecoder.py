"""X-Decoder in plain eager PyTorch, with the published computation: a peer for benches.

Used by `bench_segment.py`. Parameters have the published names, so a published state dict loads
unchanged; `python -m tests.parity xdecoder DIR --model eager` compares it with recorded tensors. As
in the published code, every text is encoded at all positions of the text encoder, a caption runs
the text encoder and the decoder again for each token, all masks are computed after every layer and
resized to the map that the next layer reads, and attention is `nn.MultiheadAttention` on sequences
with tokens first. `eager_segments.py` has what follows.

Letters: B images, Q queries (the class query is the last), R rows, K classes, D width, L tokens.

Source: X-Decoder (Zou et al. 2023), structure of its published code; FocalNet (Yang et al. 2022);
Mask2Former (Cheng et al. 2022); CLIP (Radford et al. 2021).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benches.eager_meter import ClipMlp
from fiber.models.encoders.clip_text_config import ClipTextConfig
from fiber.models.encoders.focalnet_config import FocalNetConfig
from fiber.models.masks.pixel_decoder_config import NORM_GROUPS
from fiber.models.xdecoder.config import XDecoderConfig

#: Added to norms before dividing by them.
NORM_EPS = 1e-7
#: Largest factor of similarities of phrases.
MAX_SCALE = 100.0


class Embedding(nn.Module):
    """Strided convolution and LayerNorm: the stem, and between stages."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.stride = stride
        self.proj = nn.Conv2d(inputs, outputs, kernel, stride, padding)
        self.norm = nn.LayerNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), padded with zeros to multiples of the stride -> (B, H', W', C')."""
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % self.stride, 0, -height % self.stride))
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class Modulation(nn.Module):
    """Focal modulation."""

    def __init__(self, channels: int, levels: int, window: int) -> None:
        super().__init__()
        self.channels, self.levels = channels, levels
        self.f = nn.Linear(channels, 2 * channels + levels + 1)
        self.h = nn.Conv2d(channels, channels, 1)
        self.proj = nn.Linear(channels, channels)
        self.focal_layers = nn.ModuleList()
        for level in range(levels):
            size = window + 2 * level
            convolution = nn.Conv2d(
                channels, channels, size, padding=size // 2, groups=channels, bias=False
            )
            self.focal_layers.append(nn.Sequential(convolution, nn.GELU()))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        sizes = (self.channels, self.channels, self.levels + 1)
        query, context, gates = self.f(x).permute(0, 3, 1, 2).split(sizes, 1)
        total = torch.zeros_like(context)
        for level, layer in enumerate(self.focal_layers):
            context = layer(context)
            total = total + context * gates[:, level : level + 1]
        mean = F.gelu(context.mean(2, keepdim=True).mean(3, keepdim=True))
        total = (total + mean * gates[:, self.levels :]) / (self.levels + 1)
        return self.proj((query * self.h(total)).permute(0, 2, 3, 1))


class FocalMlp(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.fc2(F.gelu(self.fc1(x)))


class FocalBlock(nn.Module):
    """Block in the order of Focal-T, or of Focal-L."""

    def __init__(self, channels: int, config: FocalNetConfig) -> None:
        super().__init__()
        self.is_after = config.block == "norm_after"
        self.modulation = Modulation(channels, config.focal_levels, config.focal_window)
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.mlp = FocalMlp(channels, int(channels * config.mlp_ratio))
        self.gamma_1 = nn.Parameter(torch.full((channels,), 1e-4))
        self.gamma_2 = nn.Parameter(torch.full((channels,), 1e-4))
        if self.is_after:
            self.dw1 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
            self.dw2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        if not self.is_after:
            x = x + self.gamma_1 * self.norm1(self.modulation(x))
            return x + self.gamma_2 * self.norm2(self.mlp(x))
        x = x + self.dw1(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = self.norm1(x + self.gamma_1 * self.modulation(x))
        x = x + self.dw2(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.norm2(x + self.gamma_2 * self.mlp(x))


class FocalStage(nn.Module):
    """Blocks of one resolution, and the embedding of the next."""

    def __init__(self, channels: int, depth: int, config: FocalNetConfig, *, last: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(FocalBlock(channels, config) for _ in range(depth))
        self.downsample = None if last else Embedding(channels, 2 * channels, 3, 2, 1)


class FocalNet(nn.Module):
    """The image encoder."""

    def __init__(self, config: FocalNetConfig) -> None:
        super().__init__()
        padding = 3 if config.block == "norm_after" else 2
        self.patch_embed = Embedding(3, config.embed_dim, 7, 4, padding)
        last = len(config.depths) - 1
        self.layers = nn.ModuleList()
        for stage, (channels, depth) in enumerate(zip(config.channels, config.depths, strict=True)):
            self.layers.append(FocalStage(channels, depth, config, last=stage == last))
            self.add_module(f"norm{stage}", nn.LayerNorm(channels))

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> (B, C_s, H_s, W_s) of strides 4, 8, 16 and 32."""
        x, found = self.patch_embed(images), []
        for number, stage in enumerate(self.layers):
            for block in stage.blocks:
                x = block(x)
            found.append(getattr(self, f"norm{number}")(x).permute(0, 3, 1, 2).contiguous())
            if stage.downsample is not None:
                x = stage.downsample(x.permute(0, 3, 1, 2))
        return found


class TextBlock(nn.Module):
    """Pre-norm block on sequences with tokens first."""

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        width, eps = config.width, config.layer_norm_eps
        self.attn = nn.MultiheadAttention(width, config.num_heads)
        self.ln_1, self.ln_2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.mlp = ClipMlp(width, int(width * config.mlp_ratio))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(L, B, D), `mask` (L, L) added to the scores -> (L, B, D)."""
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class TextEncoder(nn.Module):
    """CLIP's text encoder."""

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.positional_embedding = nn.Parameter(torch.zeros(config.max_positions, config.width))
        self.resblocks = nn.ModuleList(TextBlock(config) for _ in range(config.num_blocks))
        self.ln_final = nn.LayerNorm(config.width, eps=config.layer_norm_eps)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, L), L all positions -> (B, L, D)."""
        x = (self.token_embedding(ids) + self.positional_embedding).transpose(0, 1)
        mask = torch.full((len(x), len(x)), -math.inf, dtype=x.dtype, device=x.device).triu(1)
        for block in self.resblocks:
            x = block(x, mask)
        return self.ln_final(x.transpose(0, 1))


class LanguageEncoder(nn.Module):
    """The text encoder and its projection."""

    def __init__(self, config: XDecoderConfig) -> None:
        super().__init__()
        self.lang_encoder = TextEncoder(config.clip_text)
        self.lang_proj = nn.Parameter(torch.zeros(config.width, config.width))
        self.logit_scale = nn.Parameter(torch.ones(()))

    def forward(self, ids: Tensor) -> Tensor:
        """(B, L) -> (B, L, D), projected tokens."""
        return self.lang_encoder(ids) @ self.lang_proj

    def vectors(self, ids: Tensor) -> Tensor:
        """(B, L) -> (B, D): the token with the first largest id, the end of the text."""
        tokens = self(ids)
        return tokens[torch.arange(len(ids), device=ids.device), ids.argmax(-1)]


class ConvNorm(nn.Conv2d):
    """Convolution with GroupNorm."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.GroupNorm(NORM_GROUPS, outputs)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """(B, C, H, W) -> (B, C', H, W)."""
        return self.norm(super().forward(input))


class TransformerLayer(nn.Module):
    """Post-norm layer of the pixel decoder."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads)
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """(N, B, D) -> (N, B, D)."""
        placed = x + positions
        x = self.norm1(x + self.self_attn(placed, placed, x)[0])
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))


def sine_positions(x: Tensor) -> Tensor:
    """Position code of a map: (B, D, H, W) -> (B, D, H, W), the row first."""
    half = x.shape[1] // 2
    ones = x.new_ones(len(x), *x.shape[2:])
    index = torch.arange(half, dtype=x.dtype, device=x.device)
    wavelengths = 10000 ** (2 * torch.div(index, 2, rounding_mode="floor") / half)
    codes = []
    for axis in (1, 2):
        places = ones.cumsum(axis)
        largest = places.narrow(axis, places.shape[axis] - 1, 1)
        angles = (places / (largest + 1e-6) * 2 * math.pi)[..., None] / wavelengths
        pairs = torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), 4)
        codes.append(pairs.flatten(3))
    return torch.cat(codes, 3).permute(0, 3, 1, 2)


class PixelDecoder(nn.Module):
    """Transformer on the last map, and a feature pyramid."""

    def __init__(self, config: XDecoderConfig) -> None:
        super().__init__()
        width, own = config.width, config.pixel_decoder
        *lower, last = config.focalnet.channels
        self.input_proj = nn.Conv2d(last, width, 1)
        layers = (
            TransformerLayer(width, own.num_heads, own.ffn_width) for _ in range(own.num_layers)
        )
        encoder = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        self.transformer = nn.ModuleDict({"encoder": encoder})
        for number, channels in enumerate(lower, 1):
            self.add_module(f"adapter_{number}", ConvNorm(channels, width, 1))
        for number in range(1, len(lower) + 2):
            self.add_module(f"layer_{number}", ConvNorm(width, width, 3))
        self.mask_features = nn.Conv2d(width, config.decoder.mask_width, 3, padding=1)

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Maps of strides 32, 16 and 8, and mask features of stride 4."""
        top = self.input_proj(maps[-1])
        x = top.flatten(2).permute(2, 0, 1)
        positions = sine_positions(top).flatten(2).permute(2, 0, 1)
        for layer in self.transformer["encoder"]["layers"]:
            x = layer(x, positions)
        y = F.relu(getattr(self, f"layer_{len(maps)}")(x.permute(1, 2, 0).view(top.shape)))
        found = [y]
        for number in range(len(maps) - 1, 0, -1):
            lateral = getattr(self, f"adapter_{number}")(maps[number - 1])
            y = lateral + F.interpolate(y, size=lateral.shape[-2:], mode="nearest")
            y = F.relu(getattr(self, f"layer_{number}")(y))
            found.append(y)
        return found[:-1], self.mask_features(y)


class CrossAttention(nn.Module):
    """Rows read a map."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.multihead_attn = nn.MultiheadAttention(width, heads)
        self.norm = nn.LayerNorm(width)

    def forward(
        self, x: Tensor, positions: Tensor, keys: Tensor, values: Tensor, hidden: Tensor
    ) -> Tensor:
        """(R, B, D), `hidden` (B h, R, N), True = not attended to -> (R, B, D)."""
        read = self.multihead_attn(x + positions, keys, values, attn_mask=hidden)[0]
        return self.norm(x + read)


class SelfAttention(nn.Module):
    """Rows read one another."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, positions: Tensor, hidden: Tensor) -> Tensor:
        """(R, B, D), `hidden` (R, R) -> (R, B, D)."""
        placed = x + positions
        return self.norm(x + self.self_attn(placed, placed, x, attn_mask=hidden)[0])


class FeedForward(nn.Module):
    """Feed-forward layer."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(R, B, D) -> (R, B, D)."""
        return self.norm(x + self.linear2(F.relu(self.linear1(x))))


class MaskEmbedding(nn.Module):
    """Three linear layers."""

    def __init__(self, width: int, mask_width: int) -> None:
        super().__init__()
        widths = [width, width, width, mask_width]
        self.layers = nn.ModuleList(map(nn.Linear, widths, widths[1:]))

    def forward(self, x: Tensor) -> Tensor:
        """(B, R, D) -> (B, R, M)."""
        first, second, last = self.layers
        return last(F.relu(second(F.relu(first(x)))))


class Prediction(NamedTuple):
    """Predictions of the start or of a layer, without those of caption tokens but the last."""

    #: (B, R, K + 1), or None without classes.
    classes: Tensor | None
    #: (B, R, H / 4, W / 4).
    masks: Tensor
    #: (B, R, D), compared with texts.
    vectors: Tensor
    #: (B, L, D), or None without captions.
    captions: Tensor | None


class Predictor(nn.Module):
    """The decoder, with the text encoder."""

    def __init__(self, config: XDecoderConfig) -> None:
        super().__init__()
        width, own = config.width, config.decoder
        self.num_queries, self.num_heads = own.num_queries, own.num_heads
        self.lang_encoder = LanguageEncoder(config)
        self.query_feat = nn.Embedding(own.num_queries, width)
        self.query_embed = nn.Embedding(own.num_queries, width)
        self.level_embed = nn.Embedding(3, width)
        layers = range(own.num_layers)
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttention(width, own.num_heads) for _ in layers
        )
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttention(width, own.num_heads) for _ in layers
        )
        self.transformer_ffn_layers = nn.ModuleList(
            FeedForward(width, own.ffn_width) for _ in layers
        )
        self.decoder_norm = nn.LayerNorm(width)
        self.class_embed = nn.Parameter(torch.zeros(width, width))
        self.mask_embed = MaskEmbedding(width, own.mask_width)
        if "caption" in config.heads:
            self.pos_embed_caping = nn.Embedding(config.max_tokens, width)
            self.caping_embed = nn.Parameter(torch.zeros(width, width))

    def forward(
        self,
        maps: Sequence[Tensor],
        features: Tensor,
        classes: Tensor | None = None,
        *,
        phrases: Tensor | None = None,
        captions: Tensor | None = None,
        outside: Tensor | None = None,
    ) -> list[Prediction]:
        """Predict from the start and after every layer.

        Args:
            maps: (B, D, H_s, W_s) at strides 32, 16 and 8.
            features: (B, M, H / 4, W / 4) mask features.
            classes: (K + 1, D) unit vectors.
            phrases: (B, g, D) tokens of phrases; copies of the latent queries follow the queries.
            captions: (B, L, D) tokens of captions, which follow the queries.
            outside: (B, H, W) bool, where captions may not look; None means nowhere.
        """
        count, batch, sizes = self.num_queries, len(features), [each.shape[-2:] for each in maps]
        values, keys = [], []
        for level, each in enumerate(maps):
            own = each.flatten(2) + self.level_embed.weight[level][None, :, None]
            values.append(own.permute(2, 0, 1))
            keys.append(values[-1] + sine_positions(each).flatten(2).permute(2, 0, 1))
        x = self.query_feat.weight[:, None].repeat(1, batch, 1)
        positions = self.query_embed.weight[:, None].repeat(1, batch, 1)
        if phrases is not None:
            x, positions = (torch.cat((each, each[: count - 1])) for each in (x, positions))
        rows, tokens = len(x), None
        if captions is not None:
            own = captions.transpose(0, 1)
            placed = own + self.pos_embed_caping.weight[:, None]
            # As published, states of tokens get no gradient, only their positions do.
            x, positions = torch.cat((x, own.detach())), torch.cat((positions, placed))
        if phrases is not None:
            tokens = phrases.transpose(0, 1).detach()
            positions = torch.cat((positions, phrases.transpose(0, 1)))
        own_hidden = self.self_hidden(len(positions), grounding=phrases is not None)
        found = [self.predict(x, features, classes, rows)]
        hidden = self.map_hidden(found[-1].masks, sizes[0])
        for number, cross in enumerate(self.transformer_cross_attention_layers):
            level = number % len(maps)
            if captions is not None:
                hidden = torch.cat((hidden, self.caption_hidden(hidden, outside, sizes[level])), 1)
            by_head = hidden[:, None].repeat(1, self.num_heads, 1, 1).flatten(0, 1)
            x = cross(x, positions[: len(x)], keys[level], values[level], by_head)
            if tokens is not None:
                x = torch.cat((x, tokens))
            x = self.transformer_self_attention_layers[number](x, positions, own_hidden)
            x = self.transformer_ffn_layers[number](x)
            if tokens is not None:
                x, tokens = x[:rows], x[rows:]
            found.append(self.predict(x, features, classes, rows))
            hidden = self.map_hidden(found[-1].masks, sizes[(number + 1) % len(maps)])
        return found

    def predict(self, x: Tensor, features: Tensor, classes: Tensor | None, rows: int) -> Prediction:
        """Predict from (R, B, D), of which captions follow the first `rows`."""
        normed, last = self.decoder_norm(x).transpose(0, 1), self.num_queries - 1
        captions = normed[:, rows:] @ self.caping_embed if x.shape[0] > rows else None
        unit = normed / (normed.norm(dim=-1, keepdim=True) + NORM_EPS)
        similarity = (unit[:, last : last + 1] @ unit[:, :last].transpose(1, 2)).softmax(-1)
        own_class = similarity @ normed[:, :last]
        states = torch.cat((normed[:, :last], own_class, normed[:, last + 1 : rows]), 1)
        vectors = states @ self.class_embed
        masks = torch.einsum("bqc,bchw->bqhw", self.mask_embed(states), features)
        logits = None
        if classes is not None:
            scaled = vectors / (vectors.norm(dim=-1, keepdim=True) + NORM_EPS)
            logits = self.lang_encoder.logit_scale.exp() * scaled @ classes.T
        return Prediction(logits, masks, vectors, captions)

    def map_hidden(self, masks: Tensor, size: Sequence[int]) -> Tensor:
        """Where rows may not look on a map: (B, R, H / 4, W / 4) -> (B, R, N)."""
        resized = F.interpolate(
            masks, size=tuple(size), mode="bicubic", align_corners=False, antialias=True
        )
        hidden = resized.sigmoid().flatten(2) < 0.5
        hidden[:, self.num_queries : self.num_queries + 1] = False
        hidden[hidden.all(-1)] = False
        return hidden.detach()

    def caption_hidden(self, hidden: Tensor, outside: Tensor | None, size: Sequence[int]) -> Tensor:
        """Where captions may not look on a map: (B, L, N)."""
        length = len(self.pos_embed_caping.weight)
        if outside is None:
            return torch.zeros_like(hidden[:, :1]).expand(-1, length, -1)
        resized = F.interpolate(outside[:, None].float(), size=tuple(size), mode="nearest")
        return (resized.flatten(2) > 0.5).expand(-1, length, -1)

    def self_hidden(self, count: int, *, grounding: bool) -> Tensor:
        """Which of `count` rows may not see which: (R, R)."""
        queries = self.num_queries
        hidden = torch.ones(count, count, dtype=torch.bool, device=self.query_feat.weight.device)
        hidden = hidden if grounding else hidden.triu(1)
        hidden[:queries, :queries] = False
        hidden[: queries - 1, queries - 1] = True
        hidden[queries - 1, : queries - 1] = True
        if grounding:
            hidden[queries:, queries:] = False
        return hidden


class Head(nn.Module):
    """Pixel decoder and decoder, under the name that the published code gives them."""

    def __init__(self, config: XDecoderConfig) -> None:
        super().__init__()
        self.pixel_decoder = PixelDecoder(config)
        self.predictor = Predictor(config)


class EagerXDecoder(nn.Module):
    """The whole model."""

    def __init__(self, config: XDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = FocalNet(config.focalnet)
        self.sem_seg_head = Head(config)
        if "retrieval" in config.heads:
            channels = config.focalnet.channels[-1]
            self.backbone_proj = nn.Parameter(torch.zeros(channels, config.width))

    @property
    def text(self) -> LanguageEncoder:
        """The text encoder."""
        return self.sem_seg_head.predictor.lang_encoder

    def read(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Run backbone and pixel decoder: (B, 3, H, W) -> maps and mask features."""
        return self.sem_seg_head.pixel_decoder(self.backbone(images))

    def class_vectors(self, classes: Sequence[Tensor]) -> Tensor:
        """Encode (T, L) texts of each class, one class after the other: (K, D) unit vectors."""
        found = []
        for ids in classes:
            vectors = self.text.vectors(ids)
            mean = (vectors / vectors.norm(dim=-1, keepdim=True)).mean(0)
            found.append(mean / mean.norm())
        return torch.stack(found)

    def segment(self, images: Tensor, classes: Tensor) -> list[Prediction]:
        """Masks of classes, with (K + 1, D) unit vectors."""
        return self.sem_seg_head.predictor(*self.read(images), classes)

    def refer(
        self, images: Tensor, ids: Tensor, text_mask: Tensor, classes: Tensor | None = None
    ) -> tuple[list[Prediction], Tensor]:
        """Masks of n phrases (n, L), asked together, and (B, Q - 1, n) similarities."""
        tokens = self.text(ids)
        vectors = tokens[torch.arange(len(ids), device=ids.device), ids.argmax(-1)]
        joined = tokens[text_mask].expand(len(images), -1, -1)
        found = self.sem_seg_head.predictor(*self.read(images), classes, phrases=joined)
        copies = found[-1].vectors[:, self.config.decoder.num_queries :]
        copies = copies / (copies.norm(dim=-1, keepdim=True) + NORM_EPS)
        vectors = vectors / (vectors.norm(dim=-1, keepdim=True) + NORM_EPS)
        scale = self.text.logit_scale.exp().clamp(max=MAX_SCALE)
        return found, scale * copies @ vectors.T

    def caption(
        self, images: Tensor, start_id: int, steps: int, outside: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """Write captions greedily, reading all positions again for each token.

        Returns:
            (B, L) ids, which begin with the start; (B, V) logits of each step; and the caption
            states of the last one.
        """
        maps, features = self.read(images)
        table = self.text.lang_encoder.token_embedding.weight
        ids = torch.full((len(images), self.config.max_tokens), start_id, device=images.device)
        found, states = [], images.new_zeros(0)
        for step in range(steps):
            last = self.sem_seg_head.predictor(
                maps, features, captions=self.text(ids), outside=outside
            )[-1]
            assert last.captions is not None
            states = last.captions
            found.append((states @ table.T)[:, step])
            ids[:, step + 1] = found[-1].argmax(-1)
        return ids, found, states
