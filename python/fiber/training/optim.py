"""Optimizers with the published parameter groups, learning rate schedules, and weight EMA."""

# pyright: reportPrivateImportUsage=false
# The functions on lists of tensors, as used by torch.optim, are not exported.

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fiber.config_io import nearest
from fiber.messages import shown
from fiber.training.config.run import OptimConfig
from fiber.training.muon import MuonAdamW

#: Kind of a parameter: biases (and relative position bias tables) are never decayed; vectors (norm
#: weights, temperatures) and gates are decayed only with `decay_vectors`.
Kind = Literal["weight", "bias", "vector", "gate"]
#: Part of the model: an encoder, cross-modal layers, or a head.
Part = Literal["encoder", "cross_modal", "head"]

#: Maps the first component of a name inside the backbone to its part. `image_norm` and
#: `token_types` are METER's, whose published groups count them as encoders.
BACKBONE_PARTS: dict[str, Part] = {
    "image": "encoder",
    "image_norm": "encoder",
    "text": "encoder",
    "token_types": "encoder",
    "fusion": "cross_modal",
    "image_transform": "cross_modal",
    "text_transform": "cross_modal",
    "image_layers": "cross_modal",
    "text_layers": "cross_modal",
    "layers": "cross_modal",
}
#: Maps the first component of a parameter name outside the backbone to its part. As in the
#: published coarse-stage groups, transforms, poolers and caption projections are cross-modal.
PARTS: dict[str, Part] = {
    "temperature": "encoder",
    "itc_image_norm": "encoder",
    "itc_image_transform": "cross_modal",
    "itc_text_transform": "cross_modal",
    "itc_image_pooler": "cross_modal",
    "itc_text_pooler": "cross_modal",
    "image_transform": "cross_modal",
    "text_transform": "cross_modal",
    "image_pooler": "cross_modal",
    "text_pooler": "cross_modal",
    "caption_projections": "cross_modal",
    "language_head": "head",
    "itm_head": "head",
    "vqa_head": "head",
    "nlvr2_head": "head",
    "snli_head": "head",
    # As in METER's published groups, where no pattern matches this head.
    "rank_head": "encoder",
    "stage_norms": "head",
    "pyramid": "head",
    "tower": "head",
    "head": "head",
}
BIASES = ("bias", "bias_table", "text_bias")

#: Suffixes of vectors that the published coarse-stage code decays in addition to gates, since their
#: names there (`temp`, `norm_i2t_i`, `vqa_classifier.1`) match none of its norm patterns.
DECAYED_AS_PUBLISHED = (
    "temperature",
    "image_to_text.norm.weight",
    "vqa_head.norm.weight",
    "nlvr2_head.norm.weight",
    "snli_head.norm.weight",
    # CLIP's norms, and its class token.
    "image.first_norm.weight",
    "image.last_norm.weight",
    "image.class_embedding",
)
#: Norms of CLIP's blocks, whose names in the published code (`ln_1`, `ln_2`) match no pattern
#: either.
_CLIP_BLOCK_NORMS = re.compile(r"backbone\.image\.blocks\.\d+\.(attention|mlp)_norm\.weight")


def part_of(name: str) -> Part:
    """Return the part of the model that a parameter belongs to.

    Raises:
        ValueError: if the name is unknown; new modules must be added to `PARTS`.
    """
    parts = name.split(".")
    if parts[0] == "backbone" and parts[1] in BACKBONE_PARTS:
        return BACKBONE_PARTS[parts[1]]
    if parts[0] not in PARTS:
        raise ValueError(
            f"parameter {shown(name)} is not in a known part of the model; add {shown(parts[0])} to"
            " fiber.training.optim.PARTS"
        )
    return PARTS[parts[0]]


def kind_of(name: str, parameter: Tensor) -> Kind:
    """Return the kind of a parameter."""
    last = name.rsplit(".", 1)[-1]
    if last in BIASES:
        return "bias"
    if last == "gate":
        return "gate"
    return "vector" if parameter.ndim < 2 else "weight"


def factor_of(name: str, parameter: Tensor, config: OptimConfig) -> float:
    """Return a parameter's learning rate multiplier."""
    kind = kind_of(name, parameter)
    factor = {
        "encoder": 1.0,
        "cross_modal": config.cross_modal_lr_multiplier,
        "head": config.head_lr_multiplier,
    }[part_of(name)]
    # As in the published fine stage, the text multiplier also covers the text's cross-attention.
    if name.startswith("backbone.text.") or ".text_to_image." in name:
        factor *= config.text_lr_multiplier
    if kind == "bias":
        factor *= config.bias_lr_multiplier
    if kind == "gate":
        factor *= config.gate_lr_multiplier
    return factor


def is_decayed(name: str, parameter: Tensor, config: OptimConfig) -> bool:
    """Return whether weight decay applies to a parameter.

    With `published_coarse`, gates, the temperature and some norms are also decayed, since the name
    patterns in the published code do not exclude them.
    """
    kind = kind_of(name, parameter)
    if config.published_coarse and (
        kind == "gate"
        or name.endswith(DECAYED_AS_PUBLISHED)
        or _CLIP_BLOCK_NORMS.fullmatch(name) is not None
    ):
        return True
    return kind == "weight" or (kind in ("vector", "gate") and config.decay_vectors)


def freeze(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Freeze parameters and modules by name; * in a pattern matches anything.

    Returns:
        Names of the parameters that match a pattern.

    Raises:
        ValueError: if a pattern matches nothing (the message suggests the nearest names), or if
            every parameter is frozen.
    """
    parameters, found = dict(model.named_parameters()), set[str]()
    for pattern in patterns:
        frozen = [
            name
            for name in parameters
            if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")
        ]
        if not frozen:
            parts = (name.split(".") for name in parameters)
            modules = {".".join(part[:end]) for part in parts for end in range(1, len(part) + 1)}
            raise ValueError(
                f"optim.frozen: no parameter or module is called {shown(pattern)};"
                f" {nearest(pattern, sorted(modules))}"
            )
        for name in frozen:
            parameters[name].requires_grad_(False)
        found.update(frozen)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ValueError(
            f"optim.frozen: {', '.join(patterns)} freezes every parameter; expected at least one"
            " trainable parameter"
        )
    return [name for name in parameters if name in found]


def is_backbone_matrix(name: str, parameter: Tensor) -> bool:
    """Return whether a parameter is a matrix of an encoder or of the fusion, but no embedding."""
    is_matrix = parameter.ndim == 2 and kind_of(name, parameter) == "weight"
    return is_matrix and name.startswith("backbone.") and ".embeddings." not in name


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Create the optimizer of all trainable parameters, with a group for each set of options.

    Each group stores its learning rate multiplier as `lr_factor`; see `set_learning_rate`.
    """
    groups: dict[tuple[float, bool, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            by_muon = config.muon_lr_multiplier > 0 and is_backbone_matrix(name, parameter)
            factor, decayed = (
                factor_of(name, parameter, config),
                is_decayed(name, parameter, config),
            )
            group: dict[str, Any] = {
                "params": [],
                "lr_factor": factor * config.muon_lr_multiplier if by_muon else factor,
                "weight_decay": config.weight_decay if decayed else 0.0,
            }
            if config.muon_lr_multiplier > 0:
                group["by_muon"] = by_muon
            groups.setdefault((factor, decayed, by_muon), group)["params"].append(parameter)
    options: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
    if config.published_coarse:
        return PublishedAdamW(list(groups.values()), **options)
    if config.muon_lr_multiplier > 0:
        return MuonAdamW(list(groups.values()), **options)
    return torch.optim.AdamW(list(groups.values()), **options, fused=True)


class PublishedAdamW(torch.optim.Optimizer):
    """AdamW as in the published coarse-stage training.

    Unlike PyTorch's AdamW, this adds eps to the root of the second moment before the bias
    correction, and applies weight decay after the update. Every group needs a `weight_decay`.

    Source: Loshchilov and Hutter 2019, as implemented in transformers 4.6.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = 0
                    state["first"] = torch.zeros_like(parameter)
                    state["second"] = torch.zeros_like(parameter)
                state["step"] += 1
                state["first"].lerp_(parameter.grad, 1 - beta1)
                state["second"].mul_(beta2).addcmul_(
                    parameter.grad, parameter.grad, value=1 - beta2
                )
                corrections = (1 - beta2 ** state["step"]) ** 0.5 / (1 - beta1 ** state["step"])
                root = state["second"].sqrt().add_(group["eps"])
                parameter.addcdiv_(state["first"], root, value=-group["lr"] * corrections)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])


def lr_factor(step: int, steps: int, config: OptimConfig, scores: Sequence[float] = ()) -> float:
    """Return the learning rate of a step as a fraction of the peak.

    Warms up linearly from `warmup_start` (with 0, as in the published code, step 0 is a no-op),
    then decays according to `schedule`. "plateau" depends on the validation `scores` so far.
    """
    warmup = round(config.warmup_fraction * steps)
    rise = 1.0
    if step < warmup:
        rise = config.warmup_start + (1 - config.warmup_start) * step / warmup
    if config.schedule == "multistep":
        passed = bisect.bisect_right([milestone * steps for milestone in config.milestones], step)
        return rise * 0.1**passed
    if config.schedule == "plateau":
        return rise * 0.1 ** count_falls(scores, config.plateau_patience)
    return rise if step < warmup else max(0, steps - step) / max(1, steps - warmup)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float, least: float = 0.0) -> None:
    """Set every group's learning rate to `lr` times its multiplier, but at least `least`."""
    for group in optimizer.param_groups:
        group["lr"] = max(lr * group["lr_factor"], least)


class MovingAverage:
    """Exponential moving average of the trainable parameters.

    The decay ramps up with the number of updates, so that the initial weights do not dominate the
    average of a short run.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._names = [name for name, p in model.named_parameters() if p.requires_grad]
        self._averages = [p.detach().clone() for p in model.parameters() if p.requires_grad]

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the averages with the current parameters."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        now = [p.detach() for p in model.parameters() if p.requires_grad]
        torch._foreach_lerp_(self._averages, now, 1 - decay)

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the model's state dict with the averaged parameters."""
        return model.state_dict() | dict(zip(self._names, self._averages, strict=True))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors to save in a checkpoint."""
        averages = dict(zip(self._names, self._averages, strict=True))
        return averages | {"updates": torch.tensor(self.updates)}


#: Minimum relative improvement that counts as better (PyTorch's default).
THRESHOLD = 1e-4


def count_falls(scores: Sequence[float], patience: int) -> int:
    """Count learning rate drops; each follows more than `patience` scores without improvement.

    Higher scores are better. The number of scores without improvement is reset at each drop.

    Source: PyTorch's ReduceLROnPlateau with mode="max", as in the published ODinW fine-tuning.
    """
    best, in_a_row, falls = -math.inf, 0, 0
    for score in scores:
        if score > best * (1 + THRESHOLD):
            best, in_a_row = score, 0
        else:
            in_a_row += 1
        if in_a_row > patience:
            falls, in_a_row = falls + 1, 0
    return falls


def has_stalled(scores: Sequence[float], limit: int) -> bool:
    """Return whether the last `limit` scores are all below the previous best.

    A `limit` of 0 disables the check. A score equal to the best one resets the count, as in
    the published fine-tuning code.
    """
    best, in_a_row = -math.inf, 0
    for score in scores:
        if score < best:
            in_a_row += 1
        else:
            best, in_a_row = score, 0
    return 0 < limit <= in_a_row
