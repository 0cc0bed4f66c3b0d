"""What networks with masks can do, as protocols; see `fiber.models.abilities`.

Shapes:
    images: (B, 3, H, W) normalized pixels; H and W are multiples of the transform's divisor.
    memory: what a network reads of images, computed once for all that is asked about them.
    Q: number of masks that are proposed for an image.
    K: number of classes, without the background, which is the last class.
    n: number of phrases.
    D: width of vectors of texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from fiber.models.features import MaskPrediction, PhraseTexts
from fiber.models.heads import HasConfig

if TYPE_CHECKING:
    from torch import Tensor

    from fiber.models.masks.class_texts import ClassTexts


class ReadsImages(HasConfig, Protocol):
    """Computes what it reads of images once."""

    def read_image(self, images: Tensor) -> Any:
        """Compute the memory of images."""
        ...


class ReadsClassNames(HasConfig, Protocol):
    """Knows the texts by which classes are asked for."""

    def class_prompts(self, names: Sequence[str]) -> list[tuple[str, ...]]:
        """Return the texts of each class and, last, of the background: K + 1 tuples of T texts.

        Raises:
            ValueError: if there are no names, or a name is empty, there twice, or reserved.
        """
        ...


class SegmentsMasks(ReadsClassNames, ReadsImages, Protocol):
    """Finds masks of classes and of phrases."""

    def prompt_vectors(self, token_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Encode texts of classes: (B, L) -> (B, D)."""
        ...

    def class_vectors(self, vectors: Tensor) -> Tensor:
        """Combine the vectors of each class: (K + 1, T, D) -> (K + 1, D)."""
        ...

    def text_weights(self) -> Iterator[Tensor]:
        """Yield the tensors that vectors of texts depend on."""
        ...

    def class_masks(self, memory: Any, class_vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Compute masks and their classes.

        Args:
            memory: images.
            class_vectors: (K + 1, D).

        Returns:
            (B, Q, K + 1) class logits, and (B, Q, H / s, W / s) mask logits.
        """
        ...

    def find_phrases(
        self, memory: Any, token_ids: Tensor, text_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Find the best mask for each of n phrases, which are asked about each image together.

        Args:
            memory: images.
            token_ids: (n, L) int64.
            text_mask: (n, L) bool, True = real token.

        Returns:
            (B, n) scores in [0, 1], and (B, n, H / s, W / s) mask logits.
        """
        ...


class SegmentsByTensors(SegmentsMasks, Protocol):
    """Finds masks by functions of tensors, which keep no state and can be exported.

    `pixel_maps` are three maps (B, D, H / 32, W / 32), (B, D, H / 16, W / 16) and
    (B, D, H / 8, W / 8), and mask features (B, M, H / 4, W / 4).
    """

    @property
    def size_divisor(self) -> int:
        """Number that divides the height and width of padded images."""
        ...

    @property
    def class_texts(self) -> ClassTexts:
        """Texts that classes are encoded by."""
        ...

    def pixel_maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """Compute the pixel maps of images and, with the head "retrieval", `image_means` (B, D)."""
        ...

    def text_features(self, token_ids: Tensor, text_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode texts: (n, L) -> (n, L, D) tokens and (n, D) vectors, not normalized."""
        ...

    def class_mask_tensors(
        self, pixel_maps: Sequence[Tensor], class_vectors: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute what `class_masks` does."""
        ...

    def phrase_mask_tensors(
        self, pixel_maps: Sequence[Tensor], phrase_tokens: Tensor, text_vectors: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute what `find_phrases` does.

        Args:
            pixel_maps: images.
            phrase_tokens: (B, g, D) features of the real tokens of all phrases of an image.
            text_vectors: (n, D) of the phrases.
        """
        ...

    def image_vector_tensors(self, pixel_maps: Sequence[Tensor], image_means: Tensor) -> Tensor:
        """Embed images: unit vectors, (B, 2 D)."""
        ...


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
