"""X-Decoder model: encoders, pixel decoder, and the decoder with its outputs. Returns raw logits.

Shapes:
    images: (B, 3, H, W) normalized pixels; H and W are multiples of 32. The padding of an image is
        zero, and takes part in everything.
    token_ids: (B, L) int64; text_mask: (B, L) bool, True = real token. Texts start and end with a
        special token each.
    Q queries, the last of which is the class query; K classes; D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fiber.data import Tokenizer
from fiber.models.encoders.clip_text import ClipTextEncoder, last_tokens
from fiber.models.encoders.focalnet import FocalNetEncoder
from fiber.models.heads import need_head
from fiber.models.masks.pixel_decoder import PixelDecoder
from fiber.models.xdecoder.captioner import CAPTION_STEPS, caption_text, greedy_captions
from fiber.models.xdecoder.class_texts import mean_vectors
from fiber.models.xdecoder.config import XDecoderConfig
from fiber.models.xdecoder.decoder import NORM_EPS, Memory, Prediction, XDecoderDecoder
from fiber.models.xdecoder.graph_functions import GraphNetwork
from fiber.models.xdecoder.parameter_parts import DECAY, PARTS
from fiber.ops.linear import whole_table

#: Maximum of the exponential of the logit scale, for phrases. It is not limited for classes.
MAX_SCALE = 100.0


class TextFeatures(NamedTuple):
    """Features of texts in the space of the queries."""

    #: (B, L, D) of all tokens.
    tokens: Tensor
    #: (B, D) of the last token; not normalized.
    vectors: Tensor


class ClassMasks(NamedTuple):
    """Masks of classes. The class query has one, too, though no mask loss trains it."""

    #: (B, Q, K + 1) logits of the classes and, last, of the background.
    class_logits: Tensor
    #: (B, Q, H / 4, W / 4).
    mask_logits: Tensor


class PhraseMasks(NamedTuple):
    """Masks that phrases are matched with."""

    #: (B, Q - 1, n) scaled cosines of the rows and n phrases.
    similarity: Tensor
    #: (B, Q - 1, H / 4, W / 4) mask logits of the rows.
    mask_logits: Tensor

    def best(self) -> tuple[Tensor, Tensor]:
        """Return the row of each phrase and its mask: (B, n) int64, (B, n, H / 4, W / 4)."""
        rows = self.similarity.argmax(1)
        images = torch.arange(len(rows), device=rows.device)[:, None]
        return rows, self.mask_logits[images, rows]


class ImageVectors(NamedTuple):
    """Vectors of images in the space of text vectors; not normalized."""

    #: (B, D) of the class query.
    decoder: Tensor
    #: (B, D) of the mean of the last map, padding included.
    backbone: Tensor


class XDecoderBackbone(nn.Module):
    """Image encoder and text encoder, which do not see each other."""

    def __init__(self, config: XDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.image = FocalNetEncoder(config.focalnet)
        self.text = ClipTextEncoder(config.clip_text)

    @property
    def gradient_checkpointing(self) -> bool:
        """Recompute activations of the encoders in the backward pass."""
        return self.image.gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enabled: bool) -> None:
        self.image.gradient_checkpointing = self.text.gradient_checkpointing = enabled

    def encode_image(self, images: Tensor) -> tuple[Tensor, ...]:
        """Run the image encoder: four (B, C_s, H_s, W_s) maps from stride 4 to stride 32.

        Raises:
            ValueError: if the sides are not multiples of 32.
        """
        height, width = images.shape[-2:]
        step = self.config.size_step
        if height % step or width % step or not height or not width:
            raise ValueError(
                f"images: expected sides that are multiples of {step}, got {tuple(images.shape)}"
            )
        return tuple(each.permute(0, 3, 1, 2) for each in self.image(images))

    def encode_text(self, token_ids: Tensor) -> Tensor:
        """Run the text encoder: (B, L) -> (B, L, D)."""
        return self.text(token_ids)


class XDecoder(GraphNetwork):
    """X-Decoder model with the heads in `config.heads`.

    Methods that need a missing head raise `MissingHeadError`.
    """

    parts = PARTS
    published_decay = DECAY

    def __init__(self, config: XDecoderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.backbone = XDecoderBackbone(config)
        self.pixel_decoder = PixelDecoder(
            config.focalnet.channels, width, config.decoder.mask_width, config.pixel_decoder
        )
        self.decoder = XDecoderDecoder(config)
        #: (D, D), applied from the right.
        self.text_projection = nn.Parameter(torch.empty(width, width))
        self.logit_scale = nn.Parameter(torch.ones(()))
        nn.init.trunc_normal_(self.text_projection, std=0.02)
        if "retrieval" in config.heads:
            channels = config.focalnet.channels[-1]
            self.image_projection = nn.Parameter(torch.empty(channels, width))
            nn.init.trunc_normal_(self.image_projection, std=0.02)

    def forward(
        self, images: Tensor, token_ids: Tensor, text_mask: Tensor, head: str
    ) -> Tensor | ClassMasks:
        """Run a head.

        Returns:
            What the head computes:

            - "mask": `ClassMasks` of K classes, for texts (K + 1, T, L): T of each class, those of
              the background last.
            - "caption": (B, L, V) next-token logits, for texts (B, L).
            - "retrieval": (B, n) `retrieval_scores`, for texts (n, L).

        Raises:
            MissingHeadError: if the model does not have the head.
        """
        need_head(self.config, head, f"{type(self).__name__}.forward")
        texts = self.encode_text(token_ids.flatten(0, -2), text_mask.flatten(0, -2))
        if head == "mask":
            vectors = mean_vectors(texts.vectors.unflatten(0, token_ids.shape[:-1]))
            return self.class_masks(self.read_image(images), vectors)
        if head == "caption":
            last = self.decoder(self.read_image(images), caption_tokens=texts.tokens)[-1]
            assert last.captions is not None
            return self.caption_logits(last.captions)
        return retrieval_scores(self.image_vectors(images), texts.vectors)

    def read_image(self, images: Tensor) -> Memory:
        """Compute what the decoder reads of images."""
        return self.prepare(self.backbone.encode_image(images))

    def prepare(self, maps: tuple[Tensor, ...]) -> Memory:
        """Compute what the decoder reads, from the maps of the image encoder."""
        return self.decoder.prepare(self.pixel_decoder(maps))

    def encode_text(self, token_ids: Tensor, text_mask: Tensor) -> TextFeatures:
        """Encode phrases, captions or texts of classes."""
        tokens = self.backbone.encode_text(token_ids) @ self.text_projection
        return TextFeatures(tokens, last_tokens(tokens, text_mask))

    def class_masks(self, memory: Memory, class_vectors: Tensor) -> ClassMasks:
        """Compute masks and their classes.

        Args:
            memory: images.
            class_vectors: (K + 1, D) unit vectors of the classes and of the background; see
                `fiber.models.xdecoder.class_texts.mean_vectors`.
        """
        need_head(self.config, "mask", "segmentation")
        last = self.decoder(memory)[-1]
        masks = self.decoder.mask_logits(last, memory, slice(None))
        return ClassMasks(self.class_logits(last, class_vectors), masks)

    def class_logits(self, prediction: Prediction, class_vectors: Tensor) -> Tensor:
        """Compute class logits of all rows: (B, R, K + 1).

        The scale is not limited here, other than for phrases, as published.
        """
        embeddings = prediction.states @ self.decoder.class_projection
        return self.logit_scale.exp() * normalized(embeddings) @ class_vectors.T

    def phrase_masks(
        self,
        memory: Memory,
        texts: TextFeatures,
        phrase_tokens: Tensor,
        phrase_mask: Tensor | None = None,
    ) -> PhraseMasks:
        """Compute masks for phrases.

        Args:
            memory: images.
            texts: features of n phrases, which are compared with the masks of every image.
            phrase_tokens: (B, g, D) features of the tokens that each image is asked about; see
                `join_tokens`. Phrases that are asked together influence one another.
            phrase_mask: (B, g) bool, True = real token; None if all are.
        """
        need_head(self.config, "mask", "segmentation")
        last = self.decoder(memory, phrase_tokens, phrase_mask)[-1]
        copies = slice(self.decoder.num_queries, None)
        similarity = self.phrase_similarity(last, texts.vectors)
        return PhraseMasks(similarity, self.decoder.mask_logits(last, memory, copies))

    def phrase_similarity(self, prediction: Prediction, vectors: Tensor) -> Tensor:
        """Compare the copies of the latent queries with text vectors: (n, D) -> (B, Q - 1, n)."""
        states = prediction.states[:, self.decoder.num_queries :]
        embeddings = normalized(states @ self.decoder.class_projection)
        return self.scale() * embeddings @ normalized(vectors).T

    def image_vectors(self, images: Tensor) -> ImageVectors:
        """Compute the vectors that texts search images by."""
        need_head(self.config, "retrieval", "search")
        maps = self.backbone.encode_image(images)
        last = self.decoder(self.prepare(maps))[-1]
        states = last.states[:, self.decoder.num_queries - 1]
        pooled = maps[-1].mean((2, 3)) @ self.image_projection
        return ImageVectors(states @ self.decoder.class_projection, pooled)

    def class_prompts(self, names: Sequence[str]) -> list[tuple[str, ...]]:
        """Return the texts of each class and, last, of the background.

        Raises:
            ValueError: if there are no names, or a name is empty, there twice, or the background's.
        """
        return self.class_texts.prompts(names)

    def prompt_vectors(self, token_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Encode texts of classes: (B, L) -> (B, D)."""
        return self.encode_text(token_ids, text_mask).vectors

    def class_vectors(self, vectors: Tensor) -> Tensor:
        """Average the vectors of each class: (K + 1, T, D) -> (K + 1, D) unit vectors."""
        return mean_vectors(vectors)

    def text_weights(self) -> Iterator[Tensor]:
        """Yield the tensors that vectors of texts depend on."""
        yield from self.backbone.text.parameters()
        yield self.text_projection

    def find_phrases(
        self, memory: Memory, token_ids: Tensor, text_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Find the best mask for each of n phrases, which are asked about each image together.

        Args:
            memory: images.
            token_ids: (n, L) int64.
            text_mask: (n, L) bool, True = real token.

        Returns:
            (B, n) probabilities of the masks among all masks of their phrase, as grounding is
            trained, and (B, n, H / 4, W / 4) mask logits.
        """
        texts = self.encode_text(token_ids, text_mask)
        tokens = join_tokens(texts.tokens, text_mask).expand(memory.batch_size, -1, -1)
        found = self.phrase_masks(memory, texts, tokens)
        return found.similarity.float().softmax(1).amax(1), found.best()[1]

    @property
    def embedding_width(self) -> int:
        """Number of channels of an embedding: both vectors of an image."""
        return 2 * self.config.width

    def embed_images(self, images: Tensor) -> Tensor:
        """Embed images: (B, 2 D) unit vectors of both vectors of each image.

        The product with those of texts is that of `retrieval_scores`.
        """
        vectors = self.image_vectors(images)
        return self.embedding(vectors.decoder, vectors.backbone)

    def embedding(self, first: Tensor, second: Tensor) -> Tensor:
        """Join two vectors of each row as a unit vector: 2 x (B, D) -> (B, 2 D)."""
        return torch.cat((normalized(first), normalized(second)), -1) * math.sqrt(0.5)

    def embed_texts(self, token_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Embed texts: (B, 2 D) unit vectors, the vector of each text twice."""
        need_head(self.config, "retrieval", "search")
        vectors = self.encode_text(token_ids, text_mask).vectors
        return self.embedding(vectors, vectors)

    @property
    def caption_steps(self) -> int:
        """Number of tokens of a caption after the first, unless its end comes earlier."""
        return min(CAPTION_STEPS, self.config.max_tokens - 1)

    def write_captions(
        self,
        memory: Memory,
        *,
        start_id: int,
        end_id: int,
        steps: int,
        region: Tensor | None = None,
    ) -> Tensor:
        """Write captions; see `greedy_captions`."""
        return greedy_captions(
            self, memory, start_id=start_id, end_id=end_id, region=region, steps=steps
        )

    def caption_text(self, tokenizer: Tokenizer, token_ids: list[int], end_id: int) -> str:
        """Decode a caption: up to the end token and, as published, up to the first period."""
        return caption_text(tokenizer, token_ids, end_id)

    def caption_logits(self, states: Tensor) -> Tensor:
        """Compute next-token logits by the word embeddings: (B, L, D) -> (B, L, V)."""
        return states @ whole_table(self.backbone.text.word_embedding).T

    def scale(self) -> Tensor:
        """Return the scale of cosines of phrases."""
        return self.logit_scale.exp().clamp(max=MAX_SCALE)


def normalized(vectors: Tensor) -> Tensor:
    """Divide vectors by their L2 norm, which is kept from 0 as published."""
    return vectors / (vectors.norm(dim=-1, keepdim=True) + NORM_EPS)


def join_tokens(tokens: Tensor, text_mask: Tensor) -> Tensor:
    """Join the real tokens of the phrases of one image: (n, L, D), (n, L) -> (1, g, D)."""
    return tokens[text_mask][None]


def retrieval_scores(images: ImageVectors, texts: Tensor) -> Tensor:
    """Score images for texts: (B, D) each, (n, D) -> (B, n), from -1 to 1.

    The mean of the cosines with both vectors of an image, without the scale of training.
    """
    unit = normalized(texts).T
    return 0.5 * (normalized(images.decoder) @ unit) + 0.5 * (normalized(images.backbone) @ unit)
