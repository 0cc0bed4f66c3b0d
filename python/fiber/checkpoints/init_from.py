"""Initialize a model from a trained model or encoders, and report which tensors were copied."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import torch

from fiber.checkpoints.encoders import EncoderStates, load_encoder
from fiber.checkpoints.model_dir import StoredModel
from fiber.checkpoints.weights import list_problems
from fiber.config import PRESETS
from fiber.models.meter.config import METER_PRESETS
from fiber.models.registry import Network, architecture_of

#: Name prefixes of layers whose shape depends on the data.
SIZED_BY_DATA = ("vqa_head.output.",)


class TransferReport(NamedTuple):
    """Names of copied, dropped and new tensors. `str()` summarizes them."""

    #: Copied tensors.
    taken: tuple[str, ...]
    #: Tensors that only the source has.
    dropped: tuple[str, ...]
    #: Tensors that only the new model has; these keep their initial values.
    created: tuple[str, ...]

    def __str__(self) -> str:
        lines = []
        for title, names in zip(self._fields, self, strict=True):
            lines.append(f"{title}: {len(names)} tensors")
            counts = Counter(_group(name) for name in names)
            lines += [f"  {group}: {count}" for group, count in counts.items()]
        return "\n".join(lines)


def initialize(
    model: Network,
    start: StoredModel | EncoderStates,
    answers: tuple[str, ...] = (),
) -> TransferReport:
    """Copy all shared tensors into a new model.

    Resizes tensors that depend on the image size. Flips the input channels of the first convolution
    if the channel orders (RGB, BGR) differ.

    Args:
        model: new model.
        start: trained model or encoders. If it is a model of the other stage, only the backbone is
            copied. Query norms may be missing, since fine-stage v2 models have none.
        answers: VQA answers of the new model, in logit order. The output layer of the VQA head is
            copied only if `start` has the same answers.

    Returns:
        Names of copied, dropped and new tensors. Dropped encoder tensors are named as in the file.

    Raises:
        ValueError: if the architectures differ, or a shared tensor differs in shape (except in the
            VQA output layer).
    """
    if isinstance(start, EncoderStates):
        return _init_from_encoders(model, start)
    architecture = architecture_of(model.config)
    if type(model.config) is not type(start.config):
        raise ValueError(
            f"{start.path or 'the initial model'} is a {architecture_of(start.config).title} model;"
            f" expected a {architecture.title} model"
        )
    weights, given = model.state_dict(), start.network.state_dict()
    # Tensors missing from a published file are initialized from scratch.
    given = {name: tensor for name, tensor in given.items() if name not in start.filled}
    given = dict(architecture.resize(given, model.config))
    if model.config.channel_order != start.config.channel_order:
        first = architecture.first_convolution
        given[first] = given[first].flip(1)
    shared = [name for name in weights if name in given]
    if type(model) is not type(start.network):
        shared = [name for name in shared if name.startswith("backbone.")]
        if not shared:
            raise ValueError("the new model and the initial model share no backbone tensors")
    changed = {name for name in shared if weights[name].shape != given[name].shape}
    wrong = sorted(name for name in changed if not name.startswith(SIZED_BY_DATA))
    if wrong:
        _check_sizes(model, start)
        raise ValueError(
            "tensors of the initial model have the wrong shape: "
            + list_problems(
                [
                    f"{name} has shape {tuple(given[name].shape)}, expected"
                    f" {tuple(weights[name].shape)}"
                    for name in wrong
                ],
                "; ",
            )
        )
    if start.answers != answers:
        changed |= {name for name in shared if name.startswith(SIZED_BY_DATA)}
    taken = [name for name in shared if name not in changed]
    with torch.no_grad():
        for name in taken:
            weights[name].copy_(given[name])
    return _report(model, taken, given)


def initialize_as_base(
    model: Network, base: StoredModel, answers: tuple[str, ...] = ()
) -> TransferReport:
    """Copy the base of adapters into a new model, as `initialize` does.

    Values that stand for tensors which a published file lacks are copied, too, so that only what
    has no value in the base is `created`.
    """
    report = initialize(model, base, answers)
    weights, given = model.state_dict(), base.network.state_dict()
    known = [name for name in report.created if name in base.filled]
    with torch.no_grad():
        for name in known:
            weights[name].copy_(given[name])
    return _report(model, [*report.taken, *known], given)


def _check_sizes(model: Network, start: StoredModel) -> None:
    """Raise ValueError if the two models differ in size."""
    sizes_of = architecture_of(model.config).main_sizes
    sizes, start_sizes = sizes_of(model.config), sizes_of(start.config)
    differing = [
        f"{name} {start_sizes[name]}, expected {size}"
        for name, size in sizes.items()
        if start_sizes[name] != size
    ]
    if differing:
        presets = [
            name
            for name, preset in (PRESETS | METER_PRESETS).items()
            if type(preset) is type(model.config) and sizes_of(preset) == sizes
        ]
        raise ValueError(
            f"{start.path or 'the initial model'} has {'; '.join(differing)}"
            + (f" (preset {presets[0]})" if presets else "")
            + "; start from a model of the expected size, or use a recipe that matches the initial"
            " model (`fiber recipes`)"
        )


def _init_from_encoders(model: Network, encoders: EncoderStates) -> TransferReport:
    sources: dict[str, Path] = {}
    dropped: list[str] = []
    for path, state in encoders.states.items():
        try:
            keys, ignored = load_encoder(model, state, encoders.settings)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if other := next((sources[name] for name in keys if name in sources), None):
            raise ValueError(
                f"{path} contains the same encoder as {other.name}; pass one of the files instead"
                " of the folder, or remove the other"
            )
        sources |= dict.fromkeys(keys, path)
        dropped += ignored
    return _report(model, list(sources), dropped)


def _report(model: Network, taken: list[str], source: Collection[str]) -> TransferReport:
    known = set(taken)
    return TransferReport(
        taken=tuple(taken),
        dropped=tuple(name for name in source if name not in known),
        created=tuple(name for name in model.state_dict() if name not in known),
    )


def _group(name: str) -> str:
    """Return the module of a tensor, with block and layer numbers replaced by *."""
    parts = ["*" if part.isdigit() else part for part in name.split(".")[:-1]]
    return ".".join(parts[: 6 if "fusion" in parts else 3]) or name
