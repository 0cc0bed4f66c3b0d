"""The start of linear weights for models that are trained from nothing."""

from __future__ import annotations

from torch import nn

#: Standard deviation of the published start, and the width of the towers that it was made for.
PUBLISHED_STD = 0.02
PUBLISHED_WIDTH = 768


def fan_in_std(inputs: int) -> float:
    """Standard deviation that gives outputs the variance that the published start has at 768."""
    return PUBLISHED_STD * (PUBLISHED_WIDTH / inputs) ** 0.5


def draw_by_fan_in(module: nn.Module) -> None:
    """Draw every linear weight by the number of its inputs and set the biases to 0.

    With the published N(0, 0.02) a tower of width 128 adds next to nothing to a token. With
    N(0, 1 / inputs), twice this start, attention averages the tokens of a text until they are all
    alike, since the text tower normalises after every addition.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=fan_in_std(part.in_features))
            if part.bias is not None:
                nn.init.zeros_(part.bias)
