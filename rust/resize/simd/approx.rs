//! Resize passes within one level of Pillow, with AVX2.
//!
//! Weights have 14 fraction bits instead of 22, so a single `vpmaddwd` is enough for two values
//! where [`crate::resize::simd::avx2`] needs two. Between the passes, values have seven fraction
//! bits, where Pillow rounds to integer levels.
//!
//! Error bound: when downscaling by up to [`FAST_REDUCTION`], an output has at most 16 weights.
//! Each is off by up to 2^-15 and the largest by 16 times that, so a weighted sum of values, which
//! are within 127.5 of the midpoint, is off by up to 0.125. Pillow's first pass is off by up to 0.5
//! and this one by 0.13; the second pass multiplies the difference by the sum of absolute weights
//! (at most 1.3) and adds 0.125. Before the final rounding, that is less than one level.
//!
//! All functions require the features of [`crate::cpu_features::Instructions::Avx2`].

#[allow(clippy::wildcard_imports)] // Intrinsics.
use std::arch::x86_64::*;

use super::{FAST_REDUCTION, Quads, Rows};
use crate::resize::simd::avx2::{LANES, load_halves};
use crate::resize::weights::{COARSE_BITS, QUAD, Weights};
use crate::simd::avx2::{BYTES, HALF, NONE, RowSpan, line, merge_planes};

/// Fraction bits between the passes.
const VALUE_BITS: i32 = 7;
/// Maximum value between the passes.
const LARGEST: i16 = 255 << VALUE_BITS;
/// Bytes per value between the passes.
pub(crate) const VALUE_BYTES: usize = 2;
/// Output columns per register in the vertical pass.
const COLUMNS: usize = 16;

/// Weights of the horizontal pass, in blocks of 8 output columns.
#[derive(Debug)]
pub(crate) struct ApproxWeights {
    /// First input column of each half of each block.
    starts: Vec<[usize; 2]>,
    /// For each block and lane, the two input columns of each pair of taps, relative to the first
    /// column of the half.
    index: Vec<RowSpan>,
    /// Weights for each block and pair of taps.
    weights: Vec<RowSpan>,
    /// Number of tap pairs.
    pairs: usize,
    /// True if both halves of every block start at the same column.
    is_narrow: bool,
    /// Number of input columns that are loaded, including some with weight 0.
    pub reach: usize,
}

impl ApproxWeights {
    /// Build from weights with [`COARSE_BITS`] bits; `None` if columns are too far apart.
    pub(crate) fn new(weights: &Weights) -> Option<Self> {
        let all: Vec<(usize, &[i32])> = weights.iter().collect();
        let fits = |block: &[(usize, &[i32])]| {
            let ends = block.first().zip(block.last());
            ends.is_some_and(|(first, last)| last.0 - first.0 + 1 < HALF)
        };
        let mut table = Self {
            starts: Vec::new(),
            index: Vec::new(),
            weights: Vec::new(),
            pairs: weights.most().div_ceil(2),
            is_narrow: all.chunks(LANES).all(fits),
            reach: 0,
        };
        let half = if table.is_narrow { LANES } else { LANES / 2 };
        for block in all.chunks(LANES) {
            let mut starts = [0; 2];
            let mut index = RowSpan([NONE; BYTES]);
            let place = table.weights.len();
            table
                .weights
                .resize(place + table.pairs, RowSpan([0; BYTES]));
            for (lane, &(start, values)) in block.iter().enumerate() {
                let first = starts.get_mut(lane / half)?;
                if lane.is_multiple_of(half) {
                    *first = start;
                    table.reach = table.reach.max(start + 2 * table.pairs + HALF);
                }
                for tap in 0..2 {
                    let column = u8::try_from(start - *first + tap).ok()?;
                    if usize::from(column) >= HALF {
                        return None;
                    }
                    *index.0.get_mut(lane * 4 + tap * 2)? = column;
                }
                for (tap, &value) in values.iter().enumerate() {
                    let line = table.weights.get_mut(place + tap / 2)?;
                    let bytes = line.0.get_mut(lane * 4 + tap % 2 * 2..)?;
                    *bytes.first_chunk_mut()? = Weights::coarse(value).to_le_bytes();
                }
            }
            table.starts.push(starts);
            table.index.push(index);
        }
        Some(table)
    }
}

/// Horizontal pass, see [`super::Passes::across`]; a quad is 3 x 4 rows of `columns` values.
#[target_feature(enable = "avx2")]
pub(crate) fn across(table: &ApproxWeights, rows: Rows<'_>, quads: &mut [u8]) {
    let columns = rows.columns;
    assert!(rows.plane >= table.reach && rows.planes.len() >= 3 * QUAD * rows.plane);
    assert!(columns.is_multiple_of(LANES) && columns / LANES >= table.starts.len());
    assert!(quads.len() >= 3 * QUAD * columns * VALUE_BYTES);
    if table.is_narrow {
        across_from::<true>(table, rows, quads);
    } else {
        across_from::<false>(table, rows, quads);
    }
}

#[target_feature(enable = "avx2")]
fn across_from<const NARROW: bool>(table: &ApproxWeights, rows: Rows<'_>, quads: &mut [u8]) {
    let (planes, plane, columns) = (rows.planes.as_ptr(), rows.plane, rows.columns);
    let half = _mm256_set1_epi32(1 << (COARSE_BITS - VALUE_BITS.cast_unsigned() - 1));
    let blocks = table.starts.iter().zip(&table.index);
    let weights = table.weights.chunks_exact(table.pairs);
    for (block, ((starts, index), weights)) in blocks.zip(weights).enumerate() {
        let index = line(index);
        for channel in 0..3 {
            let mut sums = [half; QUAD];
            for (pair, weights) in weights.iter().enumerate() {
                let weights = line(weights);
                for (row, sum) in sums.iter_mut().enumerate() {
                    let first = (row * 3 + channel) * plane + pair * 2;
                    // SAFETY: the last column loaded is below the table's reach, which is checked
                    // to be inside each of the twelve planes.
                    let bytes = unsafe {
                        let low = planes.add(first + starts[0]);
                        if NARROW {
                            _mm256_broadcastsi128_si256(_mm_loadu_si128(low.cast()))
                        } else {
                            load_halves(low, planes.add(first + starts[1]))
                        }
                    };
                    let values = _mm256_shuffle_epi8(bytes, index);
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(values, weights));
                }
            }
            let [a, b, c, d] = sums;
            for (two, (upper, lower)) in [(a, b), (c, d)].into_iter().enumerate() {
                let column = (channel * QUAD + two * 2) * columns + block * LANES;
                // SAFETY: eight columns of two rows are inside the rows, as checked.
                unsafe {
                    let first = quads.as_mut_ptr().add(column * VALUE_BYTES);
                    store_rows(first, first.add(columns * VALUE_BYTES), upper, lower);
                }
            }
        }
    }
}

/// Store eight columns of two rows, clamped to [0, 255].
///
/// # Safety
/// 16 bytes must be writable at both places.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn store_rows(first: *mut u8, second: *mut u8, upper: __m256i, lower: __m256i) {
    const SHIFT: i32 = COARSE_BITS.cast_signed() - VALUE_BITS;
    let (upper, lower) = (
        _mm256_srai_epi32::<SHIFT>(upper),
        _mm256_srai_epi32::<SHIFT>(lower),
    );
    let values = _mm256_min_epu16(
        _mm256_packus_epi32(upper, lower),
        _mm256_set1_epi16(LARGEST),
    );
    let values = _mm256_permute4x64_epi64::<0b11_01_10_00>(values);
    // SAFETY: the caller guarantees that 16 bytes are writable at both places.
    unsafe {
        _mm_storeu_si128(first.cast(), _mm256_castsi256_si128(values));
        _mm_storeu_si128(second.cast(), _mm256_extracti128_si256::<1>(values));
    }
}

/// Two rows that are weighted together: their offsets, and their weights in all lanes.
#[derive(Clone, Copy)]
struct Pair {
    places: [usize; 2],
    weights: __m256i,
}

/// Vertical pass, see [`super::Passes::down`].
#[target_feature(enable = "avx2")]
pub(crate) fn down(quads: Quads<'_>, output: &mut [u8]) {
    /// Number of pairs in the up to 16 rows of an output, plus one.
    const MOST: usize = 2 * FAST_REDUCTION + 1;
    let (ring, columns) = (quads.ring, quads.columns);
    assert!(columns.is_multiple_of(BYTES) && output.len() >= 3 * columns);
    assert!(quads.starts.len() == quads.weights.len());
    let row = columns * VALUE_BYTES;
    assert!(
        quads
            .starts
            .iter()
            .all(|start| start + 3 * QUAD * row <= ring.len())
    );
    let rows = quads
        .starts
        .iter()
        .zip(quads.weights)
        .flat_map(|(&start, weights)| {
            let rows = (start..).step_by(row).zip(weights);
            rows.filter(|&(_, &weight)| weight != 0)
        });
    let mut pairs = [Pair {
        places: [0; 2],
        weights: _mm256_setzero_si256(),
    }; MOST];
    let mut halves = [0_i16; 2];
    let mut count = 0;
    for (place, &weight) in rows {
        let pair = &mut pairs[count / 2];
        halves[count % 2] = Weights::coarse(weight);
        pair.places[count % 2] = place;
        if count.is_multiple_of(2) {
            // A pair's second row may be missing.
            pair.places[1] = place;
            halves[1] = 0;
        }
        let [low, high] = halves.map(i32::from);
        pair.weights = _mm256_set1_epi32(high << 16 | low & 0xFFFF);
        count += 1;
    }
    match count.div_ceil(2) {
        1 => down_from::<1>(ring, &pairs, columns, output),
        2 => down_from::<2>(ring, &pairs, columns, output),
        few => down_from::<0>(ring, &pairs[..few], columns, output),
    }
}

/// Accumulate `COUNT` pairs of rows; 0 means any number.
#[target_feature(enable = "avx2")]
fn down_from<const COUNT: usize>(ring: &[u8], pairs: &[Pair], columns: usize, output: &mut [u8]) {
    let pairs = if COUNT == 0 { pairs } else { &pairs[..COUNT] };
    let channel_bytes = QUAD * columns * VALUE_BYTES;
    let (parts, _) = output.as_chunks_mut::<{ 3 * BYTES }>();
    for (block, pixels) in parts.iter_mut().take(columns / BYTES).enumerate() {
        let mut planes = [_mm256_setzero_si256(); 3];
        for (channel, plane) in planes.iter_mut().enumerate() {
            let place = channel * channel_bytes + block * BYTES * VALUE_BYTES;
            // SAFETY: 32 columns of a channel of a row are inside the ring, as checked.
            let (low, high) = unsafe {
                let low = ring.as_ptr().add(place);
                (
                    weigh(low, pairs),
                    weigh(low.add(COLUMNS * VALUE_BYTES), pairs),
                )
            };
            let bytes = _mm256_packus_epi16(low, high);
            *plane = _mm256_permute4x64_epi64::<0b11_01_10_00>(bytes);
        }
        merge_planes(planes, pixels);
    }
}

/// Compute the levels of sixteen columns before clamping.
///
/// # Safety
/// 32 bytes must be readable at the offset of each row.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn weigh(first: *const u8, pairs: &[Pair]) -> __m256i {
    const SHIFT: i32 = COARSE_BITS.cast_signed() + VALUE_BITS;
    let half = _mm256_set1_epi32(1 << (SHIFT - 1));
    let (mut low, mut high) = (half, half);
    for pair in pairs {
        // SAFETY: the caller guarantees that 32 bytes are readable at both offsets of a pair.
        let [upper, lower] = pair
            .places
            .map(|place| unsafe { _mm256_loadu_si256(first.add(place).cast()) });
        let lows = _mm256_unpacklo_epi16(upper, lower);
        let highs = _mm256_unpackhi_epi16(upper, lower);
        low = _mm256_add_epi32(low, _mm256_madd_epi16(lows, pair.weights));
        high = _mm256_add_epi32(high, _mm256_madd_epi16(highs, pair.weights));
    }
    _mm256_packs_epi32(
        _mm256_srai_epi32::<SHIFT>(low),
        _mm256_srai_epi32::<SHIFT>(high),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resize::Filter;
    use crate::resize::weights::PRECISION_BITS;

    /// Every pair of small sizes, and some large ones.
    fn axes() -> impl Iterator<Item = (usize, usize)> {
        let small = (1..=64).flat_map(|input| (1..=64).map(move |output| (input, output)));
        let large = [
            (640, 384),
            (4000, 1001),
            (1333, 800),
            (480, 1920),
            (65_500, 16_376),
        ];
        small
            .chain(large)
            .filter(|&(input, output)| input < FAST_REDUCTION.saturating_mul(output))
    }

    #[test]
    fn rounded_weights_satisfy_the_error_bound() {
        let one = 1 << PRECISION_BITS;
        for (input, output) in axes() {
            for filter in [Filter::Bilinear, Filter::Bicubic] {
                let exact = Weights::new(input, output, filter);
                let rounded = Weights::new(input, output, filter).round();
                assert!(exact.most() <= 16, "{} of {input}, {output}", exact.most());
                for ((_, exact), (_, rounded)) in exact.iter().zip(rounded.iter()) {
                    assert_eq!(rounded.iter().sum::<i32>(), one);
                    assert!(rounded.iter().all(|&weight| {
                        i32::from(Weights::coarse(weight)) << (PRECISION_BITS - COARSE_BITS)
                            == weight
                    }));
                    let amounts = exact.iter().map(|weight| weight.abs()).sum::<i32>();
                    assert!(amounts <= one / 10 * 13);
                    // 0.125 of a level for values within 127.5 of the midpoint.
                    let off = exact.iter().zip(rounded).map(|(a, b)| (a - b).abs());
                    assert!(off.sum::<i32>() <= one >> 10);
                }
            }
        }
    }

    #[test]
    fn every_supported_size_has_a_table() {
        for (input, output) in axes() {
            for filter in [Filter::Bilinear, Filter::Bicubic] {
                let weights = Weights::new(input, output, filter).round();
                assert!(
                    ApproxWeights::new(&weights).is_some(),
                    "{input} to {output}"
                );
            }
        }
    }
}
