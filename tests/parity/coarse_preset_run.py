"""Run every mode of a case that has no recordings: `python -m tests.parity coarse --preset base`.

What the model gives has nothing to be equal to: it must be finite and of the shapes that a recorded
case of these settings has. Time and memory are printed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fiber.checkpoints.published import published_state
from fiber.losses.itm import matching_labels
from fiber.models.fiber.image_text import FiberImageText
from fiber.models.fiber.keys import ignored_coarse_key
from fiber.training.optim import build_optimizer, lr_factor, set_learning_rate
from tests.parity.coarse_case import CoarseCase
from tests.parity.coarse_losses import Losses, sampled_captions
from tests.parity.coarse_preset import SAMPLES, PresetCase
from tests.parity.coarse_runs import run_beams, run_caption, run_dual, run_fused
from tests.parity.coarse_training import OPTIM, STEPS
from tests.parity.modes import Mode, Shape, peak_bytes

#: Published weights that no loss of pre-training reads.
NOT_PRETRAINED = ("vqa_classifier.", "nlvr2_classifier.", "cross_modal_att_layers.")

#: Tensors by name, and the shape that each of them must have.
Output = tuple[dict[str, Tensor], dict[str, Shape]]


@dataclass
class Report:
    """All modes of a case."""

    case: PresetCase
    #: Bytes of the model's weights.
    weight_bytes: int = 0
    #: Largest memory of the process before it had a model.
    empty_bytes: int = 0
    modes: list[Mode] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every mode ran, and gave what it must."""
        return not any(mode.faults for mode in self.modes)

    @property
    def peak_bytes(self) -> int:
        """Largest memory of the process."""
        return max(mode.peak_bytes for mode in self.modes)

    @property
    def head(self) -> str:
        """What is run, and the names of the columns."""
        c = self.case.config
        return (
            f"{self.case.name}: {c['B']} pictures of {c['image']} x {c['image']} pixels, texts of"
            f" {c['L']} tokens; weights by the rule, nothing recorded to compare with\n"
            f"  {'mode':<22} {'count':>5}  {'largest':>8}  {'seconds':>7}  {'peak GB':>7}"
        )

    @property
    def foot(self) -> str:
        """The memory of the whole run."""
        above = self.peak_bytes - self.weight_bytes
        return (
            f"peak memory {self.peak_bytes / 1e9:.2f} GB, {above / 1e9:.2f} GB above the weights"
            f" ({self.weight_bytes / 1e9:.2f} GB); {self.empty_bytes / 1e9:.2f} GB before there was"
            " a model"
        )


def run_preset(name: str, show: Callable[[str], None]) -> Report:
    """Run every mode of a case of its settings alone.

    Args:
        name: "base" or "micro".
        show: is given each part of the table as soon as it is there.

    Raises:
        FileNotFoundError: if the list of the published names is not here.
        ValueError: if the weights of those names do not fit the model.
    """
    case = PresetCase(name)
    report = Report(case, empty_bytes=peak_bytes())
    show(report.head)
    start = time.perf_counter()
    model = case.model()
    report.weight_bytes = sum(each.numel() * each.element_size() for each in model.parameters())
    modes = {"weights": _weights, **_MODES}
    for title, outputs in modes.items():
        mode = Mode(title)
        for found, expected in outputs(model, case):
            mode.add(found, expected)
            mode.shapes |= {key: shape for key, shape in expected.items() if key in case.records}
        mode.seconds, start = time.perf_counter() - start, time.perf_counter()
        mode.peak_bytes = peak_bytes()
        report.modes.append(mode)
        if len(report.modes) == len(modes):
            mode.faults += _never_given(report)
        show(str(mode))
    show(report.foot)
    return report


def _never_given(report: Report) -> list[str]:
    """Name what a case records and no mode gave."""
    seen = {name for mode in report.modes for name in mode.shapes}
    names = set(report.case.records) - seen - {"itm.labels"}
    return [
        f"{name}: recorded of a case, given by no mode"
        for name in sorted(names)
        if not name.startswith("input.")
    ]


def _weights(model: FiberImageText, case: PresetCase) -> Iterator[Output]:
    """What the converter made of the drawn weights: every published one that the model reads."""
    yield published_state(model), _read_weights(model, case)


def _read_weights(model: FiberImageText, case: PresetCase) -> dict[str, Shape]:
    """Published names that the model reads, with their published shapes."""
    return {
        name: shape
        for name, shape in case.parameter_shapes().items()
        if ignored_coarse_key(name, model.config) is None
    }


def _passes(
    run: Callable[[FiberImageText, CoarseCase], dict[str, Tensor]], *starts: str
) -> Callable[[FiberImageText, PresetCase], Iterator[Output]]:
    """A mode of forward passes, which gives all recorded tensors whose names start so."""

    def outputs(model: FiberImageText, case: PresetCase) -> Iterator[Output]:
        with torch.no_grad():
            found = run(model, case)
        yield found, _recorded(case, *starts)

    return outputs


def _recorded(case: PresetCase, *starts: str) -> dict[str, Shape]:
    """Shapes of the recorded tensors whose names start so."""
    return {
        name: tuple(record["shape"])
        for name, record in case.records.items()
        if name.startswith(starts)
    }


def _samples(model: FiberImageText, case: PresetCase) -> Iterator[Output]:
    """Captions as they are sampled for CIDEr-D."""
    name = "cider.sampled_text_ids"
    length = case.records[name]["shape"][1]
    found = sampled_captions(model, case.input("image"), SAMPLES, length)
    yield {name: found}, _recorded(case, name)


def _losses(model: FiberImageText, case: PresetCase) -> Iterator[Output]:
    """Losses in evaluation mode, and what they find on their way."""
    losses = Losses(model, case)
    with torch.no_grad():
        for task, loss in losses.tasks().items():
            yield {f"loss.{task}": loss()}, {f"loss.{task}": ()}
    found = losses.found | {"itm_hardneg.labels": matching_labels(case.config["B"])}
    yield (
        found,
        _recorded(
            case,
            "itc.neg_",
            "itc.text_neg",
            "itc.text_mask_",
            "itm_hardneg.",
            "itm.logits",
            "nlvr2.",
        ),
    )
    yield losses.indices, dict.fromkeys(losses.indices, (case.config["B"],))


def _gradients(model: FiberImageText, case: PresetCase) -> Iterator[Output]:
    """Losses in training mode and their gradients; every dropout of a case is 0."""
    model.train()
    losses, weights = Losses(model, case), _read_weights(model, case)
    for task, loss in losses.tasks().items():
        model.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        yield {f"train.loss.{task}": value}, {f"train.loss.{task}": ()}
        found = {
            name: grad for name, grad in case.published_grads(model).items() if grad is not None
        }
        yield found, {name: weights[name] for name in found}
    model.zero_grad(set_to_none=True)


def _step(model: FiberImageText, case: PresetCase) -> Iterator[Output]:
    """One optimiser step with MLM, ITC and ITM; all that they read has a gradient.

    The losses run one after the other, their gradients add up: all graphs at once would take twice
    the memory.
    """
    weights = _read_weights(model, case)
    optimizer, tasks = build_optimizer(model, OPTIM), Losses(model, case).tasks()
    # The first rate of a run is 0.
    set_learning_rate(optimizer, OPTIM.lr * lr_factor(1, STEPS, OPTIM))
    optimizer.zero_grad(set_to_none=True)
    for task in ("mlm", "itc", "itm_hardneg"):
        tasks[task]().backward()
    trained = {
        name: shape for name, shape in weights.items() if not name.startswith(NOT_PRETRAINED)
    }
    yield {k: v for k, v in case.published_grads(model).items() if v is not None}, trained
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    yield published_state(model), weights


def _queue(model: FiberImageText, case: PresetCase) -> Iterator[Output]:
    """The queue after a batch."""
    losses = Losses(model, case)
    losses.enqueue()
    found = {
        "after_enqueue.image_queue": losses.queue.image_vectors.T,
        "after_enqueue.text_input_queue": losses.queue.token_ids,
    }
    yield found, _recorded(case, "after_enqueue.")


#: In the order in which a recorded case is compared; the step, which changes the model, comes last.
_MODES: dict[str, Callable[[FiberImageText, PresetCase], Iterator[Output]]] = {
    "dual": _passes(
        run_dual, "itc.vit.", "itc.txt.", "itc.image_", "itc.text_feats", "itc.text_cls"
    ),
    "fused": _passes(run_fused, "fused.", "mlm."),
    "caption": _passes(run_caption, "caption."),
    "beam search": _passes(run_beams, "beam"),
    "sampled captions": _samples,
    "losses": _losses,
    "losses and gradients": _gradients,
    "queue": _queue,
    "optimizer step": _step,
}
