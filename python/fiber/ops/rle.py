"""Run-length encoding of masks as in COCO.

Runs alternate between background and mask, start with the background, and go down the columns. In
the compressed form, a run is stored as its difference from the one before the last, in groups of
5 bits from the lowest, each as a character from "0" on; bit 5 says that more groups follow.

Source: `maskApi.c` of the COCO API (Lin et al. 2014).
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np


def encode_mask(mask: np.ndarray) -> str:
    """Encode an (H, W) bool mask as COCO's compressed `counts`."""
    flat = np.asarray(mask, bool).T.reshape(-1)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = [0, *changes.tolist(), flat.size]
    runs = [end - start for start, end in pairwise(edges)]
    if flat.size and flat[0]:
        runs.insert(0, 0)
    text = []
    for number, run in enumerate(runs):
        value = run - runs[number - 2] if number > 2 else run
        while True:
            group, value = value & 31, value >> 5
            # The sign is bit 4 of the last group.
            has_more = value != (-1 if group & 16 else 0)
            text.append(chr(48 + (group | 32 * has_more)))
            if not has_more:
                break
    return "".join(text)
