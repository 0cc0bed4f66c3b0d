"""The backend rule and its override."""

from __future__ import annotations

import pytest
import torch

from fiber import kernels


def test_reason_on_a_cpu():
    name, reason = kernels.active_backend(torch.zeros(1))
    assert name == "reference"
    assert "cpu" in reason


def test_reason_without_kernels():
    """A CUDA tensor is only named, so that the rule can be asked without a GPU."""

    class OnCuda:
        device = torch.device("cuda")

    name, reason = kernels.active_backend(OnCuda())  # type: ignore[arg-type]
    assert name == "reference"
    assert "no Triton kernel" in reason


def test_override_and_back():
    with kernels.use_backend("reference"):
        assert kernels.active_backend(torch.zeros(1)) == (
            "reference",
            "use_backend('reference') was called",
        )
    assert "cpu" in kernels.active_backend(torch.zeros(1))[1]
    kernels.use_backend("reference")
    assert "called" in kernels.active_backend(torch.zeros(1))[1]
    kernels.use_backend(None)
    assert "cpu" in kernels.active_backend(torch.zeros(1))[1]


def test_triton_is_refused_with_the_reason():
    with pytest.raises(RuntimeError, match="no Triton kernel is built into this version"):
        kernels.use_backend("triton")
    assert kernels.active_backend(torch.zeros(1))[0] == "reference"


def test_unknown_backend():
    with pytest.raises(ValueError, match="'cudnn'"):
        kernels.use_backend("cudnn")  # type: ignore[arg-type]
