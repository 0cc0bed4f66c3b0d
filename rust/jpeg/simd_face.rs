//! The safe face of the loops with wide instructions: each runs where the processor has them, and says
//! how much it did.

use super::sequential::{self, Block, Coefficients, Part, Place};
#[cfg(target_arch = "x86_64")]
use super::simd_x86;
use super::stream::Stream;
use crate::instructions::Instructions;

/// Instructions that the processor has.
#[derive(Clone, Copy)]
pub(super) struct Simd {
    instructions: Instructions,
}

impl Simd {
    /// Take these instructions, or what the processor has of them.
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

    /// Decode MCUs until the data made ready end; returns how many.
    pub(super) fn decode_run(
        self,
        stream: &mut Stream<'_, '_>,
        parts: &mut [Part],
        coefficients: &mut [Coefficients],
        place: Place,
    ) -> usize {
        #[cfg(target_arch = "x86_64")]
        if self.has_avx2() {
            // SAFETY: the processor has AVX2 and BMI2, as `new` made sure.
            return unsafe { simd_x86::decode_run(stream, parts, coefficients, place) };
        }
        sequential::decode_run(stream, parts, coefficients, place)
    }

    /// Transform blocks side by side to 8 x 8 samples each. Returns whether it did.
    pub(super) fn transform(
        self,
        blocks: &[Block],
        quantisation: &[u16; 64],
        out: &mut [u8],
        stride: usize,
    ) -> bool {
        #[cfg(target_arch = "x86_64")]
        if self.has_avx2() {
            // SAFETY: the processor has AVX2, as `new` made sure.
            unsafe { simd_x86::transform(blocks, quantisation, out, stride) };
            return true;
        }
        let _ = (blocks, quantisation, out, stride);
        false
    }

    /// Double the width. Returns how many samples from the second on are done.
    pub(super) fn wide(self, samples: &[u8], out: &mut [u8]) -> usize {
        #[cfg(target_arch = "x86_64")]
        if self.has_avx2() {
            // SAFETY: the processor has AVX2, as `new` made sure.
            return unsafe { simd_x86::wide(samples, out) };
        }
        let _ = (samples, out);
        0
    }

    /// Double the width of two weighed rows. Returns how many samples from the second on are done.
    pub(super) fn both(self, near: &[u8], far: &[u8], out: &mut [u8]) -> usize {
        #[cfg(target_arch = "x86_64")]
        if self.has_avx2() {
            // SAFETY: the processor has AVX2, as `new` made sure.
            return unsafe { simd_x86::both(near, far, out) };
        }
        let _ = (near, far, out);
        0
    }

    /// Convert `YCbCr` to red, green and blue. Returns how many pixels are done.
    pub(super) fn convert(self, luma: &[u8], blue: &[u8], red: &[u8], out: &mut [u8]) -> usize {
        #[cfg(target_arch = "x86_64")]
        if self.has_avx2() {
            // SAFETY: the processor has AVX2, as `new` made sure.
            return unsafe { simd_x86::convert(luma, blue, red, out) };
        }
        let _ = (luma, blue, red, out);
        0
    }
}
