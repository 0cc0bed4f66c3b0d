"""Functions of tensors that keep no state, of which `fiber export` makes graphs.

Shapes: see `fiber.models.mask_abilities.SegmentsByTensors`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fiber.models.masks.class_texts import ClassTexts
from fiber.models.masks.pixel_decoder import PixelDecoder, PixelFeatures
from fiber.models.xdecoder.class_texts import CLASS_TEXTS
from fiber.models.xdecoder.training import TrainedNetwork

if TYPE_CHECKING:
    from fiber.models.xdecoder.decoder import Prediction


class GraphNetwork(TrainedNetwork):
    """Functions for graphs; base class of the network, which has the layers."""

    pixel_decoder: PixelDecoder

    @property
    def size_divisor(self) -> int:
        """Number that divides the height and width of padded images."""
        return self.config.size_step

    @property
    def class_texts(self) -> ClassTexts:
        """Texts that classes are encoded by."""
        return CLASS_TEXTS

    def pixel_maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """Run the image encoder and the pixel decoder."""
        maps = self.backbone.encode_image(images)
        features = self.pixel_decoder(maps)
        found = (*features.maps, features.mask_features)
        if "retrieval" not in self.config.heads:
            return found
        return (*found, maps[-1].mean((2, 3)) @ self.image_projection)

    def text_features(self, token_ids: Tensor, text_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode texts."""
        found = self.encode_text(token_ids, text_mask)
        return found.tokens, found.vectors

    def class_mask_tensors(
        self, pixel_maps: Sequence[Tensor], class_vectors: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute masks and their classes."""
        found = self.class_masks(self._memory(pixel_maps), class_vectors)
        return found.class_logits, found.mask_logits

    def phrase_mask_tensors(
        self, pixel_maps: Sequence[Tensor], phrase_tokens: Tensor, text_vectors: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Find the best mask for each phrase."""
        memory = self._memory(pixel_maps)
        last = self.decoder(memory, phrase_tokens)[-1]
        similarity = self.phrase_similarity(last, text_vectors)
        # The mask embedding of the best row of each phrase: (B, n, M)
        embeddings = last.mask_embeddings[:, self.decoder.num_queries :]
        rows = similarity.argmax(1)[..., None].expand(-1, -1, embeddings.shape[2])
        chosen = last._replace(mask_embeddings=embeddings.gather(1, rows))
        masks = self.decoder.mask_logits(chosen, memory, slice(None))
        return similarity.softmax(1).amax(1), masks

    def image_vector_tensors(self, pixel_maps: Sequence[Tensor], image_means: Tensor) -> Tensor:
        """Embed images."""
        last = self.decoder(self._memory(pixel_maps))[-1]
        states = last.states[:, self.decoder.num_queries - 1]
        return self.embedding(states @ self.decoder.class_projection, image_means)

    def _memory(self, pixel_maps: Sequence[Tensor]) -> Any:
        *maps, mask_features = pixel_maps
        return self.decoder.prepare(PixelFeatures(tuple(maps), mask_features))

    # Methods of the network.
    if TYPE_CHECKING:

        def encode_text(self, token_ids: Tensor, text_mask: Tensor) -> Any:
            """See `XDecoder`."""
            ...

        def class_masks(self, memory: Any, class_vectors: Tensor) -> Any:
            """See `XDecoder`."""
            ...

        def phrase_similarity(self, prediction: Prediction, vectors: Tensor) -> Tensor:
            """See `XDecoder`."""
            ...

        def embedding(self, first: Tensor, second: Tensor) -> Tensor:
            """See `XDecoder`."""
            ...
