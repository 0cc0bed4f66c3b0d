"""Tests of the Triton kernels in Triton's interpreter, in a process of their own.

Triton reads TRITON_INTERPRET when a kernel is decorated, so `tests/kernels/test_triton.py` starts
`python -m pytest tests/kernels/triton` with it; elsewhere nothing in this folder is imported.
"""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def nothing_is_zero_by_chance(monkeypatch):
    """Fill what `torch.empty` gives with NaN (or a large number), as old memory may be."""
    empty = torch.empty

    def filled(*arguments, **keywords):
        tensor = empty(*arguments, **keywords)
        if tensor.device.type == "meta":
            return tensor
        if tensor.is_floating_point():
            return tensor.fill_(float("nan"))
        return tensor.fill_(255 if tensor.dtype == torch.uint8 else 1 << 20)

    monkeypatch.setattr(torch, "empty", filled)
