//! Loops with AVX-512: warps and table look-ups.

pub(super) mod affine_avx512;
pub(super) mod lut_avx512;
