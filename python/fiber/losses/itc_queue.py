"""Queue of past pairs for ITC and ITM, as in the published code.

It holds pairs of past batches of all ranks. Queued vectors are not recomputed, and there is no
momentum encoder. Queued images, the negatives of ITM, take most of the memory, so each rank holds a
part of them.

Shapes: B pairs on this rank, Q queue slots, D embed dim, L text tokens in the queue, L' <= L in the
batch; images are (B, 3, H, W), token_ids and text_mask (B, L'), ids (B,).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fiber.losses.distributed import (
    all_rank_max,
    fetch_rows,
    gather_rows,
    rank,
    row_counts,
    world_size,
)

#: Id of <pad>, used to pad the texts in the queue.
PAD_ID = 1


class PairQueue:
    """Ring buffer of the newest pairs of all ranks; identical on every rank, except for the images.

    Attributes:
        image_vectors: (Q, D) float32, 0 in empty slots.
        text_vectors: (Q, D) float32.
        images: (S, 3, H, W) model inputs of this rank's slots, `held` of which there are on each
            rank; all 4096 images of 384 x 384 pixels take 7.25 GB.
        held: number of slots of each rank, in rank order. As in `torch.chunk`, the last ranks have
            fewer.
        token_ids: (Q, L) int64.
        text_mask: (Q, L) bool.
        image_ids: (Q,) int64.
        text_ids: (Q,) int64.
        pointer: next slot to write.
        total: number of pairs written so far.
    """

    #: Tensors with a row for each slot.
    TENSORS = (
        *("image_vectors", "text_vectors", "token_ids", "text_mask"),
        *("image_ids", "text_ids"),
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
        """Create an empty queue with Q = `length`, D = `width` and L = `max_tokens`.

        Raises:
            ValueError: if `length` is not positive.
        """
        if length < 1:
            raise ValueError(f"queue length must be >= 1, got {length}")
        self.image_vectors = torch.zeros(length, width, device=device)
        self.text_vectors = torch.zeros(length, width, device=device)
        most = -(-length // world_size())
        starts = [min(most * number, length) for number in range(world_size() + 1)]
        self.held = tuple(end - start for start, end in itertools.pairwise(starts))
        self.images = torch.zeros(self.held[rank()], 3, *image_size, device=device)
        self.token_ids = torch.full((length, max_tokens), PAD_ID, device=device)
        self.text_mask = torch.zeros(length, max_tokens, dtype=torch.bool, device=device)
        self.image_ids = torch.zeros(length, dtype=torch.int64, device=device)
        self.text_ids = torch.zeros(length, dtype=torch.int64, device=device)
        self.pointer = self.total = 0

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def written(self) -> int:
        """Number of filled slots; these come first."""
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
        """Append the pairs of all ranks in rank order; call this after computing the loss.

        Raises:
            ValueError: if the global batch does not fit into the queue, or a text is longer than L.
        """
        texts = self.pad_texts(token_ids, text_mask)
        values = image_vectors, text_vectors, *texts, image_ids, text_ids
        longest = all_rank_max(token_ids.shape[1], token_ids.device)
        if longest > self.token_ids.shape[1]:
            raise ValueError(
                f"a text of {longest} tokens does not fit into the queue; expected at most"
                f" {self.token_ids.shape[1]}"
            )
        counts = row_counts(image_ids)
        if sum(counts) > len(self):
            raise ValueError(
                f"a global batch of {sum(counts)} pairs does not fit into the queue; expected at"
                f" most {len(self)}"
            )
        slots = (torch.arange(sum(counts)) + self.pointer) % len(self)
        for name, value in zip(self.TENSORS, values, strict=True):
            kept: Tensor = getattr(self, name)
            rows = gather_rows(value.to(kept.dtype).contiguous(), counts)
            kept[slots.to(kept.device)] = rows.to(kept.device)
        self._keep_images(images, counts, slots)
        self.pointer = (self.pointer + sum(counts)) % len(self)
        self.total += sum(counts)

    def _keep_images(self, images: Tensor, counts: tuple[int, ...], places: Tensor) -> None:
        """Store those images of all ranks whose places are among this rank's slots."""
        ends = torch.tensor(self.held).cumsum(0)
        owners = torch.bucketize(places, ends, right=True)
        wanted = tuple(torch.bincount(owners, minlength=len(self.held)).tolist())
        own = (owners == rank()).nonzero()[:, 0]
        rows = images.to(self.images.dtype).contiguous()
        fetched = fetch_rows(rows, own.to(rows.device), counts, wanted=wanted)
        slots = places[own] - (ends[rank()] - self.held[rank()])
        self.images[slots.to(self.images.device)] = fetched.to(self.images.device)

    def image_rows(self, slots: Tensor) -> Tensor:
        """Fetch the images of some slots, (n,) int64, from the ranks that hold them.

        All ranks must call this, each with its own slots.
        """
        slots = slots.to(self.images.device)
        return fetch_rows(self.images, slots, self.held, wanted=row_counts(slots))

    def candidate_rows(
        self,
        images: Tensor,
        token_ids: Tensor,
        text_mask: Tensor,
        *,
        image_index: Tensor,
        text_index: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gather rows of the candidates: this rank's batch, followed by the queue.

        All ranks must call this, before they enqueue the batch. Indices, (B,) int64, are those of
        `itm.HardNegatives`.

        Returns:
            (B, 3, H, W) images, (B, L) texts and their (B, L) mask.
        """
        own_ids, own_mask = self.pad_texts(token_ids, text_mask)
        return (
            _rows(images, self.image_rows, image_index),
            _rows(own_ids, lambda slots: self.token_ids[slots], text_index),
            _rows(own_mask, lambda slots: self.text_mask[slots], text_index),
        )

    def pad_texts(self, token_ids: Tensor, text_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Pad texts and their masks to L tokens."""
        missing = [0, self.token_ids.shape[1] - token_ids.shape[1]]
        return F.pad(token_ids, missing, value=PAD_ID), F.pad(text_mask, missing)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors to save in a checkpoint; images are those of this rank."""
        state = {name: getattr(self, name) for name in (*self.TENSORS, "images")}
        return state | {"pointer": torch.tensor(self.pointer), "total": torch.tensor(self.total)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore a state returned by `state_dict`."""
        for name in (*self.TENSORS, "images"):
            getattr(self, name).copy_(state[name])
        self.pointer, self.total = int(state["pointer"]), int(state["total"])


def _rows(batch_rows: Tensor, queued: Callable[[Tensor], Tensor], indices: Tensor) -> Tensor:
    """Index the rows of the batch, followed by those of the queue, which `queued` returns."""
    is_own = indices < len(batch_rows)
    rows = batch_rows.new_empty(len(indices), *batch_rows.shape[1:])
    rows[is_own] = batch_rows[indices[is_own]]
    rows[~is_own] = queued(indices[~is_own] - len(batch_rows)).to(batch_rows)
    return rows
