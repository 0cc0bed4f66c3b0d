//! One head of one window or one sample: from rows of queries, keys and values to what is read, and
//! back to their gradients.
//!
//! A few queries at a time; their scores stay in the innermost cache and are never written out.
//! Order of operations: queries are scaled, then multiplied with the keys, the bias is added, then
//! the mask; weights are the exponentials less the largest score, divided by their sum.

use super::lanes::Lanes;
use super::products::{PADDING, accumulate, combine, scores};

/// Rows of one head in a tensor: queries, keys, values, or gradients of them.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    /// First number of the head in row 0 of the tensor.
    pub first: *mut f32,
    /// Numbers from one row of the tensor to the next.
    pub stride: usize,
    /// Which rows of the tensor; [`Self::PADDED`] for the row `padding`. None: those from 0 on.
    pub places: Option<&'a [u32]>,
    /// The row of a padded place: what is read of it, or where gradients are added up.
    pub padding: *mut f32,
}

impl Rows<'_> {
    /// A place that is no row of the tensor.
    pub(super) const PADDED: u32 = u32::MAX;

    /// Where row i begins, and whether it is a padded one.
    ///
    /// # Safety
    /// There is such a row.
    #[inline(always)]
    unsafe fn row(&self, i: usize) -> (*mut f32, bool) {
        let place = match self.places {
            None => i,
            // SAFETY: as of the caller.
            Some(places) => match unsafe { *places.get_unchecked(i) } {
                Self::PADDED => return (self.padding, true),
                place => place as usize,
            },
        };
        // SAFETY: as of the caller.
        (unsafe { self.first.add(place * self.stride) }, false)
    }
}

/// What is computed: n queries read m keys; d numbers each.
#[derive(Clone, Copy)]
pub(super) struct Head<'a> {
    pub queries: usize,
    pub keys: usize,
    pub width: usize,
    pub query: Rows<'a>,
    pub key: Rows<'a>,
    pub value: Rows<'a>,
    /// (n, p) to add to the scores, or null; p is `padded(m)`.
    pub bias: *const f32,
    /// The same once more.
    pub mask: *const f32,
}

/// Gradients of a [`Head`]: the one that is given and those that are wanted.
#[derive(Clone, Copy)]
pub(super) struct Gradients<'a> {
    pub read: Rows<'a>,
    pub query: Rows<'a>,
    pub key: Rows<'a>,
    pub value: Rows<'a>,
    /// (n, p), where the gradients of the scores are added, or null.
    pub bias: *mut f32,
}

/// Round a number of keys up to whole registers.
pub(super) fn padded(keys: usize) -> usize {
    keys.next_multiple_of(PADDING)
}

/// Memory that a thread computes in.
#[derive(Default)]
pub(super) struct Space(Vec<Line>);

/// A line of the cache.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[allow(dead_code)] [f32; 16]);

impl Space {
    /// Give uninitialised numbers, at least so many of each; each begins a line.
    fn parts<const N: usize>(&mut self, sizes: [usize; N]) -> [*mut f32; N] {
        let lines = sizes.map(|size| size.div_ceil(16));
        let total = lines.iter().sum();
        if self.0.len() < total {
            self.0.resize(total, Line([0.0; 16]));
        }
        let mut first = 0;
        lines.map(|count| {
            let part = self.0[first..].as_mut_ptr().cast();
            first += count;
            part
        })
    }
}

/// Compute what the queries read, and write it to `read`; where `sums` is not null it takes the
/// logarithm of each query's sum of exponentials, in base 2.
///
/// # Safety
/// The processor has the instructions of the lanes. Rows hold `width` numbers, a multiple of
/// [`PADDING`]; no other thread writes what is read or touches what is written.
#[inline(always)]
pub(super) unsafe fn forward<L: Lanes, const R: usize>(
    head: &Head,
    read: &Rows,
    sums: *mut f32,
    space: &mut Space,
) {
    let (m, d, p) = (head.keys, head.width, padded(head.keys));
    let [turned_keys, values, query, weights, out, totals] =
        space.parts([d * p, m * d, R * d, R * p, R * d, head.queries]);
    // SAFETY: the parts have the sizes that the functions state.
    unsafe {
        turn(&head.key, m, d, p, turned_keys);
        gather::<L>(&head.value, m, d, values);
        let mut first = 0;
        while first < head.queries {
            let rows = R.min(head.queries - first);
            load::<L, R>(&head.query, first, rows, d, scale(d), query);
            scores::<L, R>(query, turned_keys, d, p, weights);
            let (largest, total) = exponentials::<L, R>(head, first, rows, weights, p);
            for r in 0..rows {
                *totals.add(first + r) = total[r];
                if !sums.is_null() {
                    *sums.add(first + r) = largest[r];
                }
            }
            combine::<L, R>(weights, values, (m, d, p), out);
            for r in 0..rows {
                let (to, is_padded) = read.row(first + r);
                if is_padded {
                    continue;
                }
                // Without a key nothing is read.
                let factor = if m == 0 {
                    0.0
                } else {
                    1.0 / *totals.add(first + r)
                };
                let factor = L::splat(factor);
                let mut k = 0;
                while k < d {
                    L::load(out.add(r * d + k))
                        .multiply(factor)
                        .store(to.add(k));
                    k += L::WIDTH;
                }
            }
            first += R;
        }
        if !sums.is_null() {
            for i in 0..head.queries {
                let largest = *sums.add(i) * std::f32::consts::LOG2_E;
                // Without a key the largest score is -inf, and so is the sum.
                *sums.add(i) = largest + log2(*totals.add(i));
            }
        }
    }
}

/// Compute the gradients; weights are computed anew.
///
/// # Safety
/// As [`forward`].
#[inline(always)]
pub(super) unsafe fn backward<L: Lanes, const R: usize>(
    head: &Head,
    gradients: &Gradients,
    space: &mut Space,
) {
    let (m, d, p) = (head.keys, head.width, padded(head.keys));
    let [
        turned_keys,
        keys,
        turned_values,
        of_keys,
        of_values,
        query,
        grad,
        weights,
        of_scores,
        out,
    ] = space.parts([
        d * p,
        m * d,
        d * p,
        m * d,
        m * d,
        R * d,
        R * d,
        R * p,
        R * p,
        R * d,
    ]);
    // SAFETY: the parts have the sizes that the functions state.
    unsafe {
        turn(&head.key, m, d, p, turned_keys);
        turn(&head.value, m, d, p, turned_values);
        gather::<L>(&head.key, m, d, keys);
        of_keys.write_bytes(0, m * d);
        of_values.write_bytes(0, m * d);
        let mut first = 0;
        while first < head.queries {
            let rows = R.min(head.queries - first);
            load::<L, R>(&head.query, first, rows, d, scale(d), query);
            load::<L, R>(&gradients.read, first, rows, d, 1.0, grad);
            scores::<L, R>(query, turned_keys, d, p, weights);
            scores::<L, R>(grad, turned_values, d, p, of_scores);
            // Rows that are none have no weights, whatever the keys hold.
            weights.add(rows * p).write_bytes(0, (R - rows) * p);
            of_scores.add(rows * p).write_bytes(0, (R - rows) * p);
            let (_, total) = exponentials::<L, R>(head, first, rows, weights, p);
            softmax_backward::<L, R>(weights, total, of_scores, p, rows);
            if !gradients.bias.is_null() {
                add::<L>(gradients.bias.add(first * p), of_scores, rows * p);
            }
            combine::<L, R>(of_scores, keys, (m, d, p), out);
            accumulate::<L, R>(weights, grad, (m, d, p), of_values);
            accumulate::<L, R>(of_scores, query, (m, d, p), of_keys);
            for r in 0..rows {
                write::<L>(&gradients.query, first + r, out.add(r * d), d, scale(d));
            }
            first += R;
        }
        for j in 0..m {
            write::<L>(&gradients.key, j, of_keys.add(j * d), d, 1.0);
            write::<L>(&gradients.value, j, of_values.add(j * d), d, 1.0);
        }
    }
}

/// The logarithm in base 2 of a normal number, or some finite number for 0; without branches, so that
/// many are computed at once. S. Moshier's Cephes, `logf`.
#[inline(always)]
fn log2(x: f32) -> f32 {
    const COEFFICIENTS: [f32; 9] = [
        7.037_683_6e-2,
        -1.151_461e-1,
        1.167_699_9e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_8e-1,
        2.000_071_5e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ];
    let bits = x.to_bits();
    // x = 2^exponent * fraction, and the fraction lies around 1.
    let fraction = f32::from_bits((bits & 0x007f_ffff) | 0x3f00_0000);
    let is_small = fraction < std::f32::consts::FRAC_1_SQRT_2;
    let rest = if is_small { 2.0 * fraction } else { fraction } - 1.0;
    #[allow(clippy::cast_possible_wrap, clippy::cast_precision_loss)] // Eight bits.
    let exponent = ((bits >> 23) as i32 - 126 - i32::from(is_small)) as f32;
    let mut sum = COEFFICIENTS[0];
    let mut i = 1;
    while i < COEFFICIENTS.len() {
        sum = sum * rest + COEFFICIENTS[i];
        i += 1;
    }
    let natural = rest + (sum * rest - 0.5) * rest * rest;
    exponent + natural * std::f32::consts::LOG2_E
}

/// What queries are multiplied with.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)] // Widths are small.
fn scale(width: usize) -> f32 {
    (1.0 / (width as f64).sqrt()) as f32
}

/// Rows (m, d), turned to (d, p); the columns behind m are 0.
#[inline(always)]
unsafe fn turn(rows: &Rows, m: usize, d: usize, p: usize, to: *mut f32) {
    let mut first = 0;
    // SAFETY: as of the caller; widths are multiples of the square's side.
    unsafe {
        while first + SQUARE <= m {
            let mut from = [std::ptr::null(); SQUARE];
            for j in 0..SQUARE {
                from[j] = rows.row(first + j).0.cast_const();
            }
            for k in (0..d).step_by(SQUARE) {
                turn_square(from, k, to.add(k * p + first), p);
            }
            first += SQUARE;
        }
        for j in first..m {
            let (row, _) = rows.row(j);
            for k in 0..d {
                *to.add(k * p + j) = *row.add(k);
            }
        }
        for k in 0..d {
            to.add(k * p + m).write_bytes(0, p - m);
        }
    }
}

/// Side of the squares that are turned at once.
const SQUARE: usize = 4;

/// Numbers k to k + 4 of four rows, turned, into four rows of p numbers.
#[inline(always)]
unsafe fn turn_square(from: [*const f32; SQUARE], k: usize, to: *mut f32, p: usize) {
    // SAFETY: as of the caller; x86-64 has these instructions.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        use std::arch::x86_64::{
            _mm_loadu_ps, _mm_movehl_ps, _mm_movelh_ps, _mm_storeu_ps, _mm_unpackhi_ps,
            _mm_unpacklo_ps,
        };
        let [a, b, c, d] = [
            _mm_loadu_ps(from[0].add(k)),
            _mm_loadu_ps(from[1].add(k)),
            _mm_loadu_ps(from[2].add(k)),
            _mm_loadu_ps(from[3].add(k)),
        ];
        let (low_ab, low_cd) = (_mm_unpacklo_ps(a, b), _mm_unpacklo_ps(c, d));
        let (high_ab, high_cd) = (_mm_unpackhi_ps(a, b), _mm_unpackhi_ps(c, d));
        _mm_storeu_ps(to, _mm_movelh_ps(low_ab, low_cd));
        _mm_storeu_ps(to.add(p), _mm_movehl_ps(low_cd, low_ab));
        _mm_storeu_ps(to.add(2 * p), _mm_movelh_ps(high_ab, high_cd));
        _mm_storeu_ps(to.add(3 * p), _mm_movehl_ps(high_cd, high_ab));
    }
    // SAFETY: as of the caller.
    #[cfg(not(target_arch = "x86_64"))]
    unsafe {
        for j in 0..SQUARE {
            for i in 0..SQUARE {
                *to.add(i * p + j) = *from[j].add(k + i);
            }
        }
    }
}

/// Rows (m, d) one behind another.
#[inline(always)]
unsafe fn gather<L: Lanes>(rows: &Rows, m: usize, d: usize, to: *mut f32) {
    for j in 0..m {
        // SAFETY: as of the caller.
        unsafe {
            let (row, _) = rows.row(j);
            let mut k = 0;
            while k < d {
                L::load(row.add(k)).store(to.add(j * d + k));
                k += L::WIDTH;
            }
        }
    }
}

/// A few rows (R, d), scaled; those that are none are 0, and so is the gradient of a padded place.
#[inline(always)]
unsafe fn load<L: Lanes, const R: usize>(
    rows: &Rows,
    first: usize,
    count: usize,
    d: usize,
    factor: f32,
    to: *mut f32,
) {
    // SAFETY: as of the caller.
    unsafe {
        for r in 0..count {
            let (row, _) = rows.row(first + r);
            let mut k = 0;
            while k < d {
                let value = L::load(row.add(k)).multiply(L::splat(factor));
                value.store(to.add(r * d + k));
                k += L::WIDTH;
            }
        }
        to.add(count * d).write_bytes(0, (R - count) * d);
    }
}

/// Write a row, scaled, or add it up where it is a padded one.
#[inline(always)]
unsafe fn write<L: Lanes>(rows: &Rows, i: usize, from: *const f32, d: usize, factor: f32) {
    // SAFETY: as of the caller.
    unsafe {
        let (to, is_padded) = rows.row(i);
        let factor = L::splat(factor);
        let mut k = 0;
        while k < d {
            let mut value = L::load(from.add(k)).multiply(factor);
            if is_padded {
                value = value.add(L::load(to.add(k)));
            }
            value.store(to.add(k));
            k += L::WIDTH;
        }
    }
}

/// Add the bias and then the mask of query i to its scores (p,).
#[inline(always)]
unsafe fn add_to_scores<L: Lanes>(head: &Head, i: usize, row: *mut f32, p: usize) {
    // SAFETY: as of the caller.
    unsafe {
        if !head.bias.is_null() {
            add::<L>(row, head.bias.add(i * p), p);
        }
        if !head.mask.is_null() {
            add::<L>(row, head.mask.add(i * p), p);
        }
    }
}

/// Add p numbers to others.
#[inline(always)]
unsafe fn add<L: Lanes>(to: *mut f32, from: *const f32, p: usize) {
    let mut column = 0;
    while column < p {
        // SAFETY: as of the caller.
        unsafe {
            let sum = L::load(to.add(column)).add(L::load(from.add(column)));
            sum.store(to.add(column));
        }
        column += L::WIDTH;
    }
}

/// Add bias and mask to the scores (R, p) of a few queries and replace them by their exponentials
/// less the largest one of a query; gives that and the sum of each.
///
/// What stands behind the last key is next to nothing.
#[inline(always)]
unsafe fn exponentials<L: Lanes, const R: usize>(
    head: &Head,
    first: usize,
    rows: usize,
    scores: *mut f32,
    p: usize,
) -> ([f32; R], [f32; R]) {
    let (mut largest, mut total) = ([f32::NEG_INFINITY; R], [0.0; R]);
    // Numbers that are written one by one could not be read at once without waiting for them.
    let mut behind = [0.0; PADDING];
    for column in (PADDING - (p - head.keys))..PADDING {
        behind[column] = f32::NEG_INFINITY;
    }
    // SAFETY: as of the caller.
    unsafe {
        for r in 0..rows {
            let row = scores.add(r * p);
            add_to_scores::<L>(head, first + r, row, p);
            if p > head.keys {
                add::<L>(row.add(p - PADDING), behind.as_ptr(), PADDING);
            }
            let mut lanes = L::splat(f32::NEG_INFINITY);
            let mut column = 0;
            while column < p {
                lanes = L::load(row.add(column)).max(lanes);
                column += L::WIDTH;
            }
            largest[r] = largest_of(lanes);
        }
        for r in 0..rows {
            let row = scores.add(r * p);
            let less = L::splat(largest[r]);
            let mut sum = L::splat(0.0);
            let mut column = 0;
            while column < p {
                let weight = L::load(row.add(column)).subtract(less).exp();
                weight.store(row.add(column));
                sum = sum.add(weight);
                column += L::WIDTH;
            }
            total[r] = sum_of(sum);
        }
    }
    (largest, total)
}

/// Make weights (R, p) of exponentials and their sums, and of the weights' gradients those of the
/// scores.
#[inline(always)]
unsafe fn softmax_backward<L: Lanes, const R: usize>(
    weights: *mut f32,
    total: [f32; R],
    gradients: *mut f32,
    p: usize,
    rows: usize,
) {
    let mut weighted = [0.0; R];
    // SAFETY: as of the caller.
    unsafe {
        for r in 0..rows {
            let (weights, gradients) = (weights.add(r * p), gradients.add(r * p));
            let factor = L::splat(1.0 / total[r]);
            let mut sum = L::splat(0.0);
            let mut column = 0;
            while column < p {
                let weight = L::load(weights.add(column)).multiply(factor);
                weight.store(weights.add(column));
                sum = weight.multiply_add(L::load(gradients.add(column)), sum);
                column += L::WIDTH;
            }
            weighted[r] = sum_of(sum);
        }
        for r in 0..rows {
            let (weights, gradients) = (weights.add(r * p), gradients.add(r * p));
            let less = L::splat(weighted[r]);
            let mut column = 0;
            while column < p {
                let gradient = L::load(gradients.add(column)).subtract(less);
                let gradient = L::load(weights.add(column)).multiply(gradient);
                gradient.store(gradients.add(column));
                column += L::WIDTH;
            }
        }
    }
}

/// The largest number of a register.
#[inline(always)]
unsafe fn largest_of<L: Lanes>(register: L) -> f32 {
    let mut numbers = [f32::NEG_INFINITY; 16];
    // SAFETY: no register is wider.
    unsafe { register.store(numbers.as_mut_ptr()) };
    let mut half = 8;
    while half > 0 {
        for i in 0..half {
            if numbers[i + half] > numbers[i] {
                numbers[i] = numbers[i + half];
            }
        }
        half /= 2;
    }
    numbers[0]
}

/// The sum of the numbers of a register.
#[inline(always)]
unsafe fn sum_of<L: Lanes>(register: L) -> f32 {
    let mut numbers = [0.0; 16];
    // SAFETY: no register is wider.
    unsafe { register.store(numbers.as_mut_ptr()) };
    let mut half = 8;
    while half > 0 {
        for i in 0..half {
            numbers[i] += numbers[i + half];
        }
        half /= 2;
    }
    numbers[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithms_are_near_the_true_ones() {
        for i in 0..50_000_u16 {
            let x = 1.0 + f32::from(i) * 0.37;
            let difference = f64::from(log2(x)) - f64::from(x).log2();
            // Half a unit in the last place of the sum, and of the product with the logarithm of 2.
            assert!(
                difference.abs() <= 2e-7 * f64::from(x).log2().max(1.0),
                "{x}"
            );
        }
    }

    #[test]
    fn parts_of_the_memory_begin_lines_and_do_not_overlap() {
        let mut space = Space::default();
        let [first, none, second] = space.parts([17, 0, 3]);
        assert_eq!(first.addr() % 64, 0);
        assert_eq!(none.addr() - first.addr(), 2 * 64);
        assert_eq!(second, none);
    }
}
