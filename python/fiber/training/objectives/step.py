"""`TrainStep`: compute the named losses of a task's batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from torch import Tensor, nn

from fiber.data.batch import GroundingBatch, ImageTextBatch, QuestionBatch, ReasoningBatch
from fiber.losses.grounding import grounding_losses, num_assigned
from fiber.losses.itc import clamp_temperature
from fiber.losses.language import entailment_loss, nlvr2_loss, vqa_loss
from fiber.models.fiber.detector import FiberDetector
from fiber.models.fiber.image_text import FiberImageText
from fiber.models.image_text import ImageTextModel
from fiber.models.meter.image_text import MeterImageText
from fiber.models.registry import Network
from fiber.training.config.tasks import TasksConfig
from fiber.training.objectives.captions import caption_losses, self_critical_losses
from fiber.training.objectives.draw import Draw, Place
from fiber.training.objectives.forward_passes import ONE_PASS, ForwardPasses
from fiber.training.objectives.image_text import image_text_branches, ranking_branches
from fiber.training.objectives.split_backward import SplitGraph
from fiber.training.objectives.state import ObjectiveState


class TrainStep(nn.Module):
    """Model and objectives: the module to wrap with torch.compile, FSDP2 or DDP.

    `forward` is an ordinary forward pass with one graph:

        losses = step(task, batch, draw)
        sum(weights[name] * loss for name, loss in losses.items()).backward()

    `branches` computes the same losses one branch at a time, for callers that run each backward
    before the next branch is computed (see `fiber.training.objectives.split_backward`).

    The parameters of this module are those of the model; the trainer saves `state`.
    """

    def __init__(
        self,
        model: Network,
        tasks: TasksConfig,
        state: ObjectiveState | None = None,
    ) -> None:
        """Wrap a detector for the task "grounding", or an image-text model for all other tasks.

        `state` is required by stateful objectives, such as ITC with a queue.
        """
        super().__init__()
        self.model = model
        self.tasks = tasks
        self.state = state or ObjectiveState()

    def forward(self, task: str, batch: Any, draw: Draw) -> dict[str, Tensor]:
        """Compute the losses of one task; see `branches` for the arguments.

        Returns:
            Unweighted scalars by name. Their mean over the ranks is the loss of the whole batch.
        """
        return {
            name: loss
            for losses in self.branches(task, batch, draw)
            for name, loss in losses.items()
        }

    def branches(
        self,
        task: str,
        batch: Any,
        draw: Draw,
        split: SplitGraph | None = None,
        passes: ForwardPasses = ONE_PASS,
    ) -> Iterator[dict[str, Tensor]]:
        """Yield the losses of one task, one branch at a time.

        Exhaust the iterator: the ITC queue stores the batch after the last branch.

        Args:
            task: name of a `TasksConfig` field.
            batch: batch of the task's type.
            draw: key of the random numbers.
            split: detaches tensors shared by branches from the graph. The caller then runs each
                branch's backward before requesting the next branch, and calls `split.backward()`
                at the end.
            passes: number of parts in which to compute the losses of separate samples.

        Yields:
            Unweighted scalars by name. With one pass, no name occurs in two branches; with several,
            the scalars of a name add up to the loss.
        """
        if isinstance(self.model, FiberDetector):
            yield from self._grounding_losses(batch, draw, passes)
        elif task == "image_text":
            settings, queue = self.tasks.image_text, self.state.queue
            yield from image_text_branches(self.model, batch, settings, draw, queue, split, passes)
        elif task == "ranking":
            meter = cast(MeterImageText, self.model)
            yield from ranking_branches(meter, batch, self.tasks.ranking, draw, split, passes)
        elif task == "caption":
            yield from self._caption_losses(batch, draw, passes)
        else:
            losses = {
                "question": self._question_loss,
                "reasoning": self._reasoning_loss,
                "entailment": self._entailment_loss,
            }[task]
            whole = passes.whole_rows(batch.token_ids)
            rows = passes.parts(draw.rows(batch))
            for part, (own_rows,) in zip(passes.batches(batch), rows, strict=True):
                # Those of NLVR2 have two images; all left ones come first.
                with draw.dropout(Place.PAIR, own_rows, is_repeated=True):
                    loss = losses(part, whole)
                yield loss

    def pass_through(self, tensor: Tensor) -> Tensor:
        """Return the tensor; under FSDP2, gradients can be reduced by its backward pass."""
        return tensor * 1

    def clamp_parameters(self) -> None:
        """Clamp the ITC temperature to its range; call this after each optimizer step."""
        temperature = getattr(self.model, "temperature", None)
        if temperature is not None:
            clamp_temperature(temperature)

    def num_branches(self, task: str, passes: ForwardPasses = ONE_PASS) -> int:
        """Return the number of branches that `branches` yields for a task."""
        if task == "image_text":
            weights = self.tasks.image_text
            per_part = (weights.mlm > 0) + (weights.itm > 0)
            # ITC is a single branch, since it compares all samples.
            return per_part * passes.count + (weights.itc > 0)
        per_part = 2 if task == "ranking" and self.tasks.ranking.itm > 0 else 1
        return per_part * passes.count

    def _question_loss(self, batch: QuestionBatch, whole: Tensor | None) -> dict[str, Tensor]:
        model = cast(ImageTextModel, self.model)
        fused = model.backbone.encode_pair(
            batch.images, batch.token_ids, batch.text_mask, wanted="pooled"
        )
        logits = model.vqa_logits(model.pooled(fused))
        return {"vqa": vqa_loss(logits, batch.targets, whole=whole)}

    def _reasoning_loss(self, batch: ReasoningBatch, whole: Tensor | None) -> dict[str, Tensor]:
        model = cast(ImageTextModel, self.model)
        logits = model.statement_logits(batch.images, batch.token_ids, batch.text_mask)
        return {"nlvr2": nlvr2_loss(logits, batch.truths, whole=whole)}

    def _entailment_loss(self, batch: QuestionBatch, whole: Tensor | None) -> dict[str, Tensor]:
        model = cast(MeterImageText, self.model)
        fused = model.backbone.encode_pair(
            batch.images, batch.token_ids, batch.text_mask, wanted="pooled"
        )
        logits = model.snli_logits(model.pooled(fused))
        return {"snli": entailment_loss(logits, batch.targets.argmax(1), whole=whole)}

    def _caption_losses(
        self, batch: ImageTextBatch, draw: Draw, passes: ForwardPasses
    ) -> Iterator[dict[str, Tensor]]:
        model, task = cast(FiberImageText, self.model), self.tasks.caption
        if self.state.rewards is not None:
            return self_critical_losses(model, batch, task, draw, self.state.rewards, passes)
        return caption_losses(model, batch, task, draw, self.state.reference, passes)

    def _grounding_losses(
        self, batch: GroundingBatch, draw: Draw, passes: ForwardPasses
    ) -> Iterator[dict[str, Tensor]]:
        model = cast(FiberDetector, self.model)
        whole = None
        if passes.count > 1:
            locations = model.locations(batch.images, batch.image_sizes)
            whole = passes.whole(num_assigned(*locations, batch, model.config))
        rows = passes.parts(draw.rows(batch))
        for part, (own_rows,) in zip(passes.batches(batch), rows, strict=True):
            with draw.dropout(Place.PAIR, own_rows):
                output = model(part.images, part.token_ids, part.text_mask, part.image_sizes)
            yield grounding_losses(output, part, model.config, whole=whole)
