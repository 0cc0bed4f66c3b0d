//! Rows of one head in a tensor: read, turned, written, and brought near before they are needed.

use std::ops::Range;

use super::lanes::Lanes;

/// Rows of one head in a tensor: queries, keys, values, or gradients of them.
#[derive(Clone, Copy)]
pub(super) struct HeadRows<'a> {
    /// First number of the head in row 0 of the tensor.
    pub first: *mut f32,
    /// Numbers from one row of the tensor to the next.
    pub stride: usize,
    /// Which rows of the tensor; [`Self::PADDED`] for the row `padding`. None: those from 0 on.
    pub places: Option<&'a [u32]>,
    /// The row of a padded place: what is read of it, or where gradients are added up.
    pub padding: *mut f32,
}

impl HeadRows<'_> {
    /// A place that is no row of the tensor.
    pub(super) const PADDED: u32 = u32::MAX;

    /// Rows of d numbers one behind another.
    pub(super) fn packed(first: *mut f32, d: usize) -> Self {
        Self {
            first,
            stride: d,
            places: None,
            padding: std::ptr::null_mut(),
        }
    }

    /// Where row i begins, and whether it is a padded one.
    ///
    /// # Safety
    /// There is such a row.
    #[inline(always)]
    pub(super) unsafe fn row(&self, i: usize) -> (*mut f32, bool) {
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

    /// The rows from i on.
    ///
    /// # Safety
    /// There are so many.
    #[inline(always)]
    pub(super) unsafe fn from(self, i: usize) -> Self {
        match self.places {
            // SAFETY: as of the caller.
            None => Self {
                first: unsafe { self.first.add(i * self.stride) },
                ..self
            },
            Some(places) => Self {
                places: Some(&places[i..]),
                ..self
            },
        }
    }

    /// Ask for the d numbers of some rows, which lie too far apart for the processor to guess them;
    /// rows from `end` on are none.
    ///
    /// # Safety
    /// The rows below `end` are there.
    #[inline(always)]
    pub(super) unsafe fn prefetch(&self, rows: Range<usize>, end: usize, d: usize) {
        for i in rows.start..rows.end.min(end) {
            // SAFETY: as of the caller.
            let (row, _) = unsafe { self.row(i) };
            for k in (0..d).step_by(LINE) {
                prefetch_line(row.wrapping_add(k));
            }
        }
    }

    /// [`Self::prefetch`], kept out of the caller, whose registers are all in use.
    ///
    /// # Safety
    /// As there.
    #[inline(never)]
    pub(super) unsafe fn prefetch_apart(&self, rows: Range<usize>, end: usize, d: usize) {
        // SAFETY: as of the caller.
        unsafe { self.prefetch(rows, end, d) };
    }
}

/// Numbers of a line of the cache.
const LINE: usize = 16;

/// Ask for a line. It goes into the second cache: rows a power of two apart share few places of the
/// first.
#[inline(always)]
fn prefetch_line(place: *const f32) {
    // SAFETY: it reads nothing, whatever the place.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(place.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// Rows (m, d), turned to (d, p); the columns behind m are 0.
#[inline(always)]
pub(super) unsafe fn turn(rows: &HeadRows, m: usize, d: usize, p: usize, to: *mut f32) {
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

/// Rows (m, d) one behind another, scaled.
#[inline(always)]
pub(super) unsafe fn gather<L: Lanes>(
    rows: &HeadRows,
    m: usize,
    d: usize,
    factor: f32,
    to: *mut f32,
) {
    for j in 0..m {
        // SAFETY: as of the caller.
        unsafe { write::<L>((to.add(j * d), false), rows.row(j).0, d, factor) };
    }
}

/// A few rows (R, d), scaled; those that are none are 0, and so is the gradient of a padded place.
#[inline(always)]
pub(super) unsafe fn load<L: Lanes, const R: usize>(
    rows: &HeadRows,
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
pub(super) unsafe fn write<L: Lanes>(
    (to, is_padded): (*mut f32, bool),
    from: *const f32,
    d: usize,
    factor: f32,
) {
    // SAFETY: as of the caller.
    unsafe {
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
