"""One rule picks what runs, and an override that puts itself back."""

from __future__ import annotations

import warnings

import pytest
import torch

from fiber import kernels
from fiber.kernels.runtime import dispatch


class OnGpu:
    """What the rule looks at of a tensor."""

    device = torch.device("cuda", 0)


@pytest.fixture
def machine(monkeypatch):
    """A machine with Triton and a GPU of the given compute capability."""

    def pretend(*, triton: bool = True, capability: tuple[int, int] = (9, 0)) -> None:
        monkeypatch.setattr(dispatch, "_has_triton", lambda: triton)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    return pretend


def test_reason_on_the_cpu():
    assert kernels.active_backend(torch.zeros(1)) == ("native", "the tensor is float32 on the CPU")
    name, reason = kernels.active_backend(torch.zeros(1, dtype=torch.bfloat16))
    assert name == "reference"
    assert "bfloat16 on the CPU" in reason
    name, reason = kernels.active_backend(torch.zeros(1, device="meta"))
    assert name == "reference"
    assert "on meta" in reason


def test_processors_without_wide_instructions_run_plain_pytorch(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    name, reason = kernels.active_backend(torch.zeros(1))
    assert name == "reference"
    assert "neither AVX2 nor AVX-512" in reason


def test_reason_on_a_gpu(machine):
    machine()
    assert kernels.active_backend(OnGpu()) == ("triton", "the tensor is on CUDA")
    machine(triton=False)
    assert kernels.active_backend(OnGpu()) == ("reference", "Triton is not installed")
    machine(capability=(7, 5))
    name, reason = kernels.active_backend(OnGpu())
    assert name == "reference"
    assert "7.5" in reason
    assert "8.0" in reason


def test_override_restores_itself():
    with kernels.use_backend("reference"):
        assert "use_backend" in kernels.active_backend(torch.zeros(1))[1]
        with kernels.use_backend(None):
            assert "on the CPU" in kernels.active_backend(torch.zeros(1))[1]
        assert "use_backend" in kernels.active_backend(torch.zeros(1))[1]
    assert "on the CPU" in kernels.active_backend(torch.zeros(1))[1]


def test_triton_is_refused_with_the_reason(machine, monkeypatch):
    machine(triton=False)
    with pytest.raises(RuntimeError, match="Triton is not installed"):
        kernels.use_backend("triton")
    machine()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match="no GPU"):
        kernels.use_backend("triton")


def test_unknown_backend():
    with pytest.raises(ValueError, match="cuda"):
        kernels.use_backend("cuda")


class Refuses:
    """A kernel that takes nothing wider than 3."""

    @staticmethod
    def refusal(tensor: OnGpu, width: int) -> str | None:
        return None if width <= 3 else f"width {width} is above 3"


def test_a_call_that_the_kernel_does_not_take_is_told_once(machine, monkeypatch):
    machine()
    monkeypatch.setattr(dispatch.importlib, "import_module", lambda name, package: Refuses)
    dispatch._warn_once.cache_clear()
    assert dispatch.kernel_module({"triton": "anything"}, OnGpu(), 3) is Refuses
    with pytest.warns(UserWarning, match="anything: width 4 is above 3"):
        assert dispatch.kernel_module({"triton": "anything"}, OnGpu(), 4) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dispatch.kernel_module({"triton": "anything"}, OnGpu(), 4) is None
    with pytest.warns(UserWarning, match="width 5"):
        assert dispatch.kernel_module({"triton": "anything"}, OnGpu(), 5) is None
