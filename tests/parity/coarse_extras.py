"""Compare what is recorded beside the cases: pictures, schedules, metrics, optimiser groups."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from fiber import _core
from fiber.config import IMAGE_TEXT_HEADS, FiberConfig, ImageTextConfig, RobertaConfig
from fiber.data import ImageTransform, RandAugment
from fiber.metrics.cider import DocumentFrequencies, cider_d_scores
from fiber.metrics.vqa import normalize_answer, published_score
from fiber.models.encoders.position_interpolation import resize_bias_table
from fiber.models.encoders.roberta import TextEmbeddings
from fiber.models.fiber.image_text import FiberImageText
from fiber.tasks.transform import MOVING_OPERATIONS
from fiber.training.config.run import OptimConfig
from fiber.training.optim import lr_factor
from tests.metrics.recall import recall_at_k
from tests.parity.coarse_training import (
    OPTIM,
    group_faults,
    groups_by_rule,
    our_groups,
    values_of_unused,
)
from tests.parity.comparison import Comparison
from tests.parity.tolerances import EXTRAS, LEARNING_RATES

#: Recorded, but no output of the package (golden/coarse README): operations that no recipe has, and
#: the versions with which it was recorded.
NEVER_COMPARED = ("randaug.Solarize", "randaug.Color", "randaug.Contrast", "versions")
#: The magnitude with which RandAugment was recorded, and the value of what comes from outside.
RAND_AUGMENT_MAGNITUDE, RAND_AUGMENT_FILL = 7.0, [128, 128, 128]


def compare_extras(path: Path) -> Comparison:
    """Compare `extras.json` and `extras.safetensors`."""
    numbers = json.loads(path.read_text())
    tensors = load_file(path.with_suffix(".safetensors"))
    comparison = Comparison("extras")
    parts: tuple[Callable[[Comparison, dict[str, Any], dict[str, Tensor]], None], ...] = (
        _compare_pictures,
        _compare_rand_augment,
        _compare_bias_tables,
        _compare_schedule,
        _compare_answers,
        _compare_recall,
        _compare_cider,
        _compare_positions,
    )
    for part in parts:
        try:
            part(comparison, numbers, tensors)
        except KeyError as error:
            comparison.group("names", 0.0).add(f"{error.args[0]} is missing", 1.0)
    recorded = {name for name in {*numbers, *tensors} if not name.startswith(NEVER_COMPARED)}
    comparison.not_compared = sorted(recorded - comparison.compared)
    return comparison


def _compare_pictures(
    comparison: Comparison, numbers: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    """Resized pictures, and those that a coarse model is given."""
    picture = tensors["rgb.input"].numpy()
    comparison.compared.add("rgb.input")
    for name, recorded in tensors.items():
        kind, _, side = name.partition(".")
        if kind == "resize_u8":
            ours = torch.tensor(np.asarray(_core.resize_image(picture, int(side), int(side))))
            comparison.tensor("resize", name, ours, recorded, 0.0, 255.0)
        elif kind == "albef_transform":
            transform = ImageTransform.squash(int(side))
            pixels, _, _ = _core.apply_transform(picture, transform)
            ours = torch.tensor(np.asarray(pixels))
            comparison.tensor("normalise", name, ours, recorded, EXTRAS.pixels, 1.0)


def _compare_rand_augment(
    comparison: Comparison, numbers: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    """Every operation in both directions, with the argument that its magnitude gives."""
    picture = tensors["rgb.input"].numpy()
    arguments = RandAugment(magnitude=RAND_AUGMENT_MAGNITUDE).arguments()
    for operation, argument in arguments.items():
        for name in (f"randaug.{operation}.hi", f"randaug.{operation}.lo"):
            recorded = numbers[f"{name}.args"]
            signed = recorded[0] if recorded else None
            expected = [] if argument is None else [argument]
            if operation in MOVING_OPERATIONS:
                expected = [math.copysign(expected[0], recorded[0]), RAND_AUGMENT_FILL]
            label = f"{operation}, recorded {recorded}"
            wrong = float(recorded != expected)
            comparison.group("RandAugment, arguments", 0.0).add(label, wrong)
            ours = torch.tensor(np.asarray(_core.augment_image(picture, operation, signed)))
            comparison.tensor("RandAugment", name, ours, tensors[name], 0.0, 255.0)
            comparison.compared.add(f"{name}.args")


def _compare_bias_tables(
    comparison: Comparison, numbers: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    before = tensors["bias.before_384"]
    comparison.compared.add("bias.before_384")
    for name, recorded in tensors.items():
        if name.startswith("bias.after_"):
            window = int(name.removeprefix("bias.after_")) // 32
            ours = resize_bias_table(before, (2 * window - 1) ** 2)
            absmax = recorded.abs().max().item()
            comparison.tensor("bias tables", name, ours, recorded, EXTRAS.bias_tables, absmax)


def _compare_schedule(
    comparison: Comparison, numbers: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    name, config = "lr.peak1e-5_100k_warm10k", OptimConfig(lr=1e-5, warmup_fraction=0.1)
    for step, recorded in numbers[name].items():
        ours = config.lr * lr_factor(int(step), 100_000, config)
        group = comparison.group("learning rates", LEARNING_RATES)
        group.add(f"{name} at {step}", abs(ours - recorded) / config.lr)
    comparison.compared.add(name)


def _compare_answers(
    comparison: Comparison, numbers: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    for answer, recorded in numbers["vqa.normalize_word"].items():
        ours = normalize_answer(answer)
        label = f"{answer!r} -> {ours!r}, recorded {recorded!r}"
        comparison.group("answers, words", 0.0).add(label, float(ours != recorded))
    for count, recorded in numbers["vqa.get_score"].items():
        ours = published_score("yes", ["yes"] * int(count))
        comparison.group("answers, scores", 0.0).add(f"{count} people", abs(ours - recorded))
    comparison.compared |= {"vqa.normalize_word", "vqa.get_score"}


def _compare_recall(
    comparison: Comparison, numbers: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    scores = tensors["recall.scores"].numpy()
    ks = [int(k) for k in numbers["recall"]]
    # Three captions of each picture, one after the other.
    ours = recall_at_k(scores, np.arange(scores.shape[1]) // 3, ks)
    for k, recorded in numbers["recall"].items():
        for name, value in (("image_to_text", recorded["tr"]), ("text_to_image", recorded["ir"])):
            found = ours[f"{name}_recall_at_{k}"]
            comparison.number("recall", f"{name} at {k}", found, value, EXTRAS.recall)
    comparison.compared |= {"recall", "recall.scores"}


def _compare_cider(
    comparison: Comparison, numbers: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    recorded = numbers["ciderD"]
    counts = {tuple(gram.split()): count for gram, count in recorded["df"].items()}
    frequencies = DocumentFrequencies(counts, recorded["ref_len"])
    captions = [recorded["res"][key] for key in recorded["gts"]]
    scores = cider_d_scores(captions, list(recorded["gts"].values()), frequencies)
    for number, (ours, theirs) in enumerate(zip(scores, recorded["scores"], strict=True)):
        comparison.number("CIDEr-D", f"caption {number}", float(ours), theirs, EXTRAS.cider)
    comparison.number("CIDEr-D", "mean", float(scores.mean()), recorded["mean"], EXTRAS.cider)
    comparison.compared.add("ciderD")


def _compare_positions(
    comparison: Comparison, numbers: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    embeddings, found = TextEmbeddings(RobertaConfig(width=12)), []
    embeddings.position.register_forward_pre_hook(lambda _, given: found.append(given[0]))
    embeddings(tensors["posids.input"])
    comparison.tensor("positions", "posids.output", found[0], tensors["posids.output"], 0.0, 1.0)
    comparison.compared.add("posids.input")


def compare_optimizer_groups(path: Path) -> Comparison:
    """Compare the six groups of the base model, name by name."""
    recorded = json.loads(path.read_text())
    comparison = Comparison("base_optimizer_groups")
    with torch.device("meta"):
        model = FiberImageText(base_config())
    names = [group["names"] for group in recorded]
    by_name = comparison.group("names", 0.0)
    faults = group_faults(model, names)
    for fault in faults:
        by_name.add(fault, 1.0)
    by_name.count += sum(map(len, names)) - len(faults)
    # The rule by which the cases' groups are told also places what our model does not have.
    by_rule = groups_by_rule(name for group in names for name in group)
    for number, (found, expected) in enumerate(zip(by_rule, names, strict=True)):
        wrong = len(set(found) ^ set(expected))
        comparison.group("names by rule", 0.0).add(f"group {number}", float(wrong))
    for number, (group, ours) in enumerate(zip(recorded, our_groups(model), strict=True)):
        unused = set(group["names"]) - set(ours)
        factor = (1.0, OPTIM.head_lr_multiplier, OPTIM.cross_modal_lr_multiplier)[number // 2]
        decay = OPTIM.weight_decay if number % 2 == 0 else 0.0
        expected = {
            "n": len(group["names"]),
            "numel": sum(ours.values()) + values_of_unused(unused, model),
            "lr": OPTIM.lr * factor,
            "wd": decay,
        }
        for name in sorted({*group, *expected} - {"names"}):
            value = expected.get(name, float("nan"))
            comparison.number(name, f"group {number} {name}", value, group[name], LEARNING_RATES)
    return comparison


def base_config() -> FiberConfig:
    """The published model with every head."""
    return FiberConfig(roberta=RobertaConfig(), image_text=ImageTextConfig(heads=IMAGE_TEXT_HEADS))
