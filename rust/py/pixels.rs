//! Conversion of pixel arrays.

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use super::arrays::{Buffer, numbers};
use crate::decode_limits::DecodeLimits;
use crate::image::{Rgb, RgbView};

/// Limits from keyword arguments; no number of bytes means no limit.
pub(super) fn limits(max_pixels: usize, max_decode_bytes: Option<usize>) -> DecodeLimits {
    DecodeLimits {
        max_pixels,
        max_decode_bytes: max_decode_bytes.unwrap_or(usize::MAX),
    }
}

/// An (H, W, 3) uint8 Python array, copied if it is not contiguous.
pub(super) struct RgbArray {
    height: usize,
    width: usize,
    buffer: PyBuffer<u8>,
    copy: Option<Vec<u8>>,
}

impl RgbArray {
    pub(super) fn get(image: &Bound<'_, PyAny>) -> PyResult<Self> {
        let buffer = PyBuffer::<u8>::get(image).map_err(|_| {
            let of = image.getattr("dtype").map(|dtype| format!(" of {dtype}"));
            PyTypeError::new_err(format!(
                "expected a uint8 array of shape (H, W, 3) or the bytes of an image file, got {}{}",
                image.get_type(),
                of.unwrap_or_default()
            ))
        })?;
        let &[height, width, 3] = buffer.shape() else {
            return Err(PyValueError::new_err(format!(
                "expected a uint8 array of shape (H, W, 3), got shape {:?}",
                buffer.shape()
            )));
        };
        let is_copied = !buffer.is_c_contiguous();
        let copy = is_copied.then(|| buffer.to_vec(image.py())).transpose()?;
        Ok(Self {
            height,
            width,
            buffer,
            copy,
        })
    }

    pub(super) fn view(&self) -> PyResult<RgbView<'_>> {
        Ok(RgbView {
            height: self.height,
            width: self.width,
            pixels: match &self.copy {
                Some(copy) => copy,
                None => numbers("image", &self.buffer)?,
            },
        })
    }
}

/// Copy an (H, W, 3) uint8 array.
pub(super) fn to_rgb(image: &Bound<'_, PyAny>) -> PyResult<Rgb> {
    let array = RgbArray::get(image)?;
    let pixels = array.view()?.pixels.to_vec();
    Ok(Rgb::new(array.height, array.width, pixels))
}

pub(super) fn to_buffer(image: Rgb) -> PyResult<Buffer> {
    Buffer::new(image.pixels, &[image.height, image.width, 3])
}
