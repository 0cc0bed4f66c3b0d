"""Convert checkpoints between formats and report every skipped or filled tensor."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import Any, Literal

from fiber.checkpoints.adapters.files import is_adapter
from fiber.checkpoints.encoders import SwinLayout
from fiber.checkpoints.export import write_encoders, write_published
from fiber.checkpoints.load import load_stored, with_vocabulary
from fiber.checkpoints.model_dir import StoredModel, save_model
from fiber.checkpoints.torch_file import SUFFIXES, Weights
from fiber.messages import shown
from fiber.models.registry import architecture_of

#: Output formats.
Form = Literal["fiber", "published", "towers"]

#: Matches a number in a tensor name.
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def convert(
    source: str | os.PathLike[str] | StoredModel,
    target: str | os.PathLike[str],
    to: Form = "fiber",
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    answers: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    weights: Weights = "raw",
    layout: SwinLayout = "microsoft",
    merge: bool = False,
    base: str | os.PathLike[str] | None = None,
) -> str:
    """Convert a model to another format.

    Args:
        source: model to read, or one that was read, with the image size and weights it has.
        target: file or folder to write.
        to: "fiber" (a model folder), "published" (one file for the published code, without the
            tokenizer) or "towers" (a folder with a file of each encoder for other libraries).
        tokenizer: replacement for the model's tokenizer, as in `fiber.load`.
        answers: replacement for the model's VQA answers, as in `fiber.load`.
        image_size: new input size in pixels.
        weights: "raw" or "ema" (moving average), for published files that contain both.
        layout: key layout of the Swin file; used only by "towers".
        merge: merge `source`, a LoRA adapter, into its base.
        base: base of the adapter, as in `fiber.load`.

    Returns:
        Report of tensors that were read, written, skipped (with reasons) and filled (with values).

    Raises:
        FileNotFoundError: if the model or one of its files is missing.
        ValueError: if the model is invalid, or the suffix of `target` does not match `to`.
        OSError: if the target folder already contains a model, or the target cannot be written.
    """
    path = Path(target)
    suffixes = ", ".join(SUFFIXES)
    if to == "published" and path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: a published file must have one of the suffixes {suffixes}")
    if to != "published" and path.suffix.lower() in SUFFIXES:
        raise ValueError(
            f"{path}: expected a folder for format {shown(to)}, got a file name; a file is written"
            " with format 'published' (--to published)"
        )
    _check_merge(source, merge, base)
    if isinstance(source, StoredModel):
        stored, source = with_vocabulary(source, tokenizer, answers), source.path or "a model"
    else:
        options: dict[str, Any] = {"image_size": image_size, "weights": weights, "base": base}
        stored = load_stored(source, tokenizer, answers, "cpu", **options)
    description = architecture_of(stored.config).describe(stored.config)
    average = ", moving average" if weights == "ema" else ""
    merged = ", merged into its base" if merge else ""
    lines = [f"read {os.fspath(source)}{average}{merged}: {description}"]
    lines += _unused_and_filled(stored)
    if to == "fiber":
        vocabulary = (stored.tokenizer, stored.answers, stored.classes)
        dtype = stored.stored_dtype
        save_model(stored.network, path, *vocabulary, kept=stored.kept, dtype=dtype)
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


def _check_merge(
    source: str | os.PathLike[str] | StoredModel,
    merge: bool,
    base: str | os.PathLike[str] | None,
) -> None:
    """Check that `merge` is given for an adapter, and for nothing else."""
    is_path = not isinstance(source, StoredModel)
    is_one = is_path and Path(source).is_dir() and is_adapter(Path(source))
    if is_one and not merge:
        raise ValueError(
            f"{source} is a LoRA adapter; --merge (merge=True) writes its base with the adapter"
            " merged"
        )
    if merge and not is_one:
        named = source.path if isinstance(source, StoredModel) else source
        reason = "" if not is_path or Path(named or "").exists() else ", which does not exist"
        raise ValueError(
            f"--merge (merge=True) needs a LoRA adapter, such as RUN/adapter; got {named}{reason}"
        )
    if base is not None and not merge:
        raise ValueError(f"--base {os.fspath(base)} (base=...) needs --merge (merge=True)")


def _unused_and_filled(stored: StoredModel) -> Iterator[str]:
    """Yield the report lines for skipped tensors, by reason, and for tensors filled by default."""
    yield f"skipped: {_tensors(stored.ignored)}"
    for reason in dict.fromkeys(stored.ignored.values()):
        yield f"  {reason}:"
        yield from _merge_numbers(name for name, why in stored.ignored.items() if why == reason)
    yield f"missing from the file: {_tensors(stored.filled)}"
    for name, value in stored.filled.items():
        yield f"  {name}: set to {value:g}"
    if "temperature" in stored.filled:
        yield "    missing from older published files, and from those for tasks without ITC"
        yield "    every published file has the ITC projections, even if they are untrained"


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
