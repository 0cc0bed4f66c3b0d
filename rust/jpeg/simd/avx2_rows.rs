//! Upsampling and color conversion with AVX2; the same values as the scalar loops.

use std::arch::x86_64::{
    __m128i, __m256i, _mm_loadu_si128, _mm256_add_epi16, _mm256_cvtepu8_epi16, _mm256_loadu_si256,
    _mm256_mulhrs_epi16, _mm256_or_si256, _mm256_packus_epi16, _mm256_permute2x128_si256,
    _mm256_set1_epi16, _mm256_set1_epi32, _mm256_setzero_si256, _mm256_shuffle_epi8,
    _mm256_slli_epi16, _mm256_srli_epi16, _mm256_storeu_si256, _mm256_sub_epi16,
    _mm256_unpackhi_epi8, _mm256_unpacklo_epi8,
};

use super::avx2::{add, dot, down, pairs};
use crate::jpeg::color::{BLUE_15, GREEN_16, RED_15};
use crate::jpeg::upsample::next_start;

#[target_feature(enable = "avx2")]
#[inline]
fn load_16(from: &[u8; 16]) -> __m128i {
    // SAFETY: the array has the 16 bytes that are loaded.
    unsafe { _mm_loadu_si128(from.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
#[inline]
fn load_32(from: &[u8; 32]) -> __m256i {
    // SAFETY: the array has the 32 bytes that are loaded.
    unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
#[inline]
fn store_32(to: &mut [u8; 32], value: __m256i) {
    // SAFETY: the array has the 32 bytes that are stored.
    unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), value) }
}

/// 16 bytes from `at` on, widened to 16 bits.
#[target_feature(enable = "avx2")]
#[inline]
fn widened(from: &[u8], at: usize) -> Option<__m256i> {
    let bytes = from.get(at..).and_then(<[u8]>::first_chunk::<16>)?;
    Some(_mm256_cvtepu8_epi16(load_16(bytes)))
}

#[target_feature(enable = "avx2")]
#[inline]
fn thrice(value: __m256i) -> __m256i {
    _mm256_add_epi16(value, _mm256_add_epi16(value, value))
}

/// Combine neighbors, and interleave left and right pixels.
#[target_feature(enable = "avx2")]
#[inline]
fn weigh<const BITS: i32>([before, here, next]: [__m256i; 3], biases: [i16; 2]) -> __m256i {
    let here = thrice(here);
    let left = _mm256_add_epi16(_mm256_add_epi16(here, before), _mm256_set1_epi16(biases[0]));
    let right = _mm256_add_epi16(_mm256_add_epi16(here, next), _mm256_set1_epi16(biases[1]));
    _mm256_or_si256(
        _mm256_srli_epi16::<BITS>(left),
        _mm256_slli_epi16::<8>(_mm256_srli_epi16::<BITS>(right)),
    )
}

/// Double the width, as [`crate::jpeg::upsample::wide`]. Returns the number of samples done, from
/// the second on.
#[target_feature(enable = "avx2")]
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
        store_32(to, weigh::<2>([before, here, next], [1, 2]));
        done = at + 15;
    }
    done
}

/// Combine two rows.
#[target_feature(enable = "avx2")]
#[inline]
fn weighed(near: &[u8], far: &[u8], at: usize) -> Option<__m256i> {
    Some(_mm256_add_epi16(
        thrice(widened(near, at)?),
        widened(far, at)?,
    ))
}

/// Combine two rows and double the width, as [`crate::jpeg::upsample::both`]. Returns the number of
/// samples done, from the second on.
#[target_feature(enable = "avx2")]
pub(super) fn both(near: &[u8], far: &[u8], out: &mut [u8]) -> usize {
    let mut done = 0;
    while let Some(at) = next_start(done, near.len().min(far.len())) {
        let (Some(before), Some(here), Some(next), Some(to)) = (
            weighed(near, far, at - 1),
            weighed(near, far, at),
            weighed(near, far, at + 1),
            out.get_mut(2 * at..).and_then(<[u8]>::first_chunk_mut),
        ) else {
            break;
        };
        store_32(to, weigh::<4>([before, here, next], [8, 7]));
        done = at + 15;
    }
    done
}

/// Convert `YCbCr` pixels, 32 at a time, as [`crate::jpeg::color::convert`]. Returns the number of
/// pixels done: all, or none of fewer than 32.
#[target_feature(enable = "avx2")]
pub(super) fn convert(luma: &[u8], blue: &[u8], red: &[u8], out: &mut [u8]) -> usize {
    let count = out.len() / 3;
    let Some(last) = count.checked_sub(32) else {
        return 0;
    };
    let mut at = 0;
    loop {
        let (Some(y), Some(cb), Some(cr), Some(out)) = (
            luma.get(at..).and_then(<[u8]>::first_chunk),
            blue.get(at..).and_then(<[u8]>::first_chunk),
            red.get(at..).and_then(<[u8]>::first_chunk),
            out.get_mut(3 * at..)
                .and_then(<[u8]>::first_chunk_mut::<96>),
        ) else {
            return at;
        };
        let rgb = rgb(load_32(y), load_32(cb), load_32(cr));
        let (parts, _) = out.as_chunks_mut::<32>();
        for (value, to) in interleave(rgb).into_iter().zip(parts) {
            store_32(to, value);
        }
        if at == last {
            return count;
        }
        // The last pixels fill a register as well; some are converted twice.
        at = (at + 32).min(last);
    }
}

/// RGB of 32 pixels. All products equal those of [`crate::jpeg::color`], to the bit.
#[target_feature(enable = "avx2")]
#[inline]
fn rgb(y: __m256i, cb: __m256i, cr: __m256i) -> [__m256i; 3] {
    let zero = _mm256_setzero_si256();
    let low = rgb_half(
        _mm256_unpacklo_epi8(y, zero),
        _mm256_unpacklo_epi8(cb, zero),
        _mm256_unpacklo_epi8(cr, zero),
    );
    let high = rgb_half(
        _mm256_unpackhi_epi8(y, zero),
        _mm256_unpackhi_epi8(cb, zero),
        _mm256_unpackhi_epi8(cr, zero),
    );
    [
        _mm256_packus_epi16(low[0], high[0]),
        _mm256_packus_epi16(low[1], high[1]),
        _mm256_packus_epi16(low[2], high[2]),
    ]
}

/// RGB of 16 pixels, before clamping.
#[target_feature(enable = "avx2")]
#[inline]
fn rgb_half(y: __m256i, cb: __m256i, cr: __m256i) -> [__m256i; 3] {
    let center = _mm256_set1_epi16(128);
    let (cb, cr) = (_mm256_sub_epi16(cb, center), _mm256_sub_epi16(cr, center));
    // 1.402 Cr = Cr + 0.402 Cr, and 1.772 Cb = 2 Cb - 0.228 Cb.
    let red = _mm256_add_epi16(cr, _mm256_mulhrs_epi16(cr, _mm256_set1_epi16(RED_15)));
    let blue = _mm256_add_epi16(
        _mm256_add_epi16(cb, cb),
        _mm256_mulhrs_epi16(cb, _mm256_set1_epi16(BLUE_15)),
    );
    // -0.714 Cr = 0.286 Cr - Cr.
    let half = _mm256_set1_epi32(1 << 15);
    let products = add(dot(pairs(cb, cr), GREEN_16), [half, half]);
    let green = _mm256_sub_epi16(down::<16>(products), cr);
    [
        _mm256_add_epi16(y, red),
        _mm256_add_epi16(y, green),
        _mm256_add_epi16(y, blue),
    ]
}

/// Byte positions of each color in 16 bytes of interleaved pixels, for three such parts.
const MASKS: [[[i8; 32]; 3]; 3] = masks();

const fn masks() -> [[[i8; 32]; 3]; 3] {
    let mut masks = [[[-1; 32]; 3]; 3];
    let mut at = 0;
    while at < 3 * 32 {
        let (part, byte) = (at / 32, at % 32);
        let place = part * 16 + byte % 16;
        masks[part][place % 3][byte] = (place / 3) as i8;
        at += 1;
    }
    masks
}

/// 16 bytes of interleaved pixels per half.
#[target_feature(enable = "avx2")]
#[inline]
fn part(rgb: [__m256i; 3], masks: &[[i8; 32]; 3]) -> __m256i {
    let red = _mm256_shuffle_epi8(rgb[0], load_mask(&masks[0]));
    let green = _mm256_shuffle_epi8(rgb[1], load_mask(&masks[1]));
    let blue = _mm256_shuffle_epi8(rgb[2], load_mask(&masks[2]));
    _mm256_or_si256(_mm256_or_si256(red, green), blue)
}

#[target_feature(enable = "avx2")]
#[inline]
fn load_mask(mask: &[i8; 32]) -> __m256i {
    // SAFETY: the array has the 32 bytes that are loaded.
    unsafe { _mm256_loadu_si256(mask.as_ptr().cast()) }
}

/// Interleave red, green and blue.
#[target_feature(enable = "avx2")]
#[inline]
fn interleave(rgb: [__m256i; 3]) -> [__m256i; 3] {
    let [first, second, third] = [
        part(rgb, &MASKS[0]),
        part(rgb, &MASKS[1]),
        part(rgb, &MASKS[2]),
    ];
    [
        _mm256_permute2x128_si256::<0x20>(first, second),
        _mm256_permute2x128_si256::<0x30>(third, first),
        _mm256_permute2x128_si256::<0x31>(second, third),
    ]
}
