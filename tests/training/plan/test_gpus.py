"""GPUs by their names, and their peak speeds."""

import pytest
import torch

from fiber.training.plan import gpus
from fiber.training.plan.gpus import GPUS, find_gpu, gpu_of_device, peak_flops, peak_of


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb"),
        ("NVIDIA L40S", "l40s"),
        ("Tesla V100-SXM2-32GB", "v100-32gb"),
        ("Tesla V100-SXM2-16GB", "v100-16gb"),
    ],
)
def test_names_of_devices(device, name):
    assert gpu_of_device(device) == GPUS[name]


@pytest.mark.parametrize("device", ["", "NVIDIA H100 NVL", "NVIDIA GeForce RTX 4090", "Tesla P40"])
def test_an_unknown_device_has_no_peak(device, monkeypatch):
    assert gpu_of_device(device) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: device)
    assert peak_flops(torch.device("cuda"), "bfloat16") is None


def test_a_cpu_has_no_peak():
    assert peak_flops(torch.device("cpu"), "float32") is None


def test_an_unknown_name_is_an_error():
    with pytest.raises(ValueError, match=r"GPU 'h10' is unknown; did you mean h100"):
        find_gpu("h10")
    assert find_gpu("H100") == GPUS["h100"]


def test_a_peak_is_that_of_the_precision(monkeypatch):
    gpu = GPUS["a100-80gb"]
    assert peak_of(gpu, "bfloat16") == 312e12
    assert peak_of(gpu, "float32") == 19.5e12
    assert peak_of(gpu, "float32", tf32=True) == 156e12
    assert peak_of(GPUS["v100-16gb"], "bfloat16") is None
    assert peak_of(GPUS["v100-16gb"], "float32", tf32=True) == GPUS["v100-16gb"].float32
    monkeypatch.setattr(gpus.torch.cuda, "get_device_name", lambda index: "NVIDIA H200")
    assert peak_flops(torch.device("cuda"), "bfloat16") == GPUS["h200"].bfloat16
