"""Train captions: likelihood, GOLD, or CIDEr-D of sampled ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fiber.data.batch import ImageTextBatch
from fiber.models.caption_abilities import WritesCaptions
from fiber.models.registry import build_model
from fiber.tasks.caption.branches import caption_losses, self_critical_losses
from fiber.tasks.caption.rewards import CaptionRewards
from fiber.training.config.run import RunConfig
from fiber.training.objectives.draw import Draw
from fiber.training.objectives.forward_passes import ONE_PASS, ForwardPasses
from fiber.training.objectives.split_backward import SplitGraph
from fiber.training.task_training import TaskTraining
from fiber.training.training_data import TrainingData


class CaptionTraining(TaskTraining):
    """The next token of a caption; a frozen copy of the model for GOLD; rewards of samples."""

    abilities: ClassVar[tuple[type, ...]] = (WritesCaptions,)
    causes: ClassVar[Mapping[str, str]] = {
        "caption": "optim.lr is too low, or the texts have nothing in common"
    }
    fall_soon: ClassVar[tuple[str, ...]] = ("caption",)
    cost_note: ClassVar[str] = "FLOPs leave out the captions that are sampled in training"

    #: Frozen copy of the model, in eval mode, for the objective "gold".
    reference: Any = None
    #: Rewards of sampled captions, for the objective "cider"; not saved, since the data has them.
    rewards: CaptionRewards | None = None

    def prepare(self, config: RunConfig, data: TrainingData) -> None:
        if self.options.objective == "cider":
            records, tokenizer = data.records[self.task.name], data.vocabulary.tokenizer
            self.rewards = CaptionRewards.of(records, tokenizer, self.options)

    def start(self, config: RunConfig, device: torch.device) -> None:
        if self.options.objective == "gold":
            copy = build_model(config.model)
            self.reference = copy.to(device).eval().requires_grad_(False)

    def begin_step(self, step: int, weights: Callable[[], Mapping[str, Tensor]]) -> None:
        """Copy the model to the reference every `gold_copy_every` steps, starting at step 0."""
        if self.reference is not None and step % self.options.gold_copy_every == 0:
            self.reference.load_state_dict(weights())

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        return {} if self.reference is None else {"reference": self.reference.state_dict()}

    def load_state_dict(self, state: Mapping[str, dict[str, Tensor]]) -> None:
        if self.reference is not None:
            self.reference.load_state_dict(state["reference"])

    def branches(
        self,
        model: Any,
        batch: ImageTextBatch,
        draw: Draw,
        split: SplitGraph | None = None,
        passes: ForwardPasses = ONE_PASS,
    ) -> Iterator[dict[str, Tensor]]:
        if self.rewards is not None:
            return self_critical_losses(model, batch, self.options, draw, self.rewards, passes)
        return caption_losses(model, batch, self.options, draw, self.reference, passes)

    def is_counted(self, config: RunConfig) -> bool:
        return super().is_counted(config) and self.options.objective != "cider"

    def cost_passes(
        self,
        model: Any,
        config: RunConfig,
        images: Tensor,
        ids: Tensor,
        mask: Tensor,
        split: SplitGraph,
    ) -> Iterator[Tensor]:
        if self.options.objective == "gold":
            with torch.no_grad():
                model.next_token_logits(images, ids, mask)
        yield model.next_token_logits(images, ids, mask).sum()

    def state_bytes(self, config: RunConfig, parameters: int, gpus: int) -> int:
        return 4 * parameters if self.options.objective == "gold" else 0
