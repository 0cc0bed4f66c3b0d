"""Checkpointed state of objectives: the ITC queue and the GOLD reference model.

Both are saved in every checkpoint, so a resumed run matches an uninterrupted one exactly. They are
identical on all ranks, except for queued images, of which each rank holds a part. CIDEr-D rewards
are instead rebuilt from the training data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from fiber.config import FiberConfig
from fiber.losses.itc_queue import PairQueue
from fiber.models.fiber.image_text import FiberImageText
from fiber.training.config.run import RunConfig
from fiber.training.distributed.full_tensor import local_rows, sharded_rows
from fiber.training.objectives.scst import CaptionRewards


@dataclass(frozen=True, kw_only=True)
class ObjectiveState:
    """State of a run's objectives; empty for most runs."""

    #: Older pairs, for ITC with a queue.
    queue: PairQueue | None = None
    #: Frozen copy of the model, in eval mode.
    reference: FiberImageText | None = None
    #: Steps between updates of `reference`.
    copy_every: int = 1
    #: Reward function for sampled captions.
    rewards: CaptionRewards | None = None

    @classmethod
    def of(
        cls, config: RunConfig, device: torch.device, rewards: CaptionRewards | None = None
    ) -> ObjectiveState:
        """Create the state of a new run; `begin_step` sets the weights of the reference."""
        active, queue, reference = config.tasks.active(), None, None
        image_text, caption = config.tasks.image_text, config.tasks.caption
        if "image_text" in active and image_text.has_contrast and image_text.itc_form == "queue":
            queue = PairQueue(
                image_text.queue_length,
                width=config.model.roberta.width,
                image_size=(config.model.image_size, config.model.image_size),
                max_tokens=config.model.max_tokens,
                device=device,
            )
        if "caption" in active and caption.objective == "gold":
            reference = FiberImageText(cast(FiberConfig, config.model))
            reference = reference.to(device).eval().requires_grad_(False)
        copy_every = caption.gold_copy_every
        return cls(queue=queue, reference=reference, copy_every=copy_every, rewards=rewards)

    def begin_step(self, step: int, weights: Callable[[], Mapping[str, Tensor]]) -> None:
        """Copy the model to the reference every `copy_every` steps, starting at step 0.

        `weights` returns the model's state dict; it is only called if needed.
        """
        if self.reference is not None and step % self.copy_every == 0:
            self.reference.load_state_dict(weights())

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Return the tensors to save in a checkpoint; queued images are sharded over the ranks."""
        parts = {"queue": self.queue, "reference": self.reference}
        state = {name: part.state_dict() for name, part in parts.items() if part is not None}
        if self.queue is not None:
            images = state["queue"]["images"]
            state["queue"]["images"] = sharded_rows(images, len(self.queue))
        return state

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Restore a state returned by `state_dict`."""
        if self.queue is not None:
            queue = {name: local_rows(tensor) for name, tensor in state["queue"].items()}
            self.queue.load_state_dict(queue)
        if self.reference is not None:
            self.reference.load_state_dict(state["reference"])
