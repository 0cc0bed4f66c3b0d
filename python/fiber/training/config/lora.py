"""Options of LoRA in a training run."""

from __future__ import annotations

from dataclasses import dataclass

from fiber.config_io import check_ranges, require
from fiber.messages import shown

#: Upper bound of numbers.
_MOST = 2**16


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """LoRA: low-rank adapters of linear layers are trained, and all other weights are frozen.

    Layers that the initial model lacks, such as the head of a new task, are trained in whole.
    Learning rates are those of the parts that the adapters belong to, times `lr_multiplier`.

    Source: Hu et al. 2021, as implemented in PEFT; the multiplier is that of Schulman et al. 2025,
    "LoRA Without Regret".
    """

    #: Rank of each adapter.
    r: int = 8
    #: Adapters are scaled by alpha / r.
    alpha: float = 16.0
    #: Dropout of the inputs of adapters.
    dropout: float = 0.0
    #: Multiplier of the learning rates of adapters, which need higher ones than the layers that
    #: they adapt; see `python -m tests.lora_gate`.
    lr_multiplier: float = 10.0
    #: Full names of linear layers, as in "backbone.fusion.*.query"; * matches anything. Default:
    #: attention and MLPs of the encoders and the fusion.
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_ranges(
            self, "lora.", {"r": (1, 2**16), "alpha": (0, 2**16), "lr_multiplier": (0, 2**16)}
        )
        require(self.alpha > 0, f"lora.alpha must be above 0, got {self.alpha}")
        require(0 <= self.dropout < 1, f"lora.dropout must be in [0, 1), got {self.dropout}")
        for target in self.targets:
            require(
                bool(target.strip()),
                f"lora.targets: expected names of linear layers, got {shown(target)}",
            )
