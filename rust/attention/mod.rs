//! Attention on CPUs in single precision, forward and backward.
//!
//! The math of `triton_kernels/*/torch_path.py`, fused: scores never leave the caches, windows are
//! partitioned and merged by index arithmetic, and nothing of the size of the scores is stored for
//! the backward pass. [`windows`] and [`cross`] split the work into tasks; [`head`] and
//! [`gradients`] compute them.

// Dimension letters are defined in the modules. Closures and iterator calls that are not inlined
// would be compiled without the wide instructions.
#![allow(
    clippy::many_single_char_names,
    clippy::inline_always,
    clippy::needless_range_loop
)]

pub mod cross;
mod gradients;
mod head;
mod lanes;
mod products;
mod rows;
mod softmax;
#[cfg(test)]
mod tests;
mod threads;
pub mod windows;

use crate::Error;
use crate::cpu_features::Instructions;
use gradients::{Gradients, SavedForward};
use head::{Head, HeadScratch};
use rows::HeadRows;

/// A pointer shared by threads, each of which accesses other elements.
#[derive(Clone, Copy)]
struct Shared(*mut f32);

// SAFETY: users ensure that no two threads write, or read and write, the same elements.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

impl Shared {
    /// A read-only pointer.
    fn read_only(numbers: &[f32]) -> Self {
        Self(numbers.as_ptr().cast_mut())
    }

    fn new(numbers: &mut [f32]) -> Self {
        Self(numbers.as_mut_ptr())
    }

    /// Pointer to an element.
    ///
    /// # Safety
    /// The index is within the elements, or one past the end.
    unsafe fn at(self, place: usize) -> *mut f32 {
        // SAFETY: as for the caller.
        unsafe { self.0.add(place) }
    }
}

/// [`head::forward`] with an instruction set.
///
/// # Safety
/// As [`head::forward`].
unsafe fn forward(
    instructions: Instructions,
    head: &Head,
    read: &HeadRows,
    sums: *mut f32,
    space: &mut HeadScratch,
) {
    // SAFETY: as for the caller; the instruction set is supported.
    unsafe {
        match instructions {
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512 => forward_avx512(head, read, sums, space),
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => forward_avx2(head, read, sums, space),
            _ => head::forward::<lanes::Scalar, 4>(head, read, sums, space),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn forward_avx512(head: &Head, read: &HeadRows, sums: *mut f32, space: &mut HeadScratch) {
    // SAFETY: as for the caller.
    unsafe { head::forward::<lanes::Avx512, 8>(head, read, sums, space) };
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn forward_avx2(head: &Head, read: &HeadRows, sums: *mut f32, space: &mut HeadScratch) {
    // SAFETY: as for the caller.
    unsafe { head::forward::<lanes::Avx2, 4>(head, read, sums, space) };
}

/// [`gradients::backward`] with an instruction set.
///
/// # Safety
/// As [`gradients::backward`].
unsafe fn backward(
    instructions: Instructions,
    head: &Head,
    gradients: &Gradients,
    known: Option<&SavedForward>,
    space: &mut HeadScratch,
) {
    // SAFETY: as for the caller; the instruction set is supported.
    unsafe {
        match instructions {
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512 => backward_avx512(head, gradients, known, space),
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => backward_avx2(head, gradients, known, space),
            _ => gradients::backward::<lanes::Scalar, 4>(head, gradients, known, space),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn backward_avx512(
    head: &Head,
    gradients: &Gradients,
    known: Option<&SavedForward>,
    space: &mut HeadScratch,
) {
    // SAFETY: as for the caller.
    unsafe { gradients::backward::<lanes::Avx512, 8>(head, gradients, known, space) };
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn backward_avx2(
    head: &Head,
    gradients: &Gradients,
    known: Option<&SavedForward>,
    space: &mut HeadScratch,
) {
    // SAFETY: as for the caller.
    unsafe { gradients::backward::<lanes::Avx2, 4>(head, gradients, known, space) };
}

/// True if heads of this width are supported.
#[must_use]
pub fn takes(head_width: usize) -> bool {
    head_width > 0 && head_width.is_multiple_of(products::PADDING)
}

/// Reject other head widths.
fn expect_width(head_width: usize) -> Result<(), Error> {
    if takes(head_width) {
        return Ok(());
    }
    let multiple = products::PADDING;
    Err(Error::argument(
        "head_width",
        format!("{head_width}; expected a multiple of {multiple}"),
    ))
}

/// Reject a tensor of another size.
fn expect(name: &'static str, found: usize, expected: usize) -> Result<(), Error> {
    if found == expected {
        return Ok(());
    }
    Err(Error::argument(
        name,
        format!("{found} numbers, expected {expected}"),
    ))
}
