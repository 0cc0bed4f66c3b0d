//! Safe wrappers with runtime SIMD dispatch; each returns the number of items processed.

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
use super::block::{Block, Coefficients, NATURAL_ORDER_FROM_END};
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

/// Loops over rows, shared by AVX2 and NEON; `$lanes` is the number of samples per register.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! row_loops {
    ($features:literal, $lanes:literal) => {
        /// Double the width, as in [`crate::jpeg::upsample::wide`]. Returns the number of samples
        /// done, counted from the second one.
        #[target_feature(enable = $features)]
        pub(super) fn wide(samples: &[u8], out: &mut [u8]) -> usize {
            let mut done = 0;
            while let Some(at) = next_start(done, samples.len()) {
                let (Some(before), Some(here), Some(next), Some(to)) = (
                    widened(samples, at - 1),
                    widened(samples, at),
                    widened(samples, at + 1),
                    out.get_mut(2 * at..).and_then(<[u8]>::first_chunk_mut),
                ) else {
                    break;
                };
                weigh::<2>([before, here, next], [1, 2], to);
                done = at + 15;
            }
            done
        }

        /// Blend two rows and double the width, as in [`crate::jpeg::upsample::both`]. Returns the
        /// number of samples done, counted from the second one.
        #[target_feature(enable = $features)]
        pub(super) fn both(near: &[u8], far: &[u8], out: &mut [u8]) -> usize {
            let mut done = 0;
            while let Some(at) = next_start(done, near.len().min(far.len())) {
                let (Some(before), Some(here), Some(next), Some(to)) = (
                    weighed(near, far, at - 1),
                    weighed(near, far, at),
                    weighed(near, far, at + 1),
                    out.get_mut(2 * at..).and_then(<[u8]>::first_chunk_mut),
                ) else {
                    break;
                };
                weigh::<4>([before, here, next], [8, 7], to);
                done = at + 15;
            }
            done
        }

        /// Convert `YCbCr` pixels, see [`crate::jpeg::color::convert`]. Returns the number of
        /// pixels done: all, or none if they do not fill a register.
        #[target_feature(enable = $features)]
        pub(super) fn convert(luma: &[u8], blue: &[u8], red: &[u8], out: &mut [u8]) -> usize {
            let count = out.len() / 3;
            let Some(last) = count.checked_sub($lanes) else {
                return 0;
            };
            let mut at = 0;
            loop {
                let (Some(y), Some(cb), Some(cr), Some(out)) = (
                    luma.get(at..).and_then(<[u8]>::first_chunk),
                    blue.get(at..).and_then(<[u8]>::first_chunk),
                    red.get(at..).and_then(<[u8]>::first_chunk),
                    out.get_mut(3 * at..).and_then(<[u8]>::first_chunk_mut),
                ) else {
                    return at;
                };
                convert_part(y, cb, cr, out);
                if at == last {
                    return count;
                }
                // The last register ends at the last pixel; some pixels are converted twice.
                at = (at + $lanes).min(last);
            }
        }
    };
}
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use row_loops;

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

/// Store a coefficient, given the number of coefficients that remain in zigzag order; past the end,
/// it overwrites the last one.
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
