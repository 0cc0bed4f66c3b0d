//! Horizontal pass for strong downscaling, with AVX2.
//!
//! An output column has many adjacent input columns: sixteen are weighted at a time, and the lanes
//! are summed at the end. Weights have two parts, as in [`crate::resize::simd::avx2`]; nothing is
//! rounded before that.
//!
//! All functions require the features of [`crate::cpu_features::Instructions::Avx2`].

#[allow(clippy::wildcard_imports)] // Intrinsics.
use std::arch::x86_64::*;

use crate::resize::simd::avx2::parts_of;
use crate::resize::weights::{PRECISION_BITS, QUAD, Weights};
use crate::simd::avx2::{RowSpan, line};

/// Input columns per step.
const TAPS: usize = 16;
/// Output columns per step.
const COLUMNS: usize = 4;

/// Weights of the horizontal pass, zero-padded to a multiple of sixteen per column.
#[derive(Debug)]
pub(crate) struct WideWeights {
    /// First input column of each output column.
    starts: Vec<usize>,
    /// For each output column and sixteen taps, the upper and lower parts of the weights.
    parts: Vec<[RowSpan; 2]>,
    /// Number of groups of sixteen taps.
    groups: usize,
    /// Number of input columns that are loaded, including some with weight 0.
    pub reach: usize,
}

impl WideWeights {
    /// Build the tables for a number of columns that is a multiple of four.
    pub(crate) fn new(weights: &Weights) -> Self {
        let groups = weights.most().div_ceil(TAPS);
        let columns = weights.output().next_multiple_of(COLUMNS);
        let mut table = Self {
            starts: vec![0; columns],
            parts: vec![[RowSpan([0; 2 * TAPS]); 2]; columns * groups],
            groups,
            reach: groups * TAPS,
        };
        let rows = table.parts.chunks_exact_mut(groups);
        for ((start, values), (own, parts)) in weights.iter().zip(table.starts.iter_mut().zip(rows))
        {
            *own = start;
            table.reach = table.reach.max(start + groups * TAPS);
            for (lines, values) in parts.iter_mut().zip(values.chunks(TAPS)) {
                for (place, &value) in values.iter().enumerate() {
                    for (line, part) in lines.iter_mut().zip(parts_of(value)) {
                        line.0[2 * place..][..2].copy_from_slice(&part.to_le_bytes());
                    }
                }
            }
        }
        table
    }
}

/// Horizontal pass, see [`super::Passes::across`].
#[target_feature(enable = "avx2")]
pub(crate) fn across(
    table: &WideWeights,
    planes: &[u8],
    plane: usize,
    quads: &mut [u8],
    columns: usize,
) {
    assert!(plane >= table.reach && planes.len() >= 3 * QUAD * plane);
    assert!(columns >= table.starts.len() && quads.len() >= 3 * columns * QUAD);
    let starts = table.starts.as_chunks::<COLUMNS>().0.iter();
    let parts = table.parts.chunks_exact(COLUMNS * table.groups);
    for (block, (starts, parts)) in starts.zip(parts).enumerate() {
        for channel in 0..3 {
            let mut sums = [_mm_setzero_si128(); COLUMNS];
            let columns_parts = parts.chunks_exact(table.groups);
            for (sum, (start, parts)) in sums.iter_mut().zip(starts.iter().zip(columns_parts)) {
                // SAFETY: the last column loaded is below the table's reach, which is checked to be
                // inside each of the twelve planes.
                *sum =
                    unsafe { column(planes.as_ptr().add(channel * plane + start), plane, parts) };
            }
            let [a, b, c, d] = sums;
            let bytes = _mm_packus_epi16(_mm_packs_epi32(a, b), _mm_packs_epi32(c, d));
            let target = (channel * columns + block * COLUMNS) * QUAD;
            // SAFETY: blocks are inside the columns and those inside the quads, as checked.
            unsafe { _mm_storeu_si128(quads.as_mut_ptr().add(target).cast(), bytes) };
        }
    }
}

/// Compute the levels of one column in four rows, before clamping.
///
/// # Safety
/// Sixteen bytes must be readable for each part, there and 3, 6 and 9 strides after.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn column(first: *const u8, stride: usize, parts: &[[RowSpan; 2]]) -> __m128i {
    const SHIFT: i32 = PRECISION_BITS.cast_signed();
    let none = _mm256_setzero_si256();
    let mut sums = [[none; 2]; QUAD];
    for (group, [upper, lower]) in parts.iter().enumerate() {
        let (upper, lower) = (line(upper), line(lower));
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the caller guarantees sixteen bytes for each part in each of the four rows.
            let bytes = unsafe {
                let place = first.add(row * 3 * stride + group * TAPS);
                _mm256_cvtepu8_epi16(_mm_loadu_si128(place.cast()))
            };
            sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(bytes, upper));
            sums[1] = _mm256_add_epi32(sums[1], _mm256_madd_epi16(bytes, lower));
        }
    }
    let [a, b, c, d] =
        sums.map(|[upper, lower]| _mm256_add_epi32(_mm256_slli_epi32::<8>(upper), lower));
    let rows = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    let sum = _mm_add_epi32(
        _mm256_castsi256_si128(rows),
        _mm256_extracti128_si256::<1>(rows),
    );
    _mm_srai_epi32::<SHIFT>(_mm_add_epi32(sum, _mm_set1_epi32(1 << (SHIFT - 1))))
}
