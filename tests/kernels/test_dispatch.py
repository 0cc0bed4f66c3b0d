"""Backend selection by the default rule, and overrides."""

from __future__ import annotations

import warnings

import pytest
import torch

from fiber import kernels
from fiber.kernels.runtime import dispatch

pytestmark = pytest.mark.oldest


class OnGpu:
    """A fake GPU tensor for the default rule."""

    device = torch.device("cuda", 0)


@pytest.fixture
def machine(monkeypatch):
    """A machine with Triton and a GPU of the given compute capability."""

    def pretend(*, triton: str | None = "3.9.0", capability: tuple[int, int] = (9, 0)) -> None:
        monkeypatch.setattr(dispatch, "triton_version", lambda: triton)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    return pretend


def test_cpu_backend_and_reason():
    assert kernels.active_backend(torch.zeros(1)) == ("native", "the tensor is float32 on the CPU")
    name, reason = kernels.active_backend(torch.zeros(1, dtype=torch.bfloat16))
    assert name == "reference"
    assert "bfloat16 on the CPU" in reason
    name, reason = kernels.active_backend(torch.zeros(1, device="meta"))
    assert name == "reference"
    assert "on meta" in reason


def test_processors_without_avx2_use_pytorch(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    name, reason = kernels.active_backend(torch.zeros(1))
    assert name == "reference"
    assert "neither AVX2 nor AVX-512" in reason


def test_gpu_backend_and_reason(machine):
    machine()
    assert kernels.active_backend(OnGpu()) == ("triton", "the tensor is on CUDA")
    machine(triton=None)
    assert kernels.active_backend(OnGpu()) == ("reference", "Triton is not installed")
    machine(capability=(7, 5))
    name, reason = kernels.active_backend(OnGpu())
    assert name == "reference"
    assert "7.5" in reason
    assert "8.0" in reason


@pytest.mark.parametrize("version", ["2.3.1", "3.4.0", "3.10.0", "4.0.0+git1234"])
def test_untested_versions_of_triton_run_only_on_request(machine, version):
    machine(triton=version)
    name, reason = kernels.active_backend(OnGpu())
    assert name == "reference"
    assert f"Triton {version}" in reason
    assert "3.5 to 3.9" in reason
    with kernels.use_backend("triton"):
        assert kernels.active_backend(OnGpu())[0] == "triton"


@pytest.mark.parametrize("version", ["3.5.0", "3.6.0+gitabcdef", "3.9.1"])
def test_tested_versions_of_triton_are_the_default_on_a_gpu(machine, version):
    machine(triton=version)
    assert kernels.active_backend(OnGpu())[0] == "triton"


def test_the_installed_triton_is_not_newer_than_the_tested_ones():
    version = dispatch.triton_version()
    if version is None:
        pytest.skip("Triton is not installed")
    assert tuple(map(int, version.split(".")[:2])) <= dispatch.TESTED_TRITON[1]


def test_override_is_restored_on_exit():
    with kernels.use_backend("reference"):
        assert "use_backend" in kernels.active_backend(torch.zeros(1))[1]
        with kernels.use_backend(None):
            assert "on the CPU" in kernels.active_backend(torch.zeros(1))[1]
        assert "use_backend" in kernels.active_backend(torch.zeros(1))[1]
    assert "on the CPU" in kernels.active_backend(torch.zeros(1))[1]


def test_triton_is_rejected_with_a_reason(machine, monkeypatch):
    machine(triton=None)
    with pytest.raises(RuntimeError, match="Triton is not installed"):
        kernels.use_backend("triton")
    machine()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match="no GPU"):
        kernels.use_backend("triton")


def test_unknown_backend_is_rejected():
    with pytest.raises(ValueError, match="cuda"):
        kernels.use_backend("cuda")


class Narrow:
    """Fake kernel module that supports widths up to 3."""

    @staticmethod
    def refusal(tensor: OnGpu, width: int) -> str | None:
        return None if width <= 3 else f"width {width} is above 3"


def test_unsupported_call_warns_once(machine, monkeypatch):
    machine()
    plain = object()
    modules = {".any.triton_launch": Narrow, ".any.torch_path": plain}
    monkeypatch.setattr(dispatch.importlib, "import_module", lambda name, package: modules[name])
    dispatch._warn_once.cache_clear()
    assert dispatch.kernel_module("any", OnGpu(), 3) is Narrow
    with pytest.warns(UserWarning, match=r"any\.triton_launch: width 4 is above 3"):
        assert dispatch.kernel_module("any", OnGpu(), 4) is plain
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dispatch.kernel_module("any", OnGpu(), 4) is plain
    with pytest.warns(UserWarning, match="width 5"):
        assert dispatch.kernel_module("any", OnGpu(), 5) is plain
