"""Convert checkpoints between formats and report every dropped or filled tensor."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Literal

from fiber.checkpoints.encoders import SwinLayout
from fiber.checkpoints.export import write_published, write_towers
from fiber.checkpoints.load import load_stored
from fiber.checkpoints.model_dir import StoredModel, save_model
from fiber.checkpoints.torch_file import SUFFIXES, Weights
from fiber.models.registry import architecture_of

#: Output formats.
Form = Literal["fiber", "published", "towers"]


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
    """Write a model in another format.

    Args:
        source: as in `fiber.load`.
        target: directory, or file for "published".
        to: "fiber" (model directory), "published" (file for the published code) or "towers"
            (directory with Swin and RoBERTa files for other libraries).
        tokenizer: as in `fiber.load`; not written to published files.
        answers: as in `fiber.load`.
        image_size: as in `fiber.load`.
        weights: as in `fiber.load`.
        layout: key layout of the Swin file.

    Returns:
        Report of tensors read and written, dropped ones with reasons and filled ones with values.

    Raises:
        FileNotFoundError, ValueError: as `fiber.load`; also if the suffix of `target` does not fit
            the format.
        OSError: if the target exists or cannot be written.
    """
    path = Path(target)
    _check_name(path, to)
    stored = load_stored(source, tokenizer, answers, "cpu", image_size=image_size, weights=weights)
    description = architecture_of(stored.config).describe(stored.config)
    average = ", moving average" if weights == "ema" else ""
    lines = [
        f"read {os.fspath(source)}{average}: {description}",
        *_left_out(stored.ignored),
        *_filled(stored),
    ]
    if to == "fiber":
        save_model(stored.network, path, stored.tokenizer, stored.answers, stored.classes)
        lines += [f"wrote {path}: {len(stored.network.state_dict())} tensors", *_words(stored)]
    elif to == "published":
        lines.append(f"wrote {path}: {len(write_published(stored.network, path))} tensors")
    else:
        written = write_towers(stored.network, path, layout)
        for tower, state in written.items():
            lines.append(f"wrote {path / tower}.safetensors: {len(state)} tensors")
        if "norm.weight" not in written["swin"]:
            lines.append("  without the Swin's last norm, which the model has no use for")
    return "\n".join(lines)


def _check_name(target: Path, to: Form) -> None:
    """Check that the suffix of the target fits the format."""
    if to == "published" and target.suffix not in SUFFIXES:
        raise ValueError(
            f"{target}: expected a file's name that ends in {', '.join(SUFFIXES)}, which is what"
            " the form published is written to"
        )
    if to != "published" and target.suffix.lower() in SUFFIXES:
        raise ValueError(
            f"{target} is the name of a file; expected a folder's, which is what the form {to} is"
            " written to (a file for the published code: published)"
        )


def _left_out(ignored: Mapping[str, str]) -> Iterator[str]:
    """List dropped tensors, grouped by reason and name pattern."""
    yield f"left out: {_tensors(ignored)}"
    for reason in dict.fromkeys(ignored.values()):
        yield f"  {reason}:"
        names = [name for name, why in ignored.items() if why == reason]
        yield from (f"    {name}" for name in _folded(names))


def _filled(stored: StoredModel) -> Iterator[str]:
    """List tensors that are missing in the file, with their fill values."""
    yield f"not in the file: {_tensors(stored.filled)}"
    for name, value in stored.filled.items():
        yield f"  {name}: set to {value:g}"
    if "temperature" in stored.filled:
        yield "    older published files lack it, and those of tasks without contrast (itc)"
        yield "    every published file has the projections of itc: whether its task trained them"
        yield "    is not known"


def _tensors(names: Sized) -> str:
    return f"{len(names)} tensor{'s' if len(names) != 1 else ''}"


def _folded(names: Iterable[str]) -> Iterator[str]:
    """Merge names that differ only in numbers."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name), []).append(name)
    for pattern, members in groups.items():
        yield pattern if len(members) > 1 else members[0]
        if len(members) > 1:
            places = ["/".join(re.findall(r"(?<=\.)\d+(?=\.|$)", name)) for name in members]
            yield f"  {len(members)} with * = {' '.join(places)}"


def _words(stored: StoredModel) -> Iterator[str]:
    """Report a missing tokenizer or missing answers."""
    if stored.tokenizer is None:
        yield "  without a tokenizer: nothing that takes a text can be asked (--tokenizer)"
    if "vqa" in stored.config.heads and not stored.answers:
        yield "  without the answers of the VQA head: answer cannot be asked (--answers)"
