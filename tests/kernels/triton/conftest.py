"""Tests of the Triton kernels in Triton's interpreter: `make test-interpreter`.

Triton reads TRITON_INTERPRET when a kernel is decorated. The tests are collected only if the
variable is 1, so that they run in a separate process.
"""

import importlib.util
import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1" or importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def poison_empty_tensors(monkeypatch):
    """Fill tensors from `torch.empty` with NaN (or a large number), like reused memory."""
    empty = torch.empty

    def filled(*arguments, **keywords):
        tensor = empty(*arguments, **keywords)
        if tensor.device.type == "meta":
            return tensor
        if tensor.is_floating_point():
            return tensor.fill_(float("nan"))
        return tensor.fill_(255 if tensor.dtype == torch.uint8 else 1 << 20)

    monkeypatch.setattr(torch, "empty", filled)
