//! The data path of FIBER: bytes of pictures, texts and boxes in, training batches out.
//!
//! Plain Rust; only `py/` knows of Python, behind the feature `python`. Data flow:
//! [`loader::record`] -> [`loader::sample`] (by [`image`], [`transform`], [`resize`], [`normalize`],
//! [`boxes`], [`tokenizer`] and [`rng`]) -> [`loader::collate`], on the threads of [`loader`].
//! Texts alone: [`tokenizer::batch`].

pub mod attention;
pub mod boxes;
pub mod cpu_features;
pub mod error;
mod exif;
#[cfg(test)]
mod fixtures;
pub mod image;
pub mod jpeg;
pub mod loader;
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
