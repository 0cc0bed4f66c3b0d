//! Scalar loops from blocks to pixels; [`super::simd`] does most of their work where it can.

pub(super) mod color;
pub(super) mod idct;
pub(super) mod upsample;
