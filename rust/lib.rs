//! Data pipeline of FIBER: turns image bytes, text, boxes and masks into training batches.
//!
//! Plain Rust; only `py/` depends on Python (feature `python`). Data flow:
//! [`loader::record`] -> [`loader::sample`] (uses [`image`], [`transform`], [`tokenizer`],
//! [`boxes`] and [`rng`]) -> [`loader::decode_into`] (uses [`jpeg`], [`resize`], [`normalize`] and
//! [`masks`])
//! -> [`loader::collate`], on the threads of [`loader`]. Text batches: [`tokenizer::batch`].

// Some functions are used only by the bindings.
#![cfg_attr(not(feature = "python"), allow(dead_code))]

pub mod assignment;
pub mod attention;
pub mod boxes;
pub mod cpu_features;
pub mod decode_limits;
pub mod error;
mod exif;
#[cfg(test)]
mod fixtures;
pub mod half_products;
pub mod image;
pub mod jpeg;
pub mod loader;
pub mod masks;
pub mod normalize;
#[cfg(feature = "python")]
mod py;
pub mod resize;
pub mod rng;
mod simd;
pub mod tokenizer;
pub mod transform;
mod try_alloc;

pub use error::Error;
