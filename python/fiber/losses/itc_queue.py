"""Image-text contrastive loss (ITC) against a queue of past pairs, as in the published code.

The default is `itc.itc_loss`, which has no state. Here the keys are the current batch of this rank
and a queue with the vectors, images and texts of past batches of all ranks. Queued vectors are not
recomputed, and there is no momentum encoder.

Letters: B pairs of this rank, Q slots of the queue, D width of the vectors, L text tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fiber.losses.distributed import all_rank_max, gather_rows, row_counts, wide, world_size
from fiber.losses.itc import TEMPERATURE_RANGE, Similarities, check_pairs
from fiber.losses.itm import HardNegatives

#: Id of <pad>, to which texts in the queue are padded.
PAD_ID = 1


class PairQueue:
    """Ring buffer of the newest pairs of all ranks; identical on every rank.

    Attributes:
        image_vectors: (Q, D) float32, 0 in empty slots.
        text_vectors: (Q, D) float32.
        images: (Q, 3, H, W) of the model's input. 4096 of 384 x 384 pixels take 7.25 GB.
        token_ids: (Q, L) int64.
        text_mask: (Q, L) bool.
        image_ids: (Q,) int64, equal numbers mean the same image.
        text_ids: (Q,) int64, equal numbers mean the same text.
        pointer: slot that is written next.
        total: number of pairs written so far.
    """

    TENSORS = (
        "image_vectors",
        "text_vectors",
        "images",
        "token_ids",
        "text_mask",
        "image_ids",
        "text_ids",
    )

    def __init__(
        self,
        length: int,
        *,
        width: int,
        image_size: tuple[int, int],
        max_tokens: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """Make an empty queue.

        Args:
            length: Q.
            width: D.
            image_size: (height, width) of an image in pixels.
            max_tokens: L.
            device: of the tensors.

        Raises:
            ValueError: if `length` is not positive.
        """
        if length < 1:
            raise ValueError(f"queue length is {length}; expected 1 or more")
        self.image_vectors = torch.zeros(length, width, device=device)
        self.text_vectors = torch.zeros(length, width, device=device)
        self.images = torch.zeros(length, 3, *image_size, device=device)
        self.token_ids = torch.full((length, max_tokens), PAD_ID, device=device)
        self.text_mask = torch.zeros(length, max_tokens, dtype=torch.bool, device=device)
        self.image_ids = torch.zeros(length, dtype=torch.int64, device=device)
        self.text_ids = torch.zeros(length, dtype=torch.int64, device=device)
        self.pointer = self.total = 0

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def written(self) -> int:
        """Number of filled slots, which are the first ones."""
        return min(self.total, len(self))

    @torch.no_grad()
    def enqueue(
        self,
        image_vectors: Tensor,
        text_vectors: Tensor,
        images: Tensor,
        token_ids: Tensor,
        text_mask: Tensor,
        image_ids: Tensor,
        text_ids: Tensor,
    ) -> None:
        """Append the pairs of all ranks in rank order, after the loss of the micro-batch.

        Args:
            image_vectors: (B, D).
            text_vectors: (B, D).
            images: (B, 3, H, W).
            token_ids: (B, L') int64, where L' may be less than L.
            text_mask: (B, L') bool.
            image_ids: (B,) int64.
            text_ids: (B,) int64.

        Raises:
            ValueError: if the global batch does not fit into the queue, or a text is longer than L.
        """
        longest = all_rank_max(token_ids.shape[1], token_ids.device)
        if longest > self.token_ids.shape[1]:
            raise ValueError(
                f"texts of {longest} tokens do not fit into a queue of {self.token_ids.shape[1]}"
            )
        missing = self.token_ids.shape[1] - token_ids.shape[1]
        values = {
            "image_vectors": image_vectors.to(self.image_vectors.dtype),
            "text_vectors": text_vectors.to(self.text_vectors.dtype),
            "images": images.to(self.images.dtype),
            "token_ids": F.pad(token_ids, [0, missing], value=PAD_ID),
            "text_mask": F.pad(text_mask, [0, missing]),
            "image_ids": image_ids,
            "text_ids": text_ids,
        }
        counts = row_counts(image_ids)
        if sum(counts) > len(self):
            raise ValueError(
                f"a whole batch of {sum(counts)} pairs does not fit into a queue of {len(self)}"
            )
        places = (torch.arange(sum(counts)) + self.pointer) % len(self)
        for name, value in values.items():
            kept: Tensor = getattr(self, name)
            kept[places.to(kept.device)] = gather_rows(value.contiguous(), counts).to(kept.device)
        self.pointer = (self.pointer + sum(counts)) % len(self)
        self.total += sum(counts)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors to save in a checkpoint."""
        state = {name: getattr(self, name) for name in self.TENSORS}
        return state | {
            "pointer": torch.tensor(self.pointer),
            "total": torch.tensor(self.total),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        for name in self.TENSORS:
            getattr(self, name).copy_(state[name])
        self.pointer, self.total = int(state["pointer"]), int(state["total"])


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
    """Cross entropy of image-text retrieval, both ways, in this rank's batch and the queue.

    Only queries get gradients. As in `itc.itc_loss`, a column with the row's image or text is
    masked. The published code has no ids; with ids that all differ this is its loss.

    Args:
        image_vectors: (B, D) of unit length.
        text_vectors: (B, D) of unit length.
        temperature: a scalar parameter, clamped in place to [0.001, 1], as published.
        image_ids: (B,) int64, equal numbers mean the same image.
        text_ids: (B,) int64, equal numbers mean the same text.
        queue: older pairs; it is not changed (`PairQueue.enqueue` does so).
        only_written: mask empty slots. False: they count as negatives, as in the published code,
            whose queue is initialized with random vectors.

    Returns:
        The loss of this rank, whose mean over ranks is the mean over all pairs, and the
        similarities to this rank's batch and the queue, for `itm.hard_negatives`.

    Raises:
        ValueError: if shapes do not fit together, or there are no negatives: one pair and an empty
            queue.

    Source: the published code of FIBER (Dou et al. 2022), after ALBEF (Li et al. 2021).
    """
    check_pairs(image_vectors, text_vectors, image_ids, text_ids)
    counts = row_counts(image_vectors)
    batch, used = len(image_ids), queue.written if only_written else len(queue)
    if sum(counts) + used < 2:
        raise ValueError(
            f"the contrastive loss got a whole batch of {sum(counts)} pairs and an empty queue;"
            " expected at least 2 pairs, since the others are the negatives"
        )
    with torch.no_grad():
        temperature.clamp_(*TEMPERATURE_RANGE)
    same = image_ids[:, None] == torch.cat([image_ids, queue.image_ids[:used]])
    same |= text_ids[:, None] == torch.cat([text_ids, queue.text_ids[:used]])
    # Empty slots have no ids: they equal no row.
    same[:, batch + queue.written :] = False
    left_out = same.clone()
    left_out.fill_diagonal_(False)
    targets = torch.arange(batch, device=image_ids.device)
    with torch.autocast(image_vectors.device.type, enabled=False):
        images, texts = wide(image_vectors), wide(text_vectors)
        image_keys = torch.cat([images.detach(), queue.image_vectors[:used].to(images.dtype)])
        text_keys = torch.cat([texts.detach(), queue.text_vectors[:used].to(texts.dtype)])
        image_to_text = images @ text_keys.T / wide(temperature)
        text_to_image = texts @ image_keys.T / wide(temperature)
        total = image_to_text.new_zeros(())
        for logits in (image_to_text, text_to_image):
            kept = logits.masked_fill(left_out, -torch.inf)
            total = total + F.cross_entropy(kept, targets, reduction="sum")
        loss = total * world_size() / max(1, 2 * sum(counts))
    candidates = batch + queue.written
    similarities = Similarities(
        image_to_text=image_to_text.detach()[:, :candidates],
        text_to_image=text_to_image.detach()[:, :candidates],
        is_negative=~same[:, :candidates],
        counts=counts,
        first_candidate=0,
    )
    return loss, similarities


def queued_negatives(
    images: Tensor,
    token_ids: Tensor,
    text_mask: Tensor,
    queue: PairQueue,
    negatives: HardNegatives,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gather sampled negatives from this rank's batch and the queue.

    Args:
        images: (B, 3, H, W) this rank's images.
        token_ids: (B, L') int64.
        text_mask: (B, L') bool.
        queue: before this batch is enqueued, as for the similarities.
        negatives: sampled from the similarities of `queue_itc_loss`.

    Returns:
        (B, 3, H, W) negative images, (B, L) negative texts and their (B, L) mask, L of the queue.
    """
    missing = queue.token_ids.shape[1] - token_ids.shape[1]
    own_ids = F.pad(token_ids, [0, missing], value=PAD_ID)
    own_mask = F.pad(text_mask, [0, missing])
    return (
        _rows(images, queue.images, negatives.image_index),
        _rows(own_ids, queue.token_ids, negatives.text_index),
        _rows(own_mask, queue.text_mask, negatives.text_index),
    )


def _rows(own: Tensor, queued: Tensor, indices: Tensor) -> Tensor:
    """Index the concatenation of `own` and `queued` without building it: the queue is large."""
    is_own = indices < len(own)
    rows = own[indices.clamp(max=len(own) - 1)]
    from_queue = queued[(indices - len(own)).clamp(min=0).to(queued.device)].to(own)
    return torch.where(is_own.view(-1, *[1] * (own.ndim - 1)), rows, from_queue)
