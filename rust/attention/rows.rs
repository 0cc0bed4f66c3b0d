//! Rows of one head in a tensor: loading, transposing, storing, prefetching.

use std::ops::Range;

use super::head::padded;
use super::lanes::Lanes;

/// Rows of one head in a tensor of queries, keys, values, or their gradients.
#[derive(Clone, Copy)]
pub(super) struct HeadRows<'a> {
    /// First element of the head in row 0 of the tensor.
    pub first: *mut f32,
    /// Stride between rows of the tensor, in elements.
    pub stride: usize,
    /// Row indices in the tensor; [`Self::PADDED`] means `padding`. `None` for 0, 1, ...
    pub indices: Option<&'a [u32]>,
    /// Row for padded positions: their values, or the sum of their gradients.
    pub padding: *mut f32,
}

impl HeadRows<'_> {
    /// Index that marks a padded position.
    pub(super) const PADDED: u32 = u32::MAX;

    /// Contiguous rows of w elements.
    pub(super) fn packed(first: *mut f32, w: usize) -> Self {
        Self {
            first,
            stride: w,
            indices: None,
            padding: std::ptr::null_mut(),
        }
    }

    /// Pointer to row i, and true if the row is padding.
    ///
    /// # Safety
    /// The row must exist: i is below the number of `indices`, if any, and the row is in the
    /// tensor.
    #[inline(always)]
    pub(super) unsafe fn row(&self, i: usize) -> (*mut f32, bool) {
        let index = match self.indices {
            None => i,
            // SAFETY: the row exists, so i is below the number of indices.
            Some(indices) => match unsafe { *indices.get_unchecked(i) } {
                Self::PADDED => return (self.padding, true),
                index => index as usize,
            },
        };
        // SAFETY: the row exists, so its first element is in the tensor.
        (unsafe { self.first.add(index * self.stride) }, false)
    }

    /// Skip the first i rows.
    ///
    /// # Safety
    /// These rows must exist.
    #[inline(always)]
    pub(super) unsafe fn skip(mut self, i: usize) -> Self {
        match &mut self.indices {
            // SAFETY: the rows exist, so what follows them is in the tensor or at its end.
            None => self.first = unsafe { self.first.add(i * self.stride) },
            Some(indices) => *indices = &indices[i..],
        }
        self
    }

    /// Prefetch the d elements of the rows below `end`, which are too far apart for the hardware
    /// prefetcher.
    ///
    /// # Safety
    /// The rows below `end` must exist.
    #[inline(always)]
    pub(super) unsafe fn prefetch(&self, rows: Range<usize>, end: usize, d: usize) {
        for i in rows.start..rows.end.min(end) {
            // SAFETY: i is below `end`, so the caller guarantees that the row exists.
            let (row, _) = unsafe { self.row(i) };
            for k in (0..d).step_by(LINE) {
                prefetch_line(row.wrapping_add(k));
            }
        }
    }

    /// Same as [`Self::prefetch`], but not inlined, for callers without registers to spare.
    ///
    /// # Safety
    /// Same as for [`Self::prefetch`].
    #[inline(never)]
    pub(super) unsafe fn prefetch_apart(&self, rows: Range<usize>, end: usize, d: usize) {
        // SAFETY: the same condition as the caller's.
        unsafe { self.prefetch(rows, end, d) };
    }
}

/// Elements per cache line.
const LINE: usize = 16;

/// Prefetch a line into the L2 cache, since rows a power of two apart map to few sets of L1.
#[inline(always)]
fn prefetch_line(address: *const f32) {
    // SAFETY: a prefetch never faults, regardless of the address.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Transpose rows (m, d) to (d, p); columns past m are 0.
///
/// # Safety
/// The first m rows exist, with d elements each; `to` is valid for (d, p) elements and does not
/// overlap them; m is at most p.
#[inline(always)]
pub(super) unsafe fn transpose(rows: &HeadRows, m: usize, d: usize, p: usize, to: *mut f32) {
    let mut first = 0;
    let whole = d - d % SQUARE;
    // SAFETY: rows below m and elements below d are read; row k of `to` is written up to column p.
    unsafe {
        while first + SQUARE <= m {
            let mut from = [std::ptr::null(); SQUARE];
            for j in 0..SQUARE {
                from[j] = rows.row(first + j).0.cast_const();
            }
            for k in (0..whole).step_by(SQUARE) {
                transpose_square(from, k, to.add(k * p + first), p);
            }
            for k in whole..d {
                for j in 0..SQUARE {
                    *to.add(k * p + first + j) = *from[j].add(k);
                }
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

/// Tile size of the transpose.
const SQUARE: usize = 4;

/// Transpose elements k to k + 4 of four rows into four rows of p elements.
///
/// # Safety
/// The rows are readable up to element k + 4; `to` is writable for four elements there and p, 2 p
/// and 3 p elements after.
#[inline(always)]
unsafe fn transpose_square(from: [*const f32; SQUARE], k: usize, to: *mut f32, p: usize) {
    // SAFETY: every x86-64 processor has these instructions; the caller guarantees the four
    // elements of each load and store.
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
    // SAFETY: the caller guarantees these elements of each row.
    #[cfg(not(target_arch = "x86_64"))]
    unsafe {
        for j in 0..SQUARE {
            for i in 0..SQUARE {
                *to.add(i * p + j) = *from[j].add(k + i);
            }
        }
    }
}

/// Copy a range of rows to rows of `padded(d)` elements, with scaling; what is added to a row and
/// missing rows up to `total` are 0.
///
/// # Safety
/// The processor supports the instructions of the lanes. The rows of the range exist, with d
/// elements each; `to` is valid for (total, padded(d)) elements and does not overlap them; `total`
/// is at least the number of rows.
#[inline(always)]
pub(super) unsafe fn load<L: Lanes>(
    rows: &HeadRows,
    range: Range<usize>,
    total: usize,
    d: usize,
    factor: f32,
    to: *mut f32,
) {
    let (count, w) = (range.len(), padded(d));
    // SAFETY: rows below `count` are copied and those up to `total` cleared, w elements each; the
    // caller guarantees the rest.
    unsafe {
        for r in 0..count {
            let (row, _) = rows.row(range.start + r);
            let to = to.add(r * w);
            write::<L>((to, false), row, d, factor);
            to.add(d).write_bytes(0, w - d);
        }
        to.add(count * w).write_bytes(0, (total - count) * w);
    }
}

/// Store a row of d elements with scaling; padding rows are accumulated.
///
/// # Safety
/// The processor supports the instructions of the lanes; both rows are valid for d elements and do
/// not overlap.
#[inline(always)]
pub(super) unsafe fn write<L: Lanes>(
    (to, is_padded): (*mut f32, bool),
    from: *const f32,
    d: usize,
    factor: f32,
) {
    // SAFETY: only elements below d are accessed, which the caller guarantees to be valid.
    unsafe {
        let factors = L::splat(factor);
        let mut k = 0;
        while k + L::WIDTH <= d {
            let mut value = L::load(from.add(k)).multiply(factors);
            if is_padded {
                value = value.add(L::load(to.add(k)));
            }
            value.store(to.add(k));
            k += L::WIDTH;
        }
        while k < d {
            let value = *from.add(k) * factor;
            *to.add(k) = if is_padded { value + *to.add(k) } else { value };
            k += 1;
        }
    }
}
