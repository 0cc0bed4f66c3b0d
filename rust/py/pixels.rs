//! Conversion of pixel arrays.

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::arrays::{Buffer, numbers};
use crate::decode_limits::DecodeLimits;
use crate::image::{AlphaUse, Decoded, Rgb, RgbView, Rgba, decode};

/// Limits from keyword arguments; no number of bytes means no limit.
pub(super) fn limits(max_pixels: usize, max_decode_bytes: Option<usize>) -> DecodeLimits {
    DecodeLimits {
        max_pixels,
        max_decode_bytes: max_decode_bytes.unwrap_or(usize::MAX),
    }
}

/// An (H, W, C) uint8 Python array, copied if it is not contiguous.
struct PixelArray {
    height: usize,
    width: usize,
    channels: usize,
    buffer: PyBuffer<u8>,
    copy: Option<Vec<u8>>,
}

impl PixelArray {
    /// Get an array with one of these numbers of channels, which `expected` describes.
    fn get(image: &Bound<'_, PyAny>, channels: &[usize], expected: &str) -> PyResult<Self> {
        let buffer = PyBuffer::<u8>::get(image).map_err(|_| {
            let of = image.getattr("dtype").map(|dtype| format!(" of {dtype}"));
            PyTypeError::new_err(format!(
                "expected a uint8 array of shape {expected} or the bytes of an image file, got {}{}",
                image.get_type(),
                of.unwrap_or_default()
            ))
        })?;
        let (height, width, channels) = match *buffer.shape() {
            [height, width, found] if channels.contains(&found) => (height, width, found),
            _ => {
                return Err(PyValueError::new_err(format!(
                    "expected a uint8 array of shape {expected}, got shape {:?}",
                    buffer.shape()
                )));
            }
        };
        let is_copied = !buffer.is_c_contiguous();
        let copy = is_copied.then(|| buffer.to_vec(image.py())).transpose()?;
        Ok(Self {
            height,
            width,
            channels,
            buffer,
            copy,
        })
    }

    fn pixels(&self) -> PyResult<&[u8]> {
        match &self.copy {
            Some(copy) => Ok(copy),
            None => numbers("image", &self.buffer),
        }
    }
}

/// An (H, W, 3) uint8 Python array.
pub(super) struct RgbArray(PixelArray);

impl RgbArray {
    pub(super) fn get(image: &Bound<'_, PyAny>) -> PyResult<Self> {
        PixelArray::get(image, &[3], "(H, W, 3)").map(Self)
    }

    pub(super) fn view(&self) -> PyResult<RgbView<'_>> {
        Ok(RgbView {
            height: self.0.height,
            width: self.0.width,
            pixels: self.0.pixels()?,
        })
    }
}

/// An image to transform: an array of 3 or 4 channels, or the bytes of an image file.
pub(super) enum ImageSource {
    Array(RgbArray),
    Owned(Decoded),
}

impl ImageSource {
    /// Decode bytes, or get an array; alpha is dropped unless `keeps_alpha`.
    pub(super) fn get(
        image: &Bound<'_, PyAny>,
        keeps_alpha: bool,
        limits: DecodeLimits,
    ) -> PyResult<Self> {
        if let Ok(bytes) = image.cast::<PyBytes>() {
            let bytes = bytes.as_bytes();
            let alpha = if keeps_alpha {
                AlphaUse::Keep
            } else {
                AlphaUse::Drop
            };
            let decoded = image.py().detach(|| decode(bytes, limits, alpha))?;
            return Ok(Self::Owned(decoded));
        }
        let array = PixelArray::get(image, &[3, 4], "(H, W, 3) or (H, W, 4)")?;
        if array.channels == 3 {
            return Ok(Self::Array(RgbArray(array)));
        }
        let copy = Rgba::new(array.height, array.width, array.pixels()?.to_vec());
        Ok(Self::Owned(if keeps_alpha {
            Decoded::Rgba(copy)
        } else {
            Decoded::Rgb(copy.without_alpha())
        }))
    }

    /// (height, width) in pixels.
    pub(super) fn size(&self) -> (usize, usize) {
        match self {
            Self::Array(RgbArray(array)) => (array.height, array.width),
            Self::Owned(image) => image.parts().0,
        }
    }
}

/// Copy an (H, W, 3) uint8 array.
pub(super) fn to_rgb(image: &Bound<'_, PyAny>) -> PyResult<Rgb> {
    let array = RgbArray::get(image)?;
    let view = array.view()?;
    Ok(Rgb::new(view.height, view.width, view.pixels.to_vec()))
}

pub(super) fn to_buffer(image: Rgb) -> PyResult<Buffer> {
    Buffer::new(image.pixels, &[image.height, image.width, 3])
}

/// An (H, W, 3) array, or (H, W, 4) with alpha.
pub(super) fn decoded_to_buffer(image: Decoded) -> PyResult<Buffer> {
    match image {
        Decoded::Rgb(image) => to_buffer(image),
        Decoded::Rgba(image) => Buffer::new(image.pixels, &[image.height, image.width, 4]),
    }
}
