//! Normalize rows with AVX2, FMA and F16C.
//!
//! All functions require the features of [`crate::cpu_features::Instructions::Avx2`].

#[allow(clippy::wildcard_imports)] // Intrinsics.
use std::arch::x86_64::*;

use crate::normalize::layout::Dtype;
use crate::normalize::simd::{Arithmetic, RECIPROCAL};

/// Values per register.
const LANES: usize = 8;
/// Values per step: three registers, so that the pattern of interleaved channels repeats.
const STEP: usize = 3 * LANES;
/// Pixels per 16-byte shuffle.
const PIXELS: usize = 5;

/// Mirror a row, swap red and blue, or both.
///
/// `output` has room for the row and one more byte.
#[target_feature(enable = "avx2")]
pub(crate) fn reorder(row: &[u8], flip: bool, swap: bool, output: &mut [u8]) {
    assert!(output.len() > row.len());
    let mut index = [0x80_u8; 16];
    for (place, entry) in (0_u8..15).zip(&mut index) {
        let (pixel, channel) = (place / 3, place % 3);
        let pixel = if flip { 4 - pixel } else { pixel };
        *entry = pixel * 3 + if swap { 2 - channel } else { channel };
    }
    // SAFETY: the array has 16 bytes.
    let index = unsafe { _mm_loadu_si128(index.as_ptr().cast()) };
    let pixels = row.len() / 3;
    let mut done = 0;
    // One more pixel must follow, since sixteen bytes are loaded and stored.
    while done + PIXELS < pixels {
        let start = if flip { pixels - PIXELS - done } else { done };
        let (start, shift) = if start * 3 + 16 > row.len() {
            (row.len() - 16, true)
        } else {
            (start * 3, false)
        };
        // SAFETY: sixteen bytes of the row are loaded; sixteen are stored, the last of which is
        // inside the output.
        unsafe {
            let mut bytes = _mm_loadu_si128(row.as_ptr().add(start).cast());
            if shift {
                bytes = _mm_srli_si128::<1>(bytes);
            }
            let bytes = _mm_shuffle_epi8(bytes, index);
            _mm_storeu_si128(output.as_mut_ptr().add(done * 3).cast(), bytes);
        }
        done += PIXELS;
    }
    for x in done..pixels {
        let from = if flip { pixels - 1 - x } else { x } * 3;
        for channel in 0..3 {
            output[x * 3 + channel] = row[from + if swap { 2 - channel } else { channel }];
        }
    }
}

/// Convert bytes to values with the arithmetic of three channels in turn, or of the same channel
/// three times.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn convert(arithmetic: &[Arithmetic; 3], bytes: &[u8], dtype: Dtype, output: &mut [u8]) {
    match dtype {
        Dtype::Uint8 => {
            if let Some(output) = output.get_mut(..bytes.len()) {
                output.copy_from_slice(bytes);
            }
        }
        Dtype::BFloat16 => convert_to::<2, true>(arithmetic, bytes, output),
        Dtype::Float16 => convert_to::<2, false>(arithmetic, bytes, output),
        Dtype::Float32 => convert_to::<4, false>(arithmetic, bytes, output),
    }
}

/// Arithmetic constants for [`STEP`] values.
struct Constants {
    mean: [__m256; 3],
    scale: [[__m256; 3]; 2],
}

#[target_feature(enable = "avx2,fma,f16c")]
fn convert_to<const SIZE: usize, const BRAIN: bool>(
    arithmetic: &[Arithmetic; 3],
    bytes: &[u8],
    output: &mut [u8],
) {
    let mut table = [[0_f32; STEP]; 3];
    for (lane, of_channel) in (0..STEP).zip(arithmetic.iter().cycle()) {
        table[0][lane] = of_channel.mean;
        table[1][lane] = of_channel.scale[0];
        table[2][lane] = of_channel.scale[1];
    }
    let constants = Constants {
        mean: registers(&table[0]),
        scale: [registers(&table[1]), registers(&table[2])],
    };
    let (steps, rest) = bytes.as_chunks::<STEP>();
    let mut outputs = output.chunks_exact_mut(SIZE * STEP);
    for (bytes, output) in steps.iter().zip(outputs.by_ref()) {
        step::<SIZE, BRAIN>(&constants, bytes, output);
    }
    if !rest.is_empty() {
        let (mut padded, mut values) = ([0; STEP], [0; 4 * STEP]);
        padded[..rest.len()].copy_from_slice(rest);
        step::<SIZE, BRAIN>(&constants, &padded, &mut values[..SIZE * STEP]);
        let end = &mut output[steps.len() * SIZE * STEP..][..rest.len() * SIZE];
        end.copy_from_slice(&values[..rest.len() * SIZE]);
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn registers(values: &[f32; STEP]) -> [__m256; 3] {
    let start = values.as_ptr();
    // SAFETY: three times eight values are loaded, which is all of them.
    unsafe {
        [
            _mm256_loadu_ps(start),
            _mm256_loadu_ps(start.add(LANES)),
            _mm256_loadu_ps(start.add(2 * LANES)),
        ]
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn step<const SIZE: usize, const BRAIN: bool>(
    constants: &Constants,
    bytes: &[u8; STEP],
    output: &mut [u8],
) {
    assert!(output.len() >= SIZE * STEP);
    let reciprocal = RECIPROCAL.map(|part| _mm256_set1_ps(part));
    for part in 0..3 {
        let place = part * LANES;
        // SAFETY: eight bytes are loaded from each third of 24 bytes.
        let eight = unsafe { _mm_loadl_epi64(bytes.as_ptr().add(place).cast()) };
        let values = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(eight));
        let low = _mm256_mul_ps(values, reciprocal[1]);
        let unit = _mm256_fmadd_ps(values, reciprocal[0], low);
        let centered = _mm256_sub_ps(unit, constants.mean[part]);
        let low = _mm256_mul_ps(centered, constants.scale[1][part]);
        let scaled = _mm256_fmadd_ps(centered, constants.scale[0][part], low);
        // SAFETY: 8 * SIZE bytes are stored to each third, which is its length.
        unsafe {
            let target = output.as_mut_ptr().add(place * SIZE);
            if SIZE == 4 {
                _mm256_storeu_ps(target.cast(), scaled);
            } else if BRAIN {
                _mm_storeu_si128(target.cast(), upper_halves(scaled));
            } else {
                let half = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(scaled);
                _mm_storeu_si128(target.cast(), half);
            }
        }
    }
}

/// Upper halves of the values, rounded to nearest even; there are no NaNs.
#[target_feature(enable = "avx2")]
#[inline]
fn upper_halves(values: __m256) -> __m128i {
    let bits = _mm256_castps_si256(values);
    let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
    let half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF));
    let rounded = _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, half));
    let (low, high) = (
        _mm256_castsi256_si128(rounded),
        _mm256_extracti128_si256::<1>(rounded),
    );
    _mm_packus_epi32(low, high)
}
