"""Rules by which the prompt of a training image samples classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: How the classes of a prompt are chosen; see `PromptRules`.
ClassRule = Literal["fitting", "simple", "optimized"]


@dataclass(frozen=True, kw_only=True)
class PromptRules:
    """Rules that sample the classes of an image's prompt.

    Raises:
        ValueError: for a value out of range, by name.
    """

    #: "fitting": the classes of the image's boxes and as many sampled others as fit, measured on
    #: the tokenized prompt. As published, without `max_classes`: "simple", every class, of any
    #: length; "optimized", as many as fit a budget that counts each class alone.
    class_rule: ClassRule = "fitting"
    #: Maximum number of classes in a prompt, except that those of the boxes are always kept. None:
    #: as many as fit.
    max_classes: int | None = None
    #: Maximum number of classes without a box in the image. None: as many as fit.
    max_negatives: int | None = None
    #: Probabilities of one negative, of none, and of the maximum number; the remainder to 1 is that
    #: of a uniform number from 1 to the maximum. In this last case, the fourth is the probability
    #: to also subsample the classes of the boxes, and drop the boxes of the others.
    negative_chances: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 0.0)
    #: Random order of classes; otherwise the order of the file.
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
                "negative_chances must be in [0, 1], the first three with a sum of at most 1, got"
                f" {chances}"
            )
        if self.class_rule == "optimized" and chances[3]:
            raise ValueError(
                f"the fourth of negative_chances must be 0 for the rule 'optimized', got {chances}"
            )
