"""A launch runs its kernel once, on the device of its tensors."""

from __future__ import annotations

import contextlib

import torch

from fiber.kernels.runtime.launch import Launch


class Kernel:
    """Records how it was launched, and on which device."""

    current: torch.device | None = None

    def __init__(self) -> None:
        self.starts: list[tuple] = []

    def __getitem__(self, grid: tuple[int, ...]):
        return lambda **given: self.starts.append((grid, given, Kernel.current))


class OnSecondGpu(torch.Tensor):
    """Tensor that reports a GPU as its device."""

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", 1)


@contextlib.contextmanager
def pretend(device: torch.device):
    Kernel.current = device
    yield
    Kernel.current = None


def launch(kernel: Kernel, tensor: torch.Tensor, grid: tuple[int, ...] = (3, 2)) -> Launch:
    return Launch(kernel, grid, {"x": None, "y": tensor, "n": 5}, {"BLOCK": 16}, 4, 1)


def test_empty_grid_launches_nothing():
    kernel = Kernel()
    launch(kernel, torch.zeros(1), (0, 2)).run()
    assert kernel.starts == []


def test_kernel_runs_on_the_device_of_its_tensors(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device", pretend)
    kernel, tensor = Kernel(), torch.zeros(1).as_subclass(OnSecondGpu)
    launch(kernel, tensor).run()
    launch(kernel, torch.zeros(1)).run()
    (grid, given, where), (_, _, on_cpu) = kernel.starts
    assert grid == (3, 2)
    assert given["y"] is tensor
    assert (given["n"], given["BLOCK"], given["num_warps"]) == (5, 16, 4)
    assert where == torch.device("cuda", 1)
    assert on_cpu is None
