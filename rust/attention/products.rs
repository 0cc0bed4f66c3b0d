//! Products of a few rows with a whole matrix, whose sums stay in registers.
//!
//! Letters: R rows at once, d width of a head, m keys, p keys padded to a multiple of [`PADDING`].
//! Matrices are stored row by row. All functions need the instructions of their lanes.

use super::lanes::Lanes;

/// Rows of scores are padded to a multiple of this, and widths must be one.
pub(super) const PADDING: usize = 16;

/// Registers of a row that are summed up side by side.
const WIDE: usize = 3;
const PAIR: usize = 2;

/// out (R, p) = x (R, d) * y (d, p).
///
/// # Safety
/// The pointers are valid for these shapes; p is a multiple of [`PADDING`].
#[inline(always)]
pub(super) unsafe fn scores<L: Lanes, const R: usize>(
    x: *const f32,
    y: *const f32,
    d: usize,
    p: usize,
    out: *mut f32,
) {
    let mut column = 0;
    // SAFETY: every block of columns ends within p.
    unsafe {
        while column + WIDE * L::WIDTH <= p {
            scores_block::<L, R, WIDE>(x, y.add(column), d, p, out.add(column));
            column += WIDE * L::WIDTH;
        }
        while column < p {
            scores_block::<L, R, 1>(x, y.add(column), d, p, out.add(column));
            column += L::WIDTH;
        }
    }
}

/// Some columns of [`scores`].
#[inline(always)]
unsafe fn scores_block<L: Lanes, const R: usize, const C: usize>(
    x: *const f32,
    y: *const f32,
    d: usize,
    p: usize,
    out: *mut f32,
) {
    // SAFETY: as of the caller.
    unsafe {
        let mut sums = [[L::splat(0.0); C]; R];
        for k in 0..d {
            let mut columns = [L::splat(0.0); C];
            for c in 0..C {
                columns[c] = L::load(y.add(k * p + c * L::WIDTH));
            }
            for r in 0..R {
                let factor = L::splat(*x.add(r * d + k));
                for c in 0..C {
                    sums[r][c] = factor.multiply_add(columns[c], sums[r][c]);
                }
            }
        }
        for r in 0..R {
            for c in 0..C {
                sums[r][c].store(out.add(r * p + c * L::WIDTH));
            }
        }
    }
}

/// out (R, d) = x (R, p) * y (m, d), of whose columns the first m count.
///
/// # Safety
/// The pointers are valid for these shapes; d is a multiple of [`PADDING`].
#[inline(always)]
pub(super) unsafe fn combine<L: Lanes, const R: usize>(
    x: *const f32,
    y: *const f32,
    (m, d, p): (usize, usize, usize),
    out: *mut f32,
) {
    let mut column = 0;
    // SAFETY: every block of columns ends within d.
    unsafe {
        while column + PAIR * L::WIDTH <= d {
            combine_block::<L, R, PAIR>(x, y.add(column), (m, d, p), out.add(column));
            column += PAIR * L::WIDTH;
        }
        while column < d {
            combine_block::<L, R, 1>(x, y.add(column), (m, d, p), out.add(column));
            column += L::WIDTH;
        }
    }
}

/// Some columns of [`combine`].
#[inline(always)]
unsafe fn combine_block<L: Lanes, const R: usize, const C: usize>(
    x: *const f32,
    y: *const f32,
    (m, d, p): (usize, usize, usize),
    out: *mut f32,
) {
    // SAFETY: as of the caller.
    unsafe {
        let mut sums = [[L::splat(0.0); C]; R];
        for j in 0..m {
            let mut columns = [L::splat(0.0); C];
            for c in 0..C {
                columns[c] = L::load(y.add(j * d + c * L::WIDTH));
            }
            for r in 0..R {
                let factor = L::splat(*x.add(r * p + j));
                for c in 0..C {
                    sums[r][c] = factor.multiply_add(columns[c], sums[r][c]);
                }
            }
        }
        for r in 0..R {
            for c in 0..C {
                sums[r][c].store(out.add(r * d + c * L::WIDTH));
            }
        }
    }
}

/// out (m, d) += the first m columns of x (R, p), turned, * y (R, d).
///
/// # Safety
/// The pointers are valid for these shapes; d is a multiple of [`PADDING`].
#[inline(always)]
pub(super) unsafe fn accumulate<L: Lanes, const R: usize>(
    x: *const f32,
    y: *const f32,
    (m, d, p): (usize, usize, usize),
    out: *mut f32,
) {
    let mut column = 0;
    // SAFETY: every block of columns ends within d.
    unsafe {
        while column + PAIR * L::WIDTH <= d {
            accumulate_block::<L, R, PAIR>(x, y.add(column), (m, d, p), out.add(column));
            column += PAIR * L::WIDTH;
        }
        while column < d {
            accumulate_block::<L, R, 1>(x, y.add(column), (m, d, p), out.add(column));
            column += L::WIDTH;
        }
    }
}

/// Some columns of [`accumulate`].
#[inline(always)]
unsafe fn accumulate_block<L: Lanes, const R: usize, const C: usize>(
    x: *const f32,
    y: *const f32,
    (m, d, p): (usize, usize, usize),
    out: *mut f32,
) {
    // SAFETY: as of the caller.
    unsafe {
        let mut rows = [[L::splat(0.0); C]; R];
        for r in 0..R {
            for c in 0..C {
                rows[r][c] = L::load(y.add(r * d + c * L::WIDTH));
            }
        }
        for j in 0..m {
            let mut sums = [L::splat(0.0); C];
            for c in 0..C {
                sums[c] = L::load(out.add(j * d + c * L::WIDTH));
            }
            for r in 0..R {
                let factor = L::splat(*x.add(r * p + j));
                for c in 0..C {
                    sums[c] = factor.multiply_add(rows[r][c], sums[c]);
                }
            }
            for c in 0..C {
                sums[c].store(out.add(j * d + c * L::WIDTH));
            }
        }
    }
}
