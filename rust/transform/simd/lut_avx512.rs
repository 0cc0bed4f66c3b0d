//! Byte lookup tables with AVX-512 and VBMI, 64 bytes at a time.

#[allow(clippy::wildcard_imports)] // Intrinsics.
use std::arch::x86_64::*;

use crate::cpu_features::Instructions;

/// Number of bytes per register.
const BYTES: usize = 64;

/// Map the bytes of RGB pixels through one table per channel if the processor supports it. Returns
/// the number of bytes processed, a multiple of three.
pub(crate) fn look_up(pixels: &mut [u8], tables: &[[u8; 256]; 3]) -> usize {
    if Instructions::best() < Instructions::Avx512 {
        return 0;
    }
    let (blocks, _) = pixels.as_chunks_mut::<{ 3 * BYTES }>();
    let [red, green, blue] = tables;
    // SAFETY: the processor supports the instructions, as checked.
    unsafe {
        if red == green && green == blue {
            look_up_gray(blocks, red);
        } else {
            look_up_colors(blocks, tables);
        }
    }
    blocks.len() * 3 * BYTES
}

#[target_feature(enable = "avx512f")]
fn registers(table: &[u8; 256]) -> [__m512i; 4] {
    let start = table.as_ptr();
    // SAFETY: four times 64 bytes are loaded, the length of the table.
    unsafe {
        [
            _mm512_loadu_si512(start.cast()),
            _mm512_loadu_si512(start.add(BYTES).cast()),
            _mm512_loadu_si512(start.add(2 * BYTES).cast()),
            _mm512_loadu_si512(start.add(3 * BYTES).cast()),
        ]
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
#[inline]
fn values(table: &[__m512i; 4], bytes: __m512i) -> __m512i {
    let low = _mm512_permutex2var_epi8(table[0], bytes, table[1]);
    let high = _mm512_permutex2var_epi8(table[2], bytes, table[3]);
    _mm512_mask_blend_epi8(_mm512_movepi8_mask(bytes), low, high)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn look_up_gray(blocks: &mut [[u8; 3 * BYTES]], table: &[u8; 256]) {
    let table = registers(table);
    for bytes in blocks.as_flattened_mut().as_chunks_mut::<BYTES>().0 {
        let place = bytes.as_mut_ptr().cast();
        // SAFETY: 64 bytes are loaded and stored, the length of the chunk.
        unsafe { _mm512_storeu_si512(place, values(&table, _mm512_loadu_si512(place))) };
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn look_up_colors(blocks: &mut [[u8; 3 * BYTES]], tables: &[[u8; 256]; 3]) {
    /// Mask of every third byte, starting with the first.
    const THIRDS: u64 = 0x9249_2492_4924_9249;
    let red = registers(&tables[0]);
    let green = registers(&tables[1]);
    let blue = registers(&tables[2]);
    for block in blocks {
        for (part, bytes) in block.as_chunks_mut::<BYTES>().0.iter_mut().enumerate() {
            // 64 bytes are 21 pixels and one byte.
            let shift = |channel: usize| THIRDS << ((channel + 2 * part) % 3);
            let place = bytes.as_mut_ptr().cast();
            // SAFETY: 64 bytes are loaded and stored, the length of the chunk.
            unsafe {
                let bytes = _mm512_loadu_si512(place);
                let found = values(&red, bytes);
                let found = _mm512_mask_mov_epi8(found, shift(1), values(&green, bytes));
                let found = _mm512_mask_mov_epi8(found, shift(2), values(&blue, bytes));
                _mm512_storeu_si512(place, found);
            }
        }
    }
}
