"""Tensors of a training run by name: weights, optimizer state, EMA, and state of objectives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fiber.training.checkpoint.files import (
    StoredTensor,
    read_tensors,
    stored_tensors,
)
from fiber.training.objectives.state import ObjectiveState
from fiber.training.optim import MovingAverage


class TrainingState:
    """What a checkpoint holds besides its position.

    Names are `model/WEIGHT`, `optimizer/WEIGHT/FIELD`, `average/WEIGHT` and
    `objectives/PART/TENSOR`. They do not depend on the order of parameters or on parameter groups.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: MovingAverage | None,
        objectives: ObjectiveState,
    ) -> None:
        """The parts are those of a trainer; weights may be sharded."""
        self.model, self.optimizer = model, optimizer
        self.average, self.objectives = average, objectives

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors, which share the memory of the run unless they are numbers."""
        tensors = self._weights()
        for name, parameter in self._trained().items():
            for field, value in self.optimizer.state.get(parameter, {}).items():
                # A number becomes an int64, which no other field is.
                tensor = value if isinstance(value, Tensor) else torch.tensor(int(value))
                tensors[f"optimizer/{name}/{field}"] = tensor
        return tensors

    def restore(self, folder: Path) -> None:
        """Fill the parts from the files of a checkpoint; all ranks must call this.

        Raises:
            ValueError: if the checkpoint has other tensors; the message names some.
        """
        stored = stored_tensors(folder)
        targets, states = self._weights(), self._new_states(stored)
        targets |= {
            f"optimizer/{name}/{field}": tensor
            for name, state in states.items()
            for field, tensor in state.items()
        }
        _check_names(folder, stored, targets)
        read_tensors(folder, targets)
        self._load_optimizer(states)
        if self.average is not None:
            self.average.updates = int(targets["average/updates"])
        self.objectives.load_state_dict(_nested(targets, "objectives"))

    def _weights(self) -> dict[str, Tensor]:
        parts: dict[str, Mapping[str, Tensor]] = {"model": self.model.state_dict()}
        if self.average is not None:
            parts["average"] = self.average.state_dict()
        for name, part in self.objectives.state_dict().items():
            parts[f"objectives/{name}"] = part
        return {
            f"{part}/{name}": tensor
            for part, tensors in parts.items()
            for name, tensor in tensors.items()
        }

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def _new_states(self, stored: Mapping[str, StoredTensor]) -> dict[str, dict[str, Tensor]]:
        """Return empty tensors for the stored state of each parameter."""
        states: dict[str, dict[str, Tensor]] = {}
        for name, parameter in self._trained().items():
            prefix = f"optimizer/{name}/"
            fields = [key.removeprefix(prefix) for key in stored if key.startswith(prefix)]
            for field in (field for field in fields if "/" not in field):
                entry = stored[prefix + field]
                is_moment = entry.dtype.is_floating_point and field != "step"
                states.setdefault(name, {})[field] = (
                    torch.zeros_like(parameter.detach(), dtype=entry.dtype)
                    if is_moment
                    else torch.zeros(entry.shape, dtype=entry.dtype)
                )
        return states

    def _load_optimizer(self, states: Mapping[str, Mapping[str, Tensor]]) -> None:
        # A state dict of an optimizer has numbers instead of parameters, in their order.
        groups = self.optimizer.state_dict()["param_groups"]
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        numbers = [number for group in groups for number in group["params"]]
        number_of = {id(p): number for p, number in zip(parameters, numbers, strict=True)}
        state: dict[int, dict[str, Any]] = {}
        for name, parameter in self._trained().items():
            if name in states:
                state[number_of[id(parameter)]] = {
                    field: int(value) if value.dtype == torch.int64 else value
                    for field, value in states[name].items()
                }
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})


def stored_weights(folder: Path, *, average: bool = False) -> dict[str, Tensor]:
    """Read the weights of a checkpoint, whole and on the CPU.

    With `average`, those that have a moving average are replaced by it.

    Raises:
        ValueError: if its index is damaged.
    """
    stored, weights = stored_tensors(folder), {}
    for name in (name for name in stored if name.startswith("model/")):
        averaged = name.replace("model/", "average/", 1)
        source = averaged if average and averaged in stored else name
        weights[source] = torch.empty(stored[source].shape, dtype=stored[source].dtype)
    read_tensors(folder, weights)
    return {name.partition("/")[2]: tensor for name, tensor in weights.items()}


def _check_names(
    folder: Path, stored: Mapping[str, StoredTensor], targets: Mapping[str, Tensor]
) -> None:
    missing, others = sorted(targets.keys() - stored.keys()), sorted(stored.keys() - targets.keys())
    if missing or others:
        problems = [
            f"{what} {', '.join(names[:4])}" + (f" and {len(names) - 4} more" * (len(names) > 4))
            for what, names in (("lacks", missing), ("has unexpected", others))
            if names
        ]
        raise ValueError(f"{folder} {' and '.join(problems)}")


def _nested(tensors: Mapping[str, Tensor], part: str) -> dict[str, dict[str, Tensor]]:
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        first, _, rest = name.partition("/")
        if first == part:
            group, _, last = rest.partition("/")
            groups.setdefault(group, {})[last] = tensor
    return groups
