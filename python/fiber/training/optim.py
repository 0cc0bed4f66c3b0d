"""AdamW with the published parameter groups, the learning rate, the moving average of weights."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fiber.config_io import nearest
from fiber.training.config.run import OptimConfig

#: What a parameter is: biases (tables of position biases too) are never decayed, vectors (weights
#: of norms, gates, temperatures) only with `decay_vectors`.
Kind = Literal["weight", "bias", "vector", "gate"]
#: Where it stands: in a tower, in what joins the modalities, or in a head.
Place = Literal["tower", "cross_modal", "head"]

#: First part of a parameter's name -> its place, for everything that is not in the backbone. The
#: published coarse groups count transforms, poolers and caption projections as cross-modal.
PLACES: dict[str, Place] = {
    "temperature": "tower",
    "itc_image_norm": "tower",
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
    "stage_norms": "head",
    "pyramid": "head",
    "tower": "head",
    "head": "head",
}
BIASES = ("bias", "bias_table", "text_bias")

#: Ends of names of vectors, beside the gates, that the published coarse code decays, since theirs
#: hold none of its words for a norm (`temp`, `norm_i2t_i`, `vqa_classifier.1`).
DECAYED_AS_PUBLISHED = (
    "temperature",
    "image_to_text.norm.weight",
    "vqa_head.norm.weight",
    "nlvr2_head.norm.weight",
)


def place_of(name: str) -> Place:
    """Say where a parameter of our models stands.

    Raises:
        ValueError: for a name that no rule covers, so that no new module is trained by accident.
    """
    parts = name.split(".")
    if parts[0] == "backbone" and parts[1] in ("image", "text", "fusion"):
        return "cross_modal" if parts[1] == "fusion" else "tower"
    if parts[0] not in PLACES:
        raise ValueError(f"parameter {name!r} has no place in fiber.training.optim.PLACES")
    return PLACES[parts[0]]


def kind_of(name: str, parameter: Tensor) -> Kind:
    """Say what a parameter is."""
    last = name.rsplit(".", 1)[-1]
    if last in BIASES:
        return "bias"
    if last == "gate":
        return "gate"
    return "vector" if parameter.ndim < 2 else "weight"


def factor_of(name: str, parameter: Tensor, config: OptimConfig) -> float:
    """Multiply the factors on a parameter's learning rate."""
    place, kind = place_of(name), kind_of(name, parameter)
    factor = {
        "tower": 1.0,
        "cross_modal": config.cross_modal_lr_multiplier,
        "head": config.head_lr_multiplier,
    }[place]
    # The published fine stage trains all that feeds the text tower at the text's learning rate.
    if name.startswith("backbone.text.") or ".text_to_image." in name:
        factor *= config.text_lr_multiplier
    if kind == "bias":
        factor *= config.bias_lr_multiplier
    if kind == "gate":
        factor *= config.gate_lr_multiplier
    return factor


def is_decayed(name: str, parameter: Tensor, config: OptimConfig) -> bool:
    """Whether weight decay applies.

    The published coarse rule goes by parts of names and so decays gates, the temperature and some
    norms, too; here a norm is a norm unless `published_coarse` asks for that rule.
    """
    kind = kind_of(name, parameter)
    if config.published_coarse and (kind == "gate" or name.endswith(DECAYED_AS_PUBLISHED)):
        return True
    return kind == "weight" or (kind in ("vector", "gate") and config.decay_vectors)


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Exempt parts of a model from training.

    Args:
        model: whose parameters lose their gradients.
        patterns: names of parameters or of modules with all that is in them, as in
            "backbone.image.stages.0"; * stands for anything.

    Raises:
        ValueError: for a pattern that no parameter has, with the nearest names, or if nothing is
            left to train.
    """
    parameters = dict(model.named_parameters())
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
                f"optim.frozen: no parameter is called {pattern!r}, nor in it;"
                f" {nearest(pattern, sorted(modules))}"
            )
        for name in frozen:
            parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ValueError(f"optim.frozen: {', '.join(patterns)} leave no parameter to train")


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Make AdamW over all trainable parameters, one group for each (factor, decay or not).

    With `published_coarse` it is the published code's AdamW. A group has `lr_factor`, which
    `set_learning_rate` multiplies the learning rate with.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = factor_of(name, parameter, config), is_decayed(name, parameter, config)
            groups.setdefault(key, []).append(parameter)
    described: list[dict[str, Any]] = [
        {
            "params": parameters,
            "lr_factor": factor,
            "weight_decay": config.weight_decay if decayed else 0.0,
        }
        for (factor, decayed), parameters in groups.items()
    ]
    if config.published_coarse:
        return PublishedAdamW(described, lr=config.lr, betas=config.betas, eps=config.eps)
    return torch.optim.AdamW(
        described, lr=config.lr, betas=config.betas, eps=config.eps, fused=True
    )


class PublishedAdamW(torch.optim.Optimizer):
    """AdamW as in the library that the published coarse code was trained with.

    It differs from PyTorch's in that eps is added to the root of the second moment before the bias
    correction, and that the decay comes after the update.

    Source: Loshchilov and Hutter 2019, in the form of transformers 4.6.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        """Args: as for torch.optim.AdamW; every group has its `weight_decay`."""
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
    """Say which part of the peak learning rate a step is trained with.

    Args:
        step: from 0.
        steps: of the whole run.
        config: warm-up and schedule.
        scores: of the measurements before the step, which "plateau" goes by.

    Returns:
        The linear rise from `warmup_start` (as published, a start of 0 makes the first step one
        without a change), then the fall of `schedule`.
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
    """Give every group its factor of the learning rate, and no less than `least`."""
    for group in optimizer.param_groups:
        group["lr"] = max(lr * group["lr_factor"], least)


class MovingAverage:
    """Exponential moving average of the trainable parameters.

    The decay grows with the number of updates up to its full value, so that a short run's average
    is not held back by the weights it started with.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._names = [name for name, p in model.named_parameters() if p.requires_grad]
        self._averages = [p.detach().clone() for p in model.parameters() if p.requires_grad]

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the parameters of one more step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        now = [p.detach() for p in model.parameters() if p.requires_grad]
        torch._foreach_lerp_(self._averages, now, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """The model's state with the averages in place of the parameters."""
        return model.state_dict() | dict(zip(self._names, self._averages, strict=True))

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs."""
        averages = dict(zip(self._names, self._averages, strict=True))
        return averages | {"updates": torch.tensor(self.updates)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what `state_dict` gave."""
        self.updates = int(state["updates"])
        for name, average in zip(self._names, self._averages, strict=True):
            average.copy_(state[name])


#: A score is better than another one if it is higher by this part of it (PyTorch's default).
THRESHOLD = 1e-4


def count_falls(scores: Sequence[float], patience: int) -> int:
    """Count how often the learning rate has fallen: after more than `patience` scores in a row that
    are no better than the best one, anew after each fall.

    Args:
        scores: of the measurements so far, in order; higher is better.
        patience: scores in a row that may be no better.

    Source: PyTorch's ReduceLROnPlateau in its mode "max", as in published fine-tuning on ODinW.
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
    """Whether the last `limit` scores are all below the best one before them; a limit of 0 is none.

    A score that equals the best one begins the count anew, as in published fine-tuning.
    """
    best, in_a_row = -math.inf, 0
    for score in scores:
        if score < best:
            in_a_row += 1
        else:
            best, in_a_row = score, 0
    return 0 < limit <= in_a_row
