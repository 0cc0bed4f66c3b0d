"""Forward passes of training: the predictions of every layer, last first."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fiber.models.features import MaskPrediction
from fiber.models.xdecoder.segmenter import TextFeatures, XDecoder


class CaptionPrediction(NamedTuple):
    """Predictions of one layer for images with captions."""

    #: (B, L, D) states of caption tokens; see `XDecoder.caption_logits`.
    caption_states: Tensor
    #: (B, D) of the class query and (B, Q - 1, D) of the others; not normalized.
    image_vectors: Tensor
    query_vectors: Tensor


def phrase_tokens(
    texts: TextFeatures, text_mask: Tensor, phrase_ids: Tensor, phrases_per_image: Tensor
) -> Tensor:
    """Join the tokens of the distinct phrases of each image, padded with zeros.

    As published, zeros that pad an image's tokens take part in the decoder's attention.

    Args:
        texts: features of P phrases, ordered by image.
        text_mask: (P, L) bool, True = real token.
        phrase_ids: (P,) int64, equal for equal phrases of an image.
        phrases_per_image: (B,) int64.

    Returns:
        (B, g, D).
    """
    counts = phrases_per_image.tolist()
    rows = []
    for tokens, mask, ids in zip(
        texts.tokens.split(counts), text_mask.split(counts), phrase_ids.split(counts), strict=True
    ):
        same = ids[:, None] == ids
        is_first = ~same.tril(-1).any(1)
        rows.append(tokens[is_first][mask[is_first]])
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def mask_predictions(
    model: XDecoder, images: Tensor, class_vectors: Tensor, tokens: Tensor | None = None
) -> list[MaskPrediction]:
    """Predict masks of classes and, with tokens of phrases, of phrases, from every layer.

    Args:
        model: network with the head "mask".
        images: (B, 3, H, W).
        class_vectors: (K + 1, D) unit vectors of the classes and of the background.
        tokens: of `phrase_tokens`.

    Returns:
        Predictions of the last layer first, those of the start last.
    """
    memory, decoder = model.read_image(images), model.decoder
    predictions = decoder(memory) if tokens is None else decoder.refer(memory, tokens)
    latent = slice(0, decoder.num_queries - 1)
    copies = slice(decoder.num_queries, None)
    found = []
    for each in reversed(predictions):
        vectors = each.states @ decoder.class_projection
        found.append(
            MaskPrediction(
                model.class_logits(each, class_vectors)[:, latent],
                decoder.mask_logits(each, memory, latent),
                vectors[:, latent],
                None if tokens is None else decoder.mask_logits(each, memory, copies),
                None if tokens is None else vectors[:, copies],
            )
        )
    return found


def caption_predictions(
    model: XDecoder, images: Tensor, tokens: Tensor, layers: int
) -> tuple[list[CaptionPrediction], Tensor]:
    """Compute states of caption tokens and vectors of images.

    Args:
        model: network with the heads "caption" and "retrieval".
        images: (B, 3, H, W).
        tokens: (B, L, D) projected features of the captions' tokens.
        layers: number of last layers.

    Returns:
        Predictions of the last layers, the last first, and (B, D) vectors of the image encoder.
    """
    maps = model.backbone.encode_image(images)
    predictions = model.decoder.caption(model.prepare(maps), tokens)
    last = model.decoder.num_queries - 1
    found = []
    for each in predictions[: -layers - 1 : -1]:
        assert each.captions is not None
        vectors = each.states @ model.decoder.class_projection
        found.append(CaptionPrediction(each.captions, vectors[:, last], vectors[:, :last]))
    return found, maps[-1].mean((2, 3)) @ model.image_projection
