"""Measure the noise of a recorded detector's gradients: `python -m tests.parity.fine_noise`.

The training step of the case made sharp runs in float32 and in float64, for the native kernels and
for their definitions. Printed are the norms that are furthest from float64, recorded and ours: the
tolerances of gradients in `tests/parity/tolerances.py` come from them.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch

from fiber.kernels import use_backend
from fiber.losses.grounding import grounding_losses
from tests.golden import FINE
from tests.parity.fine import LOSSES
from tests.parity.fine_case import FineCase
from tests.parity.tolerances import fine_tolerances


def gradient_norms(case: FineCase, dtype: torch.dtype) -> dict[str, float]:
    """Compute the norm of each gradient of the recorded training step, by published name."""
    model = case.model().to(dtype)
    batch = case.batch()
    batch = dataclasses.replace(
        batch, images=batch.images.to(dtype), boxes_xyxy=batch.boxes_xyxy.to(dtype)
    )
    output = model.predict(
        model.backbone.encode_pair(batch.images, batch.token_ids, batch.text_mask)
    )
    losses = grounding_losses(output, batch, model.config, background_token=255)
    sum(weight * losses[ours] for ours, (_, weight) in LOSSES.items()).backward()
    return {
        name: grad.double().norm().item()
        for name, grad in case.published_grads(model).items()
        if grad is not None
    }


def furthest(
    norms: dict[str, float], exact: dict[str, float], floor: float
) -> list[tuple[float, str]]:
    """Relative errors of the norms above `floor` of the largest one, largest first."""
    least = floor * max(exact.values())
    errors = [
        (abs(norms[name] - norm) / norm, name) for name, norm in exact.items() if norm >= least
    ]
    return sorted(errors, reverse=True)


def main(arguments: list[str] | None = None) -> None:
    """Print the largest errors of the recorded norms and of ours."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity.fine_noise")
    parser.add_argument(
        "case", type=Path, nargs="?", default=FINE / "tiny_v2_sharp.json", help="NAME.json"
    )
    parser.add_argument("--most", type=int, default=3, help="norms of each kind that are printed")
    options = parser.parse_args(arguments)
    case = FineCase(options.case)
    floor = fine_tolerances(case.config).gradient_floor
    with use_backend("reference"):
        exact = gradient_norms(case, torch.float64)
    found = {"recorded": {name: norm for name, norm in case.gradients.items() if norm is not None}}
    for backend in ("native", "reference"):
        with use_backend(backend):
            found[f"float32 {backend}"] = gradient_norms(case, torch.float32)
    for kind, norms in found.items():
        for error, name in furthest(norms, exact, floor)[: options.most]:
            share = exact[name] / max(exact.values())
            print(f"{kind:<18} {error:.2e} of {share:.1e} of the largest  {name}", flush=True)


if __name__ == "__main__":
    main()
