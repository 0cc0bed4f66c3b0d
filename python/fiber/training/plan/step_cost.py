"""Count FLOPs and activations of a task's forward and backward passes, without running them.

The passes are `TaskTraining.cost_passes` of the task, on fake tensors, which have shapes but no
memory, so a model of any size is counted on a laptop. By default they are the branches of a step.
Values are unknown, so tasks whose branches depend on them replace losses by sums, and negatives by
rows of the same number. `tests/training/plan/test_step_cost.py` compares the counts with those of
real training steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

# Imported for the registration of torch.ops.fiber.
import fiber.kernels  # noqa: F401
from fiber.models.registry import build_empty
from fiber.training.adapters import build_empty_trained
from fiber.training.config.run import RunConfig
from fiber.training.objectives.split_backward import SplitGraph
from fiber.training.task_training import ImageSize, trainings_of


class StepCost(NamedTuple):
    """Cost of a micro-batch on one rank."""

    #: FLOPs of the forward and backward passes, without recomputation.
    flops: int
    #: Most bytes of tensors that are saved for the backward pass at one time.
    activation_bytes: int


class TextShape(NamedTuple):
    """Samples and tokens of a micro-batch on one rank."""

    samples: int
    tokens: int


def count_step(
    config: RunConfig, task: str, shape: TextShape, image_size: ImageSize, *, memory: bool = True
) -> StepCost:
    """Count one micro-batch of a task.

    Args:
        config: configuration of the run.
        task: name of a `TasksConfig` field.
        shape: samples, and tokens of each text.
        image_size: size of all images.
        memory: count with the run's `train.gradient_checkpointing`, which costs FLOPs. If False,
            FLOPs are those without it, and activations are not of use.
    """
    model = build_empty_trained(config)
    cast(Any, model).backbone.gradient_checkpointing = (
        memory and config.train.gradient_checkpointing
    )
    is_bfloat16 = config.train.precision == "bfloat16"
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu").train()
        saved, split = SavedTensors(model), SplitGraph()
        counter = FlopCounterMode(display=False, custom_mapping=kernel_flops())
        with saved.hooks(), counter:
            # As in the trainer, the casts of weights are kept for all branches.
            with torch.autocast("cpu", torch.bfloat16, enabled=is_bfloat16):
                for output in _branches(model, config, task, shape, image_size, split):
                    with torch.autocast("cpu", enabled=False):
                        output.backward()
                    del output
            split.backward()
    return StepCost(counter.get_total_flops(), saved.peak_bytes)


def prefix_bytes(config: RunConfig, tokens: int, image_size: ImageSize) -> tuple[int, int]:
    """Return the bytes of a sample's image prefix and text prefix, which ITM exchanges."""
    backbone = cast(Any, build_empty(config.model)).backbone
    is_bfloat16 = config.train.precision == "bfloat16"
    with FakeTensorMode(allow_non_fake_inputs=True):
        backbone.to_empty(device="cpu")
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=is_bfloat16):
            image = backbone.image_prefix(torch.empty(1, 3, *image_size)).tokens
            ids = torch.ones(1, tokens, dtype=torch.int64)
            text = backbone.text_prefix(ids, ids == 1)
        return image.nbytes, text.nbytes


class StepFlops:
    """FLOPs of batches, counted once for each task.

    FLOPs are a polynomial of degree 2 in the number of tokens (attention is quadratic), so three
    counts give those of all lengths.
    """

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        # FLOPs of a sample as coefficients of 1, L and L^2.
        self._polynomials: dict[str, tuple[float, float, float]] = {}

    def count_tasks(self) -> None:
        """Count all tasks of the run now, instead of at their first batch."""
        for task in self._config.tasks.active():
            if is_counted(self._config, task):
                self.of_sample(task, self._config.model.max_tokens)

    def of_batch(self, task: str, batch: Any) -> float | None:
        """Return the FLOPs of a batch, or None if they are unknown.

        They are unknown if images differ in size, and for captions that are sampled in training.
        """
        if not is_counted(self._config, task):
            return None
        samples, tokens = batch.token_ids.shape
        return samples * self.of_sample(task, tokens)

    def of_sample(self, task: str, tokens: int) -> float:
        """Return the FLOPs of a sample with a text of `tokens` tokens."""
        if task not in self._polynomials:
            longest = self._config.model.max_tokens
            lengths = [max(3, longest // 4), max(4, longest // 2), max(5, longest)]
            size = largest_image(self._config, task)
            # Two samples, since random negatives need another one.
            counts = [
                count_step(self._config, task, TextShape(2, length), size, memory=False).flops / 2
                for length in lengths
            ]
            self._polynomials[task] = _parabola(lengths, counts)
        constant, linear, quadratic = self._polynomials[task]
        return constant + linear * tokens + quadratic * tokens**2


def is_counted(config: RunConfig, task: str) -> bool:
    """Return False if the FLOPs of a task depend on values: image sizes or sampled captions."""
    return trainings_of(config.tasks.active())[task].is_counted(config)


def largest_image(config: RunConfig, task: str) -> ImageSize:
    """Return the size of the largest image of a task, as padded in a batch."""
    transform, side = config.transform(task), config.model.image_size
    if transform.kind != "shorter_side":
        return side, side
    multiple = 32
    longest = math.ceil(transform.max_size / multiple) * multiple
    return math.ceil(max(transform.shorter_sides) / multiple) * multiple, longest


def _parabola(at: list[int], values: list[float]) -> tuple[float, float, float]:
    """Return the coefficients (constant first) of the parabola through three points."""
    (x0, x1, x2), (y0, y1, y2) = at, values
    first, second = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    quadratic = (second - first) / (x2 - x0)
    linear = first - quadratic * (x0 + x1)
    return y0 - linear * x0 - quadratic * x0**2, linear, quadratic


def _branches(
    model: nn.Module,
    config: RunConfig,
    task: str,
    shape: TextShape,
    size: ImageSize,
    split: SplitGraph,
) -> Iterator[Tensor]:
    """Yield a scalar for each branch of a task, as `TrainStep.branches` does."""
    training = trainings_of(config.tasks.active())[task]
    ids = torch.ones(*shape, dtype=torch.int64)
    mask = torch.ones(*shape, dtype=torch.bool)
    number = training.task.images
    images = torch.empty(shape.samples, *((number,) if number > 1 else ()), 3, *size)
    return training.cost_passes(model, config, images, ids, mask, split)


class _Saved:
    """A tensor that is saved for the backward pass; it counts until autograd drops it."""

    def __init__(self, owner: SavedTensors, tensor: Tensor) -> None:
        self.owner, self.tensor = owner, tensor
        self.key = tensor.untyped_storage()._cdata
        owner.add(self.key, tensor.untyped_storage().nbytes())

    def __del__(self) -> None:
        self.owner.remove(self.key, self.tensor.untyped_storage().nbytes())


class SavedTensors:
    """Peak of the bytes of saved tensors; parameters and buffers do not count."""

    def __init__(self, model: nn.Module) -> None:
        own = (*model.parameters(), *model.buffers())
        self._ignored = {tensor.untyped_storage()._cdata for tensor in own}
        self._uses: dict[int, int] = {}
        self._bytes = self.peak_bytes = 0

    def hooks(self) -> Any:
        """Return the context manager in which tensors are counted."""
        unpack: Callable[[_Saved], Tensor] = lambda saved: saved.tensor  # noqa: E731
        return torch.autograd.graph.saved_tensors_hooks(lambda t: _Saved(self, t), unpack)

    def add(self, key: int, size: int) -> None:
        """Count a storage, once for all of its tensors."""
        if key in self._ignored:
            return
        self._uses[key] = self._uses.get(key, 0) + 1
        if self._uses[key] == 1:
            self._bytes += size
            self.peak_bytes = max(self.peak_bytes, self._bytes)

    def remove(self, key: int, size: int) -> None:
        """Stop counting a tensor."""
        if key in self._ignored:
            return
        self._uses[key] -= 1
        if self._uses[key] == 0:
            del self._uses[key]
            self._bytes -= size


def kernel_flops() -> dict[Any, Callable[..., int]]:
    """Return the FLOP formulas of fiber's own operations, as of `FlopCounterMode`.

    As is usual, a backward pass counts twice its forward pass, without recomputed scores.
    """

    def window(qkv: Any, table: Any, bias: Any, side: int, shift: int, *_: Any, **__: Any) -> int:
        batch, height, width, _three, heads, depth = qkv
        windows = math.ceil(height / side) * math.ceil(width / side)
        # Scores and weighted values: two products of side^2 x side^2 x depth.
        return 4 * batch * windows * heads * side**4 * depth

    def cross(query: Any, key: Any, *_: Any, **__: Any) -> int:
        batch, queries, heads, depth = query
        return 4 * batch * queries * key[1] * heads * depth

    ops = torch.ops.fiber
    return {
        ops.window_attention: window,
        ops.window_attention_backward: lambda grad, *rest, **more: 2 * window(*rest, **more),
        ops.cross_attention: cross,
        ops.cross_attention_backward: lambda grad, *rest, **more: 2 * cross(*rest, **more),
    }
