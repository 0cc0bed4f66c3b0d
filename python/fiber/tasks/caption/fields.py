"""Options of the task "caption"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fiber.config_io import require
from fiber.tasks.fields import TaskConfig
from fiber.tasks.task import Evaluation, Task


@dataclass(frozen=True, kw_only=True)
class CaptionTask(TaskConfig):
    """Autoregressive captioning."""

    losses: ClassVar[tuple[str, ...]] = ("caption",)
    sources: tuple[str, ...] = ("captions",)
    #: "likelihood": maximum likelihood of the next token; "gold": tokens weighted by a frozen copy
    #: of the model (off-policy fine-tuning after likelihood, as in the published recipe); "cider":
    #: likelihood plus self-critical training on sampled captions, with CIDEr-D against the image's
    #: captions as the reward (after gold, as in the published recipe). References do not change
    #: when an image is flipped.
    objective: Literal["likelihood", "gold", "cider"] = "likelihood"
    #: Divisor of a caption's summed "gold" loss: the number of its target "tokens", or of its
    #: positions without a target ("padding", as in the published code).
    gold_divisor: Literal["tokens", "padding"] = "tokens"
    #: Steps between updates of the frozen copy for "gold".
    gold_copy_every: int = 1000
    #: Self-critical fraction of the "cider" loss, in [0, 1]; the rest is likelihood.
    cider_share: float = 0.7
    #: Captions sampled per image for "cider".
    cider_samples: int = 5
    #: Baseline subtracted from a sample's CIDEr-D: "constant" is 1.0, as in the published code;
    #: "others" is the mean of the image's other samples (no gradient if all samples score the
    #: same).
    cider_baseline: Literal["constant", "others"] = "constant"
    #: File of document frequencies for "cider" (`metrics.cider.DocumentFrequencies.read`); None
    #: computes them from the training captions.
    cider_frequencies: str | None = None
    caption: float = 1.0

    def weights(self) -> dict[str, float]:
        """Return the weight of each loss by name, with 0 for values that are only logged."""
        if self.objective != "cider":
            return super().weights()
        return {
            "caption": self.caption * (1 - self.cider_share),
            "self_critical": self.caption * self.cider_share,
            "cider_d": 0.0,
        }

    def heads(self) -> tuple[str, ...]:
        return ("caption",)

    def check(self, where: str) -> None:
        super().check(where)
        for name in ("gold_copy_every", "cider_samples"):
            value = getattr(self, name)
            require(value >= 1, f"{where}.{name} must be 1 or more, got {value}")
        require(
            0 <= self.cider_share <= 1,
            f"{where}.cider_share must be in [0, 1], got {self.cider_share}",
        )
        require(
            self.cider_baseline == "constant" or self.cider_samples >= 2,
            f"{where}.cider_samples must be 2 or more for cider_baseline 'others', got"
            f" {self.cider_samples}",
        )


TASK = Task(
    name="caption",
    config=CaptionTask,
    layout="image_text",
    stream=4,
    training="fiber.tasks.caption.train:CaptionTraining",
    command="fiber.tasks.caption.command:add_command",
    evaluations={
        "caption": Evaluation(
            heads=("caption",),
            source="captions",
            chosen_by=("cider_d",),
            run="fiber.tasks.caption.evaluate:caption",
            # Captions are references.
            reads_texts=False,
        ),
    },
)
