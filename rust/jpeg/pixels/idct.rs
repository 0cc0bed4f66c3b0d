//! Inverse DCT of blocks to 8 x 8, 4 x 4, 2 x 2 or 1 x 1 samples.
//!
//! Bit-exact with libjpeg's accurate integer method ("islow", after Loeffler, Ligtenberg and
//! Moschytz). Intermediates have 16 bits as in libjpeg-turbo's AVX2 and SSE2 code, so results also
//! match for damaged data outside the normal range. All constants are in units of 2^-13.

use crate::jpeg::block::Block;

const FIX_0_298631336: i32 = 2446;
const FIX_0_390180644: i32 = 3196;
const FIX_0_541196100: i32 = 4433;
const FIX_0_765366865: i32 = 6270;
const FIX_0_899976223: i32 = 7373;
const FIX_1_175875602: i32 = 9633;
const FIX_1_501321110: i32 = 12299;
const FIX_1_847759065: i32 = 15137;
const FIX_1_961570560: i32 = 16069;
const FIX_2_053119869: i32 = 16819;
const FIX_2_562915447: i32 = 20995;
const FIX_3_072711026: i32 = 25172;

/// Even part: factors of inputs 2 and 6 in sum 3, then in sum 2.
pub(in crate::jpeg) const EVEN: [[i16; 2]; 2] = [
    pair(FIX_0_541196100 + FIX_0_765366865, FIX_0_541196100),
    pair(FIX_0_541196100, FIX_0_541196100 - FIX_1_847759065),
];
/// Odd part: factors of the sums of inputs 3 + 7 and 1 + 5.
pub(in crate::jpeg) const CROSS: [[i16; 2]; 2] = [
    pair(FIX_1_175875602 - FIX_1_961570560, FIX_1_175875602),
    pair(FIX_1_175875602, FIX_1_175875602 - FIX_0_390180644),
];
/// Odd part: factors of inputs 7 and 1.
pub(in crate::jpeg) const ODD_71: [[i16; 2]; 2] = [
    pair(FIX_0_298631336 - FIX_0_899976223, -FIX_0_899976223),
    pair(-FIX_0_899976223, FIX_1_501321110 - FIX_0_899976223),
];
/// Odd part: factors of inputs 5 and 3.
pub(in crate::jpeg) const ODD_53: [[i16; 2]; 2] = [
    pair(FIX_2_053119869 - FIX_2_562915447, -FIX_2_562915447),
    pair(-FIX_2_562915447, FIX_3_072711026 - FIX_2_562915447),
];

/// 4 x 4 transform: factors of inputs 2 and 6, of 1 and 3, and of 5 and 7.
pub(in crate::jpeg) const FOUR_EVEN: [i16; 2] = [15137, -6270];
pub(in crate::jpeg) const FOUR_ODD_13: [[i16; 2]; 2] = [[8697, -17799], [20995, 7373]];
pub(in crate::jpeg) const FOUR_ODD_57: [[i16; 2]; 2] = [[11893, -1730], [-4926, -4176]];

/// 2 x 2 transform: factors of inputs 1 and 3, and of 5 and 7.
pub(in crate::jpeg) const TWO_13: [i16; 2] = [29692, -10426];
pub(in crate::jpeg) const TWO_57: [i16; 2] = [6967, -5906];

/// Fraction bits of the constants, and extra bits between the two passes.
pub(in crate::jpeg) const CONSTANT_BITS: u32 = 13;
pub(in crate::jpeg) const PASS_BITS: u32 = 2;

const fn pair(first: i32, second: i32) -> [i16; 2] {
    [first as i16, second as i16]
}

/// Transform a block to `size` x `size` samples, where `size` is 8, 4, 2 or 1.
///
/// Row r is written to `out[r * stride..]`; samples outside `out` are dropped.
pub(in crate::jpeg) fn transform(
    block: &Block,
    quantization: &[u16; 64],
    size: usize,
    out: &mut [u8],
    stride: usize,
) {
    let mut samples = [0; 64];
    match size {
        8 => separable(block, quantization, &mut samples, (0, 0), eight_points),
        4 => separable(block, quantization, &mut samples, (4, 1), four_points),
        2 => two(block, quantization, &mut samples),
        _ => samples[0] = one(block, quantization),
    }
    for (row, from) in samples.chunks_exact(8).take(size).enumerate() {
        if let Some(to) = out.get_mut(row * stride..row * stride + size) {
            to.copy_from_slice(&from[..size]);
        }
    }
}

/// Dequantize in 16 bits.
fn dequantize(block: &Block, quantization: &[u16; 64]) -> [i32; 64] {
    let mut values = [0; 64];
    for ((value, &coefficient), &step) in values.iter_mut().zip(block.iter()).zip(quantization) {
        *value = i32::from(coefficient.wrapping_mul(step as i16));
    }
    values
}

/// Sum of two products, as in `pmaddwd`.
fn dot(a: i32, b: i32, factors: [i16; 2]) -> i32 {
    (a * i32::from(factors[0])).wrapping_add(b * i32::from(factors[1]))
}

/// Round to fewer fraction bits and saturate to 16 bits.
fn descale(value: i32, bits: u32) -> i32 {
    (value.wrapping_add(1 << (bits - 1)) >> bits).clamp(i16::MIN.into(), i16::MAX.into())
}

fn sample(value: i32) -> u8 {
    (value.clamp(-128, 127) + 128) as u8
}

fn eight_points(input: [i32; 8], bits: u32) -> [i32; 8] {
    let wrap = |value: i32| i32::from(value as i16);
    let sum_3 = dot(input[2], input[6], EVEN[0]);
    let sum_2 = dot(input[2], input[6], EVEN[1]);
    let sum_0 = wrap(input[0] + input[4]) << CONSTANT_BITS;
    let sum_1 = wrap(input[0] - input[4]) << CONSTANT_BITS;
    let even = [
        sum_0.wrapping_add(sum_3),
        sum_1.wrapping_add(sum_2),
        sum_1.wrapping_sub(sum_2),
        sum_0.wrapping_sub(sum_3),
    ];
    let (z3, z4) = (wrap(input[3] + input[7]), wrap(input[1] + input[5]));
    let (cross_3, cross_4) = (dot(z3, z4, CROSS[0]), dot(z3, z4, CROSS[1]));
    let odd = [
        dot(input[7], input[1], ODD_71[1]).wrapping_add(cross_4),
        dot(input[5], input[3], ODD_53[1]).wrapping_add(cross_3),
        dot(input[5], input[3], ODD_53[0]).wrapping_add(cross_4),
        dot(input[7], input[1], ODD_71[0]).wrapping_add(cross_3),
    ];
    let mut output = [0; 8];
    for at in 0..4 {
        output[at] = descale(even[at].wrapping_add(odd[at]), bits);
        output[7 - at] = descale(even[at].wrapping_sub(odd[at]), bits);
    }
    output
}

/// True if only the first row of coefficients is nonzero, ignoring unused rows.
fn has_one_row(block: &Block, ignored: usize) -> bool {
    block
        .chunks_exact(8)
        .enumerate()
        .skip(1)
        .all(|(row, values)| row == ignored || values.iter().all(|&value| value == 0))
}

/// Transform columns, then rows, to `N` x `N` samples with an `N`-point transform.
///
/// It ignores the coefficients in row `unused`, and its result has `extra` more fraction bits.
fn separable<const N: usize>(
    block: &Block,
    quantization: &[u16; 64],
    samples: &mut [u8; 64],
    (unused, extra): (usize, u32),
    points: impl Fn([i32; 8], u32) -> [i32; N],
) {
    let values = dequantize(block, quantization);
    let mut between = [[0_i32; 8]; N];
    if has_one_row(block, unused) {
        between.fill(std::array::from_fn(|at| {
            i32::from((values[at] << PASS_BITS) as i16)
        }));
    } else {
        for column in 0..8 {
            let input = std::array::from_fn(|row| values[row * 8 + column]);
            let output = points(input, CONSTANT_BITS - PASS_BITS + extra);
            for (row, value) in between.iter_mut().zip(output) {
                row[column] = value;
            }
        }
    }
    for (samples, row) in samples.chunks_exact_mut(8).zip(between) {
        let output = points(row, CONSTANT_BITS + PASS_BITS + 3 + extra);
        for (to, value) in samples.iter_mut().zip(output) {
            *to = sample(value);
        }
    }
}

/// 4-point transform of 8 inputs; the fifth is unused.
fn four_points(input: [i32; 8], bits: u32) -> [i32; 4] {
    let sum_0 = input[0] << (CONSTANT_BITS + 1);
    let sum_2 = dot(input[2], input[6], FOUR_EVEN);
    let (even_0, even_2) = (sum_0.wrapping_add(sum_2), sum_0.wrapping_sub(sum_2));
    let odd = [0, 1].map(|at| {
        let low = dot(input[1], input[3], FOUR_ODD_13[at]);
        low.wrapping_add(dot(input[5], input[7], FOUR_ODD_57[at]))
    });
    [
        descale(even_0.wrapping_add(odd[1]), bits),
        descale(even_2.wrapping_add(odd[0]), bits),
        descale(even_2.wrapping_sub(odd[0]), bits),
        descale(even_0.wrapping_sub(odd[1]), bits),
    ]
}

fn two(block: &Block, quantization: &[u16; 64], samples: &mut [u8; 64]) {
    let values = dequantize(block, quantization);
    let odd = |at: [i32; 4]| dot(at[0], at[1], TWO_13).wrapping_add(dot(at[2], at[3], TWO_57));
    let half = |value: i32, bits: u32| value.wrapping_add(1 << (bits - 1)) >> bits;
    let bits = CONSTANT_BITS - PASS_BITS + 2;
    // (upper, lower) value of each column in use.
    let column = |column: usize| {
        let sum = odd([1, 3, 5, 7].map(|row| values[row * 8 + column]));
        let base = values[column] << (CONSTANT_BITS + 2);
        [
            half(base.wrapping_add(sum), bits),
            half(base.wrapping_sub(sum), bits),
        ]
    };
    let columns = [0, 1, 3, 5, 7].map(column);
    let bits = CONSTANT_BITS + PASS_BITS + 3 + 2;
    for row in 0..2 {
        let limit = |value: i32| value.clamp(i16::MIN.into(), i16::MAX.into());
        let sum = odd([1, 2, 3, 4].map(|at| limit(columns[at][row])));
        let base = columns[0][row].wrapping_shl(CONSTANT_BITS + 2);
        samples[row * 8] = sample(descale(base.wrapping_add(sum), bits));
        samples[row * 8 + 1] = sample(descale(base.wrapping_sub(sum), bits));
    }
}

/// DC only; values out of range wrap around at 10 bits.
fn one(block: &Block, quantization: &[u16; 64]) -> u8 {
    let value = i32::from(block[0]) * i32::from(quantization[0] as i16);
    let wrapped = ((value + 4) >> 3) << 22 >> 22;
    sample(wrapped)
}
