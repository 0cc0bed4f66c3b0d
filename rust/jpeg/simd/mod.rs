//! Safe wrappers with run-time SIMD dispatch; each returns the number of items processed.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx2_rows;
#[cfg(target_arch = "x86_64")]
mod avx2_small;
#[cfg(target_arch = "aarch64")]
mod neon;

use std::ops::Range;

use super::bitstream::Bitstream;
use super::block::NATURAL_ORDER_FROM_END;
use super::block::{Block, Coefficients};
use super::interleaved::{self, McuRun};
use super::progressive::{self, ScanPass};
use crate::Error;
use crate::cpu_features::Instructions;

/// An instruction set that the processor supports.
#[derive(Clone, Copy)]
pub(super) struct Simd {
    instructions: Instructions,
}

impl Simd {
    /// Use this instruction set, or the best one supported below it.
    pub(super) fn new(instructions: Instructions) -> Self {
        #[cfg(target_arch = "x86_64")]
        if !is_x86_feature_detected!("bmi1") || !is_x86_feature_detected!("bmi2") {
            return Self {
                instructions: Instructions::Scalar,
            };
        }
        Self {
            instructions: instructions.min(Instructions::best()),
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn has_avx2(self) -> bool {
        self.instructions >= Instructions::Avx2
    }

    #[cfg(target_arch = "aarch64")]
    fn has_neon(self) -> bool {
        self.instructions >= Instructions::Neon
    }

    /// [`interleaved::run`].
    pub(super) fn run(self, lane: McuRun<'_>) -> McuRun<'_> {
        #[cfg(target_arch = "x86_64")]
        if self.has_avx2() {
            // SAFETY: the processor has AVX2 and BMI2, as `new` made sure.
            return unsafe { avx2::run(lane) };
        }
        interleaved::run(lane)
    }

    /// [`interleaved::run_two`].
    pub(super) fn run_two<'a, 'b>(
        self,
        first: McuRun<'a>,
        second: McuRun<'b>,
    ) -> (McuRun<'a>, McuRun<'b>) {
        #[cfg(target_arch = "x86_64")]
        if self.has_avx2() {
            // SAFETY: the processor has AVX2 and BMI2, as `new` made sure.
            return unsafe { avx2::run_two(first, second) };
        }
        interleaved::run_two(first, second)
    }

    /// Decode MCUs of a progressive scan, as [`ScanPass::run`].
    pub(super) fn progressive_run(
        self,
        pass: &mut ScanPass<'_>,
        stream: &mut Bitstream<'_, '_>,
        coefficients: &mut [Coefficients],
        row: usize,
        columns: Range<usize>,
    ) -> Result<usize, Error> {
        #[cfg(target_arch = "x86_64")]
        if self.has_avx2() {
            // SAFETY: the processor has AVX2 and BMI2, as `new` made sure.
            return unsafe { avx2::progressive_run(pass, stream, coefficients, row, columns) };
        }
        pass.run(stream, coefficients, row, columns, progressive::spread)
    }

    /// Transform adjacent blocks to `size` x `size` samples each. Returns whether it did.
    pub(super) fn transform(
        self,
        blocks: &[&Block],
        quantisation: &[u16; 64],
        size: usize,
        out: &mut [u8],
        stride: usize,
    ) -> bool {
        #[cfg(target_arch = "x86_64")]
        if self.has_avx2() && matches!(size, 2 | 4 | 8) {
            // SAFETY: the processor has AVX2, as `new` made sure.
            unsafe {
                match size {
                    8 => avx2::transform(blocks, quantisation, out, stride),
                    4 => avx2_small::four(blocks, quantisation, out, stride),
                    _ => avx2_small::two(blocks, quantisation, out, stride),
                }
            }
            return true;
        }
        #[cfg(target_arch = "aarch64")]
        if self.has_neon() && size == 8 {
            // SAFETY: the processor has NEON, as `new` made sure.
            unsafe { neon::transform(blocks, quantisation, out, stride) };
            return true;
        }
        let _ = (blocks, quantisation, size, out, stride);
        false
    }

    /// Double the width. Returns the number of samples done, from the second on.
    pub(super) fn wide(self, samples: &[u8], out: &mut [u8]) -> usize {
        #[cfg(target_arch = "x86_64")]
        if self.has_avx2() {
            // SAFETY: the processor has AVX2, as `new` made sure.
            return unsafe { avx2_rows::wide(samples, out) };
        }
        #[cfg(target_arch = "aarch64")]
        if self.has_neon() {
            // SAFETY: the processor has NEON, as `new` made sure.
            return unsafe { neon::wide(samples, out) };
        }
        let _ = (samples, out);
        0
    }

    /// Combine two rows and double the width. Returns the number of samples done, from the second
    /// on.
    pub(super) fn both(self, near: &[u8], far: &[u8], out: &mut [u8]) -> usize {
        #[cfg(target_arch = "x86_64")]
        if self.has_avx2() {
            // SAFETY: the processor has AVX2, as `new` made sure.
            return unsafe { avx2_rows::both(near, far, out) };
        }
        #[cfg(target_arch = "aarch64")]
        if self.has_neon() {
            // SAFETY: the processor has NEON, as `new` made sure.
            return unsafe { neon::both(near, far, out) };
        }
        let _ = (near, far, out);
        0
    }

    /// Convert `YCbCr` to RGB. Returns the number of pixels done.
    pub(super) fn convert(self, luma: &[u8], blue: &[u8], red: &[u8], out: &mut [u8]) -> usize {
        #[cfg(target_arch = "x86_64")]
        if self.has_avx2() {
            // SAFETY: the processor has AVX2, as `new` made sure.
            return unsafe { avx2_rows::convert(luma, blue, red, out) };
        }
        #[cfg(target_arch = "aarch64")]
        if self.has_neon() {
            // SAFETY: the processor has NEON, as `new` made sure.
            return unsafe { neon::convert(luma, blue, red, out) };
        }
        let _ = (luma, blue, red, out);
        0
    }
}

/// Store a coefficient, given the number of remaining ones in the zigzag order; past the end it
/// overwrites the last one.
#[inline]
pub(super) fn place(block: &mut Block, places_left: i8, value: i16) {
    let position = usize::from(NATURAL_ORDER_FROM_END[usize::from(places_left as u8)]);
    // SAFETY: every entry of the table is below 64, as asserted below. A mask instead costs a few
    // percent of a whole image, since this is done for every coefficient.
    unsafe { *block.get_unchecked_mut(position) = value };
}

const _: () = {
    let mut at = 0;
    while at < NATURAL_ORDER_FROM_END.len() {
        assert!(NATURAL_ORDER_FROM_END[at] < 64);
        at += 1;
    }
};
