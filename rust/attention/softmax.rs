//! Softmax, its gradient, and logsumexp.
//!
//! Row lengths p are multiples of [`PADDING`], and so of the width of every register.

use super::lanes::Lanes;
use super::products::PADDING;

/// Add p elements.
///
/// # Safety
/// The processor supports the instructions of the lanes; both pointers are valid for p elements, a
/// multiple of [`PADDING`], and do not overlap.
#[inline(always)]
pub(super) unsafe fn add<L: Lanes>(to: *mut f32, from: *const f32, p: usize) {
    let mut column = 0;
    while column < p {
        // SAFETY: a register from `column` on is inside the p elements, since its width divides p;
        // the caller guarantees the rest.
        unsafe {
            let sum = L::load(to.add(column)).add(L::load(from.add(column)));
            sum.store(to.add(column));
        }
        column += L::WIDTH;
    }
}

/// Add bias and mask to the scores (R, p) of a few queries and replace them by their exponentials
/// relative to each query's largest score; exponentials past the m-th key are 0. `added` holds the
/// (rows, p) bias and mask, or null.
///
/// Returns the largest score and the sum of exponentials per query, broadcast to a register, since
/// storing scalars and reloading them with a wider load would stall.
///
/// # Safety
/// The processor supports the instructions of the lanes. `scores` and what is `added` are valid for
/// (rows, p) elements and do not overlap; `rows` is at most R, and p is `padded(m)`.
#[inline(always)]
pub(super) unsafe fn exponentials<L: Lanes, const R: usize>(
    scores: *mut f32,
    rows: usize,
    (m, p): (usize, usize),
    added: [*const f32; 2],
) -> ([L; R], [L; R]) {
    // SAFETY: the caller guarantees the instructions of the lanes.
    let zero = unsafe { L::splat(0.0) };
    let (mut largest, mut total) = ([zero; R], [zero; R]);
    // Masked by addition, since scalar stores to the scores would stall the wide loads after them.
    let mut tail = [0.0; PADDING];
    for column in (PADDING - (p - m))..PADDING {
        tail[column] = f32::NEG_INFINITY;
    }
    // SAFETY: rows below `rows` have p elements, a multiple of a register's width; if p exceeds m,
    // it is PADDING or more, the length of `tail`. The caller guarantees the rest.
    unsafe {
        for r in 0..rows {
            let row = scores.add(r * p);
            for added in added {
                if !added.is_null() {
                    add::<L>(row, added.add(r * p), p);
                }
            }
            if p > m {
                add::<L>(row.add(p - PADDING), tail.as_ptr(), PADDING);
            }
            let mut lanes = L::splat(f32::NEG_INFINITY);
            let mut column = 0;
            while column < p {
                lanes = L::load(row.add(column)).max(lanes);
                column += L::WIDTH;
            }
            largest[r] = lanes.folded(|a, b| a.max(b));
        }
        for r in 0..rows {
            let row = scores.add(r * p);
            let mut sum = zero;
            let mut column = 0;
            while column < p {
                let weight = L::load(row.add(column)).subtract(largest[r]).exp();
                weight.store(row.add(column));
                sum = sum.add(weight);
                column += L::WIDTH;
            }
            total[r] = sum.sum();
        }
    }
    (largest, total)
}

/// Convert exponentials (R, p) and their sums to weights, and the gradients of the weights to those
/// of the scores.
///
/// # Safety
/// The processor supports the instructions of the lanes. `weights` and `gradients` are valid for
/// (rows, p) elements and do not overlap; `rows` is at most R, and p is a multiple of [`PADDING`].
#[inline(always)]
pub(super) unsafe fn softmax_backward<L: Lanes, const R: usize>(
    weights: *mut f32,
    total: [L; R],
    gradients: *mut f32,
    p: usize,
    rows: usize,
) {
    // SAFETY: rows below `rows` have p elements, a multiple of a register's width; the caller
    // guarantees the rest.
    unsafe {
        let mut weighted = [L::splat(0.0); R];
        for r in 0..rows {
            let (weights, gradients) = (weights.add(r * p), gradients.add(r * p));
            let factor = L::splat(1.0 / total[r].first());
            let mut sum = L::splat(0.0);
            let mut column = 0;
            while column < p {
                let weight = L::load(weights.add(column)).multiply(factor);
                weight.store(weights.add(column));
                sum = weight.multiply_add(L::load(gradients.add(column)), sum);
                column += L::WIDTH;
            }
            weighted[r] = sum.sum();
        }
        for r in 0..rows {
            let (weights, gradients) = (weights.add(r * p), gradients.add(r * p));
            let mut column = 0;
            while column < p {
                let gradient = L::load(gradients.add(column)).subtract(weighted[r]);
                let gradient = L::load(weights.add(column)).multiply(gradient);
                gradient.store(gradients.add(column));
                column += L::WIDTH;
            }
        }
    }
}

/// Dot product of two rows of d elements, broadcast to a register.
///
/// # Safety
/// The processor supports the instructions of the lanes; both pointers are valid for d elements.
#[inline(always)]
pub(super) unsafe fn dot<L: Lanes>(x: *const f32, y: *const f32, d: usize) -> L {
    // SAFETY: only elements below d are read, which the caller guarantees to be valid.
    unsafe {
        let mut sum = L::splat(0.0);
        let mut k = 0;
        while k + L::WIDTH <= d {
            sum = L::load(x.add(k)).multiply_add(L::load(y.add(k)), sum);
            k += L::WIDTH;
        }
        let mut rest = 0.0;
        while k < d {
            rest += *x.add(k) * *y.add(k);
            k += 1;
        }
        sum.sum().add(L::splat(rest))
    }
}

/// Convert scores (p,) to weights, and the gradients of the weights to those of the scores. `saved`
/// returns the base-2 logsumexp, and the dot product of the output and its gradient, for the
/// queries in a register of columns.
///
/// # Safety
/// The processor supports the instructions of the lanes; both pointers are valid for p elements, a
/// multiple of [`PADDING`], and do not overlap.
#[inline(always)]
pub(super) unsafe fn saved_softmax_backward<L: Lanes>(
    scores: *mut f32,
    gradients: *mut f32,
    p: usize,
    saved: impl Fn(usize) -> (L, L),
) {
    let mut column = 0;
    while column < p {
        let (logsumexp, delta) = saved(column);
        // SAFETY: a register from `column` on is inside the p elements, since its width divides p;
        // the caller guarantees the rest.
        unsafe {
            let weight = L::load(scores.add(column)).exp_minus(logsumexp);
            weight.store(scores.add(column));
            let gradient = L::load(gradients.add(column)).subtract(delta);
            weight.multiply(gradient).store(gradients.add(column));
        }
        column += L::WIDTH;
    }
}

/// Base-2 logarithm of a normal number, or some finite number for 0; branchless for vectorization.
/// Based on `logf` in S. Moshier's Cephes.
#[inline(always)]
pub(super) fn log2(x: f32) -> f32 {
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
    // x = 2^exponent * fraction, with a fraction close to 1.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::lanes;

    /// Exponentials of two rows of 21 scores, and their sums.
    ///
    /// # Safety
    /// The processor supports the instructions of the lanes.
    unsafe fn exponentials_of<L: Lanes>(scores: &mut [f32; 64]) -> [f32; 2] {
        // SAFETY: the scores are two rows of 32; the caller guarantees the instructions.
        let (_, total) = unsafe {
            exponentials::<L, 2>(scores.as_mut_ptr(), 2, (21, 32), [std::ptr::null(); 2])
        };
        // SAFETY: the caller guarantees the instructions.
        total.map(|sum| unsafe { sum.first() })
    }

    fn check_exponentials(run: unsafe fn(&mut [f32; 64]) -> [f32; 2]) {
        let mut scores = [0.0; 64];
        for column in 0..21_u8 {
            scores[usize::from(column)] = 3.0 - 7.0 * f32::from(column);
            scores[32 + usize::from(column)] = f32::from(column);
        }
        scores[32 + 5] = f32::NAN;
        // SAFETY: the caller checked that the processor supports the instructions.
        let sums = unsafe { run(&mut scores) };
        let expected: f64 = (0..21).map(|column| (-7.0 * f64::from(column)).exp()).sum();
        assert!((f64::from(sums[0]) - expected).abs() <= 2e-7 * expected);
        for (column, &weight) in scores[..32].iter().enumerate() {
            // 0 below exp(-64) and past the last key; no subnormal numbers.
            assert_eq!(weight > 0.0, column <= 9, "{column}: {weight}");
            assert!(weight == 0.0 || weight.is_normal());
        }
        assert!(sums[1].is_nan());
    }

    /// Exponentials of sixteen numbers, and of those numbers minus 1.
    ///
    /// # Safety
    /// The processor supports the instructions of the lanes.
    unsafe fn exp_of<L: Lanes>(numbers: &[f32; 16]) -> [[f32; 16]; 2] {
        let mut found = [[0.0; 16]; 2];
        for column in (0..16).step_by(L::WIDTH) {
            // SAFETY: register widths divide 16, the length of the arrays; the caller guarantees
            // the instructions.
            unsafe {
                let x = L::load(numbers.as_ptr().add(column));
                x.exp().store(found[0].as_mut_ptr().add(column));
                let y = L::splat(std::f32::consts::LOG2_E);
                x.exp_minus(y).store(found[1].as_mut_ptr().add(column));
            }
        }
        found
    }

    fn check_exp(run: unsafe fn(&[f32; 16]) -> [[f32; 16]; 2]) {
        for step in 0..4_096_u16 {
            let x: [f32; 16] = std::array::from_fn(|lane| {
                #[allow(clippy::cast_precision_loss)] // Below 16.
                let lane = lane as f32;
                // Starts at 16, an upper bound of a score minus its row's saved sum.
                16.0 - (f32::from(step) * 16.0 + lane) / 512.0
            });
            // SAFETY: the caller checked that the processor supports the instructions.
            let found = unsafe { run(&x) };
            // 2 ulps; for the difference, also (per unit of x) half an ulp of the difference and,
            // without FMA, of the product, 6.0e-8 each, and the rounding error of log2(e) as a
            // float, 1.4e-8.
            for (less, found, of_product) in [(0.0, found[0], 0.0), (1.0, found[1], 1.34e-7)] {
                for (x, found) in x.into_iter().zip(found) {
                    let exact_x = f64::from(x) - less;
                    if exact_x < -64.001 {
                        assert!(found == 0.0, "{exact_x}: {found}");
                        continue;
                    }
                    let allowed = 2.4e-7 + of_product * f64::from(x).abs();
                    let difference = (f64::from(found) - exact_x.exp()).abs();
                    let is_near = difference <= allowed * exact_x.exp();
                    assert!(is_near || exact_x < -63.999, "{exact_x}: {found}");
                }
            }
        }
    }

    /// Check a function with every supported lane type.
    macro_rules! check_all {
        ($check:ident, $of:ident) => {
            $check($of::<lanes::Scalar>);
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                $check($of::<lanes::Avx2>);
            }
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx512f") {
                $check($of::<lanes::Avx512>);
            }
        };
    }

    #[test]
    fn exponentials_are_accurate() {
        check_all!(check_exp, exp_of);
    }

    #[test]
    fn weights_far_below_the_largest_are_zero() {
        check_all!(check_exponentials, exponentials_of);
    }

    #[test]
    fn logarithms_are_accurate() {
        for i in 0..50_000_u16 {
            let x = 1.0 + f32::from(i) * 0.37;
            let difference = f64::from(log2(x)) - f64::from(x).log2();
            // Half an ulp of the sum, and of the product with ln(2).
            assert!(
                difference.abs() <= 2e-7 * f64::from(x).log2().max(1.0),
                "{x}"
            );
        }
    }
}
