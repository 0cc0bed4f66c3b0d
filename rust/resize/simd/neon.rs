//! Resize passes with NEON, four 32-bit products at a time.
//!
//! All functions require [`crate::cpu_features::Instructions::Neon`].

#[allow(clippy::wildcard_imports)] // Intrinsics.
use std::arch::aarch64::*;

use super::{Quads, Rows};
use crate::resize::weights::{PRECISION_BITS, QUAD, Weights};

/// Taps per step.
const TAPS: usize = 8;
/// Output columns whose bytes fill a register.
const LANES: usize = 16;

/// Weights of the horizontal pass, zero-padded to a multiple of eight taps.
#[derive(Debug)]
pub(crate) struct NeonWeights {
    /// First input column of each output column.
    starts: Vec<usize>,
    /// `groups` groups of eight weights for each output column.
    weights: Vec<[i32; TAPS]>,
    groups: usize,
    /// Number of input columns that are loaded, including some with weight 0.
    pub reach: usize,
}

impl NeonWeights {
    pub(crate) fn new(weights: &Weights) -> Self {
        let groups = weights.most().div_ceil(TAPS).max(1);
        let mut table = Self {
            starts: Vec::with_capacity(weights.output()),
            weights: vec![[0; TAPS]; weights.output() * groups],
            groups,
            reach: 0,
        };
        let own = table.weights.chunks_exact_mut(groups);
        for ((start, values), own) in weights.iter().zip(own) {
            own.as_flattened_mut()[..values.len()].copy_from_slice(values);
            table.starts.push(start);
            table.reach = table.reach.max(start + groups * TAPS);
        }
        table
    }
}

#[target_feature(enable = "neon")]
#[inline]
fn load_weights(weights: &[i32; QUAD]) -> int32x4_t {
    // SAFETY: the array has the four values that are loaded.
    unsafe { vld1q_s32(weights.as_ptr()) }
}

#[target_feature(enable = "neon")]
#[inline]
fn load(bytes: &[u8; LANES]) -> uint8x16_t {
    // SAFETY: the array has the 16 bytes that are loaded.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}

/// Deinterleave RGB pixels, see [`crate::resize::simd::Passes::split`].
#[target_feature(enable = "neon")]
pub(crate) fn split(row: &[u8], output: &mut [u8], planes: [usize; 3]) {
    let (parts, rest) = row.as_chunks::<{ 3 * LANES }>();
    for (part, at) in parts.iter().zip((0..).step_by(LANES)) {
        // SAFETY: the array has the 48 bytes that are loaded.
        let uint8x16x3_t(red, green, blue) = unsafe { vld3q_u8(part.as_ptr()) };
        for (start, values) in planes.into_iter().zip([red, green, blue]) {
            let to = &mut output[start + at..][..LANES];
            // SAFETY: the slice has the 16 bytes that are stored.
            unsafe { vst1q_u8(to.as_mut_ptr(), values) };
        }
    }
    for (channel, start) in planes.into_iter().enumerate() {
        let output = &mut output[start + parts.len() * LANES..];
        for (output, pixel) in output.iter_mut().zip(rest.as_chunks::<3>().0) {
            *output = pixel[channel];
        }
    }
}

/// Horizontal sums of four registers, rounded to integer levels.
#[target_feature(enable = "neon")]
#[inline]
fn rounded_sums([a, b, c, d]: [int32x4_t; QUAD]) -> int32x4_t {
    let sums = vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d));
    let half = vdupq_n_s32(1 << (PRECISION_BITS - 1));
    vshrq_n_s32::<{ PRECISION_BITS as i32 }>(vaddq_s32(sums, half))
}

/// Multiply eight values by eight weights and add the products to four sums.
#[target_feature(enable = "neon")]
#[inline]
fn add_products(sum: int32x4_t, values: uint16x8_t, [low, high]: [int32x4_t; 2]) -> int32x4_t {
    let sum = vmlaq_s32(sum, signed(vmovl_u16(vget_low_u16(values))), low);
    vmlaq_s32(sum, signed(vmovl_u16(vget_high_u16(values))), high)
}

/// Horizontal pass, see [`crate::resize::simd::Passes::across`].
#[target_feature(enable = "neon")]
pub(crate) fn across(table: &NeonWeights, rows: Rows<'_>, quads: &mut [u8]) {
    let (planes, plane) = (rows.planes, rows.plane);
    assert!(plane >= table.reach && planes.len() >= 3 * QUAD * plane);
    let channels = quads.chunks_exact_mut(rows.columns * QUAD).take(3);
    for (channel, quads) in channels.enumerate() {
        let outputs = quads.as_chunks_mut::<QUAD>().0.iter_mut();
        let weights = table.weights.chunks_exact(table.groups);
        for ((quad, &start), weights) in outputs.zip(&table.starts).zip(weights) {
            let mut sums = [vdupq_n_s32(0); QUAD];
            for (weights, first) in weights.iter().zip((start..).step_by(TAPS)) {
                let (halves, _) = weights.as_chunks::<QUAD>();
                let halves = [load_weights(&halves[0]), load_weights(&halves[1])];
                for (row, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: `reach` is the end of the last eight taps of any column, and as
                    // checked there are 12 planes at least as long.
                    let taps = unsafe {
                        vld1_u8(planes.as_ptr().add((row * 3 + channel) * plane + first))
                    };
                    *sum = add_products(*sum, vmovl_u8(taps), halves);
                }
            }
            let sums = vqmovun_s32(rounded_sums(sums));
            let bytes = vqmovn_u16(vcombine_u16(sums, sums));
            *quad = vget_lane_u32::<0>(vreinterpret_u32_u8(bytes)).to_le_bytes();
        }
    }
}

#[target_feature(enable = "neon")]
#[inline]
fn signed(value: uint32x4_t) -> int32x4_t {
    vreinterpretq_s32_u32(value)
}

/// Vertical pass, see [`crate::resize::simd::Passes::down`].
#[target_feature(enable = "neon")]
pub(crate) fn down(quads: Quads<'_>, output: &mut [u8]) {
    let (ring, columns) = (quads.ring, quads.columns);
    let (parts, _) = output.as_chunks_mut::<{ 3 * LANES }>();
    for (part, first) in parts.iter_mut().zip((0..columns).step_by(LANES)) {
        let [red, green, blue] = [0, 1, 2].map(|channel| {
            let at = (channel * columns + first) * QUAD;
            let mut sums = [[vdupq_n_s32(0); QUAD]; LANES / QUAD];
            for (start, weights) in quads.starts.iter().zip(quads.weights) {
                let weights = load_weights(weights);
                let quads = &ring[start + at..][..LANES * QUAD];
                for (sums, quads) in sums.iter_mut().zip(quads.as_chunks::<LANES>().0) {
                    for (sum, values) in sums.iter_mut().zip(widened(load(quads))) {
                        *sum = vmlaq_s32(*sum, values, weights);
                    }
                }
            }
            let [a, b, c, d] = sums.map(|sums| vqmovun_s32(rounded_sums(sums)));
            vcombine_u8(
                vqmovn_u16(vcombine_u16(a, b)),
                vqmovn_u16(vcombine_u16(c, d)),
            )
        });
        // SAFETY: the array has the 48 bytes that are stored.
        unsafe { vst3q_u8(part.as_mut_ptr(), uint8x16x3_t(red, green, blue)) };
    }
}

/// Widen 16 bytes to 32 bits, four per register.
#[target_feature(enable = "neon")]
#[inline]
fn widened(bytes: uint8x16_t) -> [int32x4_t; QUAD] {
    let (low, high) = (vmovl_u8(vget_low_u8(bytes)), vmovl_u8(vget_high_u8(bytes)));
    [
        signed(vmovl_u16(vget_low_u16(low))),
        signed(vmovl_u16(vget_high_u16(low))),
        signed(vmovl_u16(vget_low_u16(high))),
        signed(vmovl_u16(vget_high_u16(high))),
    ]
}
