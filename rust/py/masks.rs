//! Bindings for masks: conversion from `fiber.data.masks`, decoding and encoding.

use std::sync::Arc;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::types::{PyBytes, PyString};

use super::arrays::{Buffer, numbers};
use crate::decode_limits::DecodeLimits;
use crate::error::shown;
use crate::masks::SharedBits;
use crate::masks::id_map::{self, Coding, MapIds};
use crate::masks::planes::Planes;
use crate::masks::polygon::Polygons;
use crate::masks::rle::{self, Counts, Rle};
use crate::masks::stored_mask::{self, StoredMask};

/// Text or bytes, without copying.
fn shared(value: &Bound<'_, PyAny>) -> Option<SharedBits> {
    /// Bytes of a text.
    struct Text(PyBackedStr);
    impl AsRef<[u8]> for Text {
        fn as_ref(&self) -> &[u8] {
            self.0.as_bytes()
        }
    }
    if let Ok(bytes) = value.cast::<PyBytes>() {
        return Some(Arc::new(PyBackedBytes::from(bytes.clone())));
    }
    let text = value.cast::<PyString>().ok()?;
    let text = PyBackedStr::try_from(text.clone()).ok()?;
    Some(Arc::new(Text(text)))
}

/// Convert a mask of `fiber.data.masks`.
pub(super) fn to_mask(mask: &Bound<'_, PyAny>) -> PyResult<StoredMask> {
    let py = mask.py();
    let kind = mask.getattr(intern!(py, "kind"));
    let kind = kind.and_then(|kind| kind.extract::<String>());
    match kind.as_deref() {
        Ok("rle") => {
            let size = mask.getattr(intern!(py, "size"))?.extract()?;
            let counts = mask.getattr(intern!(py, "counts"))?;
            let counts = match shared(&counts) {
                Some(text) => Counts::Compressed(text),
                None => Counts::Plain(counts.extract::<Vec<i64>>()?.into()),
            };
            Ok(StoredMask::Rle(Rle { counts, size }))
        }
        Ok("polygons") => {
            let rings = mask.getattr(intern!(py, "rings"))?.extract()?;
            Ok(StoredMask::Polygons(Polygons { rings }))
        }
        Ok("packed") => {
            let size = mask.getattr(intern!(py, "size"))?.extract()?;
            let bits = shared(&mask.getattr(intern!(py, "bits"))?);
            let bits = bits.ok_or_else(|| PyTypeError::new_err("bits: expected bytes"))?;
            Ok(StoredMask::Packed { bits, size })
        }
        _ => Err(PyTypeError::new_err(format!(
            "a mask is of type {}; expected Rle, Polygons or PackedMask of fiber.data.masks",
            shown(&mask.get_type().to_string())
        ))),
    }
}

/// Convert the ids of an `IdMap`.
pub(super) fn to_ids(map: &Bound<'_, PyAny>) -> PyResult<MapIds> {
    let py = map.py();
    let coding: String = map.getattr(intern!(py, "coding"))?.extract()?;
    Ok(MapIds {
        ids: map.getattr(intern!(py, "ids"))?.extract()?,
        void: map.getattr(intern!(py, "void"))?.extract()?,
        coding: Coding::from_name(&coding)?,
        may_lack: map.getattr(intern!(py, "may_lack"))?.extract()?,
    })
}

fn to_buffer(planes: Planes) -> PyResult<Buffer> {
    let (height, width) = planes.size;
    let shape = [planes.count, height, width.div_ceil(8)];
    Buffer::new(planes.bytes, &shape)
}

/// Decode masks of an image of `height` x `width` pixels.
#[pyfunction]
pub fn decode_masks(
    py: Python<'_>,
    masks: Vec<Bound<'_, PyAny>>,
    height: usize,
    width: usize,
) -> PyResult<Buffer> {
    let masks = masks.iter().map(to_mask).collect::<PyResult<Vec<_>>>()?;
    to_buffer(py.detach(|| stored_mask::decode(&masks, (height, width)))?)
}

/// Decode the masks of an id map, the content of a PNG; returns them and the (height, width).
#[pyfunction]
pub fn decode_id_map(map: &Bound<'_, PyAny>, image: &[u8]) -> PyResult<(Buffer, (usize, usize))> {
    let ids = to_ids(map)?;
    let decode = || id_map::decode(image, &ids, &DecodeLimits::default());
    let planes = map.py().detach(decode)?;
    let size = planes.size;
    Ok((to_buffer(planes)?, size))
}

/// Compress an (H, W) uint8 array, of which values other than 0 are in the mask, as COCO's RLE.
#[pyfunction]
pub fn encode_rle<'py>(mask: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    let py = mask.py();
    let array = pyo3::buffer::PyBuffer::<u8>::get(mask)
        .map_err(|_| PyTypeError::new_err("expected a uint8 array of shape (H, W)"))?;
    let &[height, width] = array.shape() else {
        let shape = array.shape();
        let reason = format!("expected a uint8 array of shape (H, W), got shape {shape:?}");
        return Err(PyValueError::new_err(reason));
    };
    let copy = if array.is_c_contiguous() {
        None
    } else {
        Some(array.to_vec(py)?)
    };
    let pixels = match &copy {
        Some(copy) => copy,
        None => numbers("mask", &array)?,
    };
    let text = py.detach(|| rle::encode(pixels, (height, width)));
    Ok(PyBytes::new(py, &text))
}
