//! Products of a few rows and a matrix, accumulated in registers.
//!
//! Notation: R rows at a time, C registers per row, m keys, p keys and w the head dim padded to a
//! multiple of [`PADDING`]. Matrices are row-major. All functions require the instructions of their
//! lanes.

use super::lanes::Lanes;

/// Rows of scores and head dims are padded to a multiple of this.
pub(super) const PADDING: usize = 16;

/// Registers per row in products that sum over the head dim.
pub(super) const WIDE: usize = 3;
/// Registers per row in products with w columns.
pub(super) const PAIR: usize = 2;

/// out (R, columns) = x (R, count) * y (count, columns), C registers of columns at a time; each
/// matrix is passed with its row stride.
///
/// # Safety
/// The processor supports the instructions of the lanes. The pointers are valid for these shapes,
/// and `out` overlaps neither input; `columns` is a multiple of [`PADDING`].
#[inline(always)]
pub(super) unsafe fn multiply<L: Lanes, const R: usize, const C: usize>(
    x: (*const f32, usize),
    (y, y_stride): (*const f32, usize),
    (out, out_stride): (*mut f32, usize),
    (count, columns): (usize, usize),
) {
    let mut column = 0;
    // SAFETY: `columns` is a multiple of a register's width, so every block of columns ends within
    // `y` and `out`; the caller guarantees the rest.
    unsafe {
        while column + C * L::WIDTH <= columns {
            let (y, out) = ((y.add(column), y_stride), (out.add(column), out_stride));
            multiply_block::<L, R, C>(x, y, count, out);
            column += C * L::WIDTH;
        }
        while column < columns {
            let (y, out) = ((y.add(column), y_stride), (out.add(column), out_stride));
            multiply_block::<L, R, 1>(x, y, count, out);
            column += L::WIDTH;
        }
    }
}

/// [`multiply`] for C registers of columns.
///
/// # Safety
/// Same as for [`multiply`]: `x` is valid for (R, count), `y` for (count, C registers), `out` for
/// (R, C registers).
#[inline(always)]
unsafe fn multiply_block<L: Lanes, const R: usize, const C: usize>(
    (x, x_stride): (*const f32, usize),
    (y, y_stride): (*const f32, usize),
    count: usize,
    (out, out_stride): (*mut f32, usize),
) {
    // SAFETY: rows below `count` and R, and columns below C registers, are valid by the caller.
    unsafe {
        let mut sums = [[L::splat(0.0); C]; R];
        for k in 0..count {
            let mut columns = [L::splat(0.0); C];
            for c in 0..C {
                columns[c] = L::load(y.add(k * y_stride + c * L::WIDTH));
            }
            for r in 0..R {
                let factor = L::splat(*x.add(r * x_stride + k));
                for c in 0..C {
                    sums[r][c] = factor.multiply_add(columns[c], sums[r][c]);
                }
            }
        }
        for r in 0..R {
            for c in 0..C {
                sums[r][c].store(out.add(r * out_stride + c * L::WIDTH));
            }
        }
    }
}

/// out (m, w) += x^T * y, with y (R, w) and the first m columns of x (R, p).
///
/// # Safety
/// The processor supports the instructions of the lanes. The pointers are valid for these shapes,
/// and `out` overlaps neither input; m is at most p, and w is a multiple of [`PADDING`].
#[inline(always)]
pub(super) unsafe fn accumulate<L: Lanes, const R: usize>(
    x: *const f32,
    y: *const f32,
    (m, w, p): (usize, usize, usize),
    out: *mut f32,
) {
    let mut column = 0;
    // SAFETY: w is a multiple of a register's width, so every block of columns ends within the rows
    // of `y` and `out`; the caller guarantees the rest.
    unsafe {
        while column + PAIR * L::WIDTH <= w {
            accumulate_block::<L, R, PAIR>(x, y.add(column), (m, w, p), out.add(column));
            column += PAIR * L::WIDTH;
        }
        while column < w {
            accumulate_block::<L, R, 1>(x, y.add(column), (m, w, p), out.add(column));
            column += L::WIDTH;
        }
    }
}

/// [`accumulate`] for C registers of columns.
///
/// # Safety
/// Same as for [`accumulate`], where `y` and `out` are valid for C registers of each row.
#[inline(always)]
unsafe fn accumulate_block<L: Lanes, const R: usize, const C: usize>(
    x: *const f32,
    y: *const f32,
    (m, w, p): (usize, usize, usize),
    out: *mut f32,
) {
    // SAFETY: the R rows of `x` and `y` and the m rows of `out` are valid by the caller, at columns
    // below m and C registers.
    unsafe {
        let mut rows = [[L::splat(0.0); C]; R];
        for r in 0..R {
            for c in 0..C {
                rows[r][c] = L::load(y.add(r * w + c * L::WIDTH));
            }
        }
        for j in 0..m {
            let mut sums = [L::splat(0.0); C];
            for c in 0..C {
                sums[c] = L::load(out.add(j * w + c * L::WIDTH));
            }
            for r in 0..R {
                let factor = L::splat(*x.add(r * p + j));
                for c in 0..C {
                    sums[c] = factor.multiply_add(rows[r][c], sums[c]);
                }
            }
            for c in 0..C {
                sums[c].store(out.add(j * w + c * L::WIDTH));
            }
        }
    }
}
