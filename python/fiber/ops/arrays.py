"""Functions that torch and numpy name differently, for code that runs on arrays of both.

Such code takes its functions from `functions_of` and imports no torch, so that it serves networks
and exported graphs (`fiber.runtime`) alike. Its arrays are annotated as tensors.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fiber.ops import numpy_functions


def functions_of(array: Any) -> Any:
    """Return `numpy_functions` for an array of numpy, and `torch_functions` for a tensor."""
    if isinstance(array, np.ndarray):
        return numpy_functions
    from fiber.ops import torch_functions

    return torch_functions
