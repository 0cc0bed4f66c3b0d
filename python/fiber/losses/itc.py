"""Image-text contrastive loss (ITC) over the global batch, or against a queue of past pairs.

Shapes: B pairs on this rank, G pairs in the global batch (all ranks), D embed dim. Image and text
ids are (B,) int64; equal ids mean the same image or text.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fiber.losses.distributed import gather_rows, rank, row_counts, wide, world_size
from fiber.losses.itc_queue import PairQueue

#: Minimum and maximum temperature, as in the published code.
TEMPERATURE_RANGE = (0.001, 1.0)


@dataclass(frozen=True)
class Similarities:
    """Detached similarities of this rank's images and texts to the candidates.

    The K candidates are the G rows of the global batch, or the B rows of this rank followed by the
    queue.
    """

    #: (B, K) float32 cosine similarity / temperature, for image and text queries.
    image_to_text: Tensor
    text_to_image: Tensor
    #: (B, K) bool, True for a negative pair.
    is_negative: Tensor
    #: Number of rows on each rank; the global batch is in rank order.
    counts: tuple[int, ...]
    #: Index of the candidate that is this rank's first row.
    first_candidate: int = 0

    @property
    def first_row(self) -> int:
        """Index of this rank's first row in the global batch."""
        return sum(self.counts[: rank()])


@torch.no_grad()
def clamp_temperature(temperature: Tensor) -> None:
    """Clamp the temperature in place to [0.001, 1], as in the published code.

    The losses do this before they use it. Under FSDP2 they see a gathered copy, so training also
    clamps the parameter itself, after each optimizer step.
    """
    temperature.clamp_(*TEMPERATURE_RANGE)


def itc_loss(
    image_vectors: Tensor,
    text_vectors: Tensor,
    temperature: Tensor,
    image_ids: Tensor,
    text_ids: Tensor | None = None,
) -> tuple[Tensor, Similarities]:
    """Compute the retrieval cross entropy in both directions within the global batch.

    Row i of both inputs is a pair. Other columns that share the row's image or text are masked in
    the softmax. Targets stay one-hot, as in the published code, so an image with many captions has
    the same weight as any other.

    Args:
        image_vectors: (B, D), L2-normalized.
        text_vectors: (B, D), L2-normalized.
        temperature: scalar parameter, clamped in place to [0.001, 1], as in the published code.
        image_ids: (B,).
        text_ids: (B,), such as `text_fingerprints`; None if all texts differ.

    Returns:
        The loss of this rank, whose mean over ranks equals the loss of one process on the global
        batch, and the similarities for `itm.hard_negatives`.

    Raises:
        ValueError: if the shapes do not match, or the global batch is a single pair.

    Source: FIBER (Dou et al. 2022), as in the paper; the published code uses a queue.
    """
    counts = _pair_counts(image_vectors, text_vectors, image_ids, text_ids)
    whole = sum(counts)
    if whole < 2:
        raise ValueError(
            f"ITC needs at least 2 pairs, since other pairs are the negatives; got {whole} in the"
            f" global batch (world size {world_size()})"
        )
    clamp_temperature(temperature)

    is_negative = image_ids[:, None] != gather_rows(image_ids, counts)[None]
    if text_ids is not None:
        is_negative &= text_ids[:, None] != gather_rows(text_ids, counts)[None]
    first_row = sum(counts[: rank()])
    targets = torch.arange(len(image_ids), device=image_ids.device) + first_row
    masked = ~is_negative
    masked[torch.arange(len(targets), device=targets.device), targets] = False

    with torch.autocast(image_vectors.device.type, enabled=False):
        images, texts = wide(image_vectors), wide(text_vectors)
        scale = 1 / wide(temperature)
        image_to_text = images @ gather_rows(texts, counts).T * scale
        text_to_image = texts @ gather_rows(images, counts).T * scale
        loss = _retrieval_loss(image_to_text, text_to_image, masked, targets, whole)
    similarities = Similarities(
        image_to_text=image_to_text.detach(),
        text_to_image=text_to_image.detach(),
        is_negative=is_negative,
        counts=counts,
        first_candidate=first_row,
    )
    return loss, similarities


def queue_itc_loss(
    image_vectors: Tensor,
    text_vectors: Tensor,
    temperature: Tensor,
    image_ids: Tensor,
    text_ids: Tensor,
    queue: PairQueue,
    *,
    only_written: bool = True,
) -> tuple[Tensor, Similarities]:
    """Compute the retrieval cross entropy against this rank's batch and the queue.

    The loss averages both directions (image-to-text and text-to-image). Only queries receive
    gradients. As in `itc_loss`, other columns that share the row's image or text are masked.
    The published code masks no columns; its loss is the same if all ids are distinct.

    Args:
        image_vectors: (B, D), L2-normalized.
        text_vectors: (B, D), L2-normalized.
        temperature: scalar parameter, clamped in place to [0.001, 1], as in the published code.
        image_ids: (B,).
        text_ids: (B,).
        queue: older pairs; not modified (see `PairQueue.enqueue`).
        only_written: exclude empty slots. If False, they are used as negatives, as in the published
            code, whose queue is initialized with random vectors.

    Returns:
        The loss of this rank, whose mean over ranks equals the mean over all pairs, and the
        similarities to this rank's batch and the queue, for `itm.hard_negatives`.

    Raises:
        ValueError: if shapes do not match, or there are no negatives (one pair and an empty queue).

    Source: the published code of FIBER (Dou et al. 2022), after ALBEF (Li et al. 2021).
    """
    counts = _pair_counts(image_vectors, text_vectors, image_ids, text_ids)
    batch, used = len(image_ids), queue.written if only_written else len(queue)
    if sum(counts) + used < 2:
        raise ValueError(
            "ITC needs at least 2 pairs, since other pairs are the negatives; got"
            f" {sum(counts)} in the global batch and an empty queue"
        )
    clamp_temperature(temperature)
    same = image_ids[:, None] == torch.cat([image_ids, queue.image_ids[:used]])
    same |= text_ids[:, None] == torch.cat([text_ids, queue.text_ids[:used]])
    # Empty slots have no ids.
    same[:, batch + queue.written :] = False
    masked = same.clone()
    masked.fill_diagonal_(False)
    targets = torch.arange(batch, device=image_ids.device)
    with torch.autocast(image_vectors.device.type, enabled=False):
        images, texts = wide(image_vectors), wide(text_vectors)
        image_keys = torch.cat([images.detach(), queue.image_vectors[:used].to(images.dtype)])
        text_keys = torch.cat([texts.detach(), queue.text_vectors[:used].to(texts.dtype)])
        image_to_text = images @ text_keys.T / wide(temperature)
        text_to_image = texts @ image_keys.T / wide(temperature)
        loss = _retrieval_loss(image_to_text, text_to_image, masked, targets, sum(counts))
    candidates = batch + queue.written
    similarities = Similarities(
        image_to_text=image_to_text.detach()[:, :candidates],
        text_to_image=text_to_image.detach()[:, :candidates],
        is_negative=~same[:, :candidates],
        counts=counts,
    )
    return loss, similarities


def _retrieval_loss(
    image_to_text: Tensor, text_to_image: Tensor, masked: Tensor, targets: Tensor, whole: int
) -> Tensor:
    """Average the cross entropy of both directions over a global batch of `whole` pairs.

    `masked` is a (B, K) bool mask of columns excluded from the softmax; `targets` is (B,) int64.
    """
    total = image_to_text.new_zeros(())
    for logits in (image_to_text, text_to_image):
        kept = logits.masked_fill(masked, -torch.inf)
        total = total + F.cross_entropy(kept, targets, reduction="sum")
    return total * world_size() / max(1, 2 * whole)


def text_fingerprints(token_ids: Tensor, text_mask: Tensor) -> Tensor:
    """Compute a (B,) int64 hash of each text, independent of its padding.

    Texts are (B, L), right-padded. Two different texts collide with a probability of about
    2 ** -64.
    """
    positions = torch.arange(token_ids.shape[1], device=token_ids.device)
    # Integer overflow wraps around, as multiplicative hashing requires.
    mixed = (token_ids + 1) * 0x5851F42D4C957F2D + positions * 0x2545F4914F6CDD1D
    for shift in (29, 32):
        mixed = (mixed ^ (mixed >> shift)) * 0x369DEA0F31A53F85
    return (mixed ^ (mixed >> 31)).masked_fill(~text_mask, 0).sum(1)


def _pair_counts(
    image_vectors: Tensor, text_vectors: Tensor, image_ids: Tensor, text_ids: Tensor | None
) -> tuple[int, ...]:
    """All-gather the number of pairs on each rank.

    Raises:
        ValueError: if the shapes of vectors and ids do not match.
    """
    if image_vectors.ndim != 2 or image_vectors.shape != text_vectors.shape:
        raise ValueError(
            f"image_vectors have shape {tuple(image_vectors.shape)}, text_vectors"
            f" {tuple(text_vectors.shape)}; expected both to have shape (B, D)"
        )
    for name, ids in (("image_ids", image_ids), ("text_ids", text_ids)):
        if ids is not None and tuple(ids.shape) != (image_vectors.shape[0],):
            raise ValueError(
                f"{name} have shape {tuple(ids.shape)}; expected ({image_vectors.shape[0]},)"
            )
    return row_counts(image_vectors)
