//! The inverse DCT, upsampling and conversion of colours with AVX2; the same values as the scalar loops.

use std::arch::x86_64::{
    __m128i, __m256i, _mm_loadu_si128, _mm_storel_epi64, _mm_storeu_si128, _mm256_add_epi16,
    _mm256_add_epi32, _mm256_castsi128_si256, _mm256_castsi256_si128, _mm256_cvtepu8_epi16,
    _mm256_extracti128_si256, _mm256_inserti128_si256, _mm256_loadu_si256, _mm256_madd_epi16,
    _mm256_mulhrs_epi16, _mm256_mullo_epi16, _mm256_or_si256, _mm256_packs_epi16,
    _mm256_packs_epi32, _mm256_packus_epi16, _mm256_permute2x128_si256, _mm256_permute4x64_epi64,
    _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_setzero_si256,
    _mm256_shuffle_epi8, _mm256_slli_epi16, _mm256_srai_epi32, _mm256_srli_epi16,
    _mm256_storeu_si256, _mm256_sub_epi16, _mm256_sub_epi32, _mm256_testz_si256,
    _mm256_unpackhi_epi8, _mm256_unpackhi_epi16, _mm256_unpackhi_epi32, _mm256_unpackhi_epi64,
    _mm256_unpacklo_epi8, _mm256_unpacklo_epi16, _mm256_unpacklo_epi32, _mm256_unpacklo_epi64,
    _mm256_xor_si256,
};

use super::idct::{self, CONSTANT_BITS, CROSS, EVEN, ODD_53, ODD_71, PASS_BITS};
use super::sequential::{self, Block, Coefficients, Part, Place};
use super::stream::Stream;

const FIRST_BITS: i32 = (CONSTANT_BITS - PASS_BITS) as i32;
const SECOND_BITS: i32 = (CONSTANT_BITS + PASS_BITS + 3) as i32;

/// [`sequential::decode_run`] with shifts by any register.
#[target_feature(enable = "avx2,bmi1,bmi2")]
pub(super) fn decode_run(
    stream: &mut Stream<'_, '_>,
    parts: &mut [Part],
    coefficients: &mut [Coefficients],
    place: Place,
) -> usize {
    sequential::decode_run(stream, parts, coefficients, place)
}

#[target_feature(enable = "avx2")]
#[inline]
fn load_16(from: &[u8; 16]) -> __m128i {
    // SAFETY: the array has the 16 bytes that are read.
    unsafe { _mm_loadu_si128(from.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
#[inline]
fn load_32(from: &[u8; 32]) -> __m256i {
    // SAFETY: the array has the 32 bytes that are read.
    unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
#[inline]
fn store_32(to: &mut [u8; 32], value: __m256i) {
    // SAFETY: the array has the 32 bytes that are written.
    unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), value) }
}

/// Row `row` of two blocks, side by side.
#[target_feature(enable = "avx2")]
#[inline]
fn load_rows(first: &[i16; 64], second: &[i16; 64], row: usize) -> __m256i {
    let (first, second) = (&first[row * 8..row * 8 + 8], &second[row * 8..row * 8 + 8]);
    // SAFETY: both slices have the 8 values that are read.
    unsafe {
        _mm256_inserti128_si256::<1>(
            _mm256_castsi128_si256(_mm_loadu_si128(first.as_ptr().cast())),
            _mm_loadu_si128(second.as_ptr().cast()),
        )
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn factors([low, high]: [i16; 2]) -> __m256i {
    _mm256_set1_epi32(i32::from(high) << 16 | i32::from(low as u16))
}

/// Transform blocks that stand side by side, 8 x 8 samples each; row r goes to `out[r * stride..]`.
#[target_feature(enable = "avx2")]
pub(super) fn transform(blocks: &[Block], quantisation: &[u16; 64], out: &mut [u8], stride: usize) {
    let steps = quantisation.map(|step| step as i16);
    let mut pairs = blocks.chunks_exact(2);
    let mut at = 0;
    for pair in &mut pairs {
        let Some(out) = out.get_mut(at..at + 7 * stride + 16) else {
            return;
        };
        if let Some(rows) = transform_pair(&pair[0], &pair[1], &steps) {
            store_pair(rows, out, stride);
        } else {
            idct::transform(&pair[0], quantisation, 8, out, stride);
            idct::transform(&pair[1], quantisation, 8, &mut out[8..], stride);
        }
        at += 16;
    }
    if let ([block], Some(out)) = (pairs.remainder(), out.get_mut(at..at + 7 * stride + 8)) {
        if let Some(rows) = transform_pair(block, block, &steps) {
            store_first(rows, out, stride);
        } else {
            idct::transform(block, quantisation, 8, out, stride);
        }
    }
}

/// Transform two blocks. Returns two rows of both in each register, or nothing for values so far out of
/// range that libjpeg-turbo's shortcut for blocks of one row shows.
#[target_feature(enable = "avx2")]
#[inline]
fn transform_pair(first: &Block, second: &Block, steps: &[i16; 64]) -> Option<[__m256i; 4]> {
    let mut rows = [_mm256_setzero_si256(); 8];
    for (row, to) in rows.iter_mut().enumerate() {
        let steps = load_rows(steps, steps, row);
        *to = _mm256_mullo_epi16(load_rows(first, second, row), steps);
    }
    let shifted = _mm256_add_epi16(rows[0], _mm256_set1_epi16(1 << 13));
    let range = _mm256_set1_epi16(-1 << 14);
    if _mm256_testz_si256(shifted, range) == 0 {
        return None;
    }
    let columns = transpose(pass::<FIRST_BITS>(rows));
    let samples = pass::<SECOND_BITS>(columns);
    Some(bytes_of_columns(samples))
}

/// Eight sums for each of two blocks: low and high halves of the lanes.
type Sums = [__m256i; 2];

#[target_feature(enable = "avx2")]
#[inline]
fn pairs(a: __m256i, b: __m256i) -> Sums {
    [_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b)]
}

#[target_feature(enable = "avx2")]
#[inline]
fn dot(pairs: Sums, by: [i16; 2]) -> Sums {
    let by = factors(by);
    [
        _mm256_madd_epi16(pairs[0], by),
        _mm256_madd_epi16(pairs[1], by),
    ]
}

#[target_feature(enable = "avx2")]
#[inline]
fn add(a: Sums, b: Sums) -> Sums {
    [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])]
}

#[target_feature(enable = "avx2")]
#[inline]
fn sub(a: Sums, b: Sums) -> Sums {
    [_mm256_sub_epi32(a[0], b[0]), _mm256_sub_epi32(a[1], b[1])]
}

/// A value times 2^13, with the half that rounding to fewer bits adds.
#[target_feature(enable = "avx2")]
#[inline]
fn scaled<const BITS: i32>(value: __m256i) -> Sums {
    let half = _mm256_set1_epi32(1 << (BITS - 1));
    let [low, high] = pairs(_mm256_setzero_si256(), value);
    add(
        [_mm256_srai_epi32::<3>(low), _mm256_srai_epi32::<3>(high)],
        [half, half],
    )
}

#[target_feature(enable = "avx2")]
#[inline]
fn down<const BITS: i32>(value: Sums) -> __m256i {
    _mm256_packs_epi32(
        _mm256_srai_epi32::<BITS>(value[0]),
        _mm256_srai_epi32::<BITS>(value[1]),
    )
}

/// One pass over eight registers, as [`idct::eight`].
#[target_feature(enable = "avx2")]
#[inline]
fn pass<const BITS: i32>(input: [__m256i; 8]) -> [__m256i; 8] {
    let even_26 = pairs(input[2], input[6]);
    let (sum_3, sum_2) = (dot(even_26, EVEN[0]), dot(even_26, EVEN[1]));
    let sum_0 = scaled::<BITS>(_mm256_add_epi16(input[0], input[4]));
    let sum_1 = scaled::<BITS>(_mm256_sub_epi16(input[0], input[4]));
    let even_0 = add(sum_0, sum_3);
    let even_1 = add(sum_1, sum_2);
    let even_2 = sub(sum_1, sum_2);
    let even_3 = sub(sum_0, sum_3);
    let cross = pairs(
        _mm256_add_epi16(input[3], input[7]),
        _mm256_add_epi16(input[1], input[5]),
    );
    let (cross_3, cross_4) = (dot(cross, CROSS[0]), dot(cross, CROSS[1]));
    let inputs_71 = pairs(input[7], input[1]);
    let inputs_53 = pairs(input[5], input[3]);
    let odd_0 = add(dot(inputs_71, ODD_71[1]), cross_4);
    let odd_1 = add(dot(inputs_53, ODD_53[1]), cross_3);
    let odd_2 = add(dot(inputs_53, ODD_53[0]), cross_4);
    let odd_3 = add(dot(inputs_71, ODD_71[0]), cross_3);
    [
        down::<BITS>(add(even_0, odd_0)),
        down::<BITS>(add(even_1, odd_1)),
        down::<BITS>(add(even_2, odd_2)),
        down::<BITS>(add(even_3, odd_3)),
        down::<BITS>(sub(even_3, odd_3)),
        down::<BITS>(sub(even_2, odd_2)),
        down::<BITS>(sub(even_1, odd_1)),
        down::<BITS>(sub(even_0, odd_0)),
    ]
}

/// Exchange rows and columns of 8 x 8 values, in both halves.
#[target_feature(enable = "avx2")]
#[inline]
fn transpose(rows: [__m256i; 8]) -> [__m256i; 8] {
    let a = [
        _mm256_unpacklo_epi16(rows[0], rows[1]),
        _mm256_unpackhi_epi16(rows[0], rows[1]),
        _mm256_unpacklo_epi16(rows[2], rows[3]),
        _mm256_unpackhi_epi16(rows[2], rows[3]),
        _mm256_unpacklo_epi16(rows[4], rows[5]),
        _mm256_unpackhi_epi16(rows[4], rows[5]),
        _mm256_unpacklo_epi16(rows[6], rows[7]),
        _mm256_unpackhi_epi16(rows[6], rows[7]),
    ];
    let b = [
        _mm256_unpacklo_epi32(a[0], a[2]),
        _mm256_unpackhi_epi32(a[0], a[2]),
        _mm256_unpacklo_epi32(a[1], a[3]),
        _mm256_unpackhi_epi32(a[1], a[3]),
        _mm256_unpacklo_epi32(a[4], a[6]),
        _mm256_unpackhi_epi32(a[4], a[6]),
        _mm256_unpacklo_epi32(a[5], a[7]),
        _mm256_unpackhi_epi32(a[5], a[7]),
    ];
    [
        _mm256_unpacklo_epi64(b[0], b[4]),
        _mm256_unpackhi_epi64(b[0], b[4]),
        _mm256_unpacklo_epi64(b[1], b[5]),
        _mm256_unpackhi_epi64(b[1], b[5]),
        _mm256_unpacklo_epi64(b[2], b[6]),
        _mm256_unpackhi_epi64(b[2], b[6]),
        _mm256_unpacklo_epi64(b[3], b[7]),
        _mm256_unpackhi_epi64(b[3], b[7]),
    ]
}

/// Limit columns to bytes and turn them into rows: in each register row 2 n of both blocks, then row
/// 2 n + 1.
#[target_feature(enable = "avx2")]
#[inline]
fn bytes_of_columns(columns: [__m256i; 8]) -> [__m256i; 4] {
    // Columns n and n + 4, eight rows each.
    let packed = [
        _mm256_packs_epi16(columns[0], columns[4]),
        _mm256_packs_epi16(columns[1], columns[5]),
        _mm256_packs_epi16(columns[2], columns[6]),
        _mm256_packs_epi16(columns[3], columns[7]),
    ];
    let left_01 = _mm256_unpacklo_epi8(packed[0], packed[1]);
    let left_23 = _mm256_unpacklo_epi8(packed[2], packed[3]);
    let right_01 = _mm256_unpackhi_epi8(packed[0], packed[1]);
    let right_23 = _mm256_unpackhi_epi8(packed[2], packed[3]);
    // Four columns of rows 0 to 3, and of rows 4 to 7.
    let left = [
        _mm256_unpacklo_epi16(left_01, left_23),
        _mm256_unpackhi_epi16(left_01, left_23),
    ];
    let right = [
        _mm256_unpacklo_epi16(right_01, right_23),
        _mm256_unpackhi_epi16(right_01, right_23),
    ];
    let rows = [
        _mm256_unpacklo_epi32(left[0], right[0]),
        _mm256_unpackhi_epi32(left[0], right[0]),
        _mm256_unpacklo_epi32(left[1], right[1]),
        _mm256_unpackhi_epi32(left[1], right[1]),
    ];
    [
        centered(rows[0]),
        centered(rows[1]),
        centered(rows[2]),
        centered(rows[3]),
    ]
}

/// Add 128 to each byte, and put the rows of both blocks next to each other.
#[target_feature(enable = "avx2")]
#[inline]
fn centered(rows: __m256i) -> __m256i {
    let samples = _mm256_xor_si256(rows, _mm256_set1_epi8(-128));
    _mm256_permute4x64_epi64::<0b11_01_10_00>(samples)
}

#[target_feature(enable = "avx2")]
#[inline]
fn store_pair(rows: [__m256i; 4], out: &mut [u8], stride: usize) {
    assert!(out.len() >= 7 * stride + 16);
    for (at, pair) in rows.into_iter().enumerate() {
        let start = 2 * at * stride;
        // SAFETY: the last row ends at 7 * stride + 16, which was checked.
        unsafe {
            let to = out.as_mut_ptr().add(start);
            _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(pair));
            _mm_storeu_si128(to.add(stride).cast(), _mm256_extracti128_si256::<1>(pair));
        }
    }
}

/// Store the first of two blocks.
#[target_feature(enable = "avx2")]
#[inline]
fn store_first(rows: [__m256i; 4], out: &mut [u8], stride: usize) {
    assert!(out.len() >= 7 * stride + 8);
    for (at, pair) in rows.into_iter().enumerate() {
        let start = 2 * at * stride;
        // SAFETY: the last row ends at 7 * stride + 8, which was checked.
        unsafe {
            let to = out.as_mut_ptr().add(start);
            _mm_storel_epi64(to.cast(), _mm256_castsi256_si128(pair));
            _mm_storel_epi64(to.add(stride).cast(), _mm256_extracti128_si256::<1>(pair));
        }
    }
}

/// 16 bytes from `at` on as numbers of 16 bits.
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

/// Weigh neighbours, and put left and right pixels, one in a lane, next to each other.
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

/// Double the width, as [`super::upsample::wide`]. Returns how many samples from the second on are done.
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

/// Where the next 16 samples begin that have neighbours: behind the `done` ones from the second sample
/// on, or before, so that the last ones are of a whole register, too.
#[inline]
fn next_start(done: usize, count: usize) -> Option<usize> {
    let last = count.checked_sub(17)?;
    (last > 0 && done < last + 15).then(|| (done + 1).min(last))
}

/// Weigh two rows.
#[target_feature(enable = "avx2")]
#[inline]
fn weighed(near: &[u8], far: &[u8], at: usize) -> Option<__m256i> {
    Some(_mm256_add_epi16(
        thrice(widened(near, at)?),
        widened(far, at)?,
    ))
}

/// Double the width of two weighed rows, as [`super::upsample::both`]. Returns how many samples from the
/// second on are done.
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

/// Convert pixels, 32 at a time, as [`super::color::convert`] does `YCbCr`. Returns how many are done:
/// all, or none of fewer than 32.
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
        // The last pixels are of a whole register, too.
        at = (at + 32).min(last);
    }
}

/// Multiples of 2^-15 that give the rounded products for every one of the 256 values.
const RED: i16 = 13173;
const BLUE: i16 = -7471;
/// Multiples of 2^-16: of Cb, and of Cr less one whole.
const GREEN: [i16; 2] = [-22554, 18734];

/// Red, green and blue of 32 pixels. All products are those of [`super::color`], to the bit.
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

/// Red, green and blue of 16 pixels, not limited yet.
#[target_feature(enable = "avx2")]
#[inline]
fn rgb_half(y: __m256i, cb: __m256i, cr: __m256i) -> [__m256i; 3] {
    let center = _mm256_set1_epi16(128);
    let (cb, cr) = (_mm256_sub_epi16(cb, center), _mm256_sub_epi16(cr, center));
    // 1.402 Cr = Cr + 0.402 Cr, and 1.772 Cb = 2 Cb - 0.228 Cb.
    let red = _mm256_add_epi16(cr, _mm256_mulhrs_epi16(cr, _mm256_set1_epi16(RED)));
    let blue = _mm256_add_epi16(
        _mm256_add_epi16(cb, cb),
        _mm256_mulhrs_epi16(cb, _mm256_set1_epi16(BLUE)),
    );
    // -0.714 Cr = 0.286 Cr - Cr.
    let half = _mm256_set1_epi32(1 << 15);
    let products = add(dot(pairs(cb, cr), GREEN), [half, half]);
    let green = _mm256_sub_epi16(down::<16>(products), cr);
    [
        _mm256_add_epi16(y, red),
        _mm256_add_epi16(y, green),
        _mm256_add_epi16(y, blue),
    ]
}

/// For each color, which of its bytes stand where in 16 bytes of pixels; three such parts follow.
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

/// 16 bytes of pixels of each half.
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
    // SAFETY: the array has the 32 bytes that are read.
    unsafe { _mm256_loadu_si256(mask.as_ptr().cast()) }
}

/// Red, green and blue in turn.
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
