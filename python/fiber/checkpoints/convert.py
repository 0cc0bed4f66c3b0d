"""Convert checkpoints between formats and report every skipped or filled tensor."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import Literal

from fiber.checkpoints.encoders import SwinLayout
from fiber.checkpoints.export import write_encoders, write_published
from fiber.checkpoints.load import load_stored
from fiber.checkpoints.model_dir import StoredModel, save_model
from fiber.checkpoints.torch_file import SUFFIXES, Weights
from fiber.models.registry import architecture_of

#: Output formats.
Form = Literal["fiber", "published", "towers"]

#: Matches a number in a tensor name.
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    to: Form,
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    answers: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    weights: Weights = "raw",
    layout: SwinLayout = "microsoft",
) -> str:
    """Convert a model to another format.

    `to` is "fiber" (a model folder), "published" (a file for the published code, without tokenizer)
    or "towers" (a folder of Swin and RoBERTa files for other libraries; `layout` selects the Swin
    key names). Other arguments are as in `fiber.load`.

    Returns:
        Report of tensors that were read, written, skipped (with reasons) and filled (with values).

    Raises:
        FileNotFoundError, ValueError: as in `fiber.load`; ValueError also if the suffix of `target`
            does not match the format.
        OSError: if the target exists or cannot be written.
    """
    path = Path(target)
    suffixes = ", ".join(SUFFIXES)
    if to == "published" and path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: a published file must have one of the suffixes {suffixes}")
    if to != "published" and path.suffix.lower() in SUFFIXES:
        raise ValueError(f"{path}: expected a folder for format {to!r}, got a file name")
    stored = load_stored(source, tokenizer, answers, "cpu", image_size=image_size, weights=weights)
    description = architecture_of(stored.config).describe(stored.config)
    average = ", moving average" if weights == "ema" else ""
    lines = [f"read {os.fspath(source)}{average}: {description}", *_unused_and_filled(stored)]
    if to == "fiber":
        save_model(stored.network, path, stored.tokenizer, stored.answers, stored.classes)
        lines.append(f"wrote {path}: {_tensors(stored.network.state_dict())}")
        if stored.tokenizer is None:
            lines.append("  no tokenizer: the model cannot process text (--tokenizer)")
        if "vqa" in stored.config.heads and not stored.answers:
            lines.append("  no VQA answers: the model cannot answer questions (--answers)")
    elif to == "published":
        lines.append(f"wrote {path}: {_tensors(write_published(stored.network, path))}")
    else:
        for name, state in write_encoders(stored.network, path, layout).items():
            lines.append(f"wrote {path / name}.safetensors: {_tensors(state)}")
            if name == "swin" and "norm.weight" not in state:
                lines.append("  without Swin's last norm, which this model does not have")
    return "\n".join(lines)


def _unused_and_filled(stored: StoredModel) -> Iterator[str]:
    """List skipped tensors by reason and name pattern, and missing tensors with fill values."""
    yield f"skipped: {_tensors(stored.ignored)}"
    for reason in dict.fromkeys(stored.ignored.values()):
        yield f"  {reason}:"
        yield from _merge_numbers(name for name, why in stored.ignored.items() if why == reason)
    yield f"missing from the file: {_tensors(stored.filled)}"
    for name, value in stored.filled.items():
        yield f"  {name}: set to {value:g}"
    if "temperature" in stored.filled:
        yield "    older published files and those of tasks without ITC lack it"
        yield "    every published file has the ITC projections, whether trained or not"


def _tensors(names: Sized) -> str:
    return f"{len(names)} tensor{'s' if len(names) != 1 else ''}"


def _merge_numbers(names: Iterable[str]) -> Iterator[str]:
    """List names, merging those that differ only in numbers."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_NUMBER.sub("*", name), []).append(name)
    for pattern, members in groups.items():
        if len(members) == 1:
            yield f"    {members[0]}"
        else:
            numbers = ["/".join(_NUMBER.findall(name)) for name in members]
            yield f"    {pattern}"
            yield f"      {len(members)} with * = {' '.join(numbers)}"
