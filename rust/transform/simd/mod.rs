//! AVX-512 loops for affine warps and lookup tables.

pub(super) mod affine_avx512;
pub(super) mod lut_avx512;
