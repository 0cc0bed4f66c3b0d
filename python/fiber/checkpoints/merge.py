"""Interpolate the weights of a model and of one that was trained from it (WiSE-FT).

Wortsman et al. 2022, "Robust fine-tuning of zero-shot models": on the line between both sets of
weights there are models that keep most of what the first knew and most of what the second learned.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fiber.checkpoints.adapters.files import weights_sha256
from fiber.checkpoints.adapters.load import base_name
from fiber.checkpoints.kept import Kept
from fiber.checkpoints.model_dir import StoredModel
from fiber.checkpoints.provenance import MERGED
from fiber.checkpoints.weights import list_problems
from fiber.config_io import field_names
from fiber.messages import shown
from fiber.models.registry import ModelConfig, architecture_of

#: Last names of config fields that may differ: sizes of inputs, and values that only training
#: reads. A merged model has those of the tuned one.
_FREE_FIELDS = (
    *("image_size", "segment_size", "instance_size", "shorter_side", "max_size", "max_tokens"),
    *("weight_start", "gate_start", "drop_path", "drop_block", "dropout", "atss_top_k"),
    "temperature",
)


def merge_stored(base: StoredModel, tuned: StoredModel, weight: float) -> StoredModel:
    """Interpolate between two stored models, on the device of the first; see `fiber.merge`.

    Raises:
        ValueError: if the models do not have the same tensors, config, tokenizer and answers; the
            message names what differs.
    """
    states = base.network.state_dict(), tuned.network.state_dict()
    _check_alike(base, tuned, states)
    network = copy.deepcopy((base if weight == 0 else tuned).network)
    network.to(next(base.network.parameters()).device)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            tensor.copy_(_between(name, states[0][name], states[1][name], weight))
    # Weights between both are exact in float32 only.
    stored = base.stored_dtype if weight == 0 else tuned.stored_dtype if weight == 1 else None
    classes = (tuned.classes,) * (weight > 0) + (base.classes,) * (weight < 1)
    return StoredModel(
        network=network.eval(),
        tokenizer=base.tokenizer or tuned.tokenizer,
        answers=base.answers or tuned.answers,
        classes=tuple(dict.fromkeys(name for each in classes for name in each)),
        trained_on=tuned.trained_on or base.trained_on,
        dtype=base.dtype,
        stored_dtype=stored,
        kept=_kept(base, tuned, states, weight),
    )


def _name(model: StoredModel, role: str) -> str:
    """Name a model: in the package, on the Hub, or an absolute path; else its role."""
    return f"the {role} model" if model.path is None else base_name(model.path)


def _check_alike(
    base: StoredModel, tuned: StoredModel, states: Sequence[Mapping[str, Tensor]]
) -> None:
    """Check that weights of two models can be interpolated.

    Raises:
        ValueError: see `merge_stored`.
    """
    given = {"the base model": base.path, "the tuned model": tuned.path}
    names = [role if path is None else str(path) for role, path in given.items()]
    titles = [architecture_of(model.config).title for model in (base, tuned)]
    kinds = [f"{name} is a {title} model" for name, title in zip(names, titles, strict=True)]
    both = f"{names[0]} and {names[1]} cannot be merged"
    expected = "expected a model and one that was trained from it (--init)"
    if titles[0] != titles[1] or type(base.config) is not type(tuned.config):
        raise ValueError(f"{both}: {'; '.join(kinds)}; {expected}")
    first, second = states
    faults = [f"missing {name} in {names[1]}" for name in first if name not in second]
    faults += [f"missing {name} in {names[0]}" for name in second if name not in first]
    faults += [
        f"{name} has the shapes {tuple(tensor.shape)} and {tuple(second[name].shape)}"
        for name, tensor in first.items()
        if name in second and tensor.shape != second[name].shape
    ]
    if faults:
        raise ValueError(f"{both}: their tensors differ; {expected}:\n  {list_problems(faults)}")
    if differing := list(_differing(base.config, tuned.config)):
        raise ValueError(f"{both}: their configs differ: {'; '.join(differing)}; {expected}")
    tokenizers = [model.tokenizer for model in (base, tuned) if model.tokenizer is not None]
    if len({tokenizer.to_json() for tokenizer in tokenizers}) > 1:
        raise ValueError(
            f"{both}: their tokenizers differ, so their weights are for other tokens; train with"
            " the tokenizer of the base, as --init does"
        )
    pairs = enumerate(zip(base.answers, tuned.answers, strict=False))
    if changed := [(at, *pair) for at, pair in pairs if pair[0] != pair[1]]:
        at, one, other = changed[0]
        raise ValueError(
            f"{both}: their VQA heads answer differently: answer {at} is {shown(one)} and"
            f" {shown(other)}; train with the answers of the base (--answers)"
        )


def _differing(base: ModelConfig, tuned: ModelConfig) -> Iterator[str]:
    """Describe the config fields that change what weights mean."""
    for name in field_names(base):
        one, other = _value(base, name), _value(tuned, name)
        if one != other and name.rpartition(".")[2] not in _FREE_FIELDS and _is_leaf(one):
            yield f"{name} is {shown(one)} and {shown(other)}"


def _value(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


def _is_leaf(value: Any) -> bool:
    return not hasattr(value, "__dataclass_fields__")


def _between(name: str, base: Tensor, tuned: Tensor, weight: float) -> Tensor:
    """Interpolate one tensor in float32, or return that of one model."""
    if weight in (0, 1):
        return tuned if weight else base
    tuned = tuned.to(base.device)
    if torch.equal(base, tuned):
        return tuned
    if not base.is_floating_point():
        raise ValueError(
            f"{name}: expected the same values in both models, or floating-point values to"
            f" interpolate; got different ones of dtype {base.dtype}"
        )
    return torch.lerp(base.float(), tuned.float(), weight)


def _kept(
    base: StoredModel,
    tuned: StoredModel,
    states: Sequence[Mapping[str, Tensor]],
    weight: float,
) -> Kept:
    """Return the card and the training config of a merged model."""
    names = _name(base, "base"), _name(tuned, "tuned")
    # A card has no paths of this machine.
    short = [Path(name).name if Path(name).is_absolute() else name for name in names]
    marks = [weights_sha256(state) for state in states]
    share = f"{weight:g}"
    card = [
        f"# {short[1]}, merged",
        "",
        f"The weights lie between those of two models, at {share} of the way (WiSE-FT, by"
        " `fiber merge`):",
        "",
        f"- base: {short[0]} (SHA-256 of the weights {marks[0]})",
        f"- tuned: {short[1]} (SHA-256 of the weights {marks[1]})",
        "",
        "No number was measured on this model; those of the two do not hold for it.",
        "",
    ]
    origins = {
        part: {"model": name, "sha256": mark, **_trained(model)}
        for part, name, mark, model in zip(
            ("base", "tuned"), names, marks, (base, tuned), strict=True
        )
    }
    training = {**tuned.kept.training, MERGED: {"weight": weight, **origins}}
    return Kept(card="\n".join(card), training=training)


def _trained(model: StoredModel) -> dict[str, Any]:
    """Return what data a model was trained on, if known."""
    return {} if model.trained_on is None else {"trained_on": list(model.trained_on)}
