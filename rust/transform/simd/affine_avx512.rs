//! Affine warps with AVX-512 and VBMI, sixteen pixels at a time, bit-exact with
//! [`crate::transform::affine`].

// All numbers are far below the limits of their target types.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss
)]

#[allow(clippy::wildcard_imports)] // Intrinsics.
use std::arch::x86_64::*;

use crate::cpu_features::Instructions;
use crate::image::Rgb;
use crate::simd::INTEGER;
use crate::transform::affine::FILL;
use crate::transform::affine_rows::at_border;

/// Number of pixels per step, as in OpenCV's vector loop.
const LANES: usize = 16;

/// Warp an image if the processor supports it; each coordinate is `c[0] * x + c[1] * y + c[2]`.
///
/// Returns false if not supported. `output` has the length of the image, which is not empty.
pub(crate) fn warp(image: &Rgb, x: [f32; 3], y: [f32; 3], output: &mut [u8]) -> bool {
    if Instructions::best() < Instructions::Avx512 {
        return false;
    }
    // A coordinate that is the output's plus an integer needs only one neighbor.
    let (across, down) = (!is_whole([x[0], x[1], x[2]]), !is_whole([y[1], y[0], y[2]]));
    // SAFETY: the processor supports the instructions, as checked.
    unsafe {
        match (across, down) {
            (true, true) => rows::<true, true>(image, x, y, output),
            (true, false) => rows::<true, false>(image, x, y, output),
            (false, true) => rows::<false, true>(image, x, y, output),
            (false, false) => rows::<false, false>(image, x, y, output),
        }
    }
    true
}

/// True if the coordinate is the output's plus an integer that single precision represents exactly.
#[allow(clippy::float_cmp)] // Exact comparison is intended.
fn is_whole([own, other, offset]: [f32; 3]) -> bool {
    own == 1.0 && other == 0.0 && offset.fract() == 0.0 && offset.abs() < 4_194_304.0
}

/// Byte indices of a pixel and its right neighbor for each channel, as 32-bit numbers: for sixteen
/// neighbors in groups of eight bytes, or for a row of pixels.
struct Index {
    pairs: [[__m512i; 2]; 3],
    row: [[__m512i; 2]; 3],
    /// Pack the low bytes of red and green, then of the result and blue.
    merge: [__m512i; 2],
}

impl Index {
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    fn new() -> Self {
        let mut index = Self {
            pairs: [[_mm512_setzero_si512(); 2]; 3],
            row: [[_mm512_setzero_si512(); 2]; 3],
            merge: [_mm512_setzero_si512(); 2],
        };
        for channel in 0..3 {
            for side in 0..2 {
                index.pairs[channel][side] = every_fourth(8, channel + 3 * side);
                index.row[channel][side] = every_fourth(3, channel + 3 * side);
            }
        }
        let (mut two, mut three) = ([0_u8; 64], [0_u8; 64]);
        for (place, (two, three)) in (0_u8..48).zip(two.iter_mut().zip(&mut three)) {
            let (pixel, channel) = (place / 3, place % 3);
            *two = pixel * 4 + if channel == 1 { 64 } else { 0 };
            *three = if channel == 2 { 64 + pixel * 4 } else { place };
        }
        index.merge = [register(&two), register(&three)];
        index
    }
}

/// Broadcast the index of each of sixteen pixels to its four bytes.
#[target_feature(enable = "avx512f")]
fn every_fourth(step: usize, first: usize) -> __m512i {
    let mut bytes = [0; 64];
    for (pixel, lane) in bytes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        lane[0] = (pixel * step + first).to_le_bytes()[0];
    }
    register(&bytes)
}

#[target_feature(enable = "avx512f")]
#[inline]
fn register(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: the array has 64 bytes.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

/// Sources of sixteen pixels: columns and rows of the top left neighbors, and the fractions.
struct Places {
    columns: __m512i,
    rows: __m512i,
    across: __m512,
    down: __m512,
}

/// One source coordinate in row `y` of the output, for sixteen columns starting at `first`.
#[target_feature(enable = "avx512f")]
#[inline]
fn locate(coordinate: [f32; 3], y: usize, first: usize, is_block: bool) -> (__m512i, __m512) {
    let [per_x, per_y, offset] = coordinate;
    let of_row = y as f32 * per_y;
    let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    let columns = _mm512_cvtepi32_ps(_mm512_add_epi32(lanes, _mm512_set1_epi32(first as i32)));
    let per_x = _mm512_set1_ps(per_x);
    // The scalar tail adds in a different order.
    let source = if is_block {
        _mm512_fmadd_ps(per_x, columns, _mm512_set1_ps(of_row + offset))
    } else {
        let sum = _mm512_fmadd_ps(per_x, columns, _mm512_set1_ps(of_row));
        _mm512_add_ps(sum, _mm512_set1_ps(offset))
    };
    let floor = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(source);
    let integer = _mm512_castps_si512(_mm512_add_ps(floor, _mm512_set1_ps(INTEGER)));
    let whole = _mm512_sub_epi32(integer, _mm512_set1_epi32(INTEGER.to_bits() as i32));
    (whole, _mm512_sub_ps(source, floor))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn rows<const ACROSS: bool, const DOWN: bool>(
    image: &Rgb,
    x: [f32; 3],
    y: [f32; 3],
    output: &mut [u8],
) {
    let index = Index::new();
    for (number, row) in output.chunks_exact_mut(image.width * 3).enumerate() {
        for (block, pixels) in row.chunks_mut(3 * LANES).enumerate() {
            let first = block * LANES;
            let is_block = pixels.len() == 3 * LANES;
            let (columns, across) = locate(x, number, first, is_block);
            let (rows, down) = locate(y, number, first, is_block);
            let places = Places {
                columns,
                rows,
                across,
                down,
            };
            let values = block_of::<ACROSS, DOWN>(image, &index, &places);
            let mask = (1_u64 << pixels.len()) - 1;
            // SAFETY: the mask limits the store to the remaining bytes.
            unsafe { _mm512_mask_storeu_epi8(pixels.as_mut_ptr().cast(), mask, values) };
        }
    }
}

/// Sixteen output pixels as bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
#[inline]
fn block_of<const ACROSS: bool, const DOWN: bool>(
    image: &Rgb,
    index: &Index,
    places: &Places,
) -> __m512i {
    let (height, width) = (image.height as i32, image.width as i32);
    let below = |limit: i32, values| _mm512_cmplt_epu32_mask(values, _mm512_set1_epi32(limit));
    let inside = below(height - 1, places.rows) & below(width - 1, places.columns);
    if inside == 0 {
        let one = _mm512_set1_epi32(1);
        // True for -1 and above.
        let near = below(height + 1, _mm512_add_epi32(places.rows, one))
            & below(width + 1, _mm512_add_epi32(places.columns, one));
        if near == 0 {
            let outside = [_mm512_set1_epi8(FILL as i8); 2];
            return interpolate::<ACROSS, DOWN>(&index.row, index.merge, outside, outside, places);
        }
    }
    let stride = image.width * 3;
    let columns = _mm512_mullo_epi32(places.rows, _mm512_set1_epi32(width));
    let pixels = _mm512_add_epi32(columns, places.columns);
    let starts = _mm512_add_epi32(_mm512_slli_epi32::<1>(pixels), pixels);
    // Eight bytes are loaded, starting at the first pixel of a pair.
    let last = image.pixels.len().checked_sub(stride + 8);
    let readable = last.map_or(0, |last| {
        inside & _mm512_cmple_epu32_mask(starts, _mm512_set1_epi32(last as i32))
    });
    let mut numbers = [0_u32; LANES];
    // SAFETY: the array has 64 bytes.
    unsafe { _mm512_storeu_si512(numbers.as_mut_ptr().cast(), starts) };
    if readable != 0xFFFF {
        return mixed::<ACROSS, DOWN>(image, index, places, &numbers, readable);
    }
    let first = numbers[0] as usize;
    let steps = _mm512_setr_epi32(0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 36, 39, 42, 45);
    let in_row = _mm512_add_epi32(steps, _mm512_set1_epi32(first as i32));
    if !DOWN
        && _mm512_cmpeq_epi32_mask(in_row, starts) == 0xFFFF
        && let Some(bytes) = image.pixels[first..].first_chunk::<64>()
    {
        let row = register(bytes);
        let sides = [row, row];
        return interpolate::<ACROSS, DOWN>(&index.row, index.merge, sides, sides, places);
    }
    let start = image.pixels.as_ptr();
    // SAFETY: eight bytes are readable at every offset and one row below it.
    let (upper, lower) = unsafe {
        let lower = if DOWN {
            fetch(start.add(stride), &numbers)
        } else {
            [_mm512_setzero_si512(); 2]
        };
        (fetch(start, &numbers), lower)
    };
    interpolate::<ACROSS, DOWN>(&index.pairs, index.merge, upper, lower, places)
}

/// Gather sixteen times eight bytes.
///
/// # Safety
/// Eight bytes must be readable at each offset.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn fetch(start: *const u8, places: &[u32; LANES]) -> [__m512i; 2] {
    let mut quarters = [[_mm_setzero_si128(); 4]; 2];
    let pairs = places.as_chunks::<2>().0;
    for (quarter, pair) in quarters.as_flattened_mut().iter_mut().zip(pairs) {
        // SAFETY: the caller guarantees that eight bytes are readable at each offset.
        *quarter = unsafe {
            let first = _mm_loadl_epi64(start.add(pair[0] as usize).cast());
            let second = start.add(pair[1] as usize).cast();
            _mm_castpd_si128(_mm_loadh_pd(_mm_castsi128_pd(first), second))
        };
    }
    [join(quarters[0]), join(quarters[1])]
}

#[target_feature(enable = "avx512f")]
#[inline]
fn join([a, b, c, d]: [__m128i; 4]) -> __m512i {
    let low = _mm256_set_m128i(b, a);
    let high = _mm256_set_m128i(d, c);
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
}

/// Process a block that is partly outside the image, fetching one by one the pixels that cannot be
/// loaded.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
#[inline(never)] // Rarely called.
fn mixed<const ACROSS: bool, const DOWN: bool>(
    image: &Rgb,
    index: &Index,
    places: &Places,
    starts: &[u32; LANES],
    readable: u16,
) -> __m512i {
    let (mut upper, mut lower) = ([0_u64; LANES], [0_u64; LANES]);
    let (mut rows, mut columns) = ([0_i32; LANES], [0_i32; LANES]);
    // SAFETY: both arrays have 64 bytes.
    unsafe {
        _mm512_storeu_si512(rows.as_mut_ptr().cast(), places.rows);
        _mm512_storeu_si512(columns.as_mut_ptr().cast(), places.columns);
    }
    let stride = image.width * 3;
    let eight = |start: usize| {
        let bytes = image.pixels.get(start..).and_then(<[u8]>::first_chunk);
        bytes.map_or(0, |&eight| u64::from_le_bytes(eight))
    };
    for lane in 0..LANES {
        if readable >> lane & 1 == 1 {
            let start = starts[lane] as usize;
            (upper[lane], lower[lane]) = (eight(start), eight(start + stride));
        } else {
            let corners = at_border(image, rows[lane], columns[lane]).map(u64::from);
            let [a, b, c, d] = corners.map(|corner| corner & 0x00FF_FFFF);
            (upper[lane], lower[lane]) = (a | b << 24, c | d << 24);
        }
    }
    let load = |pairs: &[u64; LANES]| {
        // SAFETY: the array has 2 * 64 bytes.
        unsafe {
            let start = pairs.as_ptr();
            [
                _mm512_loadu_si512(start.cast()),
                _mm512_loadu_si512(start.add(8).cast()),
            ]
        }
    };
    let (upper, lower) = (load(&upper), load(&lower));
    interpolate::<ACROSS, DOWN>(&index.pairs, index.merge, upper, lower, places)
}

/// Interpolate; if weights are absent, the coordinate is exactly that of the left or top neighbors.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
#[inline]
fn interpolate<const ACROSS: bool, const DOWN: bool>(
    index: &[[__m512i; 2]; 3],
    merge: [__m512i; 2],
    upper: [__m512i; 2],
    lower: [__m512i; 2],
    places: &Places,
) -> __m512i {
    let mut channels = [_mm512_setzero_si512(); 3];
    for (channel, &[left, right]) in channels.iter_mut().zip(index) {
        let mut value = numbers(upper, left);
        if ACROSS {
            value = mix(value, numbers(upper, right), places.across);
        }
        if DOWN {
            let mut below = numbers(lower, left);
            if ACROSS {
                below = mix(below, numbers(lower, right), places.across);
            }
            value = mix(value, below, places.down);
        }
        *channel = _mm512_castps_si512(_mm512_add_ps(value, _mm512_set1_ps(INTEGER)));
    }
    let [red, green, blue] = channels;
    let two = _mm512_permutex2var_epi8(red, merge[0], green);
    _mm512_permutex2var_epi8(two, merge[1], blue)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
#[inline]
fn numbers(bytes: [__m512i; 2], index: __m512i) -> __m512 {
    const LOWEST: u64 = 0x1111_1111_1111_1111;
    let found = _mm512_maskz_permutex2var_epi8(LOWEST, bytes[0], index, bytes[1]);
    _mm512_cvtepi32_ps(found)
}

#[target_feature(enable = "avx512f")]
#[inline]
fn mix(from: __m512, to: __m512, weight: __m512) -> __m512 {
    _mm512_fmadd_ps(weight, _mm512_sub_ps(to, from), from)
}
