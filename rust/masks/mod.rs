//! Masks of an image: COCO's run lengths, polygons, packed bits, or a map with an id for each pixel.
//!
//! Masks are sampled at the pixels of the transformed image ([`SampleGrid`]), so none is drawn at
//! full size. The result is packed: (masks, height, ceil(width / 8)) bytes, the first pixel in the
//! highest bit, as by `numpy.packbits`.

pub mod id_map;
pub mod planes;
pub mod polygon;
pub mod rle;
pub(crate) mod sample_grid;
pub mod stored_mask;

use std::fmt;
use std::sync::Arc;

use crate::Error;

/// Name of the field in errors.
pub(crate) const FIELD: &str = "masks";

/// Bytes with any owner, such as Python.
pub type SharedBits = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// An error of one of the masks.
pub(crate) fn problem(index: usize, reason: impl fmt::Display) -> Error {
    Error::field(FIELD, format!("mask {index} {reason}"))
}
