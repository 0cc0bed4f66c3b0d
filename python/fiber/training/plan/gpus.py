"""Memory and peak speed of GPUs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fiber.config_io import nearest


@dataclass(frozen=True, kw_only=True)
class GpuSpec:
    """Memory and dense peak FLOP/s of a GPU, from its vendor's data sheet."""

    #: Parts of `torch.cuda.get_device_name`, all of which the name of this GPU contains.
    device_words: tuple[str, ...]
    memory_gb: int
    #: bfloat16 with float32 accumulation on tensor cores; None if it has none.
    bfloat16: float | None
    #: TF32 on tensor cores; None if it has none.
    tf32: float | None
    #: float32 without tensor cores.
    float32: float


#: GPUs by the name on the command line; a name of a device matches the first whose words it has.
GPUS = {
    "b200": GpuSpec(
        device_words=("B200",), memory_gb=180, bfloat16=2250e12, tf32=1125e12, float32=75e12
    ),
    "h200": GpuSpec(
        device_words=("H200",), memory_gb=141, bfloat16=989e12, tf32=495e12, float32=67e12
    ),
    "h100-pcie": GpuSpec(
        device_words=("H100", "PCIe"), memory_gb=80, bfloat16=756e12, tf32=378e12, float32=51e12
    ),
    "h100": GpuSpec(
        device_words=("H100", "HBM3"), memory_gb=80, bfloat16=989e12, tf32=495e12, float32=67e12
    ),
    "a100-80gb": GpuSpec(
        device_words=("A100", "80GB"), memory_gb=80, bfloat16=312e12, tf32=156e12, float32=19.5e12
    ),
    "a100-40gb": GpuSpec(
        device_words=("A100",), memory_gb=40, bfloat16=312e12, tf32=156e12, float32=19.5e12
    ),
    "l40s": GpuSpec(
        device_words=("L40S",), memory_gb=48, bfloat16=362e12, tf32=183e12, float32=91.6e12
    ),
    "v100-32gb": GpuSpec(
        device_words=("V100", "SXM2", "32GB"),
        memory_gb=32,
        bfloat16=None,
        tf32=None,
        float32=15.7e12,
    ),
    "v100-16gb": GpuSpec(
        device_words=("V100", "SXM2", "16GB"),
        memory_gb=16,
        bfloat16=None,
        tf32=None,
        float32=15.7e12,
    ),
}


def find_gpu(name: str) -> GpuSpec:
    """Look up a GPU by its name on the command line.

    Raises:
        ValueError: if it is unknown; the message suggests the nearest names.
    """
    if name.lower() not in GPUS:
        raise ValueError(f"GPU {name!r} is unknown; {nearest(name.lower(), GPUS)}")
    return GPUS[name.lower()]


def gpu_of_device(device_name: str) -> GpuSpec | None:
    """Return the GPU with a name as of `torch.cuda.get_device_name`, or None if it is unknown."""
    for gpu in GPUS.values():
        if all(word in device_name for word in gpu.device_words):
            return gpu
    return None


def peak_of(gpu: GpuSpec, precision: str, *, tf32: bool = False) -> float | None:
    """Return the dense peak FLOP/s of a training precision, or None if the GPU lacks it.

    Args:
        gpu: the GPU.
        precision: `train.precision`.
        tf32: True if float32 products run in TF32.
    """
    if precision == "bfloat16":
        return gpu.bfloat16
    return gpu.tf32 if tf32 and gpu.tf32 else gpu.float32


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Return the peak FLOP/s of the current device, or None if it is not a known GPU."""
    if device.type != "cuda":
        return None
    gpu = gpu_of_device(torch.cuda.get_device_name(device))
    if gpu is None:
        return None
    return peak_of(gpu, precision, tf32=torch.get_float32_matmul_precision() != "highest")
