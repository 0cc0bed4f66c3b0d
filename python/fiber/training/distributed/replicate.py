"""Strategy "replicate": the whole model on every rank, gradients averaged during backward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fiber.models.registry import Network
from fiber.training.distributed.processes import Processes
from fiber.training.objectives.step import TrainStep

#: Elements per gradient all-reduce (32 MiB of float32).
BUCKET_ELEMENTS = 8 * 2**20


@dataclass
class Bucket:
    """Parameters, by index, whose gradients are reduced together."""

    members: list[int]
    #: Members whose gradients are not complete in this step.
    missing: int = 0
    #: The flat gradients and the work that sums them, from `Replicate._launch` on.
    flat: Tensor | None = None
    work: dist.Work | None = None


@dataclass
class BucketPlan:
    """Order in which the gradients of a task become complete, learned from its steps.

    `buckets` are the same on all ranks, `passes` are of this rank.
    """

    buckets: list[Bucket]
    #: Backward passes of a step that reach each parameter.
    passes: list[int]
    bucket_of: dict[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.bucket_of = {
            index: number for number, bucket in enumerate(self.buckets) for index in bucket.members
        }


class Replicate:
    """Whole weights and optimizer state on every rank; gradients are averaged during backward.

    The first step of a task averages after its last backward pass, and records how many backward
    passes reach each parameter and in which order their gradients become complete. In later steps a
    bucket is all-reduced as soon as its gradients are complete, while backward goes on: parameters
    above the shared prefixes during the last branch of the last micro-batch, those below in the
    final pass. If a step differs from the recorded one, the gradients that came too late or without
    a bucket are averaged at its end, and the order is recorded again.

    This is not DistributedDataParallel, whose reducer expects one backward pass after each forward
    call of the module. A step here has a backward pass for each branch, some of which reach the
    same parameters, and each task leaves other parameters unused.
    """

    def __init__(
        self, processes: Processes, precision: Literal["float32", "bfloat16"] = "float32"
    ) -> None:
        """Create the strategy. `precision` is that of the sum over ranks."""
        self.processes = processes
        self.precision = torch.bfloat16 if precision == "bfloat16" else None
        self.parameters: list[nn.Parameter] = []
        self._group: dist.ProcessGroup | None = None
        self._plans: dict[str, BucketPlan] = {}
        self._task, self._next = "", 0
        #: Backward passes of this step that reached each parameter.
        self._passes: list[int] = []
        #: Indices of parameters in the order of their last gradients.
        self._order: dict[int, None] = {}

    def prepare(self, step: TrainStep) -> None:
        """See `Strategy`."""
        if self.processes.world_size == 1:
            return
        # Ranks may start a bucket and the collectives of a loss in different orders, if their
        # batches have different graphs, so they must not share a group.
        self._group = self.processes.new_group()
        self.parameters = [p for p in step.model.parameters() if p.requires_grad]
        for index, parameter in enumerate(self.parameters):
            parameter.register_post_accumulate_grad_hook(partial(self._accumulated, index))

    def begin_step(self, task: str) -> None:
        """See `Strategy`."""
        self._task, self._next = task, 0
        self._passes = [0] * len(self.parameters)
        self._order = {}
        if (plan := self._plans.get(task)) is not None:
            for bucket in plan.buckets:
                bucket.missing = sum(plan.passes[index] > 0 for index in bucket.members)

    def begin_backward(self, *, is_last: bool) -> None:
        """See `Strategy`."""

    def full_weights(
        self, weights: Mapping[str, Tensor], *, keep: bool = True
    ) -> dict[str, Tensor]:
        """See `Strategy`."""
        return dict(weights)

    @contextmanager
    def whole_model(self, model: Network, weights: Mapping[str, Tensor]) -> Iterator[Network]:
        """See `Strategy`. The model itself, with a copy of its own weights kept meanwhile."""
        own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        try:
            model.load_state_dict(weights)
            yield model
        finally:
            model.load_state_dict(own)
            model.train()

    @torch.no_grad()
    def reduce_gradients(self) -> None:
        """See `Strategy`."""
        if self.processes.world_size == 1:
            return
        plan = self._plans.get(self._task)
        buckets = plan.buckets if plan is not None else []
        for bucket in buckets[self._next :]:
            self._launch(bucket)
        # What is left has no bucket, or came after its bucket was launched.
        rest = [p.grad is not None for p in self.parameters]
        used = [passes > 0 for passes in self._passes]
        flags = torch.tensor([used, rest], dtype=torch.int32, device=self.processes.device)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self._group)
        used, rest = flags.bool().tolist()
        late = [index for index, flag in enumerate(rest) if flag]
        gradients = [self.parameters[index].grad for index in late]
        for index in late:
            self.parameters[index].grad = None
        for bucket in buckets:
            self._finish(bucket, used)
        if late:
            self._reduce_late(late, gradients, used)
            self._plans[self._task] = self._record(used)

    def _accumulated(self, index: int, parameter: nn.Parameter) -> None:
        """Count a gradient; launch the buckets that it completes. The hook of each parameter."""
        self._passes[index] += 1
        self._order.pop(index, None)
        self._order[index] = None
        plan = self._plans.get(self._task)
        if plan is None or index not in plan.bucket_of:
            return
        if self._passes[index] == plan.passes[index]:
            plan.buckets[plan.bucket_of[index]].missing -= 1
        # In order, so that all ranks launch the same buckets in the same order.
        while self._next < len(plan.buckets) and plan.buckets[self._next].missing == 0:
            self._launch(plan.buckets[self._next])
            self._next += 1

    @torch.no_grad()
    def _launch(self, bucket: Bucket) -> None:
        """Start to sum the gradients of a bucket; gradients that come later are kept apart."""
        members = [self.parameters[index] for index in bucket.members]
        flat = torch.cat(
            [p.grad.flatten() if p.grad is not None else p.new_zeros(p.numel()) for p in members]
        )
        for parameter in members:
            parameter.grad = None
        bucket.flat = flat if self.precision is None else flat.to(self.precision)
        bucket.work = dist.all_reduce(bucket.flat, group=self._group, async_op=True)

    def _finish(self, bucket: Bucket, used: Sequence[bool]) -> None:
        """Wait for a bucket, and set the gradients of its members that any rank used."""
        assert bucket.work is not None and bucket.flat is not None
        bucket.work.wait()
        members = [self.parameters[index] for index in bucket.members]
        flat = bucket.flat.to(members[0].dtype).div_(self.processes.world_size)
        parts = flat.split([parameter.numel() for parameter in members])
        for index, parameter, part in zip(bucket.members, members, parts, strict=True):
            parameter.grad = part.view_as(parameter) if used[index] else None
        bucket.flat = bucket.work = None

    def _reduce_late(
        self, late: Sequence[int], gradients: Sequence[Tensor | None], used: Sequence[bool]
    ) -> None:
        """Average gradients that no bucket holds, and add them to those of the buckets."""
        known = [self.parameters[index].grad for index in late]
        for index, gradient in zip(late, gradients, strict=True):
            self.parameters[index].grad = gradient
        for bucket in self._buckets(late):
            self._launch(bucket)
            self._finish(bucket, used)
        for index, gradient in zip(late, known, strict=True):
            if gradient is not None:
                self.parameters[index].grad = gradient + cast(Tensor, self.parameters[index].grad)

    def _record(self, used: Sequence[bool]) -> BucketPlan:
        """Make the plan of a task from the step that has just run, in the order of rank 0."""
        order = list(self._order)
        order += [index for index in range(len(self.parameters)) if index not in self._order]
        shared = torch.tensor(order, device=self.processes.device)
        dist.broadcast(shared, src=0, group=self._group)
        indices = [index for index in shared.tolist() if used[index]]
        return BucketPlan(list(self._buckets(indices)), list(self._passes))

    def _buckets(self, indices: Sequence[int]) -> Iterator[Bucket]:
        """Group parameters into buckets of `BUCKET_ELEMENTS`; a larger one has its own bucket."""
        members: list[int] = []
        elements = 0
        for index in indices:
            count = self.parameters[index].numel()
            if members and elements + count > BUCKET_ELEMENTS:
                yield Bucket(members)
                members, elements = [], 0
            members.append(index)
            elements += count
        if members:
            yield Bucket(members)
