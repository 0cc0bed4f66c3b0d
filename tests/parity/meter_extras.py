"""Compare what is recorded beside METER's cases: images, tokens, schedule, position tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from fiber import _core
from fiber.data import ImageTransform, RandAugment, Tokenizer
from fiber.models.encoders.position_interpolation import resize_position_table
from fiber.models.meter.config import MeterConfig
from fiber.models.meter.preprocess import image_options
from fiber.tasks.transform import MAX_MAGNITUDE, MOVING_OPERATIONS
from fiber.training.config.run import OptimConfig
from fiber.training.optim import lr_factor
from tests.parity.coarse_case import draw
from tests.parity.comparison import Comparison
from tests.parity.tolerances import EXTRAS, LEARNING_RATES

#: Recorded, but no output of the package: the versions with which it was recorded.
NEVER_COMPARED = ("versions",)
#: (height, width) of the recorded images after the transform.
SIZE = 48
STATISTICS = {
    name: image_options(MeterConfig(image_encoder=encoder))
    for name, encoder in (("clip", "clip"), ("imagenet", "swin"))
}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
#: Name of the published tensor that the recorded position tables were drawn as, and their scale.
POSITIONS, POSITIONS_STD, WIDTH, PATCH = "vit_model.visual.positional_embedding", 0.02, 768, 16
#: Every how manyth value of a resized table is stored.
STRIDE = 97
#: Tokens that the recorded sentence needs of RoBERTa's vocabulary, and their merges in its order;
#: the vocabulary is not part of the repository.
EXCERPT = Path(__file__).with_name("roberta_excerpt.json")
MAX_TOKENS, MASK_ID = 50, 50264
#: Seed of our draws of masked positions, and what they may differ by, in standard deviations.
MASKING_SEED, DEVIATIONS = 0, 4.0


def compare_extras(path: Path) -> Comparison:
    """Compare `extras.json` and `extras.safetensors`."""
    numbers = json.loads(path.read_text())
    tensors = load_file(path.with_suffix(".safetensors"))
    comparison = Comparison("extras")
    parts: tuple[Callable[[Comparison, dict[str, Any], dict[str, Tensor]], None], ...] = (
        _compare_transforms,
        _compare_opaque,
        _compare_arguments,
        _compare_operations,
        _compare_chain,
        _compare_sentence,
        _compare_masking,
        _compare_schedule,
        _compare_positions,
    )
    for part in parts:
        try:
            part(comparison, numbers, tensors)
        except KeyError as error:
            comparison.group("names", 0.0).add(f"{error.args[0]} is missing", 1.0)
    recorded = {name for name in {*numbers, *tensors} if name not in NEVER_COMPARED}
    comparison.not_compared = sorted(recorded - comparison.compared)
    return comparison


def transformed(picture: np.ndarray, transform: ImageTransform, **key: int) -> Tensor:
    """Apply a transform to an (H, W, C) array; return (3, H', W') float32."""
    pixels, _, _ = _core.apply_transform(np.ascontiguousarray(picture), transform, **key)
    return torch.tensor(np.asarray(pixels))


def augmented(picture: np.ndarray, operation: str, argument: float | None) -> np.ndarray:
    """Apply one of METER's operations."""
    return np.asarray(_core.augment_image(picture, operation, argument, policy="meter"))


def _compare_pixels(
    comparison: Comparison, group: str, name: str, ours: Tensor, recorded: Tensor, statistics: str
) -> None:
    """Compare normalized pixels, and the bytes that they were before."""
    comparison.tensor(group, name, ours, recorded, EXTRAS.pixels, 1.0)
    options = {**IMAGENET, **STATISTICS[statistics]}
    mean, std = (torch.tensor(options[key])[:, None, None] for key in ("mean", "std"))
    bytes_ = [((pixels * std + mean) * 255).round().to(torch.uint8) for pixels in (ours, recorded)]
    comparison.tensor(f"{group}, 8 bits", name, *bytes_, 0.0, 255.0)


def _compare_transforms(
    comparison: Comparison, numbers: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    """Both transforms of a wide and a tall image, and of one with alpha."""
    for statistics, options in STATISTICS.items():
        transform = ImageTransform.center_crop(SIZE, **options)
        for kind in ("wide", "tall", "alpha"):
            ours = transformed(tensors[f"picture.{kind}"].numpy(), transform)
            name = f"{statistics}.{kind}"
            _compare_pixels(comparison, "transforms", name, ours, tensors[name], statistics)
            comparison.compared.add(f"picture.{kind}")


def _compare_opaque(
    comparison: Comparison, numbers: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    """The largest change of an opaque image that is resized as RGBA."""
    transform = ImageTransform.center_crop(SIZE, **STATISTICS["clip"])
    for kind in ("wide", "tall"):
        name = f"clip.{kind}: RGBA detour changes an opaque picture by"
        picture = tensors[f"picture.{kind}"].numpy()
        opaque = np.concatenate([picture, np.full_like(picture[..., :1], 255)], -1)
        change = transformed(opaque, transform) - transformed(picture, transform)
        error = abs(change.abs().max().item() - numbers[name])
        comparison.group("opaque RGBA", 0.0).add(name, error)
        comparison.compared.add(name)


def _published_name(operation: str) -> str:
    return f"{operation}abs" if operation.startswith("Translate") else operation


def _compare_arguments(
    comparison: Comparison, numbers: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    """Names in order, and arguments at the lowest, the highest and the recorded magnitude."""
    group = comparison.group("RandAugment, arguments", 0.0)
    recorded = numbers["randaug"]
    settings = [
        RandAugment(policy="meter", magnitude=magnitude).arguments()
        for magnitude in (0, MAX_MAGNITUDE["meter"])
    ]
    settings.append(RandAugment(policy="meter").arguments())
    names = [_published_name(operation) for operation in settings[0]]
    group.add(f"names {names}", float(names != list(recorded)))
    for operation in settings[0]:
        theirs = recorded[_published_name(operation)]
        for ours, value in zip(settings, theirs, strict=True):
            # Those that ignore their argument have none.
            argument = ours[operation]
            error = 0.0 if argument is None else abs(argument - value)
            group.add(f"{operation} {argument}, recorded {value}", error)
    comparison.compared.add("randaug")


def _compare_operations(
    comparison: Comparison, numbers: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    """Every operation, those that move pixels in both directions."""
    picture = tensors["picture.wide"].numpy()
    for operation, argument in RandAugment(policy="meter").arguments().items():
        signs = {"plus": 1, "minus": -1} if operation in MOVING_OPERATIONS else {"plus": 1}
        for sign, factor in signs.items():
            signed = None if argument is None else factor * argument
            name = f"randaug.{_published_name(operation)}.{sign}"
            ours = torch.tensor(augmented(picture, operation, signed))
            comparison.tensor("RandAugment", name, ours, tensors[name], 0.0, 255.0)


def _compare_chain(
    comparison: Comparison, numbers: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    """The recorded draw one operation after the other, and by a transform that draws the same."""
    name = "clip_randaug.wide.seed3"
    drawn, recorded = numbers[name], tensors[name]
    arguments = RandAugment(policy="meter").arguments()
    picture = tensors["picture.wide"].numpy()
    chain = picture
    for operation in drawn:
        chain = augmented(chain, operation, arguments[operation])
    ours = transformed(chain, ImageTransform.center_crop(SIZE, **STATISTICS["clip"]))
    _compare_pixels(comparison, "RandAugment, chain", name, ours, recorded, "clip")
    augment = RandAugment(policy="meter", num_ops=len(drawn), operations=drawn)
    transform = ImageTransform.center_crop(SIZE, rand_augment=augment, **STATISTICS["clip"])
    # One of these indices gives the recorded order.
    outputs = (transformed(picture, transform, index=index) for index in range(64))
    nearest = min(outputs, key=lambda pixels: (pixels - recorded).abs().max().item())
    _compare_pixels(comparison, "RandAugment, drawn chain", name, nearest, recorded, "clip")


def sentence_tokenizer() -> Tokenizer:
    """RoBERTa's tokenizer, of whose vocabulary it has what the recorded sentence needs."""
    excerpt = json.loads(EXCERPT.read_text())
    content = json.loads(Tokenizer.train([], 261).to_json())
    special = {token["content"]: token for token in content["added_tokens"]}
    special["<mask>"]["id"] = MASK_ID
    content["model"]["vocab"] = excerpt["vocab"] | {
        name: token["id"] for name, token in special.items()
    }
    content["model"]["merges"] = excerpt["merges"]
    return Tokenizer.from_json(json.dumps(content))


def _compare_sentence(
    comparison: Comparison, numbers: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    """The recorded sentence, padded to the maximum length."""
    name = "tokenizer example"
    arrays = sentence_tokenizer().encode_batch(
        [numbers[name]["text"]], max_tokens=MAX_TOKENS, pad_to=MAX_TOKENS
    )
    ours = torch.tensor(np.asarray(arrays["token_ids"]))[0]
    comparison.tensor("tokens", name, ours, torch.tensor(numbers[name]["ids"]), 0.0, 1.0)


def _compare_masking(
    comparison: Comparison, numbers: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    """Counts of masked tokens and of what they became, in standard deviations of their difference.

    The counts are those of random draws on both sides.
    """
    draws, probability = 4000, 0.15
    tokenizer = Tokenizer.train([], 300)
    group = comparison.group("masked positions, deviations", DEVIATIONS)
    for name, recorded in numbers.items():
        if not name.startswith("whole-word collator"):
            continue
        # With <s> and </s>; each letter is a token.
        text = "z" * (recorded["tokens"] - 2)
        arrays = tokenizer.encode_masked_batch(
            [text] * draws,
            mlm_unit="position",
            mlm_probability=probability,
            seed=MASKING_SEED,
            epoch=0,
            indices=range(draws),
            max_tokens=MAX_TOKENS,
        )
        names = ("token_ids", "masked_ids", "mlm_labels")
        ids, masked, labels = (torch.tensor(np.asarray(arrays[name])) for name in names)
        picked = labels != -100
        shares = [count / draws for count in recorded["hypergeometric_8_of_50"]]
        counts = torch.bincount(picked.sum(1), minlength=len(shares)).tolist()
        theirs = recorded["picked_counts_of_4000"]
        for count, (ours, share) in enumerate(zip(counts, shares, strict=True)):
            other = theirs.get(str(count), 0)
            deviation = (2 * draws * share * (1 - share)) ** 0.5
            group.add(
                f"{name}, {count}: {ours}, recorded {other}", abs(ours - other) / max(deviation, 1)
            )
        number = int(picked.sum())
        seen = (masked == tokenizer.mask_id)[picked].float().mean().item()
        same = (masked == ids)[picked].float().mean().item()
        for ours, key in ((seen, "mask_share"), (same, "same_share")):
            share = recorded[key]
            deviation = (2 * share * (1 - share) / number) ** 0.5
            group.add(f"{name}, {key}: {ours}, recorded {share}", abs(ours - share) / deviation)
        comparison.compared.add(name)


def _compare_schedule(
    comparison: Comparison, numbers: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    """Learning rates of every step, and of one after the last."""
    name, steps = "schedule, 20 steps, warm-up 2", 20
    config = OptimConfig(warmup_fraction=0.1)
    for step, recorded in enumerate(numbers[name]):
        error = abs(lr_factor(step, steps, config) - recorded)
        comparison.group("learning rates", LEARNING_RATES).add(f"step {step}", error)
    comparison.compared.add(name)


def _compare_positions(
    comparison: Comparison, numbers: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    """Position tables of other image sizes: values, sum, norm; and of the same size."""
    for before, after in ((288, 576), (288, 384), (224, 288)):
        rows, more = ((size // PATCH) ** 2 + 1 for size in (before, after))
        table = draw(POSITIONS, (rows, WIDTH)) * POSITIONS_STD
        ours = resize_position_table(table, more)
        name = f"position.{before}_{after}"
        sampled = ours.reshape(-1)[::STRIDE]
        comparison.tensor("position tables", name, sampled, tensors[name], EXTRAS.bias_tables, 1.0)
        entry = f"position table {before} -> {after}"
        about = numbers[entry]
        is_same = torch.equal(resize_position_table(table, rows), table)
        exact = comparison.group("position tables, exact", 0.0)
        exact.add(f"{entry} {tuple(ours.shape)}", float(list(ours.shape) != about["shape"]))
        exact.add(f"{entry}, same size", float(is_same != about["same_size_is_identity"]))
        flat = ours.double().flatten()
        sums = comparison.group("position tables, sums", EXTRAS.bias_tables)
        # Values of both signs cancel in the sum, their errors do not.
        sums.add(f"{entry}.sum", abs(flat.sum().item() - about["sum"]) / flat.abs().sum().item())
        sums.add(f"{entry}.l2", abs(flat.norm().item() - about["l2"]) / about["l2"])
        comparison.compared.add(entry)
