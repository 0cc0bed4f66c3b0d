"""Rules for sampling the classes in the prompt of a training image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: How the classes of a prompt are chosen; see `PromptRules`.
ClassRule = Literal["fitting", "simple", "optimized"]


@dataclass(frozen=True, kw_only=True)
class PromptRules:
    """Rules for sampling the classes in an image's prompt.

    Raises:
        ValueError: if a value is out of range; the error names it.
    """

    #: "fitting" uses the classes of the image's boxes and as many sampled negatives as fit into the
    #: tokenized prompt. The published rules ignore `max_classes`: "simple" uses every class
    #: regardless of length, and "optimized" as many as fit a budget that counts each class alone.
    class_rule: ClassRule = "fitting"
    #: Maximum number of classes in a prompt; classes of the boxes are always kept. None means as
    #: many as fit.
    max_classes: int | None = None
    #: Maximum number of classes without a box in the image. None means as many as fit.
    max_negatives: int | None = None
    #: Probabilities of one negative, of none, and of the maximum number; otherwise, the number is
    #: uniform from 1 to the maximum. In this last case, the fourth value is the probability of also
    #: subsampling the classes of the boxes, and dropping the boxes of the other classes.
    negative_chances: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 0.0)
    #: Probability that a prompt names only classes without a box, if there are any. Without such
    #: prompts, a model learns that a class which is named alone is in the image. "fitting" only.
    absent_chance: float = 0.0
    #: Shuffle the classes; otherwise they are in the order of the file.
    shuffle_classes: bool = True

    def __post_init__(self) -> None:
        for name, least in (("max_classes", 1), ("max_negatives", 0)):
            count = getattr(self, name)
            if count is not None and count < least:
                raise ValueError(f"{name} must be {least} or more, got {count}")
        chances = self.negative_chances
        # Also false for NaN; decimal fractions may sum to slightly more than 1.
        if not (all(0 <= chance <= 1 for chance in chances) and sum(chances[:3]) < 1.001):
            raise ValueError(
                "values of negative_chances must be in [0, 1], and the first three must sum to at"
                f" most 1, got {chances}"
            )
        if not 0 <= self.absent_chance <= 1:
            raise ValueError(f"absent_chance must be in [0, 1], got {self.absent_chance}")
        if self.class_rule != "fitting" and self.absent_chance:
            raise ValueError(
                f"absent_chance must be 0 for class_rule {self.class_rule!r}, got"
                f" {self.absent_chance}"
            )
        if self.class_rule == "optimized" and chances[3]:
            raise ValueError(
                "the fourth value of negative_chances must be 0 for class_rule 'optimized', got"
                f" {chances}"
            )
