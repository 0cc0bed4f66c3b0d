"""Mistakes in the kernels, each with the check that must see it.

A kernel may have the right outputs and do twice the work: such mistakes are for the checks of
memory accesses and of the compiled code.
"""

from __future__ import annotations

from tests.plant.mistakes import Check, Mistake

ACCESSES = Check(
    "memory accesses",
    ("tests/kernels/triton/test_memory_accesses.py", "-k", "window_attention"),
    True,
)
ATOMICS = Check(
    "atomics",
    ("tests/kernels/compiled/test_gates.py", "-k", "resources and sm_90 and shifted"),
    False,
)
WINDOWS = Check(
    "window attention against the oracle",
    ("tests/kernels/triton/test_window_attention.py", "-k", "equals_formulation and odd"),
    True,
)
GATE = Check("gated residual", ("tests/kernels/test_torch_path.py", "-k", "gated_residual"), None)

_WHOLE = "python/fiber/kernels/window_attention/triton_whole.py"
_PLANS = "python/fiber/kernels/window_attention/triton_launch.py"
_BIAS = "python/fiber/kernels/window_attention/triton_bias.py"

KERNELS = (
    Mistake(
        "every query twice",
        _WHOLE,
        "    for start in range(first, min(first + QUERIES, WINDOW * WINDOW), ROWS):\n",
        "    for step in range(0, 2 * WINDOW * WINDOW, ROWS):\n"
        "        start = step % (WINDOW * WINDOW)\n",
        ACCESSES,
    ),
    Mistake(
        "every query twice in the backward pass",
        _WHOLE,
        "        for start in range(0, WINDOW * WINDOW, ROWS):\n",
        "        for twice in range(0, 2 * WINDOW * WINDOW, ROWS):\n"
        "            start = twice % (WINDOW * WINDOW)\n",
        ACCESSES,
    ),
    Mistake(
        "a pass over the output after the kernel",
        _PLANS,
        "    return plan.launches, out\n",
        "    return plan.launches, out * 1\n",
        ACCESSES,
    ),
    Mistake(
        "a pass over the output in the kernel",
        _WHOLE,
        "        store_tokens(target, attended, tokens, column, channels, WIDTH, MASKED, SIZED)\n",
        "        store_tokens(target, attended, tokens, column, channels, WIDTH, MASKED, SIZED)\n"
        "        attended = load_tokens(target, tokens, column, channels, WIDTH, MASKED)\n"
        "        store_tokens(target, attended, tokens, column, channels, WIDTH, MASKED, SIZED)\n",
        ACCESSES,
    ),
    Mistake(
        "atomics in the bias's gradient",
        _WHOLE,
        "            tl.store(place, tl.load(place) + flat)\n",
        '            tl.atomic_add(place, flat, sem="relaxed")\n',
        ATOMICS,
    ),
    Mistake(
        "no shift mask",
        _BIAS,
        '            "SHIFT_MASK": SHIFT_MASK * LOG2E,\n',
        '            "SHIFT_MASK": 0.0,\n',
        WINDOWS,
    ),
    Mistake(
        "no gradient of the padding",
        _PLANS,
        "    if grad_padding is not None:\n",
        "    if grad_padding is not None and not grad_padding.numel():\n",
        WINDOWS,
    ),
    Mistake(
        "gradient of the gate doubled",
        "python/fiber/kernels/gated_residual/torch_path.py",
        "F.linear(y, gate * weight, gate * bias)",
        "F.linear(y, (2 * gate - gate.detach()) * weight, (2 * gate - gate.detach()) * bias)",
        GATE,
    ),
)
