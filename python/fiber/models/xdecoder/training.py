"""Forward passes of training: the predictions of every layer, the last first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fiber.models.architecture import Network
from fiber.models.features import MaskPrediction, PhraseTexts
from fiber.models.heads import need_head

if TYPE_CHECKING:
    from fiber.models.xdecoder.decoder import Memory, Prediction, XDecoderDecoder


class CaptionPrediction(NamedTuple):
    """Predictions of one layer for images with captions."""

    #: (B, L, D) states of caption tokens; see `XDecoder.caption_logits`.
    caption_states: Tensor
    #: (B, D) of the class query and (B, Q - 1, D) of the others; not normalized.
    image_vectors: Tensor
    query_vectors: Tensor


class TrainedNetwork(Network):
    """Passes of training; base class of the network, which has the layers."""

    decoder: XDecoderDecoder
    image_projection: Any

    def predict_masks(
        self, images: Tensor, class_vectors: Tensor, phrases: PhraseTexts | None = None
    ) -> list[MaskPrediction]:
        """Predict masks of classes and, if there are any, of phrases, from every layer.

        The class query has no mask loss: it is left out.

        Args:
            images: (B, 3, H, W).
            class_vectors: (K + 1, D) unit vectors of the classes and of the background.
            phrases: phrases of the images.

        Returns:
            Predictions of the last layer first, those of the start last.
        """
        need_head(self.config, "mask", "training on masks")
        decoder, memory = self.decoder, self.read_image(images)
        tokens = None if phrases is None else joined_tokens(phrases)
        predictions = decoder(memory, tokens)
        latent = slice(0, decoder.num_queries - 1)
        copies = slice(decoder.num_queries, None)
        found = []
        for each in reversed(predictions):
            vectors = each.states @ decoder.class_projection
            found.append(
                MaskPrediction(
                    self.class_logits(each, class_vectors)[:, latent],
                    decoder.mask_logits(each, memory, latent),
                    vectors[:, latent],
                    None if tokens is None else decoder.mask_logits(each, memory, copies),
                    None if tokens is None else vectors[:, copies],
                )
            )
        return found

    def predict_captions(
        self, images: Tensor, tokens: Tensor, layers: int
    ) -> tuple[list[CaptionPrediction], Tensor]:
        """Compute states of caption tokens and vectors of images.

        Args:
            images: (B, 3, H, W).
            tokens: (B, L, D) projected features of the captions' tokens.
            layers: number of last layers.

        Returns:
            Predictions of the last layers, the last first, and (B, D) vectors of the image encoder.
        """
        maps = self.backbone.encode_image(images)
        predictions = self.decoder(self.prepare(maps), caption_tokens=tokens)
        last = self.decoder.num_queries - 1
        found = []
        for each in predictions[: -layers - 1 : -1]:
            assert each.captions is not None
            vectors = each.states @ self.decoder.class_projection
            found.append(CaptionPrediction(each.captions, vectors[:, last], vectors[:, :last]))
        return found, maps[-1].mean((2, 3)) @ self.image_projection

    # Methods of the network.
    if TYPE_CHECKING:

        def read_image(self, images: Tensor) -> Memory:
            """See `XDecoder`."""
            ...

        def prepare(self, maps: tuple[Tensor, ...]) -> Memory:
            """See `XDecoder`."""
            ...

        def class_logits(self, prediction: Prediction, class_vectors: Tensor) -> Tensor:
            """See `XDecoder`."""
            ...


def joined_tokens(phrases: PhraseTexts) -> Tensor:
    """Join the tokens of the distinct phrases of each image, padded with zeros: (B, g, D).

    As published, zeros that pad an image's tokens take part in the decoder's attention.
    """
    rows = [tokens[mask] for tokens, mask in phrases.distinct()]
    joined = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    missing = max(0, phrases.least_tokens - joined.shape[1])
    return torch.nn.functional.pad(joined, (0, 0, 0, missing))
