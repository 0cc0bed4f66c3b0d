//! Bindings for image decoding, resizing and normalization.

use std::path::PathBuf;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::arrays::Buffer;
use super::pixels::{RgbArray, decoded_to_buffer, limits, to_buffer};
use crate::boxes::Crop;
use crate::cpu_features::Instructions;
use crate::decode_limits::MAX_PIXELS;
use crate::image::{self, AlphaUse, Rgb};
use crate::loader::record;
use crate::normalize::layout::{Dtype, Layout};
use crate::normalize::{ChannelOrder, IMAGENET_MEAN, IMAGENET_STD, Normalization, RowWriter};
use crate::resize::{self, Filter, Method, Precision, ResizeScratch, RowResizer};
use crate::try_alloc;

/// Look up a filter and a precision by name.
pub(super) fn method(filter: &str, precision: &str) -> PyResult<Method> {
    Ok(Method {
        filter: Filter::from_name(filter)?,
        precision: Precision::from_name(precision)?,
    })
}

pub(super) fn normalization(order: &str, mean: [f64; 3], std: [f64; 3]) -> PyResult<Normalization> {
    let channel_order = ChannelOrder::from_name(order)?;
    Ok(Normalization {
        channel_order,
        mean,
        std,
    })
}

/// Read (height, width, format) without decoding the pixels.
#[pyfunction]
pub fn probe_image(data: &[u8]) -> PyResult<(usize, usize, &'static str)> {
    let (height, width, format) = image::probe(data)?;
    Ok((height, width, format.name()))
}

/// Decode the bytes of an image file to (H, W, 3) or (H, W, 4) uint8.
#[pyfunction]
#[pyo3(signature = (data, *, max_pixels = MAX_PIXELS, max_decode_bytes = None, background = None, keep_alpha = false))]
pub fn decode_image(
    py: Python<'_>,
    data: &[u8],
    max_pixels: usize,
    max_decode_bytes: Option<usize>,
    background: Option<(u8, u8, u8)>,
    keep_alpha: bool,
) -> PyResult<Buffer> {
    let limits = limits(max_pixels, max_decode_bytes);
    let alpha = alpha_use(background, keep_alpha)?;
    decoded_to_buffer(py.detach(|| image::decode(data, limits, alpha))?)
}

/// Decode an image file to (H, W, 3) or (H, W, 4) uint8.
#[pyfunction]
#[pyo3(signature = (path, *, max_pixels = MAX_PIXELS, max_decode_bytes = None, background = None, keep_alpha = false))]
pub fn read_image(
    py: Python<'_>,
    path: PathBuf,
    max_pixels: usize,
    max_decode_bytes: Option<usize>,
    background: Option<(u8, u8, u8)>,
    keep_alpha: bool,
) -> PyResult<Buffer> {
    let limits = limits(max_pixels, max_decode_bytes);
    let alpha = alpha_use(background, keep_alpha)?;
    decoded_to_buffer(py.detach(|| record::read_image(&path, limits, alpha))?)
}

/// Convert keyword arguments, which exclude each other.
fn alpha_use(background: Option<(u8, u8, u8)>, keep_alpha: bool) -> PyResult<AlphaUse> {
    match (background, keep_alpha) {
        (Some(_), true) => Err(PyValueError::new_err(
            "keep_alpha: True, but background composites alpha; expected one of the two",
        )),
        (Some(color), false) => Ok(AlphaUse::Over(color.into())),
        (None, true) => Ok(AlphaUse::Keep),
        (None, false) => Ok(AlphaUse::Drop),
    }
}

/// Resize an (H, W, 3) uint8 array, or a crop (top, left, height, width) of it.
///
/// `rows_at_once` rows are processed at a time (0: all rows).
#[pyfunction]
#[pyo3(signature = (image, height, width, filter = "bicubic", *, resize = "exact", crop = None, rows_at_once = 0, instructions = None))]
#[allow(clippy::too_many_arguments)] // Keyword arguments in Python.
pub fn resize_image(
    image: &Bound<'_, PyAny>,
    height: usize,
    width: usize,
    filter: &str,
    resize: &str,
    crop: Option<(usize, usize, usize, usize)>,
    rows_at_once: usize,
    instructions: Option<&str>,
) -> PyResult<Buffer> {
    let array = RgbArray::get(image)?;
    let view = array.view()?;
    let method = method(filter, resize)?;
    let source = (view.height, view.width);
    let crop = match crop {
        None => Crop::whole(source.0, source.1),
        Some((top, left, height, width)) => Crop {
            top,
            left,
            height,
            width,
        },
    };
    let instructions = instructions.map(Instructions::from_name).transpose()?;
    let resized = image.py().detach(|| {
        if instructions.is_none() && rows_at_once == 0 {
            return resize::resize(view, crop, height, width, method);
        }
        let mut scratch = ResizeScratch::new(instructions.unwrap_or_else(Instructions::best));
        let mut resizer = RowResizer::new(&mut scratch, source, crop, (height, width), method)?;
        let mut pixels = Vec::new();
        let count = if rows_at_once > 0 {
            rows_at_once
        } else {
            source.0
        };
        let rows = view.pixels.chunks(count * source.1 * 3);
        let last = resizer.last_row_needed();
        for (first, rows) in (0..=last).step_by(count).zip(rows) {
            resizer.push_rows(first, rows, &mut |_, row| pixels.extend_from_slice(row))?;
        }
        Ok(Rgb::new(height, width, pixels))
    })?;
    to_buffer(resized)
}

/// Normalize an (H, W, 3) uint8 array to the bytes of an image padded to `height` x `width`.
#[pyfunction]
#[pyo3(signature = (image, height, width, *, layout = "chw", dtype = "float32", flip = false, channel_order = "rgb", mean = IMAGENET_MEAN, std = IMAGENET_STD, instructions = None))]
#[allow(clippy::too_many_arguments)] // Keyword arguments in Python.
pub fn normalize_image(
    image: &Bound<'_, PyAny>,
    height: usize,
    width: usize,
    layout: &str,
    dtype: &str,
    flip: bool,
    channel_order: &str,
    mean: [f64; 3],
    std: [f64; 3],
    instructions: Option<&str>,
) -> PyResult<Buffer> {
    let array = RgbArray::get(image)?;
    let view = array.view()?;
    let normalization = normalization(channel_order, mean, std)?;
    let instructions =
        instructions.map_or_else(|| Ok(Instructions::best()), Instructions::from_name)?;
    let (layout, dtype) = (Layout::from_name(layout)?, Dtype::from_name(dtype)?);
    let writer = RowWriter::new(&normalization, layout, dtype, instructions)?;
    let size = (height, width);
    // Not zero, like a reused batch buffer, so that unwritten bytes show up.
    let bytes = writer.slot_bytes(size);
    let mut slot = try_alloc::filled(0xAA, bytes, try_alloc::of_image(height, width))?;
    image.py().detach(|| {
        let rows = view.pixels.chunks_exact((view.width * 3).max(1));
        for (y, row) in rows.enumerate() {
            writer.write_row(row, &mut slot, size, y, flip)?;
        }
        writer.pad_below(&mut slot, size, view.height)
    })?;
    Buffer::new(slot, &[bytes])
}
