"""What a model folder says of its model beside the weights, kept when the model is saved again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fiber.atomic_io import check_regular_file, read_json, write_json, write_text
from fiber.checkpoints.provenance import TRAINING
from fiber.checkpoints.transformers_files import MODEL_FIELDS, WRITTEN_BY_TRANSFORMERS
from fiber.messages import shown
from fiber.metrics.presence import (
    MAX_PRESENCE_BYTES,
    PRESENCE_FILE,
    Presence,
    from_json,
    to_json,
)

#: Names of the files: the card, and measured numbers as `fiber.checkpoints.hub.card` reads them.
CARD, METRICS = "README.md", "metrics.json"
#: Maximum size of each file in bytes.
MAX_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Card, numbers, training config and calibrations of a stored model."""

    #: Text of the card; empty if there is none.
    card: str = ""
    #: Measured numbers; empty if there are none.
    metrics: Mapping[str, Any] = field(default_factory=dict)
    #: Config of the run that trained the model; empty if it is not stored.
    training: Mapping[str, Any] = field(default_factory=dict)
    #: Calibrations of boxes; None if there are none.
    presence: Presence | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that `write` writes."""
        return (
            *(CARD,) * bool(self.card),
            *(METRICS,) * bool(self.metrics),
            *(PRESENCE_FILE,) * (self.presence is not None),
        )

    @property
    def config(self) -> dict[str, Any]:
        """Fields for config.json."""
        return {TRAINING: dict(self.training)} if self.training else {}

    def write(self, folder: Path) -> None:
        """Write the files that there are."""
        if self.card:
            write_text(folder / CARD, self.card)
        if self.metrics:
            write_json(folder / METRICS, self.metrics)
        if self.presence is not None:
            write_json(folder / PRESENCE_FILE, to_json(self.presence))


def read_kept(folder: Path, config: Mapping[str, Any] | None = None) -> Kept:
    """Read what is kept of a folder; `config` are the values of its config.json.

    Raises:
        ValueError: if a file is too large, or its content is of another kind.
    """
    card, metrics = "", {}
    if (folder / CARD).is_file():
        check_regular_file(folder / CARD, MAX_BYTES)
        try:
            card = (folder / CARD).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{folder / CARD} is not UTF-8 ({error.reason})") from None
    if (folder / METRICS).is_file():
        metrics = read_json(folder / METRICS, MAX_BYTES)
        if not isinstance(metrics, dict):
            raise ValueError(f"{folder / METRICS}: expected a JSON object, got {shown(metrics)}")
    return Kept(
        card=card,
        metrics=metrics,
        training=training_of(config or {}),
        presence=read_presence(folder),
    )


def read_presence(folder: Path) -> Presence | None:
    """Read presence.json of a model folder; return None if there is none.

    Raises:
        ValueError: if it is too large, or invalid; the message names the file and the field.
    """
    path = folder / PRESENCE_FILE
    if not path.is_file():
        return None
    values = read_json(path, MAX_PRESENCE_BYTES)
    try:
        return from_json(values)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path}: {error}") from error


def training_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of the run that trained a model, from config.json of the run or the model.

    It is empty if it is not stored.
    """
    training = config.get(TRAINING)
    if not training and WRITTEN_BY_TRANSFORMERS not in config:
        training = {name: each for name, each in config.items() if name not in MODEL_FIELDS}
    return training if isinstance(training, dict) else {}


def common_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype | None:
    """Return the dtype of all floating-point tensors, or None if they differ."""
    dtypes = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    return dtypes.pop() if len(dtypes) == 1 else None


def exact_in(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor] | None:
    """Convert floating-point tensors to a dtype; return None if that changes any value."""
    converted = {}
    for name, tensor in tensors.items():
        converted[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
        if not torch.equal(converted[name].to(tensor.dtype), tensor):
            return None
    return converted
