//! Products of float16 rows and float32 queries, for search in many rows.

use crate::simd::{self, SimdLoop};

/// Partial sums of a product, which vectorize.
const LANES: usize = 32;

/// Multiply rows of float16 numbers, given by their bits, with queries.
///
/// `rows` is (n, width) and `queries` (q, width), row-major; returns (q, n), summed in f32. All
/// numbers must be finite.
#[must_use]
pub fn half_products(rows: &[u16], queries: &[f32], width: usize) -> Vec<f32> {
    if width == 0 {
        return Vec::new();
    }
    let mut out = vec![0.0; (rows.len() / width) * (queries.len() / width)];
    simd::run(Products {
        rows,
        queries,
        width,
        out: &mut out,
    });
    out
}

struct Products<'a> {
    rows: &'a [u16],
    queries: &'a [f32],
    width: usize,
    out: &'a mut [f32],
}

impl SimdLoop for Products<'_> {
    #[allow(clippy::inline_always)] // Compiled for several instruction sets.
    #[inline(always)]
    fn run(self) {
        let count = self.rows.len() / self.width;
        let mut row = vec![0.0; self.width];
        for (number, halves) in self.rows.chunks_exact(self.width).enumerate() {
            for (value, half) in row.iter_mut().zip(halves) {
                *value = to_f32(*half);
            }
            let column = self.out.iter_mut().skip(number).step_by(count);
            for (out, query) in column.zip(self.queries.chunks_exact(self.width)) {
                *out = product(&row, query);
            }
        }
    }
}

/// Convert the bits of a finite float16 number.
///
/// Numbers without a normal exponent are computed by a difference, since processors are slow with
/// such numbers in f32, or take them for 0.
#[allow(clippy::inline_always)] // Compiled for several instruction sets.
#[inline(always)]
fn to_f32(half: u16) -> f32 {
    const SMALLEST: u32 = 113 << 23;
    let magnitude = u32::from(half & 0x7fff) << 13;
    let normal = f32::from_bits(magnitude + (112 << 23));
    let small = f32::from_bits(magnitude + SMALLEST) - f32::from_bits(SMALLEST);
    let value = if magnitude < (1 << 23) { small } else { normal };
    f32::from_bits(value.to_bits() | (u32::from(half & 0x8000) << 16))
}

#[allow(clippy::inline_always)] // Compiled for several instruction sets.
#[inline(always)]
fn product(row: &[f32], query: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    let (row_blocks, query_blocks) = (row.chunks_exact(LANES), query.chunks_exact(LANES));
    let rest = row_blocks.remainder().iter().zip(query_blocks.remainder());
    let rest: f32 = rest.map(|(x, y)| x * y).sum();
    for (x, y) in row_blocks.zip(query_blocks) {
        for (sum, (x, y)) in sums.iter_mut().zip(x.iter().zip(y)) {
            *sum += x * y;
        }
    }
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, by powers of two.
    fn value(half: u16) -> f32 {
        let sign = if half & 0x8000 == 0 { 1.0 } else { -1.0 };
        let (exponent, fraction) = (i32::from(half >> 10 & 31), f32::from(half & 1023));
        if exponent == 0 {
            return sign * fraction * 2.0_f32.powi(-24);
        }
        sign * (1024.0 + fraction) * 2.0_f32.powi(exponent - 25)
    }

    #[test]
    fn every_finite_number_is_converted() {
        for half in 0..=u16::MAX {
            if half >> 10 & 31 != 31 {
                assert_eq!(to_f32(half).to_bits(), value(half).to_bits(), "{half:#x}");
            }
        }
    }

    #[test]
    fn nothing_has_no_products() {
        assert!(half_products(&[], &[], 0).is_empty());
        assert!(half_products(&[], &[1.0, 2.0], 2).is_empty());
        assert!(half_products(&[1, 2], &[], 2).is_empty());
    }

    #[test]
    fn products_of_odd_widths() {
        for width in [1, 3, 31, 32, 33, 80, 256] {
            let bits = |i: usize| u16::try_from(i * 977 % 31_000).unwrap();
            let number = |i: usize| f32::from(u8::try_from(i % 7).unwrap()) - 3.0;
            let rows: Vec<u16> = (0..5 * width).map(bits).collect();
            let queries: Vec<f32> = (0..3 * width).map(number).collect();
            let found = half_products(&rows, &queries, width);
            assert_eq!(found.len(), 15);
            for (q, query) in queries.chunks(width).enumerate() {
                for (r, row) in rows.chunks(width).enumerate() {
                    let terms = row.iter().zip(query);
                    let terms = terms.map(|(x, y)| f64::from(value(*x)) * f64::from(*y));
                    let (sum, size) = terms.fold((0.0, 0.0), |(s, a), t| (s + t, a + t.abs()));
                    let error = (f64::from(found[q * 5 + r]) - sum).abs();
                    assert!(error <= 1e-6 * size, "{width}: {error} of {size}");
                }
            }
        }
    }
}
