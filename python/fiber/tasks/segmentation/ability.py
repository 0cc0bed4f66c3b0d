"""What the task asks of a network, whatever its family.

Shapes: B images, K classes, n texts, D channels of vectors of texts, Q masks of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from fiber.models.features import MaskPrediction, PhraseTexts

if TYPE_CHECKING:
    from torch import Tensor


class EncodedTexts(Protocol):
    """Features of texts."""

    @property
    def tokens(self) -> Tensor:
        """(n, L, D) of all tokens."""
        ...

    @property
    def vectors(self) -> Tensor:
        """(n, D) of the texts; not normalized."""
        ...


class ReadsClassNames(Protocol):
    """Knows the texts by which classes are asked for. Models have the head "mask"."""

    @property
    def config(self) -> Any:
        """The `ModelConfig`."""
        ...

    def class_prompts(self, names: Sequence[str]) -> list[tuple[str, ...]]:
        """Return the texts of each class and, last, of the background: K + 1 tuples of T texts."""
        ...


class TrainsMasks(ReadsClassNames, Protocol):
    """Predicts masks with a gradient, from every layer of its decoder."""

    def encode_text(self, token_ids: Tensor, text_mask: Tensor) -> EncodedTexts:
        """Encode texts: (n, L) int64 ids, (n, L) bool, True = real token."""
        ...

    def scale(self) -> Tensor:
        """Return the factor of the cosines of phrases, a scalar."""
        ...

    def predict_masks(
        self, images: Tensor, class_vectors: Tensor, phrases: PhraseTexts | None = None
    ) -> list[MaskPrediction]:
        """Predict masks of classes and of phrases; the last layer comes first.

        Args:
            images: (B, 3, H, W).
            class_vectors: (K + 1, D) unit vectors.
            phrases: phrases of the images, or None.
        """
        ...


class FindsMasks(ReadsClassNames, Protocol):
    """Finds masks of classes and of phrases."""

    def read_image(self, images: Tensor) -> Any:
        """Compute what is read of images; H and W are multiples of `config.size_step`."""
        ...

    def prompt_vectors(self, token_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Encode texts of classes: (n, L) -> (n, D)."""
        ...

    def class_vectors(self, vectors: Tensor) -> Tensor:
        """Combine the vectors of each class: (K + 1, T, D) -> (K + 1, D)."""
        ...

    def class_masks(self, memory: Any, class_vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Compute (B, Q, K + 1) class logits, the background last, and (B, Q, h, w) masks."""
        ...

    def find_phrases(
        self, memory: Any, token_ids: Tensor, text_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Find the mask of each of n phrases, asked together: (B, n) scores, (B, n, h, w)."""
        ...
