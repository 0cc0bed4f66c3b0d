//! The data path of FIBER: bytes of pictures, texts and boxes in, training batches out.
//!
//! Plain Rust; only `py/` knows of Python, behind the feature `python`. Data flow:
//! [`record`] -> [`sample`] (by [`image`], [`augment`], [`plan`], [`crop`], [`resize`], [`rand_augment`],
//! [`affine`], [`enhance`], [`boxes`], [`box_journey`], [`tokenizer`], [`prompts`], [`spans`] and
//! [`random`]) -> [`collate`], on the threads of [`loader`]. Texts alone: [`text_batch`].

mod added_tokens;
pub mod affine;
mod affine_rows;
pub mod assembly;
pub mod attention;
pub mod augment;
pub mod box_journey;
pub mod boxes;
mod bpe;
pub mod buffers;
mod byte_level;
mod characters;
pub mod collate;
pub mod color_jitter;
mod crew;
pub mod crop;
mod encoded;
pub mod enhance;
pub mod error;
mod exif;
#[cfg(test)]
mod fixtures;
mod formats;
mod guard;
pub mod image;
pub mod instructions;
pub mod jpeg;
pub mod loader;
mod memory;
pub mod normalize;
pub mod opened;
pub mod paint;
pub mod plan;
mod pretokens;
pub mod prompts;
pub mod rand_augment;
pub mod random;
pub mod record;
pub mod resize;
pub mod roberta;
pub mod roles;
pub mod row_resizer;
pub mod sample;
pub mod settings;
pub mod spans;
pub mod storage;
pub mod text_batch;
pub mod tokenizer;
mod tokenizer_json;
pub mod turn;
mod word_cache;

pub use error::Error;

#[cfg(feature = "python")]
mod py;
mod resize_weights;
#[cfg(target_arch = "x86_64")]
mod simd_affine_avx512;
mod simd_loops;
mod simd_normalize;
#[cfg(target_arch = "x86_64")]
mod simd_normalize_avx2;
#[cfg(target_arch = "x86_64")]
mod simd_normalize_avx512;
mod simd_resize;
#[cfg(target_arch = "x86_64")]
mod simd_resize_avx2;
#[cfg(target_arch = "x86_64")]
mod simd_resize_avx512;
#[cfg(target_arch = "x86_64")]
mod simd_resize_fast;
#[cfg(target_arch = "aarch64")]
mod simd_resize_neon;
#[cfg(target_arch = "x86_64")]
mod simd_resize_wide;
#[cfg(target_arch = "x86_64")]
mod simd_tables_avx512;
