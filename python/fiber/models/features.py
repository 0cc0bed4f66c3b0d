"""Features and predictions that networks exchange with objectives and inference.

Those of exported graphs are arrays of numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from fiber.ops.arrays import functions_of

if TYPE_CHECKING:
    from torch import Tensor

#: Outputs to compute: "all", "pooled" (the image and the first text token) or "text". The last
#: fused pair skips all other outputs.
Wanted = Literal["all", "pooled", "text"]

#: (height, width) in pixels of each image's valid region, at the top left of a padded tensor;
#: multiples of the stride of the last stage.
ImageSizes = tuple[tuple[int, int], ...]


class BackboneOutput(NamedTuple):
    """Features of images or of (image, text) pairs."""

    #: (B, H_s, W_s, C_s) output of each stage, not normalized, before patch merging. The last stage
    #: is omitted if only "text" was requested.
    stages: tuple[Tensor, ...]
    #: (B, L, D) and (B, L), or (B, 1, D) and (B, 1) if "pooled"; None if there is no text.
    text: Tensor | None = None
    text_mask: Tensor | None = None
    #: Valid region of each image. None means the whole tensor.
    sizes: ImageSizes | None = None


class ImagePrefix(NamedTuple):
    """Image features below the first fused block."""

    #: (B, H, W, C) output of the last unfused block.
    tokens: Tensor
    #: Outputs of finished stages.
    stages: tuple[Tensor, ...] = ()
    #: Valid region of each image. None means the whole tensor.
    sizes: ImageSizes | None = None

    def take(self, indices: Tensor, *, with_stages: bool = False) -> ImagePrefix:
        """Select samples by (n,) int64 indices.

        Outputs of finished stages are dropped unless `with_stages` is True. The detector needs
        them.
        """
        sizes, f = self.sizes, functions_of(self.tokens)
        return ImagePrefix(
            f.take(self.tokens, indices),
            tuple(f.take(stage, indices) for stage in self.stages if with_stages),
            None if sizes is None else tuple(sizes[index] for index in indices.tolist()),
        )


class PhraseTexts(NamedTuple):
    """Features of the P phrases of B images, ordered by image."""

    #: (P, L, D) of all tokens, and (P, L) bool, True = real token.
    tokens: Tensor
    mask: Tensor
    #: (P,) int64, equal for equal phrases.
    ids: Tensor
    #: (B,) int64: number of phrases of each image.
    per_image: Tensor
    #: Least number of tokens g that the distinct phrases of an image are padded to.
    least_tokens: int = 0

    def distinct(self) -> list[tuple[Tensor, Tensor]]:
        """Return (n, L, D) tokens and (n, L) masks of the distinct phrases of each image."""
        counts, found = self.per_image.tolist(), []
        for tokens, mask, ids in zip(
            self.tokens.split(counts), self.mask.split(counts), self.ids.split(counts), strict=True
        ):
            same = ids[:, None] == ids
            is_first = ~same.tril(-1).any(1)
            found.append((tokens[is_first], mask[is_first]))
        return found


class MaskPrediction(NamedTuple):
    """Predictions of Q queries with a mask each, from one layer of a decoder."""

    #: (B, Q, K + 1) logits of the classes and, last, of the background.
    class_logits: Tensor
    #: (B, Q, h, w).
    mask_logits: Tensor
    #: (B, Q, D) in the space of text vectors; not normalized.
    vectors: Tensor
    #: (B, R, h, w) and (B, R, D) of the rows that phrases are matched with; None without phrases.
    phrase_mask_logits: Tensor | None = None
    phrase_vectors: Tensor | None = None


class MaskOutput(NamedTuple):
    """Masks of all locations, from which `fiber.ops.masks` computes those that are wanted."""

    #: For each pyramid level, (B, H_l * W_l, M + `PLACE_TERMS`).
    embeddings: list[Tensor]
    #: (B, M, H / stride, W / stride).
    features: Tensor
    #: Stride of the features in pixels.
    stride: int


@dataclass(frozen=True)
class DetectorOutput:
    """Raw predictions of the detector. Lists have one entry per pyramid level, P3 to P7."""

    #: (B, H_l * W_l, L), with locations in row-major order.
    token_logits: list[Tensor]
    #: (B, H_l * W_l, 4) relative to the anchors; see `fiber.ops.boxes.decode_deltas`.
    box_deltas: list[Tensor]
    #: (B, H_l * W_l).
    centerness_logits: list[Tensor]
    #: (H_l * W_l, 4) float32, half-open pixel coordinates in the padded image.
    anchors: list[Tensor]
    #: (B, L) bool, True = real token.
    text_mask: Tensor
    #: (B, A) bool, True = valid location, for mixed-size batches; invalid locations have the lowest
    #: token logits. None if all are valid.
    inside: Tensor | None = None
    #: Masks of the locations, if the model has them and they are wanted.
    masks: MaskOutput | None = None
