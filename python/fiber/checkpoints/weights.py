"""Copy weights from a mapped file into a model, and check their values."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

#: Number of bytes to copy and check at once, which bounds the memory of pages of the source.
_CHUNK_BYTES = 16 << 20

#: Number of bytes after whose copying the pages of the source are released.
_RELEASE_BYTES = 32 << 20

#: Maximum ratio of the bytes of a model's tensors and those of their storages.
_MAX_SHARING = 4

#: Maximum number of tensors of each kind of problem that a message lists.
_MAX_LISTED = 8
#: First words of problems that are kinds of their own.
_KINDS = ("missing", "unexpected", "unknown")


def list_problems(problems: Sequence[str], separator: str = "\n  ") -> str:
    """Join the problems of a file, by default one per line.

    Of each kind, such as "missing NAME", the first 8 are listed, and the others counted.
    """
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        word = problem.partition(" ")[0]
        kinds.setdefault(word if word in _KINDS else "", []).append(problem)
    shown = []
    for kind, problems_of_kind in kinds.items():
        shown += problems_of_kind[:_MAX_LISTED]
        if (more := len(problems_of_kind) - _MAX_LISTED) > 0:
            shown.append(f"and {more} more {kind}".rstrip())
    return separator.join(shown)


def dtype_problem(name: str, tensor: Tensor, weight: Tensor) -> str | None:
    """Describe a weight that is not of a floating-point type, if the model's is."""
    if weight.is_floating_point() and not tensor.is_floating_point():
        return f"{name} has dtype {tensor.dtype}, expected a floating-point type"
    return None


def sharing_problem(tensors: Iterable[Tensor]) -> str | None:
    """Describe tensors that are far larger than their storages, due to a stride of 0 or sharing.

    A model may share a few tensors, but a small file must not describe a model of any size.
    """
    storages, total_bytes = {}, 0
    for tensor in tensors:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        total_bytes += tensor.nbytes
    stored_bytes = sum(storages.values())
    if total_bytes > _MAX_SHARING * stored_bytes:
        return f"tensors of {total_bytes} bytes share storages of {stored_bytes} bytes"
    return None


def copy_weights(
    weights: Mapping[str, Tensor],
    pieces: Mapping[str, Sequence[Tensor]],
    path: Path | None = None,
    release: Callable[[], None] | None = None,
) -> None:
    """Copy tensors into a model's, piece by piece along the first dimension.

    Warns about tensors with values that are NaN or infinite.

    Args:
        weights: tensors of the model by name.
        pieces: tensors to copy, by the same names; together of the same shape.
        path: file of the pieces, for the warning.
        release: called now and then to free the memory of pieces that have been copied.
    """
    copied, nonfinite = 0, {}
    with torch.no_grad():
        for name, parts in pieces.items():
            # A scalar has no first dimension.
            target = weights[name] if weights[name].dim() else weights[name][None]
            parts = [part if part.dim() else part[None] for part in parts]
            count = 0
            for rows, part in zip(target.split([len(p) for p in parts]), parts, strict=True):
                row_bytes = max(part[:1].nbytes, 1)
                chunk = max(_CHUNK_BYTES // row_bytes, 1)
                for to, values in zip(rows.split(chunk), part.split(chunk), strict=True):
                    to.copy_(values)
                    count += _count_nonfinite(values)
                    copied += to.nbytes
                    if release is not None and copied >= _RELEASE_BYTES:
                        release()
                        copied = 0
            if count:
                nonfinite[name] = f"{name} ({count} of {target.numel()} values)"
    if nonfinite:
        faults = list(nonfinite.values())
        shown = ", ".join(faults[:8]) + (f" and {len(faults) - 8} more" if len(faults) > 8 else "")
        warnings.warn(
            f"{path or 'the checkpoint'}: {len(faults)} of {len(pieces)} tensors have values that"
            f" are NaN or infinite: {shown}; the training run that wrote them probably diverged",
            RuntimeWarning,
            stacklevel=2,
        )


def _count_nonfinite(values: Tensor) -> int:
    # The sum of finite values is finite, unless they are huge.
    if not values.is_floating_point() or math.isfinite(values.sum(dtype=torch.float32)):
        return 0
    return int((~values.isfinite()).sum())
