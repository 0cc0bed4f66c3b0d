//! Attention on a processor, in single precision, forward and backward.
//!
//! What `triton_kernels/reference.py` says in plain torch, fused: scores never leave the caches,
//! windows are cut and put together again by index arithmetic, and nothing of the size of the
//! scores is kept for the backward pass. [`windows`] and [`cross`] part the work; [`head`] and [`gradients`] do it.

// Shapes have the letters that the modules state. What is not inlined into a function of wider
// instructions does not have them, and calls of iterators are not always inlined.
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

/// A pointer that several threads use, each for other numbers.
#[derive(Clone, Copy)]
struct Shared(*mut f32);

// SAFETY: whoever uses it sees to it that no two threads write, or read and write, the same numbers.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

impl Shared {
    /// Numbers that are only read.
    fn read_only(numbers: &[f32]) -> Self {
        Self(numbers.as_ptr().cast_mut())
    }

    fn new(numbers: &mut [f32]) -> Self {
        Self(numbers.as_mut_ptr())
    }

    /// The number at a place.
    ///
    /// # Safety
    /// The place is inside the numbers, or just behind them.
    unsafe fn at(self, place: usize) -> *mut f32 {
        // SAFETY: as of the caller.
        unsafe { self.0.add(place) }
    }
}

/// [`head::forward`] with these instructions.
///
/// # Safety
/// See there.
unsafe fn forward(
    instructions: Instructions,
    head: &Head,
    read: &HeadRows,
    sums: *mut f32,
    space: &mut HeadScratch,
) {
    // SAFETY: as of the caller; there are no such instructions without the processor's.
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
    // SAFETY: as of the caller.
    unsafe { head::forward::<lanes::Avx512, 8>(head, read, sums, space) };
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn forward_avx2(head: &Head, read: &HeadRows, sums: *mut f32, space: &mut HeadScratch) {
    // SAFETY: as of the caller.
    unsafe { head::forward::<lanes::Avx2, 4>(head, read, sums, space) };
}

/// [`gradients::backward`] with these instructions.
///
/// # Safety
/// See there.
unsafe fn backward(
    instructions: Instructions,
    head: &Head,
    gradients: &Gradients,
    known: Option<&SavedForward>,
    space: &mut HeadScratch,
) {
    // SAFETY: as of the caller; there are no such instructions without the processor's.
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
    // SAFETY: as of the caller.
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
    // SAFETY: as of the caller.
    unsafe { gradients::backward::<lanes::Avx2, 4>(head, gradients, known, space) };
}

/// Whether heads of this width can be computed.
#[must_use]
pub fn takes(head_width: usize) -> bool {
    head_width > 0 && head_width.is_multiple_of(products::PADDING)
}

/// Refuse heads of another width.
fn expect_width(head_width: usize) -> Result<(), Error> {
    if takes(head_width) {
        return Ok(());
    }
    let multiple = products::PADDING;
    Err(Error::argument(
        "head_width",
        format!("{head_width} is no multiple of {multiple}"),
    ))
}

/// Refuse a tensor of another size.
fn expect(name: &'static str, found: usize, expected: usize) -> Result<(), Error> {
    if found == expected {
        return Ok(());
    }
    Err(Error::argument(
        name,
        format!("{found} numbers, expected {expected}"),
    ))
}
