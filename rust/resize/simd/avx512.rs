//! Resize passes with AVX-512, VBMI and VNNI.
//!
//! `vpdpbusd` multiplies four pixel bytes by four signed weight bytes and adds the products. A
//! weight with 22 fraction bits is split into three signed bytes (base-256 digits from -128 to
//! 127), so that three of these instructions give the exact sum.
//!
//! All functions require the features of [`crate::cpu_features::Instructions::Avx512`].

#[allow(clippy::wildcard_imports)] // Intrinsics.
use std::arch::x86_64::*;

use super::{Quads, Rows, blocks};
use crate::resize::weights::{PRECISION_BITS, QUAD, Weights};

/// Output columns per step, one per 32-bit lane.
const LANES: usize = 16;
const BYTES: usize = 64;
/// Number of digits per weight.
const DIGITS: usize = 3;

#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
struct RowSpan512([u8; BYTES]);

/// Weights of the horizontal pass, in blocks of 16 output columns.
#[derive(Debug)]
pub(crate) struct Avx512Weights {
    /// First input column of each block.
    starts: Vec<usize>,
    /// For each block and lane, the four columns of its first taps, relative to the block's first
    /// column. Later taps have the same distances.
    index: Vec<RowSpan512>,
    /// For each block and four taps, the digits of the weights, most significant first.
    digits: Vec<RowSpan512>,
    /// Number of groups of four taps.
    groups: usize,
    /// Number of registers that hold the input columns of four taps of a block: 1, 2 or 4.
    sources: usize,
    /// Number of input columns that are loaded, including some with weight 0.
    pub reach: usize,
}

/// Base-256 digits of a weight, most significant first.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Digits are removed one by one.
fn digits_of(weight: i32) -> [u8; DIGITS] {
    let low = weight as i8;
    let rest = (weight - i32::from(low)) >> 8;
    let middle = rest as i8;
    let high = (rest - i32::from(middle)) >> 8;
    [high as u8, middle as u8, low as u8]
}

impl Avx512Weights {
    /// Build the tables; `None` if the columns of a block are too far apart.
    pub(crate) fn new(weights: &Weights) -> Option<Self> {
        let all: Vec<(usize, &[i32])> = weights.iter().collect();
        let groups = weights.most().div_ceil(QUAD);
        let mut table = Self {
            starts: Vec::new(),
            index: Vec::new(),
            digits: Vec::new(),
            groups,
            sources: 1,
            reach: 0,
        };
        for block in all.chunks(LANES) {
            let (&(first, _), &(last, _)) = (block.first()?, block.last()?);
            table.sources = match last - first + QUAD {
                0..=64 => table.sources,
                65..=128 => table.sources.max(2),
                129..=256 => 4,
                _ => return None,
            };
            let mut index = RowSpan512([0; BYTES]);
            let mut digits = vec![[RowSpan512([0; BYTES]); DIGITS]; groups];
            let (lanes, _) = index.0.as_chunks_mut::<QUAD>();
            for (lane, (columns, &(start, values))) in lanes.iter_mut().zip(block).enumerate() {
                for (tap, column) in columns.iter_mut().enumerate() {
                    *column = u8::try_from(start - first + tap).ok()?;
                }
                for (tap, &value) in values.iter().enumerate() {
                    let group = digits.get_mut(tap / QUAD)?;
                    for (line, digit) in group.iter_mut().zip(digits_of(value)) {
                        *line.0.get_mut(lane * QUAD + tap % QUAD)? = digit;
                    }
                }
            }
            table.starts.push(first);
            table.index.push(index);
            table.digits.extend_from_slice(digits.as_flattened());
            table.reach = table.reach.max(first + (groups - 1) * QUAD);
        }
        table.reach += table.sources * BYTES;
        Some(table)
    }
}

blocks!(
    "avx512f,avx512bw,avx512vbmi,avx512vnni",
    _mm512_setzero_si512()
);

/// Deinterleave 64 pixels to offset `x` of each plane.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
#[inline]
fn split_part(bytes: &[u8; 3 * BYTES], output: &mut [u8], planes: [usize; 3], x: usize) {
    let start = bytes.as_ptr();
    // SAFETY: 3 * 64 bytes are loaded, the length of the array.
    let (a, b, c) = unsafe {
        (
            load(start),
            load(start.add(BYTES)),
            load(start.add(2 * BYTES)),
        )
    };
    for (start, [first, second]) in planes.into_iter().zip(&SPLIT) {
        let two = _mm512_permutex2var_epi8(a, line(first), b);
        let three = _mm512_permutex2var_epi8(two, line(second), c);
        if let Some(room) = output[start + x..].first_chunk_mut::<BYTES>() {
            // SAFETY: 64 bytes are stored, the length of the array.
            unsafe { _mm512_storeu_si512(room.as_mut_ptr().cast(), three) };
        }
    }
}

/// For each channel, the source indices of its 64 values: in the first two registers, then in the
/// result of that and the third register.
static SPLIT: [[RowSpan512; 2]; 3] = {
    let mut index = [[RowSpan512([0; BYTES]); 2]; 3];
    let mut place = 0;
    while place < 3 * BYTES {
        let (x, channel) = (place / 3, place % 3);
        let [first, second] = &mut index[channel];
        first.0[x] = (place % (2 * BYTES)).to_le_bytes()[0];
        let from = if place < 2 * BYTES { x } else { place - BYTES };
        second.0[x] = from.to_le_bytes()[0];
        place += 1;
    }
    index
};

/// Source indices for the 192 bytes of 64 pixels: first red and green, then the result and blue.
static MERGE: [[RowSpan512; 2]; 3] = {
    let mut index = [[RowSpan512([0; BYTES]); 2]; 3];
    let mut place = 0;
    while place < 3 * BYTES {
        let (x, channel, byte) = (place / 3, place % 3, place % BYTES);
        let [first, second] = &mut index[place / BYTES];
        let two = if channel == 1 { BYTES + x } else { x };
        let three = if channel == 2 { BYTES + x } else { byte };
        first.0[byte] = two.to_le_bytes()[0];
        second.0[byte] = three.to_le_bytes()[0];
        place += 1;
    }
    index
};

/// # Safety
/// 64 bytes must be readable.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn load(bytes: *const u8) -> __m512i {
    // SAFETY: the caller guarantees that the 64 bytes are readable.
    unsafe { _mm512_loadu_si512(bytes.cast()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn line(bytes: &RowSpan512) -> __m512i {
    // SAFETY: the array has 64 bytes.
    unsafe { load(bytes.0.as_ptr()) }
}

/// Load the columns of four taps for each lane.
///
/// # Safety
/// `SOURCES` * 64 bytes must be readable.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
#[inline]
unsafe fn fetch<const SOURCES: usize>(bytes: *const u8, index: __m512i) -> __m512i {
    // SAFETY: the caller guarantees that `SOURCES` registers of bytes are readable.
    unsafe {
        let first = load(bytes);
        if SOURCES == 1 {
            return _mm512_permutexvar_epi8(index, first);
        }
        let lower = _mm512_permutex2var_epi8(first, index, load(bytes.add(BYTES)));
        if SOURCES == 2 {
            return lower;
        }
        let (third, fourth) = (load(bytes.add(2 * BYTES)), load(bytes.add(3 * BYTES)));
        let upper = _mm512_permutex2var_epi8(third, index, fourth);
        _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), lower, upper)
    }
}

/// Combine the sums of the three digits, before clamping.
#[target_feature(enable = "avx512f")]
#[inline]
fn value(sums: [__m512i; DIGITS]) -> __m512i {
    let [high, middle, low] = sums;
    let upper = _mm512_add_epi32(_mm512_slli_epi32::<8>(high), middle);
    _mm512_srai_epi32::<PRECISION_BITS>(_mm512_add_epi32(_mm512_slli_epi32::<8>(upper), low))
}

/// Initial sums of half a level, so that truncation rounds to nearest.
#[target_feature(enable = "avx512f")]
#[inline]
fn no_sums() -> [__m512i; DIGITS] {
    let none = _mm512_setzero_si512();
    [none, none, _mm512_set1_epi32(1 << (PRECISION_BITS - 1))]
}

/// Pack four times sixteen sums to bytes in [0, 255], with four of each in every 128 bits.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn pack([a, b, c, d]: [[__m512i; DIGITS]; QUAD]) -> __m512i {
    let low = _mm512_packs_epi32(value(a), value(b));
    let high = _mm512_packs_epi32(value(c), value(d));
    _mm512_packus_epi16(low, high)
}

/// Restore the order of 64 columns after packing.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn values(sums: &[[__m512i; DIGITS]; QUAD]) -> __m512i {
    let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_permutexvar_epi32(order, pack(*sums))
}

/// Add the products of bytes and the digits of their weights.
#[target_feature(enable = "avx512f,avx512vnni")]
#[inline]
fn add(sums: &mut [__m512i; DIGITS], bytes: __m512i, digits: [__m512i; DIGITS]) {
    sums[0] = _mm512_dpbusd_epi32(sums[0], bytes, digits[0]);
    sums[1] = _mm512_dpbusd_epi32(sums[1], bytes, digits[1]);
    sums[2] = _mm512_dpbusd_epi32(sums[2], bytes, digits[2]);
}

/// Horizontal pass, see [`crate::resize::simd::Passes::across`].
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
pub(crate) fn across(table: &Avx512Weights, rows: Rows<'_>, quads: &mut [u8]) {
    let columns = rows.columns;
    assert!(rows.plane >= table.reach && rows.planes.len() >= 3 * QUAD * rows.plane);
    assert!(columns.is_multiple_of(LANES) && columns / LANES >= table.starts.len());
    assert!(quads.len() >= 3 * columns * QUAD);
    match table.sources {
        1 => across_from::<1>(table, rows, quads),
        2 => across_from::<2>(table, rows, quads),
        _ => across_from::<4>(table, rows, quads),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
fn across_from<const SOURCES: usize>(table: &Avx512Weights, rows: Rows<'_>, quads: &mut [u8]) {
    let (planes, plane, columns) = (rows.planes.as_ptr(), rows.plane, rows.columns);
    // The rows of a column become adjacent.
    let transpose = _mm512_broadcast_i32x4(_mm_setr_epi8(
        0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15,
    ));
    let blocks = table.starts.iter().zip(&table.index);
    let digits = table.digits.chunks_exact(table.groups * DIGITS);
    for (block, ((&start, index), digits)) in blocks.zip(digits).enumerate() {
        let index = line(index);
        for channel in 0..3 {
            let mut sums = [no_sums(); QUAD];
            let mut first = channel * plane + start;
            let (groups, _) = digits.as_chunks::<DIGITS>();
            for group in groups {
                let [high, middle, low] = group;
                let digits = [line(high), line(middle), line(low)];
                for (row, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: the last column loaded is below the table's reach, which is checked
                    // to be inside each of the twelve planes.
                    let bytes =
                        unsafe { fetch::<SOURCES>(planes.add(first + row * 3 * plane), index) };
                    add(sums, bytes, digits);
                }
                first += QUAD;
            }
            let bytes = _mm512_shuffle_epi8(pack(sums), transpose);
            let target = (channel * columns + block * LANES) * QUAD;
            // SAFETY: blocks are inside the columns and those inside the quads, as checked.
            unsafe { _mm512_storeu_si512(quads.as_mut_ptr().add(target).cast(), bytes) };
        }
    }
}

/// Digits of four weights, broadcast to all lanes.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn spread(weights: [i32; QUAD]) -> [__m512i; DIGITS] {
    let [a, b, c, d] = weights.map(digits_of);
    [0, 1, 2].map(|i| _mm512_set1_epi32(i32::from_le_bytes([a[i], b[i], c[i], d[i]])))
}

/// Accumulate 64 columns of a quad.
///
/// # Safety
/// 256 bytes must be readable.
#[target_feature(enable = "avx512f,avx512vnni")]
#[inline]
unsafe fn add_quad(
    sums: &mut [[__m512i; DIGITS]; QUAD],
    bytes: *const u8,
    digits: [__m512i; DIGITS],
) {
    for (part, sums) in sums.iter_mut().enumerate() {
        // SAFETY: a quarter of the 256 bytes that the caller guarantees to be readable.
        add(sums, unsafe { load(bytes.add(part * BYTES)) }, digits);
    }
}

/// Store 64 pixels.
#[target_feature(enable = "avx512f,avx512vbmi")]
#[inline]
fn merge_planes(planes: [__m512i; 3], pixels: &mut [u8; 3 * BYTES]) {
    let [red, green, blue] = planes;
    for ([first, second], bytes) in MERGE.iter().zip(pixels.as_chunks_mut::<BYTES>().0) {
        let two = _mm512_permutex2var_epi8(red, line(first), green);
        let three = _mm512_permutex2var_epi8(two, line(second), blue);
        // SAFETY: 64 bytes are stored, the length of the array.
        unsafe { _mm512_storeu_si512(bytes.as_mut_ptr().cast(), three) };
    }
}
