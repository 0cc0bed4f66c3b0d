//! Float32 attention for CPUs, forward and backward.
//!
//! A fused version of `triton_kernels/*/torch_path.py`: scores never leave the caches,
//! windows are partitioned and merged by index arithmetic, and the backward pass recomputes the
//! attention weights. [`windows`] and [`cross`] split the work into tasks; [`head`] and
//! [`gradients`] compute them.

// Each module defines its notation for dimensions. Closures and iterator calls that are not inlined
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

/// A pointer shared by threads that access disjoint elements.
#[derive(Clone, Copy)]
struct Shared(*mut f32);

// SAFETY: elements are accessed only in unsafe code, whose authors ensure that no element is
// written by one thread while another accesses it.
unsafe impl Sync for Shared {}
// SAFETY: a pointer is not bound to a thread; for access to its elements, see `Sync`.
unsafe impl Send for Shared {}

impl Shared {
    fn read_only(values: &[f32]) -> Self {
        Self(values.as_ptr().cast_mut())
    }

    fn new(values: &mut [f32]) -> Self {
        Self(values.as_mut_ptr())
    }

    /// Pointer to an element, which an empty tensor need not have.
    fn at(self, index: usize) -> *mut f32 {
        self.0.wrapping_add(index)
    }
}

/// Define a function that calls the generic function of the same name, compiled for an instruction
/// set, or for the best one below it that the processor supports.
macro_rules! dispatch {
    ($module:ident::$name:ident($($argument:ident: $kind:ty),*)) => {
        /// # Safety
        /// Same as for the generic function, except that any instructions may be passed.
        unsafe fn $name(instructions: Instructions, $($argument: $kind),*) {
            /// # Safety
            /// Same as for the generic function.
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f")]
            unsafe fn avx512($($argument: $kind),*) {
                // SAFETY: this function has the instructions of `Avx512`; the caller guarantees the
                // rest.
                unsafe { $module::$name::<lanes::Avx512, 8>($($argument),*) };
            }
            /// # Safety
            /// Same as for the generic function.
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2($($argument: $kind),*) {
                // SAFETY: this function has the instructions of `Avx2`; the caller guarantees the
                // rest.
                unsafe { $module::$name::<lanes::Avx2, 4>($($argument),*) };
            }
            // SAFETY: the processor supports what `best` returns and all that is below it;
            // `Scalar` has no special instructions. The caller guarantees the rest.
            unsafe {
                match instructions.min(Instructions::best()) {
                    #[cfg(target_arch = "x86_64")]
                    Instructions::Avx512 => avx512($($argument),*),
                    #[cfg(target_arch = "x86_64")]
                    Instructions::Avx2 => avx2($($argument),*),
                    _ => $module::$name::<lanes::Scalar, 4>($($argument),*),
                }
            }
        }
    };
}

dispatch!(head::forward(
    head: &Head, out: &HeadRows, logsumexp: *mut f32, scratch: &mut HeadScratch
));
dispatch!(gradients::backward(
    head: &Head, gradients: &Gradients, saved: Option<&SavedForward>, scratch: &mut HeadScratch
));

/// Check that the head dim is at least 1.
fn check_width(head_width: usize) -> Result<(), Error> {
    if head_width > 0 {
        return Ok(());
    }
    Err(Error::argument("head_width", "expected at least 1, got 0"))
}

/// Number of elements of a tensor; too many for any tensor if the product overflows.
fn size_of<const N: usize>(shape: [usize; N]) -> usize {
    shape.into_iter().fold(1, usize::saturating_mul)
}

/// Check the number of elements of a tensor.
fn check_size(name: &'static str, found: usize, expected: usize) -> Result<(), Error> {
    if found == expected {
        return Ok(());
    }
    let reason = format!("expected {expected} elements, got {found}");
    Err(Error::argument(name, reason))
}
