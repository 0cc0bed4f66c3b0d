"""Mistakes in the JPEG decoder: a constant that is one off.

The extension is built anew for each, so that one takes about a minute.
"""

from __future__ import annotations

from tests.plant.mistakes import Mistake

_IDCT = "rust/jpeg/pixels/idct.rs"
_COLOR = "rust/jpeg/pixels/color.rs"


def _one_more(file: str, name: str, value: str) -> Mistake:
    right = f"const {name}: i32 = {value};"
    return Mistake(f"{name} one more", file, right, right.replace(";", " + 1;"))


DECODER = (
    _one_more(_IDCT, "FIX_0_298631336", "2446"),
    _one_more(_IDCT, "FIX_0_390180644", "3196"),
    _one_more(_IDCT, "FIX_0_541196100", "4433"),
    _one_more(_IDCT, "FIX_0_765366865", "6270"),
    _one_more(_IDCT, "FIX_0_899976223", "7373"),
    _one_more(_IDCT, "FIX_1_175875602", "9633"),
    _one_more(_IDCT, "FIX_1_501321110", "12299"),
    _one_more(_IDCT, "FIX_1_847759065", "15137"),
    _one_more(_IDCT, "FIX_1_961570560", "16069"),
    _one_more(_IDCT, "FIX_2_053119869", "16819"),
    _one_more(_IDCT, "FIX_2_562915447", "20995"),
    _one_more(_IDCT, "FIX_3_072711026", "25172"),
    Mistake(
        "a constant of the half-size IDCT one more",
        _IDCT,
        "FOUR_EVEN: [i16; 2] = [15137, -6270];",
        "FOUR_EVEN: [i16; 2] = [15138, -6270];",
    ),
    Mistake(
        "a constant of the quarter-size IDCT one more",
        _IDCT,
        "TWO_13: [i16; 2] = [29692, -10426];",
        "TWO_13: [i16; 2] = [29693, -10426];",
    ),
    Mistake(
        "the quarter-size IDCT with AVX2 leaves a column out",
        "rust/jpeg/simd/avx2_small.rs",
        "_mm256_setr_epi16(0, a, 0, b, 0, c, 0, d, 0, a,",
        "_mm256_setr_epi16(0, a, 0, b, 0, c, 0, 0, 0, a,",
    ),
    # Of red and blue another constant may round to the same products of all 256 values.
    _one_more(_COLOR, "GREEN_CB", "22554"),
    _one_more(_COLOR, "GREEN_CR", "46802"),
)
