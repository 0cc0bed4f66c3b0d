"""Backbone of METER: two separate encoders, and cross-modal layers on their outputs.

Shapes:
    images: (B, 3, S, S) normalized pixels.
    token_ids: (B, L) int64.
    text_mask: (B, L) bool, True = real token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from fiber.models.encoders.bert import BertEncoder
from fiber.models.encoders.clip import ClipEncoder
from fiber.models.encoders.roberta import RobertaEncoder, key_attention_mask
from fiber.models.encoders.swin import LAYER_NORM_EPS, SwinEncoder
from fiber.models.features import BackboneOutput, ImagePrefix, Wanted
from fiber.models.init import init_linear
from fiber.models.meter.config import MeterConfig
from fiber.models.meter.fusion import CrossLayer, MergedLayer
from fiber.ops.dropout import checkpointed

#: Token types.
TEXT, IMAGE, SECOND_IMAGE = 0, 1, 2


class MeterBackbone(nn.Module):
    """Image and text encoder, and the layers that fuse their outputs.

    A prefix is everything that one side computes without the other: the output of its encoder,
    projected to the width of the fusion, with its token type (x), and for co-attention also the
    output of the first self-attention (a). A prefix tensor is x and a, joined along the channels.

    Attributes:
        gradient_checkpointing: recompute activations in the backward pass.
    """

    def __init__(self, config: MeterConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        cross = config.cross
        self.is_merged = cross.kind == "merged_attention"
        if config.image_encoder == "clip":
            self.image: nn.Module = ClipEncoder(config.clip, config.image_size)
            self.image_norm: nn.Module = nn.Identity()
        else:
            self.image = SwinEncoder(config.swin)
            self.image_norm = nn.LayerNorm(config.image_width, eps=LAYER_NORM_EPS)
        if config.text_encoder == "bert":
            self.text: nn.Module = BertEncoder(config.bert)
        else:
            self.text = RobertaEncoder(config.roberta)
        self.image_transform = nn.Linear(config.image_width, cross.width)
        self.text_transform = nn.Linear(config.text.width, cross.width)
        self.token_types = nn.Embedding(config.num_token_types, cross.width)
        if self.is_merged:
            self.layers = nn.ModuleList(MergedLayer(cross) for _ in range(cross.num_layers))
            new: tuple[nn.Module, ...] = (self.layers,)
        else:
            self.text_layers = nn.ModuleList(CrossLayer(cross) for _ in range(cross.num_layers))
            self.image_layers = nn.ModuleList(CrossLayer(cross) for _ in range(cross.num_layers))
            new = (self.text_layers, self.image_layers)
        for module in (self.image_transform, self.text_transform, *new):
            init_linear(module, fan_in=False)
        nn.init.normal_(self.token_types.weight, std=0.02)
        if config.weight_start == "fan_in":
            init_linear(self, fan_in=True)

    def encode_image(self, images: Tensor) -> Tensor:
        """Run the image encoder: (B, 3, S, S) -> (B, T, C); CLIP's first token is the class token.

        Raises:
            ValueError: if the images are not of the model's size.
        """
        size = self.config.image_size
        if images.shape[-2:] != (size, size):
            raise ValueError(f"images: expected {size} x {size} pixels, got {tuple(images.shape)}")
        if self.config.image_encoder == "clip":
            return self._run(self.image, images)
        return self.image_norm(self._run(self.image, images)[-1].flatten(1, 2))

    def encode_text(self, token_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Run the text encoder: (B, L) -> (B, L, D)."""
        return self._run(self.text, token_ids, text_mask)

    def image_prefix(self, images: Tensor, types: Tensor | None = None) -> ImagePrefix:
        """Compute what does not depend on the text: (B, T, 2 D), see the class.

        `types` is the (B,) int64 token type of each image, by default `IMAGE`.
        """
        tokens = self.image_transform(self.encode_image(images))
        if types is None:
            types = torch.full((1,), IMAGE, device=tokens.device)
        tokens = tokens + self.token_types(types)[:, None]
        return ImagePrefix(self._with_first_attention("image", tokens, None))

    def text_prefix(self, token_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Compute what does not depend on the image: (B, L, 2 D), see the class."""
        tokens = self.text_transform(self.encode_text(token_ids, text_mask))
        tokens = tokens + self.token_types(token_ids.new_full((1,), TEXT))
        return self._with_first_attention("text", tokens, key_attention_mask(text_mask))

    def encode_pair(
        self, images: Tensor, token_ids: Tensor, text_mask: Tensor, *, wanted: Wanted = "all"
    ) -> BackboneOutput:
        """Encode pairs with fusion."""
        prefixes = self.image_prefix(images), self.text_prefix(token_ids, text_mask)
        return self.fuse(*prefixes, text_mask, wanted=wanted)

    def fuse(
        self,
        image_prefix: ImagePrefix,
        text_prefix: Tensor,
        text_mask: Tensor,
        *,
        wanted: Wanted = "all",
    ) -> BackboneOutput:
        """Run the cross-modal layers on prefixes.

        The last level computes only what `wanted` needs. "pooled" are the first text token, and the
        class token of CLIP or all tokens of Swin.
        """
        mask = key_attention_mask(text_mask)
        if self.is_merged:
            text, image = self._merge(text_prefix, image_prefix.tokens, text_mask, wanted)
        elif not len(self.text_layers):
            text, image = text_prefix, image_prefix.tokens
        else:
            text, image = self._co_attend(text_prefix, image_prefix.tokens, mask, wanted)
        if wanted == "pooled":
            text, text_mask = text[:, :1], text_mask[:, :1]
            image = image[:, : self._pooled_tokens]
        stages = () if wanted == "text" else (image,)
        return BackboneOutput(stages, text, text_mask)

    @property
    def _pooled_tokens(self) -> int | None:
        """Number of image tokens that are pooled; None for all."""
        return 1 if self.config.image_encoder == "clip" else None

    def _with_first_attention(self, side: str, tokens: Tensor, mask: Tensor | None) -> Tensor:
        if self.is_merged or not len(self.text_layers):
            return tokens
        layers = self.text_layers if side == "text" else self.image_layers
        attended = self._run(cast(CrossLayer, layers[0]).attend, tokens, mask)
        return torch.cat((tokens, attended), -1)

    def _co_attend(
        self, text_prefix: Tensor, image_prefix: Tensor, mask: Tensor, wanted: Wanted
    ) -> tuple[Tensor, Tensor]:
        """Run all levels. Both sides read the outputs of the level below of both sides."""
        text, text_attended = text_prefix.chunk(2, -1)
        image, image_attended = image_prefix.chunk(2, -1)
        last = len(self.text_layers) - 1
        for level, layers in enumerate(zip(self.text_layers, self.image_layers, strict=True)):
            text_layer, image_layer = cast("tuple[CrossLayer, CrossLayer]", layers)
            is_pooled = level == last and wanted == "pooled"
            text_queries = 1 if is_pooled else None
            image_queries = self._pooled_tokens if is_pooled else None
            if level:
                text_attended = self._run(text_layer.attend, text, mask, text_queries)
            new_text = self._run(text_layer, text_attended[:, :text_queries], image, None)
            if level == last and wanted == "text":
                return new_text, image
            if level:
                image_attended = self._run(image_layer.attend, image, None, image_queries)
            image = self._run(image_layer, image_attended[:, :image_queries], text, mask)
            text = new_text
        return text, image

    def _merge(
        self, text: Tensor, image: Tensor, text_mask: Tensor, wanted: Wanted
    ) -> tuple[Tensor, Tensor]:
        """Run merged attention on the tokens of both sides."""
        length = text.shape[1]
        tokens = torch.cat((text, image), 1)
        real = text_mask.new_ones(image.shape[:2])
        mask = key_attention_mask(torch.cat((text_mask, real), 1))
        last = len(self.layers) - 1
        for level, layer in enumerate(self.layers):
            source = tokens
            if level == last and wanted == "pooled":
                pooled = tokens[:, length:][:, : self._pooled_tokens]
                tokens, length = torch.cat((tokens[:, :1], pooled), 1), 1
            elif level == last and wanted == "text":
                tokens = tokens[:, :length]
            tokens = self._run(layer, tokens, source, mask)
        return tokens[:, :length], tokens[:, length:]

    def _run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function, with gradient checkpointing if enabled."""
        if self.gradient_checkpointing and self.training:
            return checkpointed(function, *arguments)
        return function(*arguments)
