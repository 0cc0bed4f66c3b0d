"""Strategies "shard" and "hybrid": weights, gradients and optimizer state are sharded (FSDP2)."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fiber.config_io import require
from fiber.models.init import allocate
from fiber.models.lora import build_empty_like
from fiber.models.registry import Network
from fiber.models.shard_units import shard_units
from fiber.training.config.run import TrainConfig
from fiber.training.distributed.full_tensor import full_state, full_tensor
from fiber.training.distributed.processes import Processes
from fiber.training.objectives.step import TrainStep

if TYPE_CHECKING:
    # Slow to import, and most runs are not sharded.
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy


#: Fewest and most ranks that share one copy with the strategy "shard", if there are more ranks.
_GROUP_SIZES = range(32, 65)


class Shard:
    """Weights, gradients and optimizer state sharded over groups of ranks (FSDP2, as in ZeRO-2).

    A group is `size` consecutive ranks, such as those of a node, or all. Weights are gathered in a
    group only. Gradients are reduce-scattered in a group, and the shards are then all-reduced
    across groups.

    In each step, a unit's weights are gathered before its first forward call and kept until its
    gradients are averaged, since up to three branches of a step call the same units: gathering for
    each call, as in ZeRO-3, would move several times the bytes. Gradients of all branches and
    micro-batches are summed on each rank and reduce-scattered once, in the last backward pass.

    With `train.precision` bfloat16, the matrices that are used in bfloat16 are gathered in bfloat16
    (in PyTorch versions whose `MixedPrecisionPolicy` can tell them from other parameters). The
    optimizer updates float32 shards.
    """

    def __init__(self, processes: Processes, config: TrainConfig, size: int) -> None:
        """Create the strategy; the process group must be initialized.

        Args:
            processes: this rank and its device.
            config: settings of the run.
            size: number of ranks of a group, a divisor of all ranks.

        Raises:
            ValueError: on a CPU, if FSDP2 of this PyTorch version does not support it.
        """
        require(
            processes.device.type != "cpu" or supports_cpu(),
            f"train.strategy {config.strategy!r} needs a newer PyTorch on a CPU, got"
            f" {torch.__version__}; use 'replicate' or a GPU",
        )
        self.processes, self.config, self.size = processes, config, size
        self._step: FSDPModule | None = None
        #: Names of 0-D parameters, which have one element in one dimension while sharded.
        self._scalars: frozenset[str] = frozenset()
        self._is_reduced = True

    def prepare(self, step: TrainStep) -> None:
        """See `Strategy`."""
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        # Some units return views, on which no code works in place.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
        self._scalars = _widen_scalars(step.model)
        mesh = self._mesh()
        policy = self._policy(step.model)
        for unit in shard_units(step.model):
            fully_shard(unit, mesh=mesh, reshard_after_forward=False, mp_policy=policy)
            for method in getattr(unit, "extra_forwards", ()):
                register_fsdp_forward_method(unit, method)
        fully_shard(step, mesh=mesh, reshard_after_forward=False, mp_policy=policy)
        for method in ("branches", "pass_through"):
            register_fsdp_forward_method(step, method)
        self._step = cast("FSDPModule", step)

    def begin_step(self, task: str) -> None:
        """See `Strategy`."""
        self._is_reduced = False

    def begin_backward(self, *, is_last: bool) -> None:
        """See `Strategy`."""
        assert self._step is not None
        self._step.set_requires_gradient_sync(is_last)
        self._step.set_reshard_after_backward(is_last)
        self._is_reduced = is_last

    def reduce_gradients(self) -> None:
        """See `Strategy`."""
        assert self._step is not None
        if not self._is_reduced:
            # The pass that was announced as the last one had nothing to do. FSDP2 reduces at the
            # end of any backward pass through its root.
            self.begin_backward(is_last=True)
            anchor = torch.zeros((), device=self.processes.device, requires_grad=True)
            cast(TrainStep, self._step).pass_through(anchor).backward()
        for module in self._modules():
            module.reshard()

    def full_weights(
        self, weights: Mapping[str, Tensor], *, keep: bool = True
    ) -> dict[str, Tensor]:
        """See `Strategy`."""
        whole = full_state(dict(weights), keep=keep)
        if not keep:
            return {}
        return {
            name: tensor.reshape(()) if name in self._scalars else tensor
            for name, tensor in whole.items()
        }

    @contextmanager
    def whole_model(self, model: Network, weights: Mapping[str, Tensor]) -> Iterator[Network]:
        """See `Strategy`. A second model on the device, freed on exit."""
        whole = build_empty_like(model)
        allocate(whole, self.processes.device)
        # One at a time, so that no rank has a third copy.
        for name, tensor in whole.state_dict().items():
            tensor.copy_(full_tensor(weights[name]).reshape(tensor.shape))
        yield whole

    def _mesh(self) -> DeviceMesh:
        from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

        device, groups = self.processes.device.type, self.processes.world_size // self.size
        if groups == 1:
            return init_device_mesh(device, (self.size,))
        # A mesh would make the same groups, without our timeout.
        ranks = torch.arange(self.processes.world_size).view(groups, self.size)
        timeout = timedelta(seconds=self.processes.timeout_seconds)
        own = [
            cast(
                dist.ProcessGroup,
                dist.new_subgroups_by_enumeration(lists.tolist(), timeout=timeout)[0],
            )
            for lists in (ranks.T, ranks)
        ]
        return DeviceMesh.from_group(own, device, ranks, mesh_dim_names=("replicate", "shard"))

    def _policy(self, model: nn.Module) -> MixedPrecisionPolicy:
        from torch.distributed.fsdp import MixedPrecisionPolicy

        reduced = torch.bfloat16 if self.config.reduce_precision == "bfloat16" else torch.float32
        # Autocast casts the inputs.
        policy = MixedPrecisionPolicy(reduce_dtype=reduced, cast_forward_inputs=False)
        if self.config.precision != "bfloat16" or not hasattr(policy, "param_dtype_override_fn"):
            return policy
        matrices = {id(parameter) for parameter in gathered_in_bfloat16(model)}
        return dataclasses.replace(
            policy,
            param_dtype=torch.bfloat16,
            param_dtype_override_fn=lambda p: None if id(p) in matrices else p.dtype,
        )

    def _modules(self) -> Iterator[FSDPModule]:
        from torch.distributed.fsdp import FSDPModule

        for module in cast(nn.Module, self._step).modules():
            if isinstance(module, FSDPModule):
                yield module


def group_size(world_size: int) -> int:
    """Return the number of ranks that share one copy with the strategy "shard".

    Up to 64 ranks share one. More ranks are divided into groups of the same size, the largest
    possible one from 32 to 64; if there is none, all share one. FSDP2 pads the first dimension of
    each parameter to a multiple of the group, so a group of 1,024 would send a fifth more for a
    base model, and a part of 1/64 is small already. Without padding, both send the same.
    """
    if world_size < _GROUP_SIZES.stop:
        return world_size
    return max((size for size in _GROUP_SIZES if world_size % size == 0), default=world_size)


def supports_cpu() -> bool:
    """Return whether FSDP2 works on a CPU: it needs a stand-in for streams (not in PyTorch 2.6)."""
    return hasattr(torch.cpu.Stream, "record_event")


def gathered_in_bfloat16(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the matrices that autocast casts to bfloat16, and the embeddings."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.Embedding)):
            yield cast(nn.Parameter, module.weight)


def _widen_scalars(model: nn.Module) -> frozenset[str]:
    """Give 0-D parameters one dimension, which FSDP2 needs; return their names."""
    names = [name for name, parameter in model.named_parameters() if parameter.ndim == 0]
    for name in names:
        owner, _, last = name.rpartition(".")
        module = model.get_submodule(owner)
        scalar = getattr(module, last)
        setattr(module, last, nn.Parameter(scalar.detach().reshape(1), scalar.requires_grad))
    return frozenset(names)
