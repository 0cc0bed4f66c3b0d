"""Rules by which the prompt of a training image samples classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: How a picture's classes are chosen, see `PromptRules`.
ClassRule = Literal["fitting", "simple", "optimized"]


@dataclass(frozen=True, kw_only=True)
class PromptRules:
    """Which classes of a vocabulary the text of a picture asks for.

    Raises:
        ValueError: for a value out of its range, by name.
    """

    #: "fitting": the classes of the picture's boxes and as many others as are drawn and fit,
    #: counted on the text itself. As published, and without `max_classes`: "simple", every class,
    #: however long the text becomes; "optimized", as many as a budget holds that counts each class
    #: alone.
    class_rule: ClassRule = "fitting"
    #: Classes of a text, at most; those of the boxes stay in any case. None: as many as fit.
    max_classes: int | None = None
    #: Classes without a box in the picture, at most. None: as many as fit.
    max_negatives: int | None = None
    #: Chances that a text has one negative, none, or as many as may be; what is left to 1 is that
    #: of any number from 1 to that. In this last case the fourth is the chance that the classes of
    #: the boxes are thinned out in the same way: any number of them stays, and the boxes of the
    #: others are left out.
    negative_chances: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 0.0)
    #: Whether the classes of a text stand in random order; else by their place in the file.
    shuffle_classes: bool = True

    def __post_init__(self) -> None:
        for name, count, least in (
            ("max_classes", self.max_classes, 1),
            ("max_negatives", self.max_negatives, 0),
        ):
            if count is not None and count < least:
                raise ValueError(f"{name} must be {least} or more, got {count}")
        chances = self.negative_chances
        # Written so that a NaN fails too; decimal fractions may sum to a little more than 1.
        if not (all(0 <= chance <= 1 for chance in chances) and sum(chances[:3]) < 1.001):
            raise ValueError(
                "negative_chances must be in [0, 1], the first three of them at most 1 together,"
                f" got {chances}"
            )
        if self.class_rule == "optimized" and chances[3]:
            raise ValueError(
                "negative_chances: the published rule 'optimized' leaves out no class that has"
                f" boxes; expected 0 as the fourth, got {chances}"
            )
