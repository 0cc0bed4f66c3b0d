//! Inverse DCT to 4 x 4 and 2 x 2 samples with AVX2; results match the scalar loops.

#[allow(clippy::wildcard_imports)] // Intrinsics.
use std::arch::x86_64::*;

use super::avx2::{add, dequantized, dot, down, is_in_range, pairs, scaled, sub, transpose};
use crate::jpeg::block::Block;
use crate::jpeg::pixels::idct::{
    self, CONSTANT_BITS, FOUR_EVEN, FOUR_ODD_13, FOUR_ODD_57, PASS_BITS, TWO_13, TWO_57,
};

const FIRST_BITS: i32 = (CONSTANT_BITS - PASS_BITS + 1) as i32;
const SECOND_BITS: i32 = (CONSTANT_BITS + PASS_BITS + 3 + 1) as i32;

/// Transform adjacent blocks to 4 x 4 samples each; row r is written to `out[r * stride..]`.
#[target_feature(enable = "avx2")]
pub(super) fn four(blocks: &[&Block], quantization: &[u16; 64], out: &mut [u8], stride: usize) {
    let steps = quantization.map(|step| step as i16);
    let mut pairs = blocks.chunks_exact(2);
    let mut at = 0;
    for pair in &mut pairs {
        let Some(out) = out.get_mut(at..at + 3 * stride + 8) else {
            return;
        };
        let rows = dequantized(pair[0], pair[1], &steps);
        if is_in_range(rows[0]) {
            store_four(four_of_pair(rows), out, stride);
        } else {
            idct::transform(pair[0], quantization, 4, out, stride);
            idct::transform(pair[1], quantization, 4, &mut out[4..], stride);
        }
        at += 8;
    }
    for block in pairs.remainder() {
        let out = out.get_mut(at..).unwrap_or_default();
        idct::transform(block, quantization, 4, out, stride);
    }
}

/// Transform two blocks. Returns four rows of four samples each, one block per half.
#[target_feature(enable = "avx2")]
#[inline]
fn four_of_pair(rows: [__m256i; 8]) -> __m256i {
    let zero = _mm256_setzero_si256();
    let [first, second, third, fourth] = pass::<FIRST_BITS>(rows);
    let columns = transpose([first, second, third, fourth, zero, zero, zero, zero]);
    let [first, second, third, fourth] = pass::<SECOND_BITS>(columns);
    let left = _mm256_unpacklo_epi16(first, second);
    let right = _mm256_unpacklo_epi16(third, fourth);
    let samples = _mm256_packs_epi16(
        _mm256_unpacklo_epi32(left, right),
        _mm256_unpackhi_epi32(left, right),
    );
    _mm256_xor_si256(samples, _mm256_set1_epi8(-128))
}

/// One pass over eight registers (the fifth is unused), as in `idct::four_points`.
#[target_feature(enable = "avx2")]
#[inline]
fn pass<const BITS: i32>(input: [__m256i; 8]) -> [__m256i; 4] {
    let sum = scaled::<BITS, 2>(input[0]);
    let even = dot(pairs(input[2], input[6]), FOUR_EVEN);
    let (even_0, even_2) = (add(sum, even), sub(sum, even));
    let inputs_13 = pairs(input[1], input[3]);
    let inputs_57 = pairs(input[5], input[7]);
    let odd = |at: usize| {
        add(
            dot(inputs_13, FOUR_ODD_13[at]),
            dot(inputs_57, FOUR_ODD_57[at]),
        )
    };
    let (odd_0, odd_2) = (odd(0), odd(1));
    [
        down::<BITS>(add(even_0, odd_2)),
        down::<BITS>(add(even_2, odd_0)),
        down::<BITS>(sub(even_2, odd_0)),
        down::<BITS>(sub(even_0, odd_2)),
    ]
}

#[target_feature(enable = "avx2")]
#[inline]
fn store_four(samples: __m256i, out: &mut [u8], stride: usize) {
    assert!(out.len() >= 3 * stride + 8);
    let first = _mm256_castsi256_si128(samples);
    let second = _mm256_extracti128_si256::<1>(samples);
    let upper = _mm_unpacklo_epi32(first, second);
    let lower = _mm_unpackhi_epi32(first, second);
    let rows: [__m128i; 4] = [
        upper,
        _mm_unpackhi_epi64(upper, upper),
        lower,
        _mm_unpackhi_epi64(lower, lower),
    ];
    for (at, row) in rows.into_iter().enumerate() {
        // SAFETY: the last row ends at 3 * stride + 8, which was checked.
        unsafe { _mm_storel_epi64(out.as_mut_ptr().add(at * stride).cast(), row) };
    }
}

/// Fraction bits of the two passes of the 2 x 2 transform.
const TWO_FIRST_BITS: i32 = (CONSTANT_BITS - PASS_BITS + 2) as i32;
const TWO_SECOND_BITS: i32 = (CONSTANT_BITS + PASS_BITS + 3 + 2) as i32;
const TWO_SCALE: i32 = (CONSTANT_BITS + 2) as i32;

/// Transform adjacent blocks to 2 x 2 samples each; row r is written to `out[r * stride..]`.
#[target_feature(enable = "avx2")]
pub(super) fn two(blocks: &[&Block], quantization: &[u16; 64], out: &mut [u8], stride: usize) {
    let steps = quantization.map(|step| step as i16);
    let mut pairs = blocks.chunks_exact(2);
    let mut at = 0;
    for pair in &mut pairs {
        let Some(out) = out.get_mut(at..at + stride + 4) else {
            return;
        };
        let samples = two_of_pair(dequantized(pair[0], pair[1], &steps));
        for (block, [a, b, c, d]) in samples.into_iter().enumerate() {
            out[2 * block..][..2].copy_from_slice(&[a, b]);
            out[stride + 2 * block..][..2].copy_from_slice(&[c, d]);
        }
        at += 4;
    }
    for block in pairs.remainder() {
        let out = out.get_mut(at..).unwrap_or_default();
        idct::transform(block, quantization, 2, out, stride);
    }
}

/// Transform two blocks. Returns the four samples of each in row-major order.
#[target_feature(enable = "avx2")]
#[inline]
fn two_of_pair(rows: [__m256i; 8]) -> [[u8; 4]; 2] {
    let base = scaled::<TWO_FIRST_BITS, 1>(rows[0]);
    let odd = add(
        dot(pairs(rows[1], rows[3]), TWO_13),
        dot(pairs(rows[5], rows[7]), TWO_57),
    );
    let upper = add(base, odd).map(|sum| _mm256_srai_epi32::<TWO_FIRST_BITS>(sum));
    let lower = sub(base, odd).map(|sum| _mm256_srai_epi32::<TWO_FIRST_BITS>(sum));
    // Of the other columns only 1, 3, 5 and 7 are used; they are saturated, the first is not.
    let (a, b, c, d) = (TWO_13[0], TWO_13[1], TWO_57[0], TWO_57[1]);
    let factors = _mm256_setr_epi16(0, a, 0, b, 0, c, 0, d, 0, a, 0, b, 0, c, 0, d);
    let products = _mm256_hadd_epi32(
        _mm256_madd_epi16(_mm256_packs_epi32(upper[0], upper[1]), factors),
        _mm256_madd_epi16(_mm256_packs_epi32(lower[0], lower[1]), factors),
    );
    let odd = _mm256_hadd_epi32(products, products);
    let base = _mm256_add_epi32(
        _mm256_slli_epi32::<TWO_SCALE>(_mm256_unpacklo_epi32(upper[0], lower[0])),
        _mm256_set1_epi32(1 << (TWO_SECOND_BITS - 1)),
    );
    let left = _mm256_srai_epi32::<TWO_SECOND_BITS>(_mm256_add_epi32(base, odd));
    let right = _mm256_srai_epi32::<TWO_SECOND_BITS>(_mm256_sub_epi32(base, odd));
    let rows = _mm256_unpacklo_epi32(left, right);
    let limited = _mm256_packs_epi32(rows, rows);
    let samples = _mm256_xor_si256(_mm256_packs_epi16(limited, limited), _mm256_set1_epi8(-128));
    [
        _mm256_extract_epi32::<0>(samples).to_le_bytes(),
        _mm256_extract_epi32::<4>(samples).to_le_bytes(),
    ]
}
