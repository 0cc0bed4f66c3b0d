//! Upsampling and color conversion with AVX2; results match the scalar loops.

#[allow(clippy::wildcard_imports)] // Intrinsics.
use std::arch::x86_64::*;

use super::avx2::{add, dot, down, pairs};
use super::row_loops::row_loops;
use crate::jpeg::pixels::color::{BLUE_15, GREEN_16, RED_15};
use crate::jpeg::pixels::upsample::next_start;
use crate::simd::avx2::{load, merge_planes};

row_loops!("avx2", 32);

/// Load 16 bytes, starting at `at`, and widen them to 16 bits.
#[target_feature(enable = "avx2")]
#[inline]
fn widened(from: &[u8], at: usize) -> Option<__m256i> {
    let bytes = from.get(at..).and_then(<[u8]>::first_chunk::<16>)?;
    // SAFETY: the array has the 16 bytes that are loaded.
    let bytes = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
    Some(_mm256_cvtepu8_epi16(bytes))
}

#[target_feature(enable = "avx2")]
#[inline]
fn thrice(value: __m256i) -> __m256i {
    _mm256_add_epi16(value, _mm256_add_epi16(value, value))
}

/// Blend neighbors and store left and right pixels interleaved.
#[target_feature(enable = "avx2")]
#[inline]
fn weigh<const BITS: i32>([before, here, next]: [__m256i; 3], biases: [i16; 2], to: &mut [u8; 32]) {
    let here = thrice(here);
    let left = _mm256_add_epi16(_mm256_add_epi16(here, before), _mm256_set1_epi16(biases[0]));
    let right = _mm256_add_epi16(_mm256_add_epi16(here, next), _mm256_set1_epi16(biases[1]));
    let right = _mm256_slli_epi16::<8>(_mm256_srli_epi16::<BITS>(right));
    let both = _mm256_or_si256(_mm256_srli_epi16::<BITS>(left), right);
    // SAFETY: the array has the 32 bytes that are stored.
    unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), both) };
}

/// Blend two rows.
#[target_feature(enable = "avx2")]
#[inline]
fn weighed(near: &[u8], far: &[u8], at: usize) -> Option<__m256i> {
    let (near, far) = (widened(near, at)?, widened(far, at)?);
    Some(_mm256_add_epi16(thrice(near), far))
}

/// Convert 32 pixels, bit-exact with [`crate::jpeg::pixels::color`].
#[target_feature(enable = "avx2")]
#[inline]
fn convert_part(y: &[u8; 32], cb: &[u8; 32], cr: &[u8; 32], out: &mut [u8; 96]) {
    let zero = _mm256_setzero_si256();
    // SAFETY: the arrays have the 32 bytes that are loaded.
    let [y, cb, cr] = [y, cb, cr].map(|bytes| unsafe { load(bytes.as_ptr()) });
    let low = rgb_half([y, cb, cr].map(|bytes| _mm256_unpacklo_epi8(bytes, zero)));
    let high = rgb_half([y, cb, cr].map(|bytes| _mm256_unpackhi_epi8(bytes, zero)));
    let rgb = [0, 1, 2].map(|color| _mm256_packus_epi16(low[color], high[color]));
    merge_planes(rgb, out);
}

/// RGB values of 16 pixels, before clamping.
#[target_feature(enable = "avx2")]
#[inline]
fn rgb_half([y, cb, cr]: [__m256i; 3]) -> [__m256i; 3] {
    let center = _mm256_set1_epi16(128);
    let (cb, cr) = (_mm256_sub_epi16(cb, center), _mm256_sub_epi16(cr, center));
    // 1.402 Cr = Cr + 0.402 Cr, and 1.772 Cb = 2 Cb - 0.228 Cb.
    let red = _mm256_add_epi16(cr, _mm256_mulhrs_epi16(cr, _mm256_set1_epi16(RED_15)));
    let product = _mm256_mulhrs_epi16(cb, _mm256_set1_epi16(BLUE_15));
    let blue = _mm256_add_epi16(_mm256_add_epi16(cb, cb), product);
    // -0.714 Cr = 0.286 Cr - Cr.
    let half = _mm256_set1_epi32(1 << 15);
    let products = add(dot(pairs(cb, cr), GREEN_16), [half, half]);
    let green = _mm256_sub_epi16(down::<16>(products), cr);
    [red, green, blue].map(|color| _mm256_add_epi16(y, color))
}
