//! Resize passes with AVX2.
//!
//! `vpmaddwd` multiplies pairs of 16-bit values and weights and adds the products. A weight with 22
//! fraction bits is split into an upper part and its lower eight bits, so that two of these
//! instructions give the exact sum.
//!
//! All functions require the features of [`crate::cpu_features::Instructions::Avx2`].

#[allow(clippy::wildcard_imports)] // Intrinsics.
use std::arch::x86_64::*;

use super::{Quads, Rows, blocks};
use crate::resize::weights::{PRECISION_BITS, QUAD, Weights};
use crate::simd::avx2::{BYTES, HALF, NONE, RowSpan, gather, line, load, merge_planes};

/// Output columns per step, one per 32-bit lane.
pub(crate) const LANES: usize = 8;
/// Weights of the horizontal pass, in blocks of 8 output columns.
#[derive(Debug)]
pub(crate) struct Avx2Weights {
    /// First input column of each half of each block.
    starts: Vec<[usize; 2]>,
    /// Shuffle indices of each block for both pairs of taps: for each lane, the two columns
    /// relative to the first of the half, within the first sixteen bytes and then within the next.
    index: Vec<[[RowSpan; 2]; 2]>,
    /// For each block and four taps, the upper and lower parts of the weights of both pairs.
    parts: Vec<[[RowSpan; 2]; 2]>,
    /// Number of groups of four taps.
    groups: usize,
    /// True if the columns of four taps of a half-block extend beyond the first sixteen.
    is_wide: bool,
    /// Number of input columns that are loaded, including some with weight 0.
    pub reach: usize,
}

/// Split a weight into its upper and lower parts.
#[allow(clippy::cast_possible_truncation)] // The lower part is removed; weights have 24 bits.
pub(crate) fn parts_of(weight: i32) -> [i16; 2] {
    let low = weight as i8;
    [((weight - i32::from(low)) >> 8) as i16, low.into()]
}

impl Avx2Weights {
    /// Build the tables; `None` if the columns of a half-block are too far apart.
    pub(crate) fn new(weights: &Weights) -> Option<Self> {
        let all: Vec<(usize, &[i32])> = weights.iter().collect();
        let groups = weights.most().div_ceil(QUAD);
        let mut table = Self {
            starts: Vec::new(),
            index: Vec::new(),
            parts: Vec::new(),
            groups,
            is_wide: false,
            reach: 0,
        };
        for block in all.chunks(LANES) {
            let mut starts = [0; 2];
            let mut index = [[RowSpan([NONE; BYTES]); 2]; 2];
            let place = table.parts.len();
            table
                .parts
                .resize(place + groups, [[RowSpan([0; BYTES]); 2]; 2]);
            for (lane, &(start, values)) in block.iter().enumerate() {
                let first = starts.get_mut(lane / 4)?;
                if lane % 4 == 0 {
                    *first = start;
                    table.reach = table.reach.max(start + groups * QUAD);
                }
                for tap in 0..QUAD {
                    let column = start - *first + tap;
                    let lines = index.get_mut(tap / 2)?;
                    let line = lines.get_mut(column / HALF)?;
                    *line.0.get_mut(lane * 4 + tap % 2 * 2)? = u8::try_from(column % HALF).ok()?;
                    table.is_wide |= column >= HALF;
                }
                for (tap, &value) in values.iter().enumerate() {
                    let lines = table.parts.get_mut(place + tap / QUAD)?;
                    let pair = lines.get_mut(tap % QUAD / 2)?;
                    for (line, part) in pair.iter_mut().zip(parts_of(value)) {
                        let bytes = line.0.get_mut(lane * 4 + tap % 2 * 2..)?;
                        *bytes.first_chunk_mut()? = part.to_le_bytes();
                    }
                }
            }
            table.starts.push(starts);
            table.index.push(index);
        }
        table.reach += 2 * HALF;
        Some(table)
    }
}

/// The same sixteen bytes in both halves.
#[target_feature(enable = "avx2")]
#[inline]
fn twice(bytes: [u8; HALF]) -> __m256i {
    // SAFETY: the array has 16 bytes.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
}

/// Load sixteen bytes from each of two places.
///
/// # Safety
/// 16 bytes must be readable at both.
#[target_feature(enable = "avx2")]
#[inline]
pub(crate) unsafe fn load_halves(low: *const u8, high: *const u8) -> __m256i {
    // SAFETY: the caller guarantees that 16 bytes are readable at both places.
    unsafe { _mm256_set_m128i(_mm_loadu_si128(high.cast()), _mm_loadu_si128(low.cast())) }
}

/// For each channel, the source indices of its sixteen values in each of three 16-byte groups, in
/// both halves.
static SPLIT: [[RowSpan; 3]; 3] = {
    let mut index = [[RowSpan([NONE; BYTES]); 3]; 3];
    let mut place = 0;
    while place < 3 * HALF {
        let line = &mut index[place % 3][place / HALF].0;
        line[place / 3] = (place % HALF).to_le_bytes()[0];
        line[HALF + place / 3] = line[place / 3];
        place += 1;
    }
    index
};

blocks!("avx2", _mm256_setzero_si256());

/// Deinterleave 32 pixels to offset `x` of each plane.
#[target_feature(enable = "avx2")]
#[inline]
fn split_part(bytes: &[u8; 3 * BYTES], output: &mut [u8], planes: [usize; 3], x: usize) {
    let start = bytes.as_ptr();
    // SAFETY: 3 * 32 bytes are loaded, the length of the array.
    let sources = unsafe {
        [
            load_halves(start, start.add(3 * HALF)),
            load_halves(start.add(HALF), start.add(4 * HALF)),
            load_halves(start.add(2 * HALF), start.add(5 * HALF)),
        ]
    };
    for (start, index) in planes.into_iter().zip(&SPLIT) {
        if let Some(room) = output[start + x..].first_chunk_mut::<BYTES>() {
            // SAFETY: 32 bytes are stored, the length of the array.
            unsafe { _mm256_storeu_si256(room.as_mut_ptr().cast(), gather(sources, index)) };
        }
    }
}

/// Combine the sums of the upper and lower parts, before clamping.
#[target_feature(enable = "avx2")]
#[inline]
fn value(sums: [__m256i; 2]) -> __m256i {
    let sum = _mm256_add_epi32(_mm256_slli_epi32::<8>(sums[0]), sums[1]);
    _mm256_srai_epi32::<{ PRECISION_BITS.cast_signed() }>(sum)
}

/// Initial sums of half a level, so that truncation rounds to nearest.
#[target_feature(enable = "avx2")]
#[inline]
fn no_sums() -> [__m256i; 2] {
    [
        _mm256_setzero_si256(),
        _mm256_set1_epi32(1 << (PRECISION_BITS - 1)),
    ]
}

/// Pack four times eight sums to bytes in [0, 255], with four of each in either half.
#[target_feature(enable = "avx2")]
#[inline]
fn pack([a, b, c, d]: [[__m256i; 2]; QUAD]) -> __m256i {
    let low = _mm256_packs_epi32(value(a), value(b));
    let high = _mm256_packs_epi32(value(c), value(d));
    _mm256_packus_epi16(low, high)
}

/// Restore the order of 32 columns after packing.
#[target_feature(enable = "avx2")]
#[inline]
fn values(sums: &[[__m256i; 2]; QUAD]) -> __m256i {
    let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_permutevar8x32_epi32(pack(*sums), order)
}

/// Add the products of pairs of values and the parts of their weights.
#[target_feature(enable = "avx2")]
#[inline]
fn add(sums: &mut [__m256i; 2], pairs: __m256i, parts: [__m256i; 2]) {
    sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(pairs, parts[0]));
    sums[1] = _mm256_add_epi32(sums[1], _mm256_madd_epi16(pairs, parts[1]));
}

/// Horizontal pass, see [`crate::resize::simd::Passes::across`].
#[target_feature(enable = "avx2")]
pub(crate) fn across(table: &Avx2Weights, rows: Rows<'_>, quads: &mut [u8]) {
    let columns = rows.columns;
    assert!(rows.plane >= table.reach && rows.planes.len() >= 3 * QUAD * rows.plane);
    assert!(columns.is_multiple_of(LANES) && columns / LANES >= table.starts.len());
    assert!(quads.len() >= 3 * columns * QUAD);
    if table.is_wide {
        across_from::<true>(table, rows, quads);
    } else {
        across_from::<false>(table, rows, quads);
    }
}

#[target_feature(enable = "avx2")]
fn across_from<const WIDE: bool>(table: &Avx2Weights, rows: Rows<'_>, quads: &mut [u8]) {
    let (planes, plane, columns) = (rows.planes.as_ptr(), rows.plane, rows.columns);
    // The rows of a column become adjacent.
    let transpose = twice([0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15]);
    let blocks = table.starts.iter().zip(&table.index);
    let parts = table.parts.chunks_exact(table.groups);
    for (block, ((starts, index), groups)) in blocks.zip(parts).enumerate() {
        for channel in 0..3 {
            let mut sums = [no_sums(); QUAD];
            for (group, parts) in groups.iter().enumerate() {
                for (row, sums) in sums.iter_mut().enumerate() {
                    let first = (row * 3 + channel) * plane + group * QUAD;
                    // SAFETY: the last column loaded is below the table's reach, which is checked
                    // to be inside each of the twelve planes.
                    let (bytes, more) = unsafe {
                        let low = planes.add(first + starts[0]);
                        let high = planes.add(first + starts[1]);
                        let more = if WIDE {
                            load_halves(low.add(HALF), high.add(HALF))
                        } else {
                            _mm256_setzero_si256()
                        };
                        (load_halves(low, high), more)
                    };
                    for (index, parts) in index.iter().zip(parts) {
                        let mut pairs = _mm256_shuffle_epi8(bytes, line(&index[0]));
                        if WIDE {
                            let found = _mm256_shuffle_epi8(more, line(&index[1]));
                            pairs = _mm256_or_si256(pairs, found);
                        }
                        add(sums, pairs, [line(&parts[0]), line(&parts[1])]);
                    }
                }
            }
            let bytes = _mm256_shuffle_epi8(pack(sums), transpose);
            let target = (channel * columns + block * LANES) * QUAD;
            // SAFETY: blocks are inside the columns and those inside the quads, as checked.
            unsafe { _mm256_storeu_si256(quads.as_mut_ptr().add(target).cast(), bytes) };
        }
    }
}

/// Parts of the first and third, and of the second and fourth of four weights, broadcast to lanes.
#[target_feature(enable = "avx2")]
#[inline]
fn spread(weights: [i32; QUAD]) -> [[__m256i; 2]; 2] {
    let [a, b, c, d] = weights.map(parts_of);
    let pair =
        |low: i16, high: i16| _mm256_set1_epi32(i32::from(high) << 16 | i32::from(low) & 0xFFFF);
    [
        [pair(a[0], c[0]), pair(a[1], c[1])],
        [pair(b[0], d[0]), pair(b[1], d[1])],
    ]
}

/// Accumulate 32 columns of a quad.
///
/// # Safety
/// 128 bytes must be readable.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn add_quad(sums: &mut [[__m256i; 2]; QUAD], bytes: *const u8, parts: [[__m256i; 2]; 2]) {
    let low_bytes = _mm256_set1_epi16(255);
    for (part, sums) in sums.iter_mut().enumerate() {
        // SAFETY: a quarter of the 128 bytes that the caller guarantees to be readable.
        let bytes = unsafe { load(bytes.add(part * BYTES)) };
        add(sums, _mm256_and_si256(bytes, low_bytes), parts[0]);
        add(sums, _mm256_srli_epi16::<8>(bytes), parts[1]);
    }
}
