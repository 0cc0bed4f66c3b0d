"""Coarse-stage model: backbone with image-text heads. Returns raw logits and embeddings.

Shapes:
    images: (B, 3, H, W).
    token_ids: (B, L) int64.
    text_mask: (B, L) bool, True = real token.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fiber.config import FiberConfig
from fiber.models.features import BackboneOutput
from fiber.models.fiber.backbone import Decoding, FiberBackbone
from fiber.models.fiber.parameter_parts import COARSE_DECAY, COARSE_PARTS
from fiber.models.image_text import Classifier, ImageTextModel, LanguageHead, Pooler
from fiber.models.init import init_linear, standardize_output

#: Heads on pooled (image, text) features.
POOLED_HEADS = ("itm", "vqa", "nlvr2")
#: Heads with vocabulary logits; they share the language head.
LANGUAGE_HEADS = ("mlm", "caption")


class FiberImageText(ImageTextModel):
    """Coarse-stage FIBER model: backbone with the heads in `config.image_text.heads`.

    Methods that need a missing head raise AttributeError.
    """

    #: Name of the first tensor that `init_embeddings` sets.
    embedding_weight = "itc_image_transform.weight"
    parts = COARSE_PARTS
    published_decay = COARSE_DECAY

    def __init__(self, config: FiberConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = FiberBackbone(config)
        heads = set(config.image_text.heads)
        width, channels = config.roberta.width, config.swin.channels
        built: list[nn.Module] = []

        def build(module: nn.Module) -> nn.Module:
            built.append(module)
            return module

        if "itc" in heads:
            # Only ITC uses the last LayerNorm of the image encoder.
            self.itc_image_norm = nn.LayerNorm(channels[-1], eps=1e-5)
            self.itc_image_transform = build(nn.Linear(channels[-1], width))
            self.itc_text_transform = build(nn.Linear(width, width))
            self.itc_image_pooler = build(Pooler(width))
            self.itc_text_pooler = build(Pooler(width))
            self.temperature = nn.Parameter(torch.tensor(config.image_text.temperature))
        if heads - {"itc"}:
            self.text_transform = build(nn.Linear(width, width))
        if heads.intersection(POOLED_HEADS):
            self.image_transform = build(nn.Linear(channels[-1], width))
            self.image_pooler = build(Pooler(width))
            self.text_pooler = build(Pooler(width))
        if heads.intersection(LANGUAGE_HEADS):
            self.language_head = build(LanguageHead(width, config.roberta.vocab_size))
        if "itm" in heads:
            self.itm_head = build(nn.Linear(2 * width, 2))
        if "vqa" in heads:
            answers = config.image_text.num_answers
            self.vqa_head = build(Classifier(2 * width, 2 * width, answers))
        if "nlvr2" in heads:
            self.nlvr2_head = build(Classifier(4 * width, 2 * width, 2))
        if "caption" in heads:
            # Captioning attends to the last stage in all layers. Text layers paired with stage 3
            # expect that stage's channels, so each of them has a projection.
            stages = [stage for stage, _ in self.backbone.image.places]
            paired = stages[self.backbone.first_fused_block :].count(len(channels) - 2)
            self.caption_projections = nn.ModuleList(
                nn.Linear(channels[-1], channels[-2]) for _ in range(paired)
            )
            build(self.caption_projections)
        for module in built:
            init_linear(module, fan_in=config.weight_start == "fan_in")

    def init_embeddings(self, images: Tensor, token_ids: Tensor, text_mask: Tensor) -> None:
        """Center the outputs of the ITC transforms on a batch (`standardize_output`).

        A new encoder gives nearly the same features to all inputs. Without the centering, so are
        the embeddings, and the first gradients are close to 0.
        """
        with torch.no_grad():
            tokens = self.itc_image_norm(self.backbone.encode_image(images).stages[-1])
            standardize_output(cast(nn.Linear, self.itc_image_transform), tokens.mean((1, 2)))
            prefix = self.backbone.text_prefix(token_ids, text_mask)
            text = self.backbone.complete_text(prefix, text_mask, wanted="pooled")
            standardize_output(cast(nn.Linear, self.itc_text_transform), text[:, 0])

    def forward(self, images: Tensor, token_ids: Tensor, text_mask: Tensor, head: str) -> Tensor:
        """Run the backbone and one head.

        For "nlvr2", images are (B, 2, 3, H, W), left image first.

        Returns:
            Logits of the head:

            - "itc": (B, B) image-to-text similarities divided by the temperature.
            - "itm" and "nlvr2": (B, 2), where column 1 means true.
            - "vqa": (B, answers).
            - "mlm" and "caption": (B, L, vocabulary).

        Raises:
            ValueError: if the model does not have the head.
        """
        if head not in self.config.heads:
            heads = ", ".join(map(repr, self.config.heads))
            raise ValueError(f"head: expected one of {heads}, got {head!r}")
        if head == "itc":
            vectors = self.embed_images(images), self.embed_texts(token_ids, text_mask)
            return vectors[0] @ vectors[1].T / self.temperature
        if head == "nlvr2":
            return self.statement_logits(images, token_ids, text_mask)
        if head == "caption":
            return self.next_token_logits(images, token_ids, text_mask)
        if head == "mlm":
            fused = self.backbone.encode_pair(images, token_ids, text_mask)
            assert fused.text is not None
            return self.mlm_logits(fused.text)
        fused = self.backbone.encode_pair(images, token_ids, text_mask, wanted="pooled")
        pooled = self.pooled(fused)
        return self.itm_logits(pooled) if head == "itm" else self.vqa_logits(pooled)

    @property
    def embedding_width(self) -> int:
        """Number of channels of an embedding for ITC."""
        return self.config.roberta.width

    def embed_images(self, images: Tensor) -> Tensor:
        """Embed images for ITC: (B, D), L2-normalized."""
        return self.image_vectors(self.backbone.encode_image(images))

    def embed_texts(self, token_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Embed texts for ITC: (B, D), L2-normalized."""
        prefix = self.backbone.text_prefix(token_ids, text_mask)
        return self.text_vectors(self.backbone.complete_text(prefix, text_mask, wanted="pooled"))

    def image_vectors(self, output: BackboneOutput) -> Tensor:
        """Embed images for ITC from the output of `encode_image`: (B, D), L2-normalized."""
        tokens = self.itc_image_norm(output.stages[-1])
        # The transform is linear, so the mean is taken first.
        pooled = self.itc_image_pooler(self.itc_image_transform(tokens.mean((1, 2))))
        return F.normalize(pooled, dim=-1)

    def text_vectors(self, text: Tensor) -> Tensor:
        """Compute (B, D) L2-normalized text embeddings for ITC from the output of `encode_text`."""
        return F.normalize(self.itc_text_pooler(self.itc_text_transform(text[:, 0])), dim=-1)

    @property
    def pooled_width(self) -> int:
        """See `ImageTextModel`."""
        return 2 * self.config.roberta.width

    def pooled(self, output: BackboneOutput) -> Tensor:
        """Pool the output of `encode_pair`: (B, 2 D), text features first."""
        assert output.text is not None
        text = self.text_pooler(self.text_transform(output.text[:, 0]))
        # The transform is linear, so the mean is taken first.
        image = self.image_pooler(self.image_transform(output.stages[-1].mean((1, 2))))
        return torch.cat((text, image), -1)

    def language_input(self, text: Tensor) -> Tensor:
        """See `ImageTextModel`."""
        return self.text_transform(text)

    @property
    def mask_id(self) -> int:
        """Id of <mask>, which captions do not have."""
        return self.config.roberta.mask_id

    @property
    def longest_caption(self) -> int:
        """Maximum number of tokens of a caption, including <s> and </s>."""
        return self.config.roberta.max_tokens

    def image_tokens(self, images: Tensor) -> Tensor:
        """Encode images for `decode_text`: (B, H, W, C) output of the last stage."""
        return self.backbone.encode_image(images).stages[-1]

    def caption_logits(self, text: Tensor) -> Tensor:
        """Compute next-token logits from `decode_text` output: (B, L, D) -> (B, L, vocabulary)."""
        return self.mlm_logits(text)

    def next_token_logits(self, images: Tensor, token_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Compute next-token logits from the image and previous tokens: (B, L, vocabulary)."""
        tokens = self.image_tokens(images)
        return self.caption_logits(self.decode_text(tokens, token_ids, text_mask))

    def decode_text(self, image_tokens: Tensor, token_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Run the backbone's `decode_text` on the last-stage output of `encode_image`."""
        return self.backbone.decode_text(self._for_decoder(image_tokens), token_ids, text_mask)

    def start_decoding(self, image_tokens: Tensor) -> Decoding:
        """Start decoding from the last-stage output of `encode_image`."""
        return self.backbone.start_decoding(self._for_decoder(image_tokens))

    def decode_next(self, decoding: Decoding, token_ids: Tensor) -> Tensor:
        """Run the backbone's `decode_next`: (B, n) -> (B, n, D)."""
        return self.backbone.decode_next(decoding, token_ids)

    @property
    def past_sizes(self) -> tuple[int, int, int]:
        """See `fiber.models.abilities.StepsCaptions`."""
        roberta = self.config.roberta
        return roberta.num_layers, roberta.num_heads, roberta.width // roberta.num_heads

    def decoder_keys_values(self, image_tokens: Tensor) -> Tensor:
        """See `fiber.models.abilities.StepsCaptions`."""
        return self.backbone.image_keys_values(self._for_decoder(image_tokens))

    def decode_step(
        self,
        token_ids: Tensor,
        tokens_before: Tensor,
        own_tokens: Tensor,
        past: Tensor,
        image_keys_values: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """See `fiber.models.abilities.StepsCaptions`."""
        state, caches = self.backbone.resume_decoding(
            tokens_before, own_tokens, past, image_keys_values
        )
        logits = self.caption_logits(self.decode_next(state, token_ids))
        newest = torch.stack([cache.newest.transpose(0, 1) for cache in caches], 1)
        return logits, newest

    def _for_decoder(self, image_tokens: Tensor) -> list[Tensor]:
        """Project the last-stage output to the channels of each fused layer."""
        tokens = image_tokens.flatten(1, 2)
        projected = [projection(tokens) for projection in self.caption_projections]
        return projected + [tokens] * (len(self.backbone.fusion) - len(projected))
