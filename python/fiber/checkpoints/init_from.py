"""Start a model from another one's weights, and say what became of every tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fiber.checkpoints.encoders import FIRST_CONVOLUTION, load_tower
from fiber.checkpoints.key_map import resize_bias_table
from fiber.checkpoints.load import Towers
from fiber.checkpoints.model_dir import StoredModel
from fiber.config import PRESETS, FiberConfig
from fiber.models.registry import Network

#: Layers whose size follows from the data: another data set means new ones.
SIZED_BY_DATA = ("vqa_head.output.",)

#: Sizes by which almost every tensor of another model differs, as people call them.
_SIZES = {
    "text width": lambda config: config.roberta.width,
    "text layers": lambda config: config.roberta.num_layers,
    "image channels": lambda config: config.swin.embed_dim,
    "image depths": lambda config: config.swin.depths,
    "fused layers": lambda config: config.fusion.num_fused_layers,
}


def initialise(
    model: Network,
    start: StoredModel | Towers,
    answers: tuple[str, ...] = (),
) -> TransferReport:
    """Copy all that two models share; bias tables of another window are resized.

    A model that expects the colours in the other order gets its first convolution turned round.

    Args:
        model: a new model.
        start: a finished one of either stage, of which the other stage takes the backbone; or
            towers.
        answers: of the new model's VQA head, in the order of its logits. Unless the finished one
            has the same, its last layer stays new.

    Returns:
        The names taken, dropped and new; dropped ones of towers are those of their files.

    Raises:
        ValueError: if another shared tensor has another shape (the answers of a VQA head may),
            with the sizes of the two models where they tell why, else with the tensors.
    """
    if isinstance(start, Towers):
        return _initialise_from_towers(model, start)
    own = model.state_dict()
    given = {
        name: resize_bias_table(tensor, len(own[name]))
        if name.endswith(".bias_table") and name in own
        else tensor
        for name, tensor in start.network.state_dict().items()
        # What a published file did not hold starts as in any new model.
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
    """Check, of a start whose tensors do not fit, that the sizes of the models are not the reason.

    Raises:
        ValueError: if they are, with every size that differs, of both.
    """
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
    """Name the preset of a model's sizes in brackets; nothing if there is none."""
    for name, preset in PRESETS.items():
        if all(size(preset) == size(config) for size in _SIZES.values()):
            return f" (preset {name})"
    return ""


def _initialise_from_towers(model: Network, towers: Towers) -> TransferReport:
    taken: list[str] = []
    dropped: list[str] = []
    for path, state in towers.states.items():
        try:
            keys, ignored = load_tower(model, state)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if set(keys) & set(taken):
            raise ValueError(f"{path} holds the same tower as another file of {towers.path}")
        taken += keys
        dropped += ignored
    known = set(taken)
    return TransferReport(
        taken=tuple(taken),
        dropped=tuple(dropped),
        created=tuple(name for name in model.state_dict() if name not in known),
    )


class TransferReport(NamedTuple):
    """What became of the tensors of a model that another one starts from; `str()` is the page."""

    #: Names that both models have; the values were copied exactly.
    taken: tuple[str, ...]
    #: Names of the first model alone.
    dropped: tuple[str, ...]
    #: Names of the new model alone; they keep their initial values.
    created: tuple[str, ...]

    def __str__(self) -> str:
        lines = []
        for title, names in zip(self._fields, self, strict=True):
            lines.append(f"{title}: {len(names)} tensors")
            lines += [f"  {group}: {count}" for group, count in _groups(names)]
        return "\n".join(lines)


def transfer_backbone(source: nn.Module | Mapping[str, Tensor], model: nn.Module) -> TransferReport:
    """Start the backbone of a model of one stage from that of the other stage.

    The norms of image-to-text queries, which fine v2 has not, are dropped or new; what one stage
    alone has (heads; pyramid and dynamic head) always is.

    Args:
        source: a `FiberImageText` or a `FiberDetector`, or its state dict.
        model: of the other stage.

    Returns:
        What was taken, dropped and newly created, by name.

    Raises:
        ValueError: if a tensor that both have differs in shape, or if they share none.
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
    """Count names by module, numbers of blocks and layers left open, in order of appearance."""
    counts: dict[str, int] = {}
    for name in names:
        parts = ["*" if part.isdigit() else part for part in name.split(".")[:-1]]
        depth = 6 if "fusion" in parts else 3
        group = ".".join(parts[:depth]) or name
        counts[group] = counts.get(group, 0) + 1
    yield from counts.items()
