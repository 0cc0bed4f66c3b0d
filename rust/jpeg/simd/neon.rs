//! Inverse DCT, upsampling and color conversion with NEON; the same values as the scalar loops.

use std::arch::aarch64::{
    int16x8_t, int32x4_t, uint8x16_t, uint8x16x2_t, uint8x16x3_t, uint16x8_t, vaddq_s16, vaddq_s32,
    vaddq_u16, vandq_u16, vcombine_s16, vcombine_u8, vdup_n_u8, vdupq_n_s16, vdupq_n_s32,
    vdupq_n_u16, veor_u8, vget_high_u8, vget_low_s16, vget_low_u8, vld1q_s16, vld1q_u8, vmaxvq_u16,
    vmlal_high_n_s16, vmlal_n_s16, vmovl_u8, vmull_high_n_s16, vmull_n_s16, vmulq_n_u16, vmulq_s16,
    vqmovn_s16, vqmovn_s32, vqmovun_s16, vqrdmulhq_n_s16, vreinterpret_u8_s8,
    vreinterpretq_s16_s64, vreinterpretq_s16_u16, vreinterpretq_s32_s16, vreinterpretq_s64_s32,
    vreinterpretq_u16_s16, vshll_high_n_s16, vshll_n_s16, vshrn_n_s32, vshrn_n_u16, vshrq_n_s32,
    vst1_u8, vst2q_u8, vst3q_u8, vsubl_u8, vsubq_s16, vsubq_s32, vtrn1q_s16, vtrn1q_s32,
    vtrn1q_s64, vtrn2q_s16, vtrn2q_s32, vtrn2q_s64,
};

use crate::jpeg::block::Block;
use crate::jpeg::color::{BLUE_15, GREEN_16, RED_15};
use crate::jpeg::idct::{self, CONSTANT_BITS, CROSS, EVEN, ODD_53, ODD_71, PASS_BITS};
use crate::jpeg::upsample::next_start;

const FIRST_BITS: i32 = (CONSTANT_BITS - PASS_BITS) as i32;
const SECOND_BITS: i32 = (CONSTANT_BITS + PASS_BITS + 3) as i32;

/// Transform adjacent blocks to 8 x 8 samples each; row r goes to `out[r * stride..]`.
#[target_feature(enable = "neon")]
pub(super) fn transform(
    blocks: &[&Block],
    quantisation: &[u16; 64],
    out: &mut [u8],
    stride: usize,
) {
    let steps = rows_of(&quantisation.map(|step| step as i16));
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
            idct::transform(block, quantisation, 8, out, stride);
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

/// Eight sums: of the low and of the high lanes.
type Sums = [int32x4_t; 2];

/// Sum of two products per lane.
#[target_feature(enable = "neon")]
#[inline]
fn dot(a: int16x8_t, b: int16x8_t, [of_a, of_b]: [i16; 2]) -> Sums {
    let low = vmull_n_s16(vget_low_s16(a), of_a);
    let high = vmull_high_n_s16(a, of_a);
    [
        vmlal_n_s16(low, vget_low_s16(b), of_b),
        vmlal_high_n_s16(high, b, of_b),
    ]
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

/// A value times 2^13, plus half a unit for rounding to fewer bits.
#[target_feature(enable = "neon")]
#[inline]
fn scaled<const BITS: i32>(value: int16x8_t) -> Sums {
    let half = vdupq_n_s32(1 << (BITS - 1));
    add(
        [
            vshll_n_s16::<{ CONSTANT_BITS as i32 }>(vget_low_s16(value)),
            vshll_high_n_s16::<{ CONSTANT_BITS as i32 }>(value),
        ],
        [half, half],
    )
}

#[target_feature(enable = "neon")]
#[inline]
fn down<const BITS: i32>(value: Sums) -> int16x8_t {
    vcombine_s16(
        vqmovn_s32(vshrq_n_s32::<BITS>(value[0])),
        vqmovn_s32(vshrq_n_s32::<BITS>(value[1])),
    )
}

/// One pass over eight registers, as [`idct::eight`].
#[target_feature(enable = "neon")]
#[inline]
fn pass<const BITS: i32>(input: [int16x8_t; 8]) -> [int16x8_t; 8] {
    let (sum_3, sum_2) = (
        dot(input[2], input[6], EVEN[0]),
        dot(input[2], input[6], EVEN[1]),
    );
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

/// Low and high half of 16 samples.
type Wide = [uint16x8_t; 2];

#[target_feature(enable = "neon")]
#[inline]
fn load(from: &[u8; 16]) -> uint8x16_t {
    // SAFETY: the array has the 16 bytes that are loaded.
    unsafe { vld1q_u8(from.as_ptr()) }
}

/// 16 bytes from `at` on, widened to 16 bits.
#[target_feature(enable = "neon")]
#[inline]
fn widened(from: &[u8], at: usize) -> Option<Wide> {
    let bytes = load(from.get(at..).and_then(<[u8]>::first_chunk)?);
    Some([vmovl_u8(vget_low_u8(bytes)), vmovl_u8(vget_high_u8(bytes))])
}

/// Three times the first plus the second.
#[target_feature(enable = "neon")]
#[inline]
fn thrice_and_once(near: Wide, far: Wide) -> Wide {
    [
        vaddq_u16(vmulq_n_u16(near[0], 3), far[0]),
        vaddq_u16(vmulq_n_u16(near[1], 3), far[1]),
    ]
}

/// The pixels on one side of 16 samples.
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

/// Combine neighbors, and store left and right pixels interleaved.
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

/// Double the width, as [`crate::jpeg::upsample::wide`]. Returns the number of samples done, from
/// the second on.
#[target_feature(enable = "neon")]
pub(super) fn wide(samples: &[u8], out: &mut [u8]) -> usize {
    let mut done = 0;
    while let Some(at) = next_start(done, samples.len()) {
        let (Some(before), Some(here), Some(next), Some(to)) = (
            widened(samples, at - 1),
            widened(samples, at),
            widened(samples, at + 1),
            out.get_mut(2 * at..).and_then(<[u8]>::first_chunk_mut),
        ) else {
            break;
        };
        weigh::<2>([before, here, next], [1, 2], to);
        done = at + 15;
    }
    done
}

/// Combine two rows and double the width, as [`crate::jpeg::upsample::both`]. Returns the number of
/// samples done, from the second on.
#[target_feature(enable = "neon")]
pub(super) fn both(near: &[u8], far: &[u8], out: &mut [u8]) -> usize {
    let mut done = 0;
    let weighed = |at| Some(thrice_and_once(widened(near, at)?, widened(far, at)?));
    while let Some(at) = next_start(done, near.len().min(far.len())) {
        let (Some(before), Some(here), Some(next), Some(to)) = (
            weighed(at - 1),
            weighed(at),
            weighed(at + 1),
            out.get_mut(2 * at..).and_then(<[u8]>::first_chunk_mut),
        ) else {
            break;
        };
        weigh::<4>([before, here, next], [8, 7], to);
        done = at + 15;
    }
    done
}

/// Convert `YCbCr` pixels, 16 at a time, as [`crate::jpeg::color::convert`]. Returns the number of
/// pixels done: all, or none of fewer than 16.
#[target_feature(enable = "neon")]
pub(super) fn convert(luma: &[u8], blue: &[u8], red: &[u8], out: &mut [u8]) -> usize {
    let count = out.len() / 3;
    let Some(last) = count.checked_sub(16) else {
        return 0;
    };
    let mut at = 0;
    loop {
        let (Some(y), Some(cb), Some(cr), Some(out)) = (
            luma.get(at..).and_then(<[u8]>::first_chunk),
            blue.get(at..).and_then(<[u8]>::first_chunk),
            red.get(at..).and_then(<[u8]>::first_chunk),
            out.get_mut(3 * at..)
                .and_then(<[u8]>::first_chunk_mut::<48>),
        ) else {
            return at;
        };
        let pixels = rgb(load(y), load(cb), load(cr));
        // SAFETY: the array has the 48 bytes that are stored.
        unsafe { vst3q_u8(out.as_mut_ptr(), pixels) };
        if at == last {
            return count;
        }
        // The last pixels fill a register as well; some are converted twice.
        at = (at + 16).min(last);
    }
}

/// RGB of 16 pixels. All products equal those of [`crate::jpeg::color`], to the bit.
#[target_feature(enable = "neon")]
#[inline]
fn rgb(y: uint8x16_t, cb: uint8x16_t, cr: uint8x16_t) -> uint8x16x3_t {
    let center = vdup_n_u8(128);
    let half = |part: fn(uint8x16_t) -> std::arch::aarch64::uint8x8_t| {
        let y = vreinterpretq_s16_u16(vmovl_u8(part(y)));
        let cb = vreinterpretq_s16_u16(vsubl_u8(part(cb), center));
        let cr = vreinterpretq_s16_u16(vsubl_u8(part(cr), center));
        // 1.402 Cr = Cr + 0.402 Cr, and 1.772 Cb = 2 Cb - 0.228 Cb.
        let red = vaddq_s16(cr, vqrdmulhq_n_s16(cr, RED_15));
        let blue = vaddq_s16(vaddq_s16(cb, cb), vqrdmulhq_n_s16(cb, BLUE_15));
        // -0.714 Cr = 0.286 Cr - Cr.
        let products = dot(cb, cr, GREEN_16).map(|sum| vaddq_s32(sum, vdupq_n_s32(1 << 15)));
        let green = vsubq_s16(
            vcombine_s16(
                vshrn_n_s32::<16>(products[0]),
                vshrn_n_s32::<16>(products[1]),
            ),
            cr,
        );
        [red, green, blue].map(|color| vqmovun_s16(vaddq_s16(y, color)))
    };
    let (low, high) = (half(|all| vget_low_u8(all)), half(|all| vget_high_u8(all)));
    uint8x16x3_t(
        vcombine_u8(low[0], high[0]),
        vcombine_u8(low[1], high[1]),
        vcombine_u8(low[2], high[2]),
    )
}
