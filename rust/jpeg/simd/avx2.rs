//! Entropy decoding with BMI2 and inverse DCT with AVX2; results match the scalar loops.

#[allow(clippy::wildcard_imports)] // Intrinsics.
use std::arch::x86_64::*;
use std::ops::Range;

use crate::Error;
use crate::jpeg::bitstream::Bitstream;
use crate::jpeg::block::{Block, Coefficients};
use crate::jpeg::interleaved::{self, McuRun};
use crate::jpeg::pixels::idct::{self, CONSTANT_BITS, CROSS, EVEN, ODD_53, ODD_71, PASS_BITS};
use crate::jpeg::progressive::ScanPass;

const FIRST_BITS: i32 = (CONSTANT_BITS - PASS_BITS) as i32;
const SECOND_BITS: i32 = (CONSTANT_BITS + PASS_BITS + 3) as i32;

/// [`interleaved::run`] with BMI2 shifts.
#[target_feature(enable = "avx2,bmi1,bmi2")]
pub(super) fn run(lane: McuRun<'_>) -> McuRun<'_> {
    interleaved::run(lane)
}

/// [`interleaved::run_two`] with BMI2 shifts.
#[target_feature(enable = "avx2,bmi1,bmi2")]
pub(super) fn run_two<'a, 'b>(first: McuRun<'a>, second: McuRun<'b>) -> (McuRun<'a>, McuRun<'b>) {
    interleaved::run_two(first, second)
}

/// [`ScanPass::run`] with BMI2 shifts and PDEP.
#[target_feature(enable = "avx2,bmi1,bmi2")]
pub(super) fn progressive_run(
    pass: &mut ScanPass<'_>,
    stream: &mut Bitstream<'_, '_>,
    coefficients: &mut [Coefficients],
    row: usize,
    columns: Range<usize>,
) -> Result<usize, Error> {
    let spread = |bits, places| _pdep_u64(bits, places);
    pass.run(stream, coefficients, row, columns, spread)
}

/// Row `row` of two blocks, side by side.
#[target_feature(enable = "avx2")]
#[inline]
fn load_rows(first: &[i16; 64], second: &[i16; 64], row: usize) -> __m256i {
    let (first, second) = (&first[row * 8..row * 8 + 8], &second[row * 8..row * 8 + 8]);
    // SAFETY: both slices have the 8 values that are loaded.
    unsafe {
        _mm256_inserti128_si256::<1>(
            _mm256_castsi128_si256(_mm_loadu_si128(first.as_ptr().cast())),
            _mm_loadu_si128(second.as_ptr().cast()),
        )
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn factors([low, high]: [i16; 2]) -> __m256i {
    _mm256_set1_epi32(i32::from(high) << 16 | i32::from(low as u16))
}

/// Transform adjacent blocks to 8 x 8 samples each; row r is written to `out[r * stride..]`.
#[target_feature(enable = "avx2")]
pub(super) fn transform(
    blocks: &[&Block],
    quantization: &[u16; 64],
    out: &mut [u8],
    stride: usize,
) {
    let steps = quantization.map(|step| step as i16);
    let mut pairs = blocks.chunks_exact(2);
    let mut at = 0;
    for pair in &mut pairs {
        let Some(out) = out.get_mut(at..at + 7 * stride + 16) else {
            return;
        };
        let rows = dequantized(pair[0], pair[1], &steps);
        if is_in_range(rows[0]) {
            store_pair(transform_pair(rows), out, stride);
        } else {
            idct::transform(pair[0], quantization, 8, out, stride);
            idct::transform(pair[1], quantization, 8, &mut out[8..], stride);
        }
        at += 16;
    }
    if let ([block], Some(out)) = (pairs.remainder(), out.get_mut(at..at + 7 * stride + 8)) {
        let rows = dequantized(block, block, &steps);
        if is_in_range(rows[0]) {
            store_first(transform_pair(rows), out, stride);
        } else {
            idct::transform(block, quantization, 8, out, stride);
        }
    }
}

/// Dequantized coefficients of two blocks side by side, by row.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn dequantized(first: &Block, second: &Block, steps: &[i16; 64]) -> [__m256i; 8] {
    let mut rows = [_mm256_setzero_si256(); 8];
    for (row, to) in rows.iter_mut().enumerate() {
        let steps = load_rows(steps, steps, row);
        *to = _mm256_mullo_epi16(load_rows(first, second, row), steps);
    }
    rows
}

/// True if the first row has two bits of headroom, as in regular images. Otherwise results depend
/// on libjpeg-turbo's shortcut for single-row blocks, which only the scalar loops reproduce.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn is_in_range(row: __m256i) -> bool {
    let shifted = _mm256_add_epi16(row, _mm256_set1_epi16(1 << 13));
    _mm256_testz_si256(shifted, _mm256_set1_epi16(-1 << 14)) != 0
}

/// Transform two blocks. Each register of the result holds two rows of both blocks.
#[target_feature(enable = "avx2")]
#[inline]
fn transform_pair(rows: [__m256i; 8]) -> [__m256i; 4] {
    let columns = transpose(pass::<FIRST_BITS>(rows));
    bytes_of_columns(pass::<SECOND_BITS>(columns))
}

/// Eight sums for each of two blocks: low and high halves of the lanes.
pub(super) type Sums = [__m256i; 2];

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn pairs(a: __m256i, b: __m256i) -> Sums {
    [_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b)]
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn dot(pairs: Sums, by: [i16; 2]) -> Sums {
    let by = factors(by);
    [
        _mm256_madd_epi16(pairs[0], by),
        _mm256_madd_epi16(pairs[1], by),
    ]
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn add(a: Sums, b: Sums) -> Sums {
    [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])]
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn sub(a: Sums, b: Sums) -> Sums {
    [_mm256_sub_epi32(a[0], b[0]), _mm256_sub_epi32(a[1], b[1])]
}

/// A value times 2^(16 - `SHIFT`), plus half a unit to round to fewer bits.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn scaled<const BITS: i32, const SHIFT: i32>(value: __m256i) -> Sums {
    let half = _mm256_set1_epi32(1 << (BITS - 1));
    let [low, high] = pairs(_mm256_setzero_si256(), value);
    let [low, high] = [
        _mm256_srai_epi32::<SHIFT>(low),
        _mm256_srai_epi32::<SHIFT>(high),
    ];
    add([low, high], [half; 2])
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn down<const BITS: i32>(value: Sums) -> __m256i {
    _mm256_packs_epi32(
        _mm256_srai_epi32::<BITS>(value[0]),
        _mm256_srai_epi32::<BITS>(value[1]),
    )
}

/// One pass over eight registers, as in `idct::eight_points`.
#[target_feature(enable = "avx2")]
#[inline]
fn pass<const BITS: i32>(input: [__m256i; 8]) -> [__m256i; 8] {
    let even_26 = pairs(input[2], input[6]);
    let (sum_3, sum_2) = (dot(even_26, EVEN[0]), dot(even_26, EVEN[1]));
    let sum_0 = scaled::<BITS, 3>(_mm256_add_epi16(input[0], input[4]));
    let sum_1 = scaled::<BITS, 3>(_mm256_sub_epi16(input[0], input[4]));
    let even_0 = add(sum_0, sum_3);
    let even_1 = add(sum_1, sum_2);
    let even_2 = sub(sum_1, sum_2);
    let even_3 = sub(sum_0, sum_3);
    let sum = |a: usize, b: usize| _mm256_add_epi16(input[a], input[b]);
    let cross = pairs(sum(3, 7), sum(1, 5));
    let (cross_3, cross_4) = (dot(cross, CROSS[0]), dot(cross, CROSS[1]));
    let inputs_71 = pairs(input[7], input[1]);
    let inputs_53 = pairs(input[5], input[3]);
    let odd_0 = add(dot(inputs_71, ODD_71[1]), cross_4);
    let odd_1 = add(dot(inputs_53, ODD_53[1]), cross_3);
    let odd_2 = add(dot(inputs_53, ODD_53[0]), cross_4);
    let odd_3 = add(dot(inputs_71, ODD_71[0]), cross_3);
    [
        down::<BITS>(add(even_0, odd_0)),
        down::<BITS>(add(even_1, odd_1)),
        down::<BITS>(add(even_2, odd_2)),
        down::<BITS>(add(even_3, odd_3)),
        down::<BITS>(sub(even_3, odd_3)),
        down::<BITS>(sub(even_2, odd_2)),
        down::<BITS>(sub(even_1, odd_1)),
        down::<BITS>(sub(even_0, odd_0)),
    ]
}

/// Transpose the 8 x 8 values in each half.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn transpose(rows: [__m256i; 8]) -> [__m256i; 8] {
    let a = [
        _mm256_unpacklo_epi16(rows[0], rows[1]),
        _mm256_unpackhi_epi16(rows[0], rows[1]),
        _mm256_unpacklo_epi16(rows[2], rows[3]),
        _mm256_unpackhi_epi16(rows[2], rows[3]),
        _mm256_unpacklo_epi16(rows[4], rows[5]),
        _mm256_unpackhi_epi16(rows[4], rows[5]),
        _mm256_unpacklo_epi16(rows[6], rows[7]),
        _mm256_unpackhi_epi16(rows[6], rows[7]),
    ];
    let b = [
        _mm256_unpacklo_epi32(a[0], a[2]),
        _mm256_unpackhi_epi32(a[0], a[2]),
        _mm256_unpacklo_epi32(a[1], a[3]),
        _mm256_unpackhi_epi32(a[1], a[3]),
        _mm256_unpacklo_epi32(a[4], a[6]),
        _mm256_unpackhi_epi32(a[4], a[6]),
        _mm256_unpacklo_epi32(a[5], a[7]),
        _mm256_unpackhi_epi32(a[5], a[7]),
    ];
    [
        _mm256_unpacklo_epi64(b[0], b[4]),
        _mm256_unpackhi_epi64(b[0], b[4]),
        _mm256_unpacklo_epi64(b[1], b[5]),
        _mm256_unpackhi_epi64(b[1], b[5]),
        _mm256_unpacklo_epi64(b[2], b[6]),
        _mm256_unpackhi_epi64(b[2], b[6]),
        _mm256_unpacklo_epi64(b[3], b[7]),
        _mm256_unpackhi_epi64(b[3], b[7]),
    ]
}

/// Saturate columns to bytes and transpose: register n holds row 2n of both blocks, then row
/// 2n + 1.
#[target_feature(enable = "avx2")]
#[inline]
fn bytes_of_columns(columns: [__m256i; 8]) -> [__m256i; 4] {
    // Columns n and n + 4, eight rows each.
    let packed = [
        _mm256_packs_epi16(columns[0], columns[4]),
        _mm256_packs_epi16(columns[1], columns[5]),
        _mm256_packs_epi16(columns[2], columns[6]),
        _mm256_packs_epi16(columns[3], columns[7]),
    ];
    let left_01 = _mm256_unpacklo_epi8(packed[0], packed[1]);
    let left_23 = _mm256_unpacklo_epi8(packed[2], packed[3]);
    let right_01 = _mm256_unpackhi_epi8(packed[0], packed[1]);
    let right_23 = _mm256_unpackhi_epi8(packed[2], packed[3]);
    // Four columns of rows 0 to 3, and of rows 4 to 7.
    let left = [
        _mm256_unpacklo_epi16(left_01, left_23),
        _mm256_unpackhi_epi16(left_01, left_23),
    ];
    let right = [
        _mm256_unpacklo_epi16(right_01, right_23),
        _mm256_unpackhi_epi16(right_01, right_23),
    ];
    let rows = [
        _mm256_unpacklo_epi32(left[0], right[0]),
        _mm256_unpackhi_epi32(left[0], right[0]),
        _mm256_unpacklo_epi32(left[1], right[1]),
        _mm256_unpackhi_epi32(left[1], right[1]),
    ];
    let [a, b, c, d] = rows;
    [centered(a), centered(b), centered(c), centered(d)]
}

/// Add 128 to each byte and store the rows of both blocks next to each other.
#[target_feature(enable = "avx2")]
#[inline]
fn centered(rows: __m256i) -> __m256i {
    let samples = _mm256_xor_si256(rows, _mm256_set1_epi8(-128));
    _mm256_permute4x64_epi64::<0b11_01_10_00>(samples)
}

#[target_feature(enable = "avx2")]
#[inline]
fn store_pair(rows: [__m256i; 4], out: &mut [u8], stride: usize) {
    assert!(out.len() >= 7 * stride + 16);
    for (at, pair) in rows.into_iter().enumerate() {
        let start = 2 * at * stride;
        // SAFETY: the last row ends at 7 * stride + 16, which was checked.
        unsafe {
            let to = out.as_mut_ptr().add(start);
            _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(pair));
            _mm_storeu_si128(to.add(stride).cast(), _mm256_extracti128_si256::<1>(pair));
        }
    }
}

/// Store the first of two blocks.
#[target_feature(enable = "avx2")]
#[inline]
fn store_first(rows: [__m256i; 4], out: &mut [u8], stride: usize) {
    assert!(out.len() >= 7 * stride + 8);
    for (at, pair) in rows.into_iter().enumerate() {
        let start = 2 * at * stride;
        // SAFETY: the last row ends at 7 * stride + 8, which was checked.
        unsafe {
            let to = out.as_mut_ptr().add(start);
            _mm_storel_epi64(to.cast(), _mm256_castsi256_si128(pair));
            _mm_storel_epi64(to.add(stride).cast(), _mm256_extracti128_si256::<1>(pair));
        }
    }
}
