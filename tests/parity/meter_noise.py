"""Measure the noise of float32 at METER's published width: `python -m tests.parity.meter_noise`.

The same model runs in float32 and in float64, on weights drawn as those of the recorded cases and
on drawn texts: features, losses of three optimizer steps, and weights after them. Tolerances of
cases of this width come from the printed errors. A task takes some minutes on two cores and 8 GB of
memory, most of it for AdamW in float64; glibc keeps more without MALLOC_MMAP_THRESHOLD_=65536.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fiber.checkpoints.published import published_state
from fiber.models.meter.image_text import MeterImageText
from fiber.training.optim import PublishedAdamW, build_optimizer, lr_factor, set_learning_rate
from tests.parity.meter import OPTIM, STEPS, losses_of, only_losses, run_pair
from tests.parity.meter_case import (
    MAX_POSITIONS,
    TASKS,
    MeterCase,
    is_moved_by_noise,
    published_pieces,
)

#: Settings of a case of the published width, in the form of the recorded ones. The vocabulary is
#: smaller to save memory: rows of tokens that no text has get no gradient.
BASE = {
    "kind": "clip",
    "tower": {"layers": 12, "width": 768, "patch": 16, "ctx_width": 16},
    "image": 64,
    "resize": 96,
    "text": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    },
    "hidden": 768,
    "heads": 12,
    "top": 6,
    "V": 5000,
    "A": 3129,
    "std": 0.02,
    "B": 4,
    "L": 16,
    "lengths": [16, 11, 7, 2],
    "false_texts": 3,
}


class DrawnCase(MeterCase):
    """A case of which nothing is recorded: weights are drawn by the rule, texts at random."""

    def __init__(self, config: dict[str, Any], seed: int) -> None:
        self.name, self.config, self.records = f"seed {seed}", config, {}
        self.weights_check = {MAX_POSITIONS: [[514, config["text"]["hidden_size"]]]}
        self.groups = {}
        for task in TASKS:
            with torch.device("meta"):
                state = published_state(MeterImageText(self.meter_config(task)))
            self.groups[task] = [{"names": list(state)}]
            types = {"token_type_embeddings.weight"}.intersection(state)
            own = {f"{name} @{task}" if name in types else name: state[name] for name in state}
            self.weights_check |= {name: [list(tensor.shape)] for name, tensor in own.items()}
        self._draw_texts(seed)

    def _draw_texts(self, seed: int) -> None:
        """Draw texts, masked texts, false texts and ITM labels as in the recorded cases."""
        draw = torch.Generator().manual_seed(seed)
        rows, length, vocabulary = (self.config[name] for name in ("B", "L", "V"))
        lengths = torch.tensor(self.config["lengths"])
        stored: dict[str, Tensor] = {}
        names = ["text", *(f"false_text_{n}" for n in range(self.config["false_texts"]))]
        for number, name in enumerate(names):
            mask = torch.arange(length) < lengths.roll(number)[:, None]
            ids = torch.randint(3, vocabulary - 1, (rows, length), generator=draw)
            stored[f"input.{name}_ids"] = torch.where(mask, ids, 1)
            stored[f"input.{name}_masks"] = mask
        masked, labels = stored["input.text_ids"].clone(), torch.full((rows, length), -100)
        labels[:, 1] = masked[:, 1]
        masked[:, 1] = vocabulary - 1
        stored |= {"input.text_ids_mlm": masked, "input.text_labels_mlm": labels}
        itm = torch.arange(rows) >= rows // 2
        self._stored = stored | {f"{task}.itm_labels": itm for task in ("pretrain", "irtr")}


class Measured(NamedTuple):
    """Results of a task in one dtype, by name."""

    tensors: dict[str, Tensor]
    losses: dict[str, float]
    weights: dict[str, float]
    biases: dict[str, float]


@contextmanager
def optimized_in_backward(model: MeterImageText) -> Iterator[list[torch.optim.Optimizer]]:
    """Give every parameter an optimizer that steps as soon as its gradient is complete.

    They take the same steps as one optimizer, but gradients never exist all at once.
    """
    optimizers, hooks = [], []
    for group in build_optimizer(model, OPTIM).param_groups:
        defaults = {"lr": OPTIM.lr, "betas": OPTIM.betas, "eps": OPTIM.eps}
        for parameter in group["params"]:
            optimizer = PublishedAdamW([{**group, "params": [parameter]}], **defaults)

            def step(parameter: Tensor, optimizer: PublishedAdamW = optimizer) -> None:
                optimizer.step()
                parameter.grad = None

            hooks.append(parameter.register_post_accumulate_grad_hook(step))
            optimizers.append(optimizer)
    yield optimizers
    for hook in hooks:
        hook.remove()


def measure(case: MeterCase, task: str, dtype: torch.dtype) -> Measured:
    """Run three optimizer steps of a task, and for "pretrain" the whole model before them."""
    # Optimizers of an earlier call are in reference cycles, with its weights.
    gc.collect()
    model = case.model(task).to(dtype)
    tensors = {}
    if task == "pretrain":
        with torch.no_grad():
            tensors = {name: value.double() for name, value in run_pair(model, case).items()}
    model.train()
    if task == "irtr":
        model.itm_head.requires_grad_(False)
    losses: dict[str, float] = {}
    with optimized_in_backward(model) as optimizers:
        for step in range(4):
            found = only_losses(losses_of(model, case, task))
            total = torch.stack(list(found.values())).sum()
            losses |= {f"step {step} {name}": loss.item() for name, loss in found.items()}
            losses[f"step {step} total"] = total.item()
            if step == 3:
                break
            for optimizer in optimizers:
                set_learning_rate(optimizer, OPTIM.lr * lr_factor(step, STEPS, OPTIM))
            total.backward()
    norms = {
        name: piece.double().norm().item()
        for name, piece in published_pieces(model).items()
        if not is_moved_by_noise(name)
    }
    weights = {name: norm for name, norm in norms.items() if name.endswith("weight")}
    biases = {name: norm for name, norm in norms.items() if name not in weights}
    return Measured(tensors, losses, weights, biases)


def errors(single: Measured, double: Measured) -> dict[str, tuple[float, str]]:
    """Largest error of each kind and its name, as `Comparison` measures it."""
    found: dict[str, list[tuple[float, str]]] = {}
    for name, exact in double.tensors.items():
        largest = max(1.0, exact.abs().max().item())
        error = (single.tensors[name] - exact).abs().max().item() / largest
        found.setdefault("tensors", []).append((error, name))
    for kind in ("losses", "weights", "biases"):
        ours, exact = getattr(single, kind), getattr(double, kind)
        found[kind] = [(abs(ours[name] - exact[name]) / abs(exact[name]), name) for name in exact]
    return {kind: max(all_errors) for kind, all_errors in found.items()}


def recorded_errors(case: MeterCase, task: str, double: Measured) -> tuple[float, str]:
    """Largest error of the recorded losses of steps, and its name."""
    found = []
    for step, losses in enumerate(case.steps[task]["losses"]):
        for loss, value in losses.items():
            name = f"step {step} {loss.removesuffix('_loss')}"
            found.append((abs(value - double.losses[name]) / abs(double.losses[name]), name))
    return max(found)


def main(arguments: list[str] | None = None) -> None:
    """Print the largest errors of float32 by task."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity.meter_noise")
    parser.add_argument("tasks", nargs="*", help=f"any of {', '.join(TASKS)} (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="seeds of the texts")
    parser.add_argument("--case", type=Path, help="NAME.json of a recorded case instead")
    options = parser.parse_args(arguments)
    cases = [MeterCase(options.case)] if options.case else []
    for case in cases or (DrawnCase(BASE, seed) for seed in options.seeds):
        for task in options.tasks or TASKS:
            single, double = measure(case, task, torch.float32), measure(case, task, torch.float64)
            found = errors(single, double)
            if options.case:
                found["recorded losses"] = recorded_errors(case, task, double)
            for kind, (error, name) in found.items():
                print(f"{case.name:<10} {task:<9} {kind:<15} {error:.1e}  {name}", flush=True)


if __name__ == "__main__":
    main()
