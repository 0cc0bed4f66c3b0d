"""Compare X-Decoder's training: losses of each layer, matchings, gradients, parameter groups.

The points at which masks are compared are those of the recording: a fixed sequence, the same for
every mask. Losses are numbered from the last layer. Attention masks were not recorded: passes run
on those of float64, as the recorded tensors of micro do. Float32 flips one bit of micro.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from fiber.losses.masks.matching import Matches, bce_costs, dice_costs
from fiber.losses.masks.pixel_losses import mask_bce, mask_dice
from fiber.losses.masks.point_sampling import sample_points, uncertain_points
from fiber.losses.masks.region_text import next_word_loss, pair_contrast, retrieval_loss, unit
from fiber.losses.masks.segmentation import (
    CLASS_NAME_WEIGHT,
    EXPRESSION_WEIGHT,
    LossOptions,
    RegionTexts,
    mask_losses,
    phrase_losses,
    region_losses,
)
from fiber.models.features import PhraseTexts
from fiber.models.xdecoder.class_texts import class_texts, with_background
from fiber.models.xdecoder.config import xdecoder_preset
from fiber.models.xdecoder.keys import xdecoder_keys
from fiber.models.xdecoder.segmenter import TextFeatures, XDecoder
from fiber.models.xdecoder.training import joined_tokens
from fiber.training.config.run import OptimConfig
from fiber.training.optim import build_optimizer
from tests.golden import XDECODER
from tests.parity.comparison import Comparison
from tests.parity.tolerances import (
    LEARNING_RATES,
    XDECODER_GRADIENTS,
    XDECODER_LOSSES,
    XDECODER_POST,
    XDECODER_SMALL_GRADIENT,
)
from tests.parity.xdecoder_case import MEAN, STD, XDecoderCase, compare_bits
from tests.parity.xdecoder_runs import exact_bits, on_bits

#: Names of the recorded losses, of their weights, and ours.
LOSS_NAMES = {
    "mask_class": "loss_mask_ce",
    "mask_bce": "loss_mask_bce",
    "mask_dice": "loss_mask_dice",
    "region": "loss_caption",
    "phrase_bce": "loss_grounding_bce",
    "phrase_dice": "loss_grounding_dice",
    "phrase_alignment": "loss_grounding_ce",
    "caption": "loss_captioning",
    "retrieval": "loss_retrieval_decoder",
    "retrieval_encoder": "loss_retrieval_backbone",
}
#: Rows of the masks that the phrases of an image name, from this one on (README).
_FIRST_PHRASE_MASK = 2
#: Layers with losses of captions and of image vectors.
_CAPTION_LAYERS = 3

#: Optimizer of published training: encoders learn at a tenth of the rate.
PUBLISHED_OPTIM = OptimConfig(
    lr=1e-5,
    head_lr_multiplier=10.0,
    weight_decay=0.05,
    betas=(0.9, 0.999),
    published_decay=True,
    clip_norm=5.0,
)


def recorded_points(counts: Sequence[int], num_points: int) -> Tensor:
    """The points of the recording, in place of random ones: (masks, points, 2)."""
    index = torch.arange(1, num_points + 1, dtype=torch.float64)
    steps = (0.7548776662466927, 0.5698402909980532)
    points = torch.stack([(0.5 + index * step) % 1 for step in steps], 1).float()
    return points.expand(sum(counts), -1, -1)


class LossCase:
    """What `<name>_losses.json` and its tensors hold, as the targets of a batch."""

    def __init__(self, path: Path) -> None:
        content = json.loads(path.read_text())
        self.config: dict[str, Any] = content["config"]
        self.records: dict[str, dict[str, Any]] = content["tensors"]
        self.scalars: dict[str, Any] = content["scalars"]
        self._stored = load_file(path.with_suffix(".safetensors"))
        self.read: set[str] = set()
        self._masks = [self.stored(f"input.masks{number}") for number in range(self.images)]
        labels = [self.stored(f"input.labels{number}") for number in range(self.images)]
        self.mask_labels = torch.cat(labels)
        self.masks_per_image = torch.tensor([len(each) for each in labels])
        texts = self.config["grounding_texts"]
        self.phrases_per_image = torch.tensor([len(each) for each in texts])

    @property
    def images(self) -> int:
        """Number of images with masks."""
        return len(self.config["grounding_texts"])

    def stored(self, name: str) -> Tensor:
        """Return a tensor as recorded, or the part of it that was stored, flat."""
        self.read.add(name)
        value, record = self._stored[name].reshape(-1), self.records[name]
        if record.get("packed"):
            bits = np.unpackbits(value.numpy())[: int(np.prod(record["shape"]))]
            value = torch.from_numpy(bits).bool()
        return value.view(record["shape"]) if record.get("stride", 1) == 1 else value

    def masks_of(self, image: int) -> Tensor:
        """Masks of an image."""
        return self._masks[image]

    def phrase_masks_of(self, image: int) -> Tensor:
        """Masks of the phrases of an image."""
        count = int(self.phrases_per_image[image])
        return self._masks[image][_FIRST_PHRASE_MASK : _FIRST_PHRASE_MASK + count]

    def inputs(self, kind: str, count: int) -> Tensor:
        """Images, normalized; all have one size."""
        images = [self.stored(f"input.{kind}{number}").float() for number in range(count)]
        found = [(image - torch.tensor(MEAN)) / torch.tensor(STD) for image in images]
        return torch.stack(found).permute(0, 3, 1, 2)


def compare_losses(comparison: Comparison, case: XDecoderCase, model: XDecoder) -> None:
    """Compare a step of training: raw and weighted losses, matchings, gradients."""
    path = case.path.with_name(f"{case.name}_losses.json")
    recorded = LossCase(path)
    model.train()
    with torch.enable_grad():
        losses = {
            **_segmentation(comparison, recorded, case, model),
            **_captions(comparison, recorded, case, model),
        }
        weights = recorded.scalars["weights"]
        total = torch.stack([loss * weights[name] for name, loss in losses.items()]).sum()
        total.backward()
    model.eval()
    _compare_values(comparison, recorded, losses, total)
    _compare_gradients(comparison, case, model, recorded.scalars["grad_total_l2"])
    model.zero_grad()
    read = {*recorded.read, "raw", "weighted", "weights", "total", "matcher", "grad_total_l2"}
    for name in sorted({*recorded.records, *recorded.scalars} - read):
        comparison.group("losses", XDECODER_LOSSES).add(f"{name} was not compared", float("nan"))


def _number(texts: Iterable[str]) -> Tensor:
    """Number texts, equal ones alike."""
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(text, len(numbers)) for text in texts])


def _encode(
    case: XDecoderCase, model: XDecoder, texts: Sequence[str]
) -> tuple[TextFeatures, Tensor]:
    ids, mask = case.text(texts)
    return model.encode_text(ids, mask), mask


def _segmentation(
    comparison: Comparison, recorded: LossCase, case: XDecoderCase, model: XDecoder
) -> dict[str, Tensor]:
    """Compute the losses of masks, classes, regions and phrases; compare matchings."""
    config = recorded.config
    listed = json.loads((XDECODER / "classes.json").read_text())["classes"]["coco_panoptic_133"]
    # Templates are drawn at random; the recording has the first.
    classes = [class_texts(name)[0] for name in with_background(listed)]
    class_vectors = unit(_encode(case, model, classes)[0].vectors)
    phrases = [text for own in config["grounding_texts"] for text in own]
    phrase_ids = _number(phrases)
    texts, mask = _encode(case, model, phrases)
    named = PhraseTexts(texts.tokens, mask, phrase_ids, recorded.phrases_per_image)
    images = recorded.inputs("image", recorded.images)
    bits = exact_bits(model, images, joined_tokens(named))
    with on_bits(model, bits) as own_bits:
        predictions = model.predict_masks(images, class_vectors, named)
    compare_bits(comparison, case, "training", own_bits, bits)
    _compare_tensor(comparison, recorded, case, "train.classes", class_vectors)
    first = predictions[0]
    # Recorded are all rows. Ours leave out the class query.
    assert first.phrase_mask_logits is not None and first.phrase_vectors is not None
    _compare_rows(comparison, recorded, case, "train.seg.mask", first.mask_logits, 0)
    latent = first.mask_logits.shape[1]
    _compare_rows(
        comparison, recorded, case, "train.seg.mask", first.phrase_mask_logits, latent + 1
    )
    _compare_rows(comparison, recorded, case, "train.seg.class", first.class_logits, 0)
    _compare_rows(comparison, recorded, case, "train.seg.caption", first.vectors, 0)
    _compare_rows(comparison, recorded, case, "train.seg.caption", first.phrase_vectors, latent + 1)

    candidates = [
        [*(class_texts(noun)[0] for noun in nouns), caption]
        for nouns, caption in zip(config["nouns"], config["seg_captions"], strict=True)
    ]
    flat = [text for own in candidates for text in own]
    numbers, vectors = _number((*classes, *flat)), unit(_encode(case, model, flat)[0].vectors)
    lengths = [len(own) for own in candidates]
    region_texts = [
        RegionTexts(*each)
        for each in zip(vectors.split(lengths), numbers[len(classes) :].split(lengths), strict=True)
    ]
    options = LossOptions(num_points=case.config["cfg"]["MODEL.DECODER.TRAIN_NUM_POINTS"])
    kinds = {"text": EXPRESSION_WEIGHT, "class": CLASS_NAME_WEIGHT}
    phrase_weights = [kinds[kind] for kind in config["grounding_mode"]]
    masks = [recorded.masks_of(number) for number in range(recorded.images)]
    phrase_masks = [recorded.phrase_masks_of(number) for number in range(recorded.images)]
    losses: dict[str, Tensor] = {}
    matched: dict[str, list[list[Matches]]] = {"default": [], "caption_womask": [], "grounding": []}
    for number, each in enumerate(predictions):
        found, matches = mask_losses(each, recorded, masks, recorded_points, options)
        matched["default"].append(matches)
        if number < options.region_layers:
            found["region"], pairs = region_losses(
                each,
                recorded,
                matches,
                region_texts,
                class_vectors,
                numbers[: len(classes)],
                model.scale(),
            )
            matched["caption_womask"].append(pairs)
        if number < options.phrase_layers:
            own, pairs = phrase_losses(
                each,
                recorded,
                phrase_masks,
                texts.vectors,
                phrase_ids,
                model.scale(),
                recorded_points,
                options,
                phrase_weights,
            )
            found |= own
            matched["grounding"].append(pairs)
        losses |= {f"{LOSS_NAMES[name]}_{number}": loss for name, loss in found.items()}
    for name, layers in matched.items():
        own_pairs = [
            [[pair.queries.tolist(), pair.targets.tolist()] for pair in layer] for layer in layers
        ]
        theirs = recorded.scalars["matcher"][name]
        group = comparison.group("matchings", 0.0)
        group.add(f"{name}: {len(own_pairs)} layers", float(len(own_pairs) != len(theirs)))
        for number, (a, b) in enumerate(zip(own_pairs, theirs, strict=False)):
            group.add(f"{name} of layer {number}", float(a != b))
    if len(recorded.scalars["matcher"]) != len(matched):
        comparison.group("matchings", 0.0).add("another matcher was recorded", 1.0)
    return losses


def _captions(
    comparison: Comparison, recorded: LossCase, case: XDecoderCase, model: XDecoder
) -> dict[str, Tensor]:
    """Compute the losses of captions and of image vectors."""
    count = len(recorded.config["vlp_captions"])
    ids = torch.cat([recorded.stored(f"input.vlp{number}.ids") for number in range(count)])
    mask = torch.cat([recorded.stored(f"input.vlp{number}.mask") for number in range(count)]) > 0
    texts, scale = model.encode_text(ids, mask), model.scale()
    images = recorded.inputs("vlp", count)
    bits = exact_bits(model, images)
    with on_bits(model, bits) as own_bits:
        predictions, encoder_vectors = model.predict_captions(images, texts.tokens, _CAPTION_LAYERS)
    compare_bits(comparison, case, "training of captions", own_bits, bits)
    first = predictions[0]
    _compare_tensor(comparison, recorded, case, "train.vlp.captioning", first.caption_states)
    vectors = torch.cat((first.query_vectors, first.image_vectors[:, None]), 1)
    _compare_tensor(comparison, recorded, case, "train.vlp.caption", vectors)
    losses: dict[str, Tensor] = {}
    for number, each in enumerate(predictions):
        logits = model.caption_logits(each.caption_states)
        losses[f"{LOSS_NAMES['caption']}_{number}"] = next_word_loss(logits, ids, mask)
        losses[f"{LOSS_NAMES['retrieval']}_{number}"] = retrieval_loss(
            each.image_vectors, each.query_vectors, texts.vectors, texts.tokens, mask, scale
        )
    contrast = pair_contrast(encoder_vectors, texts.vectors, scale)
    return losses | {f"{LOSS_NAMES['retrieval_encoder']}_0": contrast}


def _compare_tensor(
    comparison: Comparison, recorded: LossCase, case: XDecoderCase, name: str, ours: Tensor
) -> None:
    record, stored = recorded.records[name], recorded.stored(name).reshape(-1)
    sample = ours.detach().reshape(-1)[:: record["stride"]]
    comparison.tensor(
        "training tensors",
        f"losses.{name}",
        sample,
        stored,
        case.tolerances.tensors,
        record["absmax"],
    )


def _compare_rows(
    comparison: Comparison,
    recorded: LossCase,
    case: XDecoderCase,
    name: str,
    ours: Tensor,
    first: int,
) -> None:
    """Compare some rows (axis 1) of a recorded tensor, from `first` on."""
    record, stored = recorded.records[name], recorded.stored(name).reshape(-1)
    whole = torch.full(record["shape"], float("nan"))
    whole[:, first : first + ours.shape[1]] = ours.detach()
    sample = whole.reshape(-1)[:: record["stride"]]
    given = ~sample.isnan()
    place = f"losses.{name} from row {first}"
    comparison.tensor(
        "training tensors",
        place,
        sample[given],
        stored[given],
        case.tolerances.tensors,
        record["absmax"],
    )


def _compare_values(
    comparison: Comparison, recorded: LossCase, losses: dict[str, Tensor], total: Tensor
) -> None:
    """Compare losses; what we do not compute must have been recorded as 0."""
    raw, weighted = recorded.scalars["raw"], recorded.scalars["weighted"]
    weights = recorded.scalars["weights"]
    for name, value in raw.items():
        ours = float(losses[name].detach()) if name in losses else 0.0
        comparison.number("losses", f"losses.{name}", ours, value, XDECODER_LOSSES)
        if name in weighted:
            own = ours * weights[name]
            comparison.number(
                "losses", f"losses.weighted.{name}", own, weighted[name], XDECODER_LOSSES
            )
    for name in sorted(losses.keys() - raw.keys()):
        comparison.group("losses", XDECODER_LOSSES).add(f"{name} was not recorded", float("nan"))
    theirs = recorded.scalars["total"]
    comparison.number("losses", "losses.total", float(total.detach()), theirs, XDECODER_LOSSES)


def _compare_gradients(
    comparison: Comparison, case: XDecoderCase, model: XDecoder, total: float
) -> None:
    """Compare norms and sums of gradients, relative to the norm or the least one that counts."""
    path = case.path.with_name(f"{case.name}_grad_l2.json")
    recorded: dict[str, list[float]] = json.loads(path.read_text())
    keys, ours = xdecoder_keys(model.config), dict[str, Tensor]()
    for name, parameter in model.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        ours |= {key: gradient.double() for key in keys[name]}
    least = XDECODER_SMALL_GRADIENT * max(norm for norm, _ in recorded.values())
    group = comparison.group("gradients", XDECODER_GRADIENTS)
    for name in sorted({*recorded, *ours}):
        if name not in recorded or name not in ours:
            group.add(f"{name}: in one of both", float("nan"))
            continue
        norm, summed = recorded[name]
        own = ours[name]
        size = max(norm, least)
        group.add(name, abs(own.norm().item() - norm) / size)
        # A sum of n numbers is as exact as the norm times their root.
        group.add(f"{name} (sum)", abs(own.sum().item() - summed) / (size * own.numel() ** 0.5))
    whole = torch.stack([each.norm() for each in ours.values()]).norm().item()
    comparison.number("gradients", "losses.grad_total_l2", whole, total, XDECODER_GRADIENTS)


def compare_units(
    comparison: Comparison,
    records: dict[str, Any],
    stored: dict[str, Tensor],
    scalars: dict[str, Any],
) -> None:
    """Compare costs, losses and points of crafted logits and targets in post.json."""

    def given(name: str) -> Tensor:
        comparison.compared.add(name)
        return stored[name].view(records[name]["shape"])

    logits, targets = given("unit.logits"), given("unit.targets")
    masks = targets[: records["unit.cost_bce"]["shape"][1]]
    low = stored["post.low"].view(records["post.low"]["shape"])
    points, wanted = given("unit.points"), given("unit.points_logits")
    count, num_points = points.shape[:2]
    own_points = uncertain_points(low[:count], [count], num_points, recorded_points)
    found = {
        "unit.cost_bce": bce_costs(logits, masks),
        "unit.cost_dice": dice_costs(logits, masks),
        "unit.points": own_points,
        "unit.points_logits": sample_points(low[:count], points),
        "unit.points_r2_first8": recorded_points([1], 8),
    }
    for name, value in found.items():
        expected = wanted if name == "unit.points_logits" else given(name)
        absmax = records[name]["absmax"]
        comparison.tensor("losses", name, value, expected, XDECODER_POST, absmax)
    for name, loss in (("unit.bce", mask_bce), ("unit.dice", mask_dice)):
        ours = float(loss(logits, targets).sum() / len(logits))
        comparison.number("losses", name, ours, scalars[name], XDECODER_POST)


def compare_groups(path: Path) -> Comparison:
    """Compare learning rate and decay of every parameter of Focal-T in published training."""
    recorded: dict[str, list[float]] = json.loads(path.read_text())["groups"]
    comparison = Comparison(path.stem)
    with torch.device("meta"):
        model = XDecoder(xdecoder_preset("focalt"))
    keys = xdecoder_keys(model.config)
    names = {parameter: keys[name] for name, parameter in model.named_parameters()}
    ours: dict[str, tuple[float, float]] = {}
    for group in build_optimizer(model, PUBLISHED_OPTIM).param_groups:
        values = (PUBLISHED_OPTIM.lr * group["lr_factor"], group["weight_decay"])
        for parameter in group["params"]:
            ours |= dict.fromkeys(names[parameter], values)
    for name in sorted({*ours, *recorded}):
        if name not in ours or name not in recorded:
            what = "is trained" if name in ours else "is not trained"
            comparison.group("names", 0.0).add(f"{name} {what}", 1.0)
            continue
        (lr, decay), (expected_lr, expected_decay) = ours[name], recorded[name]
        error = abs(lr - expected_lr) / expected_lr
        comparison.group("learning rates", LEARNING_RATES).add(name, error)
        comparison.group("decay", LEARNING_RATES).add(name, abs(decay - expected_decay))
    return comparison
