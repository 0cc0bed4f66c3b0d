"""Copy weights from a mapped file into a model, and check their values."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

#: Number of bytes after whose copying the pages of the source are released.
_RELEASE_BYTES = 32 << 20

#: Maximum ratio of the bytes of a model's tensors and those of their storages.
_MAX_SHARING = 4

#: Maximum number of tensors that a message lists.
_MAX_LISTED = 40


def list_problems(problems: Sequence[str]) -> str:
    """Join the problems of a file, one per line, and count those beyond the first 40."""
    shown = "\n  ".join(problems[:_MAX_LISTED])
    more = len(problems) - _MAX_LISTED
    return shown + (f"\n  and {more} more" if more > 0 else "")


def dtype_problem(name: str, tensor: Tensor, own: Tensor) -> str | None:
    """Describe a weight that is not of a floating-point type, if the model's is."""
    if own.is_floating_point() and not tensor.is_floating_point():
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
    own: Mapping[str, Tensor],
    pieces: Mapping[str, Sequence[Tensor]],
    release: Callable[[], None] | None = None,
) -> None:
    """Copy tensors into a model's, piece by piece along the first dimension.

    Args:
        own: tensors of the model by name.
        pieces: tensors to copy, by the same names; together of the same shape.
        release: called now and then to free the memory of pieces that have been copied.
    """
    copied = 0
    with torch.no_grad():
        for name, parts in pieces.items():
            target = own[name]
            if len(parts) == 1:
                target.copy_(parts[0])
            else:
                for row, part in zip(target.split([len(p) for p in parts]), parts, strict=True):
                    row.copy_(part)
            copied += target.nbytes
            if release is not None and copied >= _RELEASE_BYTES:
                release()
                copied = 0


def warn_about_nonfinite(path: Path, model: nn.Module) -> None:
    """Warn if weights of a model are NaN or infinite, with their names."""
    weights = {name: tensor for name, tensor in model.state_dict().items() if tensor.numel()}
    # The sum of a tensor is finite if all its values are, unless they are huge.
    sums = torch.stack([tensor.sum(dtype=torch.float32) for tensor in weights.values()])
    suspects = [
        name for name, finite in zip(weights, sums.isfinite().tolist(), strict=True) if not finite
    ]
    counts = {name: int((~weights[name].isfinite()).sum()) for name in suspects}
    faults = [
        f"{name} ({count} of {weights[name].numel()} values)"
        for name, count in counts.items()
        if count
    ]
    if faults:
        shown = ", ".join(faults[:8]) + (f" and {len(faults) - 8} more" if len(faults) > 8 else "")
        warnings.warn(
            f"{path}: {len(faults)} of {len(weights)} tensors are NaN or infinite: {shown}; the"
            " training run that wrote them probably diverged",
            RuntimeWarning,
            stacklevel=2,
        )
