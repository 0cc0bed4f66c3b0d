//! Inverse DCT, upsampling and color conversion with NEON; results match the scalar loops.

#[allow(clippy::wildcard_imports)] // Intrinsics.
use std::arch::aarch64::*;

use super::row_loops::row_loops;
use crate::jpeg::block::Block;
use crate::jpeg::pixels::color::{BLUE_15, GREEN_16, RED_15};
use crate::jpeg::pixels::idct::{self, CONSTANT_BITS, CROSS, EVEN, ODD_53, ODD_71, PASS_BITS};
use crate::jpeg::pixels::upsample::next_start;

const FIRST_BITS: i32 = (CONSTANT_BITS - PASS_BITS) as i32;
const SECOND_BITS: i32 = (CONSTANT_BITS + PASS_BITS + 3) as i32;

/// Transform adjacent blocks to 8 x 8 samples each; row r is written to `out[r * stride..]`.
#[target_feature(enable = "neon")]
pub(super) fn transform(
    blocks: &[&Block],
    quantization: &[u16; 64],
    out: &mut [u8],
    stride: usize,
) {
    let steps = rows_of(&quantization.map(|step| step as i16));
    for (block, at) in blocks.iter().zip((0..).step_by(8)) {
        let Some(out) = out.get_mut(at..at + 7 * stride + 8) else {
            return;
        };
        let mut rows = rows_of(block);
        for (row, steps) in rows.iter_mut().zip(steps) {
            *row = vmulq_s16(*row, steps);
        }
        if is_in_range(rows[0]) {
            let columns = transpose(pass::<FIRST_BITS>(rows));
            store(transpose(pass::<SECOND_BITS>(columns)), out, stride);
        } else {
            idct::transform(block, quantization, 8, out, stride);
        }
    }
}

#[target_feature(enable = "neon")]
#[inline]
fn rows_of(values: &[i16; 64]) -> [int16x8_t; 8] {
    let mut rows = [vdupq_n_s16(0); 8];
    for (row, values) in rows.iter_mut().zip(values.as_chunks::<8>().0) {
        // SAFETY: the array has the 8 values that are loaded.
        *row = unsafe { vld1q_s16(values.as_ptr()) };
    }
    rows
}

/// True if the first row has two bits of headroom, as with AVX2.
#[target_feature(enable = "neon")]
#[inline]
fn is_in_range(row: int16x8_t) -> bool {
    let shifted = vreinterpretq_u16_s16(vaddq_s16(row, vdupq_n_s16(1 << 13)));
    vmaxvq_u16(vandq_u16(shifted, vdupq_n_u16(0b11 << 14))) == 0
}

/// Eight sums, of the low and the high lanes.
type Sums = [int32x4_t; 2];

/// Sum of two products per lane.
#[target_feature(enable = "neon")]
#[inline]
fn dot(a: int16x8_t, b: int16x8_t, [of_a, of_b]: [i16; 2]) -> Sums {
    let low = vmull_n_s16(vget_low_s16(a), of_a);
    let high = vmull_high_n_s16(a, of_a);
    let low = vmlal_n_s16(low, vget_low_s16(b), of_b);
    [low, vmlal_high_n_s16(high, b, of_b)]
}

#[target_feature(enable = "neon")]
#[inline]
fn add(a: Sums, b: Sums) -> Sums {
    [vaddq_s32(a[0], b[0]), vaddq_s32(a[1], b[1])]
}

#[target_feature(enable = "neon")]
#[inline]
fn sub(a: Sums, b: Sums) -> Sums {
    [vsubq_s32(a[0], b[0]), vsubq_s32(a[1], b[1])]
}

/// A value times 2^13, plus half a unit to round to fewer bits.
#[target_feature(enable = "neon")]
#[inline]
fn scaled<const BITS: i32>(value: int16x8_t) -> Sums {
    let half = vdupq_n_s32(1 << (BITS - 1));
    let low = vshll_n_s16::<{ CONSTANT_BITS as i32 }>(vget_low_s16(value));
    add(
        [low, vshll_high_n_s16::<{ CONSTANT_BITS as i32 }>(value)],
        [half; 2],
    )
}

#[target_feature(enable = "neon")]
#[inline]
fn down<const BITS: i32>(value: Sums) -> int16x8_t {
    let [low, high] = value.map(|sum| vqmovn_s32(vshrq_n_s32::<BITS>(sum)));
    vcombine_s16(low, high)
}

/// One pass over eight registers, as in `idct::eight_points`.
#[target_feature(enable = "neon")]
#[inline]
fn pass<const BITS: i32>(input: [int16x8_t; 8]) -> [int16x8_t; 8] {
    let [sum_3, sum_2] = EVEN.map(|factors| dot(input[2], input[6], factors));
    let sum_0 = scaled::<BITS>(vaddq_s16(input[0], input[4]));
    let sum_1 = scaled::<BITS>(vsubq_s16(input[0], input[4]));
    let even = [
        add(sum_0, sum_3),
        add(sum_1, sum_2),
        sub(sum_1, sum_2),
        sub(sum_0, sum_3),
    ];
    let (odd_37, odd_15) = (vaddq_s16(input[3], input[7]), vaddq_s16(input[1], input[5]));
    let (cross_3, cross_4) = (dot(odd_37, odd_15, CROSS[0]), dot(odd_37, odd_15, CROSS[1]));
    let odd = [
        add(dot(input[7], input[1], ODD_71[1]), cross_4),
        add(dot(input[5], input[3], ODD_53[1]), cross_3),
        add(dot(input[5], input[3], ODD_53[0]), cross_4),
        add(dot(input[7], input[1], ODD_71[0]), cross_3),
    ];
    [
        down::<BITS>(add(even[0], odd[0])),
        down::<BITS>(add(even[1], odd[1])),
        down::<BITS>(add(even[2], odd[2])),
        down::<BITS>(add(even[3], odd[3])),
        down::<BITS>(sub(even[3], odd[3])),
        down::<BITS>(sub(even[2], odd[2])),
        down::<BITS>(sub(even[1], odd[1])),
        down::<BITS>(sub(even[0], odd[0])),
    ]
}

/// Transpose 8 x 8 values.
#[target_feature(enable = "neon")]
#[inline]
fn transpose(rows: [int16x8_t; 8]) -> [int16x8_t; 8] {
    // In each half of four rows: columns 0 and 4, 1 and 5, 2 and 6, 3 and 7.
    let [a, b, c, d] = four_columns([rows[0], rows[1], rows[2], rows[3]]);
    let [e, f, g, h] = four_columns([rows[4], rows[5], rows[6], rows[7]]);
    let first = |upper, lower| vreinterpretq_s16_s64(vtrn1q_s64(upper, lower));
    let second = |upper, lower| vreinterpretq_s16_s64(vtrn2q_s64(upper, lower));
    let [a, b, c, d, e, f, g, h] = [a, b, c, d, e, f, g, h].map(|four| vreinterpretq_s64_s32(four));
    [
        first(a, e),
        first(b, f),
        first(c, g),
        first(d, h),
        second(a, e),
        second(b, f),
        second(c, g),
        second(d, h),
    ]
}

#[target_feature(enable = "neon")]
#[inline]
fn four_columns(rows: [int16x8_t; 4]) -> [int32x4_t; 4] {
    let even_01 = vreinterpretq_s32_s16(vtrn1q_s16(rows[0], rows[1]));
    let odd_01 = vreinterpretq_s32_s16(vtrn2q_s16(rows[0], rows[1]));
    let even_23 = vreinterpretq_s32_s16(vtrn1q_s16(rows[2], rows[3]));
    let odd_23 = vreinterpretq_s32_s16(vtrn2q_s16(rows[2], rows[3]));
    [
        vtrn1q_s32(even_01, even_23),
        vtrn1q_s32(odd_01, odd_23),
        vtrn2q_s32(even_01, even_23),
        vtrn2q_s32(odd_01, odd_23),
    ]
}

/// Saturate rows to samples and store them.
#[target_feature(enable = "neon")]
#[inline]
fn store(rows: [int16x8_t; 8], out: &mut [u8], stride: usize) {
    assert!(out.len() >= 7 * stride + 8);
    for (at, row) in rows.into_iter().enumerate() {
        let samples = veor_u8(vreinterpret_u8_s8(vqmovn_s16(row)), vdup_n_u8(128));
        // SAFETY: the last row ends at 7 * stride + 8, which was checked.
        unsafe { vst1_u8(out.as_mut_ptr().add(at * stride), samples) };
    }
}

row_loops!("neon", 16);

/// Low and high halves of 16 samples.
type Wide = [uint16x8_t; 2];

#[target_feature(enable = "neon")]
#[inline]
fn load(from: &[u8; 16]) -> uint8x16_t {
    // SAFETY: the array has the 16 bytes that are loaded.
    unsafe { vld1q_u8(from.as_ptr()) }
}

/// Load 16 bytes, starting at `at`, and widen them to 16 bits.
#[target_feature(enable = "neon")]
#[inline]
fn widened(from: &[u8], at: usize) -> Option<Wide> {
    let bytes = load(from.get(at..).and_then(<[u8]>::first_chunk)?);
    Some([vmovl_u8(vget_low_u8(bytes)), vmovl_u8(vget_high_u8(bytes))])
}

/// Blend two rows.
#[target_feature(enable = "neon")]
#[inline]
fn weighed(near: &[u8], far: &[u8], at: usize) -> Option<Wide> {
    Some(thrice_and_once(widened(near, at)?, widened(far, at)?))
}

/// Three times the first value plus the second.
#[target_feature(enable = "neon")]
#[inline]
fn thrice_and_once(near: Wide, far: Wide) -> Wide {
    [
        vaddq_u16(vmulq_n_u16(near[0], 3), far[0]),
        vaddq_u16(vmulq_n_u16(near[1], 3), far[1]),
    ]
}

/// The upsampled pixels on one side of 16 samples.
#[target_feature(enable = "neon")]
#[inline]
fn side<const BITS: i32>(here: Wide, other: Wide, bias: u16) -> uint8x16_t {
    let [low, high] = thrice_and_once(here, other);
    let bias = vdupq_n_u16(bias);
    vcombine_u8(
        vshrn_n_u16::<BITS>(vaddq_u16(low, bias)),
        vshrn_n_u16::<BITS>(vaddq_u16(high, bias)),
    )
}

/// Blend neighbors and store left and right pixels interleaved.
#[target_feature(enable = "neon")]
#[inline]
fn weigh<const BITS: i32>(
    [before, here, next]: [Wide; 3],
    [left, right]: [u16; 2],
    to: &mut [u8; 32],
) {
    let both = uint8x16x2_t(
        side::<BITS>(here, before, left),
        side::<BITS>(here, next, right),
    );
    // SAFETY: the array has the 32 bytes that are stored.
    unsafe { vst2q_u8(to.as_mut_ptr(), both) };
}

/// Convert 16 pixels, bit-exact with [`crate::jpeg::pixels::color`].
#[target_feature(enable = "neon")]
#[inline]
fn convert_part(y: &[u8; 16], cb: &[u8; 16], cr: &[u8; 16], out: &mut [u8; 48]) {
    let (y, cb, cr) = (load(y), load(cb), load(cr));
    let center = vdup_n_u8(128);
    let half = |part: fn(uint8x16_t) -> uint8x8_t| {
        let y = vreinterpretq_s16_u16(vmovl_u8(part(y)));
        let cb = vreinterpretq_s16_u16(vsubl_u8(part(cb), center));
        let cr = vreinterpretq_s16_u16(vsubl_u8(part(cr), center));
        // 1.402 Cr = Cr + 0.402 Cr, and 1.772 Cb = 2 Cb - 0.228 Cb.
        let red = vaddq_s16(cr, vqrdmulhq_n_s16(cr, RED_15));
        let blue = vaddq_s16(vaddq_s16(cb, cb), vqrdmulhq_n_s16(cb, BLUE_15));
        // -0.714 Cr = 0.286 Cr - Cr.
        let products = dot(cb, cr, GREEN_16).map(|sum| vaddq_s32(sum, vdupq_n_s32(1 << 15)));
        let [low, high] = products.map(|sum| vshrn_n_s32::<16>(sum));
        let green = vsubq_s16(vcombine_s16(low, high), cr);
        [red, green, blue].map(|color| vqmovun_s16(vaddq_s16(y, color)))
    };
    let (low, high) = (half(|all| vget_low_u8(all)), half(|all| vget_high_u8(all)));
    let [red, green, blue] = [0, 1, 2].map(|color| vcombine_u8(low[color], high[color]));
    // SAFETY: the array has the 48 bytes that are stored.
    unsafe { vst3q_u8(out.as_mut_ptr(), uint8x16x3_t(red, green, blue)) };
}
