//! Safe wrappers with runtime SIMD dispatch; each returns the number of items processed.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx2_rows;
#[cfg(target_arch = "x86_64")]
mod avx2_small;
#[cfg(target_arch = "aarch64")]
mod neon;
pub(super) mod place;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod row_loops;

use std::ops::Range;

use super::bitstream::Bitstream;
use super::block::{Block, Coefficients};
use super::interleaved::{self, McuRun};
use super::progressive::{self, ScanPass};
use crate::Error;
use crate::cpu_features::Instructions;

/// Call and return the function of an AVX2 module or of `neon` if the processor supports it.
macro_rules! vectorized {
    ($simd:ident, $avx2:ident::$function:ident($($argument:ident),+), none) => {
        #[cfg(target_arch = "x86_64")]
        if $simd.instructions >= Instructions::Avx2 {
            // SAFETY: the processor has AVX2 and BMI2, as checked by `Simd::new`.
            return unsafe { $avx2::$function($($argument),+) };
        }
    };
    ($simd:ident, $avx2:ident::$function:ident($($argument:ident),+), neon) => {
        vectorized!($simd, $avx2::$function($($argument),+), none);
        #[cfg(target_arch = "aarch64")]
        if $simd.instructions >= Instructions::Neon {
            // SAFETY: the processor has NEON, as checked by `Simd::new`.
            return unsafe { neon::$function($($argument),+) };
        }
    };
}

/// An instruction set that the processor supports.
#[derive(Clone, Copy)]
pub(super) struct Simd {
    instructions: Instructions,
}

impl Simd {
    /// Use this instruction set or, if it is not supported, the best one below it.
    pub(super) fn new(instructions: Instructions) -> Self {
        #[cfg(target_arch = "x86_64")]
        if !is_x86_feature_detected!("bmi1") || !is_x86_feature_detected!("bmi2") {
            return Self {
                instructions: Instructions::Scalar,
            };
        }
        let instructions = instructions.min(Instructions::best());
        Self { instructions }
    }

    /// See [`interleaved::run`].
    pub(super) fn run(self, lane: McuRun<'_>) -> McuRun<'_> {
        vectorized!(self, avx2::run(lane), none);
        interleaved::run(lane)
    }

    /// See [`interleaved::run_two`].
    pub(super) fn run_two<'a, 'b>(
        self,
        first: McuRun<'a>,
        second: McuRun<'b>,
    ) -> (McuRun<'a>, McuRun<'b>) {
        vectorized!(self, avx2::run_two(first, second), none);
        interleaved::run_two(first, second)
    }

    /// Decode MCUs of a progressive scan, as in [`ScanPass::run`].
    pub(super) fn progressive_run(
        self,
        pass: &mut ScanPass<'_>,
        stream: &mut Bitstream<'_, '_>,
        coefficients: &mut [Coefficients],
        row: usize,
        columns: Range<usize>,
    ) -> Result<usize, Error> {
        vectorized!(
            self,
            avx2::progressive_run(pass, stream, coefficients, row, columns),
            none
        );
        pass.run(stream, coefficients, row, columns, progressive::spread)
    }

    /// Transform adjacent blocks to `size` x `size` samples each. Returns false if not supported.
    pub(super) fn transform(
        self,
        blocks: &[&Block],
        quantization: &[u16; 64],
        size: usize,
        out: &mut [u8],
        stride: usize,
    ) -> bool {
        #[cfg(target_arch = "x86_64")]
        if self.instructions >= Instructions::Avx2 && matches!(size, 2 | 4 | 8) {
            // SAFETY: the processor has AVX2, as checked by `new`.
            unsafe {
                match size {
                    8 => avx2::transform(blocks, quantization, out, stride),
                    4 => avx2_small::four(blocks, quantization, out, stride),
                    _ => avx2_small::two(blocks, quantization, out, stride),
                }
            }
            return true;
        }
        #[cfg(target_arch = "aarch64")]
        if self.instructions >= Instructions::Neon && size == 8 {
            // SAFETY: the processor has NEON, as checked by `new`.
            unsafe { neon::transform(blocks, quantization, out, stride) };
            return true;
        }
        let _ = (blocks, quantization, size, out, stride);
        false
    }

    /// Double the width. Returns the number of samples done, counted from the second one.
    pub(super) fn wide(self, samples: &[u8], out: &mut [u8]) -> usize {
        vectorized!(self, avx2_rows::wide(samples, out), neon);
        let _ = (samples, out);
        0
    }

    /// Blend two rows and double the width. Returns the number of samples done, counted from the
    /// second one.
    pub(super) fn both(self, near: &[u8], far: &[u8], out: &mut [u8]) -> usize {
        vectorized!(self, avx2_rows::both(near, far, out), neon);
        let _ = (near, far, out);
        0
    }

    /// Convert `YCbCr` to RGB. Returns the number of pixels done.
    pub(super) fn convert(self, luma: &[u8], blue: &[u8], red: &[u8], out: &mut [u8]) -> usize {
        vectorized!(self, avx2_rows::convert(luma, blue, red, out), neon);
        let _ = (luma, blue, red, out);
        0
    }
}
