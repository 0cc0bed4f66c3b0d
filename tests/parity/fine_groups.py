"""Compare learning rate and weight decay of every parameter of the published fine runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import torch

from fiber import recipes
from fiber.models.fiber.detector import FiberDetector
from fiber.models.fiber.keys import fine_keys
from fiber.training.config.run import RunConfig
from fiber.training.optim import build_optimizer, freeze
from tests.parity.comparison import Comparison
from tests.parity.tolerances import LEARNING_RATES

#: The recipe of each recorded run.
RUNS = {
    "pretrain": recipes.get("grounding"),
    "coco_ft": recipes.get("coco_detection"),
    "refcoco": recipes.get("refcoco"),
}


def compare_groups(path: Path) -> Comparison:
    """Compare `param_groups.json`; what is not trained is in no group."""
    recorded: dict[str, dict[str, list[float]]] = json.loads(path.read_text())
    comparison = Comparison(path.stem)
    for run, recipe in RUNS.items():
        expected = recorded.get(run, {})
        # Without the norms of image-to-text queries it is a run of a v2 model.
        version = "v3" if any("norm_i2t_i" in name for name in expected) else "v2"
        ours = published_groups(recipe(), version)
        for name in sorted({*ours, *expected}):
            if name not in ours or name not in expected:
                what = "is trained" if name in ours else "is not trained"
                comparison.group(f"{run} names", 0.0).add(f"{name} {what}", 1.0)
                continue
            (lr, decay), (expected_lr, expected_decay) = ours[name], expected[name]
            # Of a learning rate relatively; a decay of 0 is compared as it is.
            comparison.group(f"{run} learning rates", LEARNING_RATES).add(
                name, abs(lr - expected_lr) / expected_lr
            )
            comparison.group(f"{run} decay", LEARNING_RATES).add(name, abs(decay - expected_decay))
    comparison.not_compared = sorted({*recorded} - {*RUNS})
    return comparison


def published_groups(
    run: RunConfig, version: Literal["v2", "v3"]
) -> dict[str, tuple[float, float]]:
    """Peak learning rate and decay of what a run trains, by published name.

    Args:
        run: a fine run; the version of its model is changed.
        version: of that model.
    """
    with torch.device("meta"):
        model = FiberDetector(run.model.fine(version=version))
    freeze(model, run.optim.frozen)
    keys = fine_keys(model.config)
    names = {parameter: keys[name] for name, parameter in model.named_parameters()}
    found: dict[str, tuple[float, float]] = {}
    for group in build_optimizer(model, run.optim).param_groups:
        values = (run.optim.lr * group["lr_factor"], group["weight_decay"])
        for parameter in group["params"]:
            found |= dict.fromkeys(names[parameter], values)
    return found
