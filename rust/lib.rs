//! The data path of FIBER: bytes of pictures, texts and boxes in, training batches out.
//!
//! Plain Rust; only `py/` knows of Python, behind the feature `python`.

#[cfg(feature = "python")]
mod py;
