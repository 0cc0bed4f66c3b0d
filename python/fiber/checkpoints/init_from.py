"""Initialize a model from another model or from encoders, with a report of every tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fiber.checkpoints.encoders import FIRST_CONVOLUTION, load_tower
from fiber.checkpoints.load import EncoderStates
from fiber.checkpoints.model_dir import StoredModel
from fiber.checkpoints.published import resize_bias_table
from fiber.config import PRESETS, FiberConfig
from fiber.models.registry import Network

#: Layers whose shape depends on the data.
SIZED_BY_DATA = ("vqa_head.output.",)

#: Config values that determine most shapes, by name in error messages.
_SIZES = {
    "text width": lambda config: config.roberta.width,
    "text layers": lambda config: config.roberta.num_layers,
    "image channels": lambda config: config.swin.embed_dim,
    "image depths": lambda config: config.swin.depths,
    "fused layers": lambda config: config.fusion.num_fused_layers,
}


def initialize(
    model: Network,
    start: StoredModel | EncoderStates,
    answers: tuple[str, ...] = (),
) -> TransferReport:
    """Copy all shared tensors into a new model.

    Resizes relative position bias tables. Flips the input channels of the first convolution if the
    channel orders (RGB, BGR) differ.

    Args:
        model: new model.
        start: trained model or encoders. Only the backbone is copied from a model of the other
            stage.
        answers: VQA answers of the new model, in logit order. The output layer of the VQA head is
            copied only if `start` has the same answers.

    Returns:
        Names of copied, dropped and new tensors; dropped encoder tensors by their names in the
        file.

    Raises:
        ValueError: if shapes of a shared tensor other than the VQA output layer differ.
    """
    if isinstance(start, EncoderStates):
        return _init_from_encoders(model, start)
    own = model.state_dict()
    given = {
        name: resize_bias_table(tensor, len(own[name]))
        if name.endswith(".bias_table") and name in own
        else tensor
        for name, tensor in start.network.state_dict().items()
        # Tensors missing in a published file are initialized from scratch.
        if name not in start.filled
    }
    if model.config.channel_order != start.config.channel_order:
        given[FIRST_CONVOLUTION] = given[FIRST_CONVOLUTION].flip(1)
    shared = [name for name in own if name in given]
    other_shape = {name for name in shared if own[name].shape != given[name].shape}
    wrong = [name for name in other_shape if not name.startswith(SIZED_BY_DATA)]
    if wrong:
        _check_sizes(model.config, start)
    if type(model) is not type(start.network):
        return transfer_backbone(given, model)
    other_answers = {
        name for name in shared if name.startswith(SIZED_BY_DATA) and start.answers != answers
    }
    if wrong:
        raise ValueError(
            "the model to start from has other sizes: "
            + "; ".join(
                f"{name} {tuple(given[name].shape)}, expected {tuple(own[name].shape)}"
                for name in sorted(wrong)
            )
        )
    taken = [name for name in shared if name not in other_shape | other_answers]
    with torch.no_grad():
        for name in taken:
            own[name].copy_(given[name])
    known = set(taken)
    return TransferReport(
        taken=tuple(taken),
        dropped=tuple(name for name in given if name not in known),
        created=tuple(name for name in own if name not in known),
    )


def _check_sizes(config: FiberConfig, start: StoredModel) -> None:
    """Raise a ValueError that names the sizes in which the two models differ, if any."""
    differing = [
        f"{name} {size(start.config)}, the run's model {size(config)}"
        for name, size in _SIZES.items()
        if size(start.config) != size(config)
    ]
    if differing:
        raise ValueError(
            f"{start.path or 'the model to start from'} has {'; '.join(differing)}"
            f"{_preset_of(config)}; start from a model of that size, or take a recipe of the"
            " start's size (`fiber recipes`)"
        )


def _preset_of(config: FiberConfig) -> str:
    """Return the name of the preset with these sizes in parentheses, or ""."""
    for name, preset in PRESETS.items():
        if all(size(preset) == size(config) for size in _SIZES.values()):
            return f" (preset {name})"
    return ""


def _init_from_encoders(model: Network, encoders: EncoderStates) -> TransferReport:
    taken: list[str] = []
    dropped: list[str] = []
    for path, state in encoders.states.items():
        try:
            keys, ignored = load_tower(model, state)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if set(keys) & set(taken):
            raise ValueError(f"{path} holds the same tower as another file of {encoders.path}")
        taken += keys
        dropped += ignored
    known = set(taken)
    return TransferReport(
        taken=tuple(taken),
        dropped=tuple(dropped),
        created=tuple(name for name in model.state_dict() if name not in known),
    )


class TransferReport(NamedTuple):
    """Names of copied, dropped and new tensors; `str()` formats them."""

    #: Copied.
    taken: tuple[str, ...]
    #: Only in the source.
    dropped: tuple[str, ...]
    #: Only in the new model; initial values are kept.
    created: tuple[str, ...]

    def __str__(self) -> str:
        lines = []
        for title, names in zip(self._fields, self, strict=True):
            lines.append(f"{title}: {len(names)} tensors")
            lines += [f"  {group}: {count}" for group, count in _groups(names)]
        return "\n".join(lines)


def transfer_backbone(source: nn.Module | Mapping[str, Tensor], model: nn.Module) -> TransferReport:
    """Copy the backbone of a coarse model into a fine one, or vice versa.

    Heads, pyramid and dynamic head are not shared. Neither are the query norms of image-to-text
    attention, which fine v2 lacks.

    Args:
        source: a `FiberImageText`, a `FiberDetector` or a state dict of one.
        model: model of the other stage.

    Raises:
        ValueError: if shapes of a shared tensor differ, or no tensor is shared.
    """
    state = source.state_dict() if isinstance(source, nn.Module) else source
    own = model.state_dict()
    taken = [name for name in own if name.startswith("backbone.") and name in state]
    if not taken:
        raise ValueError("the two models share no tensor of a backbone")
    wrong = [
        f"{name} {tuple(state[name].shape)}, expected {tuple(own[name].shape)}"
        for name in taken
        if state[name].shape != own[name].shape
    ]
    if wrong:
        raise ValueError("the backbones have other shapes: " + "; ".join(wrong))
    with torch.no_grad():
        for name in taken:
            own[name].copy_(state[name])
    known = set(taken)
    return TransferReport(
        taken=tuple(taken),
        dropped=tuple(name for name in state if name not in known),
        created=tuple(name for name in own if name not in known),
    )


def _groups(names: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """Count names by module, with block and layer numbers replaced by *."""
    counts: dict[str, int] = {}
    for name in names:
        parts = ["*" if part.isdigit() else part for part in name.split(".")[:-1]]
        depth = 6 if "fusion" in parts else 3
        group = ".".join(parts[:depth]) or name
        counts[group] = counts.get(group, 0) + 1
    yield from counts.items()
