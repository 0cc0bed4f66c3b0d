"""What objectives keep from one pass to the next beside the weights and the optimiser.

Contrast of form "queue" keeps older pairs, captions of objective "gold" a frozen copy of the model.
Both are alike on every rank, and stand in every checkpoint, so that a resumed run goes on exactly.
Objective "cider" has all captions of every picture at hand, which a run reads from its data anew.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fiber.losses.itc_queue import PairQueue
from fiber.models.fiber.image_text import FiberImageText
from fiber.training.config.run import RunConfig
from fiber.training.scst import CaptionRewards


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Empty for most runs."""

    #: Older pairs for the contrastive loss.
    queue: PairQueue | None = None
    #: Frozen copy of the model, in evaluation mode.
    reference: FiberImageText | None = None
    #: Steps from one copy to the next.
    copy_every: int = 1
    #: What sampled captions earn.
    rewards: CaptionRewards | None = None

    @classmethod
    def of(
        cls, config: RunConfig, device: torch.device, rewards: CaptionRewards | None = None
    ) -> Memory:
        """Make what a run needs: an empty queue, a copy that `begin_step` fills; and keep rewards.

        Args:
            config: of the run.
            device: where its model is.
            rewards: for captions of objective "cider".
        """
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
            reference = FiberImageText(config.model).to(device).eval().requires_grad_(False)
        return cls(
            queue=queue,
            reference=reference,
            copy_every=caption.gold_copy_every,
            rewards=rewards,
        )

    def begin_step(self, step: int, model: nn.Module) -> None:
        """Copy the model anew where it is time to, at the first step too."""
        if self.reference is not None and step % self.copy_every == 0:
            self.reference.load_state_dict(model.state_dict())

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Everything that a resumed run needs."""
        parts = {"queue": self.queue, "reference": self.reference}
        return {name: part.state_dict() for name, part in parts.items() if part is not None}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Take back what `state_dict` gave."""
        if self.queue is not None:
            self.queue.load_state_dict(state["queue"])
        if self.reference is not None:
            self.reference.load_state_dict(state["reference"])


#: Of a run whose objectives keep nothing.
NO_MEMORY = Memory()
