"""Time the model on a GPU: a coarse training step, and a forward pass as one CUDA graph.

Peers of the step: the same model with `use_backend("reference")`, and `eager_fiber.py` with the
published forward passes. The step is that of `bench_model.py`, under autocast to bfloat16.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from bench_model import OURS, PEER, side
from torch import Tensor

from fiber import kernels
from fiber.config import FiberConfig
from fiber.kernels.runtime.dispatch import Backend
from fiber.models.fiber.backbone import FiberBackbone
from fiber.training.config.run import OptimConfig
from fiber.training.optim import build_optimizer

#: Model of each side of the step, and the backend of its kernels (None: the default).
STEP_SIDES: dict[str, tuple[str, Backend | None]] = {
    "fiber": (OURS, None),
    "fiber, reference backend": (OURS, "reference"),
    "eager, published passes": (PEER, None),
}


@dataclass
class Passes:
    """What one side measured."""

    milliseconds: list[float]
    #: Peak of the GPU's memory in a pass, everything counted; 0 on a CPU.
    peak_bytes: int
    #: Why it was not measured; "" if it was.
    refused: str = ""


def training_step(
    device: torch.device, config: FiberConfig, batch: int, rounds: int
) -> dict[str, Passes]:
    """Time whole steps, forward to optimizer, one model after the other.

    Args:
        device: CUDA, or a CPU to try the bench itself.
        config: of the model, every dropout off.
        batch: images of a step.
        rounds: steps that count, after two that do not.
    """
    found = {}
    for name, (model_name, backend) in STEP_SIDES.items():
        try:
            with kernels.use_backend(backend):
                found[name] = _steps(model_name, config, device, batch, rounds)
        except torch.OutOfMemoryError as error:
            found[name] = Passes([], 0, " ".join(str(error).split())[:200])
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return found


def _steps(name: str, config: FiberConfig, device: torch.device, batch: int, rounds: int) -> Passes:
    model, run = side(name, config, batch, device=str(device))
    optimizer = (
        torch.optim.AdamW(model.parameters(), lr=1e-5)
        if name == PEER
        else build_optimizer(model, OptimConfig(lr=1e-5))
    )

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16):
            run()
        optimizer.step()

    for _ in range(2):
        step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times = [_wall(step, device) for _ in range(rounds)]
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return Passes(times, peak)


def _wall(run: Callable[[], object], device: torch.device) -> float:
    """Milliseconds until the device is done; a step waits for its losses as it goes."""
    _wait(device)
    began = time.perf_counter()
    run()
    _wait(device)
    return 1000 * (time.perf_counter() - began)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class PairForward:
    """A backbone in bfloat16 and one pair of image and text."""

    def __init__(self, device: torch.device, config: FiberConfig, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self._model = FiberBackbone(config).to(device, dtype).eval()
        side_pixels, tokens = config.image_size, config.max_tokens
        self._images = torch.randn(1, 3, side_pixels, side_pixels, device=device, dtype=dtype)
        self._ids = torch.randint(5, config.roberta.vocab_size - 1, (1, tokens), device=device)
        self._mask = torch.arange(tokens, device=device)[None] < tokens - 5

    def __call__(self) -> Tensor:
        """Encode the pair; gives its text (1, L, D)."""
        with torch.no_grad():
            return self._model.encode_pair(self._images, self._ids, self._mask).text


def captured_forward(device: torch.device, config: FiberConfig, rounds: int) -> dict[str, Passes]:
    """Time a forward of one pair: asked for by Python, and replayed as one CUDA graph.

    Raises:
        AssertionError: if the graph gives other numbers.
    """
    forward = PairForward(device, config, torch.bfloat16)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(2):
            forward()
        expected = forward()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = forward()
    graph.replay()
    torch.cuda.synchronize(device)
    off = (captured - expected).abs().max().item()
    # cuBLAS may choose other algorithms in a graph; both round to bfloat16 in every layer.
    if not off <= 5e-2 * expected.abs().max().item():
        raise AssertionError(f"the captured forward pass differs by {off:.2g}")
    return {
        "fiber, called": Passes([_wall(forward, device) for _ in range(rounds)], 0),
        "fiber, one CUDA graph": Passes([_wall(graph.replay, device) for _ in range(rounds)], 0),
    }
