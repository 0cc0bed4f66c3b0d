//! Normalize rows with AVX-512 and VBMI: 64 bytes per table lookup.
//!
//! All functions require the features of [`crate::cpu_features::Instructions::Avx512`].

#[allow(clippy::wildcard_imports)] // Intrinsics.
use std::arch::x86_64::*;

use crate::normalize::layout::Dtype;
use crate::normalize::simd::MARGIN;

const BYTES: usize = 64;

/// Look up `output.len()` bytes of `planes` from `start` on, optionally mirrored. The margins
/// around them must be readable.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
pub(crate) fn look_up(
    tables: &[[u8; 256]; 4],
    planes: &[u8],
    start: usize,
    flip: bool,
    dtype: Dtype,
    output: &mut [u8],
) {
    match dtype {
        Dtype::Uint8 => look_up_to::<1>(tables, planes, start, flip, output),
        Dtype::BFloat16 | Dtype::Float16 => look_up_to::<2>(tables, planes, start, flip, output),
        Dtype::Float32 => look_up_to::<4>(tables, planes, start, flip, output),
    }
}

/// Byte permutation that keeps the interleaved parts of the values in order.
fn order(size: usize, flip: bool) -> [u8; BYTES] {
    let mut index = [0; BYTES];
    // Unpack instructions work within 128-bit lanes.
    let (part, per_register) = (16 / size, 64 / size);
    for (place, entry) in index.iter_mut().enumerate() {
        let (lane, within) = (place / 16, place % 16);
        let value = within / part * per_register + lane * part + within % part;
        let value = if flip { BYTES - 1 - value } else { value };
        *entry = value.to_le_bytes()[0];
    }
    index
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn look_up_to<const SIZE: usize>(
    tables: &[[u8; 256]; 4],
    planes: &[u8],
    start: usize,
    flip: bool,
    output: &mut [u8],
) {
    let count = output.len() / SIZE;
    assert!(start >= MARGIN && start + count + MARGIN <= planes.len());
    let mut registers = [[_mm512_setzero_si512(); 4]; SIZE];
    for (registers, table) in registers.iter_mut().zip(tables) {
        for (register, bytes) in registers.iter_mut().zip(table.as_chunks::<BYTES>().0) {
            // SAFETY: the array has 64 bytes.
            *register = unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) };
        }
    }
    let order = order(SIZE, flip);
    // SAFETY: the array has 64 bytes.
    let order = unsafe { _mm512_loadu_si512(order.as_ptr().cast()) };
    let mut done = 0;
    while done < count {
        let from = if flip {
            start + count - done - BYTES
        } else {
            start + done
        };
        // SAFETY: at most 64 bytes before the start or after the end are loaded; they are inside
        // the planes, as checked.
        let bytes = unsafe { _mm512_loadu_si512(planes.as_ptr().add(from).cast()) };
        let bytes = _mm512_permutexvar_epi8(order, bytes);
        let upper = _mm512_movepi8_mask(bytes);
        let mut parts = [_mm512_setzero_si512(); SIZE];
        for (part, table) in parts.iter_mut().zip(&registers) {
            *part = if SIZE == 1 {
                bytes
            } else {
                let low = _mm512_permutex2var_epi8(table[0], bytes, table[1]);
                let high = _mm512_permutex2var_epi8(table[2], bytes, table[3]);
                _mm512_mask_blend_epi8(upper, low, high)
            };
        }
        let values = together(parts);
        for (number, values) in values.into_iter().enumerate() {
            let place = done * SIZE + number * BYTES;
            let room = output.get_mut(place..).unwrap_or_default();
            // A fully masked store to an invalid address is allowed but takes hundreds of cycles.
            if room.is_empty() {
                break;
            }
            // SAFETY: the mask stores at most the bytes that are left.
            unsafe {
                if room.len() >= BYTES {
                    _mm512_storeu_si512(room.as_mut_ptr().cast(), values);
                } else {
                    let mask = (1 << room.len()) - 1;
                    _mm512_mask_storeu_epi8(room.as_mut_ptr().cast(), mask, values);
                }
            }
        }
        done += BYTES;
    }
}

/// Interleave the parts of each value.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn together<const SIZE: usize>(parts: [__m512i; SIZE]) -> [__m512i; SIZE] {
    let mut values = parts;
    if SIZE >= 2 {
        for pair in 0..SIZE / 2 {
            let (first, second) = (parts[2 * pair], parts[2 * pair + 1]);
            values[2 * pair] = _mm512_unpacklo_epi8(first, second);
            values[2 * pair + 1] = _mm512_unpackhi_epi8(first, second);
        }
    }
    if SIZE == 4 {
        let pairs = values;
        for half in 0..2 {
            let (low, high) = (pairs[half], pairs[half + 2]);
            values[2 * half] = _mm512_unpacklo_epi16(low, high);
            values[2 * half + 1] = _mm512_unpackhi_epi16(low, high);
        }
    }
    values
}
