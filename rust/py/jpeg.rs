//! Bindings for the JPEG decoder.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::arrays::Buffer;
use super::pixels::{limits, to_buffer};
use crate::cpu_features::Instructions;
use crate::decode_limits::MAX_PIXELS;
use crate::image::{self, Rgb};
use crate::jpeg::{self, Decoder, Request, Scale, Status};

/// Read (height, width, EXIF orientation) of a JPEG file.
#[pyfunction]
pub fn read_jpeg_header(data: &[u8]) -> PyResult<(usize, usize, u8)> {
    let header = jpeg::read_header(data)?;
    Ok((header.height, header.width, header.orientation))
}

/// Decode a JPEG file, filling in damaged parts; return the image and the reason, if any.
#[pyfunction]
#[pyo3(signature = (data, *, divisor = 1, stop_row = None, max_pixels = MAX_PIXELS, max_decode_bytes = None, instructions = None, beside = None))]
#[allow(clippy::too_many_arguments)] // Keyword arguments in Python.
pub fn decode_jpeg(
    py: Python<'_>,
    data: &[u8],
    divisor: usize,
    stop_row: Option<usize>,
    max_pixels: usize,
    max_decode_bytes: Option<usize>,
    instructions: Option<&str>,
    beside: Option<&[u8]>,
) -> PyResult<(Buffer, Option<String>)> {
    let scale = [Scale::Full, Scale::Half, Scale::Quarter, Scale::Eighth]
        .into_iter()
        .find(|scale| scale.divisor() == divisor)
        .ok_or_else(|| format!("divisor: {divisor}; expected 1, 2, 4 or 8"))
        .map_err(PyValueError::new_err)?;
    let request = Request {
        scale,
        stop_row,
        limits: limits(max_pixels, max_decode_bytes),
        output_bytes: 0,
    };
    let instructions = instructions.map(Instructions::from_name).transpose()?;
    let (image, status) = py.detach(|| {
        if instructions.is_none() && beside.is_none() {
            return image::decode_jpeg(data, &request);
        }
        let instructions = instructions.unwrap_or_else(Instructions::best);
        let mut pixels = Vec::new();
        let header = jpeg::read_header(data)?;
        let mut sink = |_: usize, rows: &[u8]| pixels.extend_from_slice(rows);
        let mut decoder = Decoder::with(instructions);
        let status = match beside {
            None => decoder.decode(data, &request, &mut sink)?,
            Some(other) => {
                let [status, _] = jpeg::decode_two(
                    jpeg::DecodeTask {
                        decoder: &mut decoder,
                        bytes: data,
                        request,
                        sink: &mut sink,
                    },
                    jpeg::DecodeTask {
                        decoder: &mut Decoder::with(instructions),
                        bytes: other,
                        request,
                        sink: &mut |_, _| (),
                    },
                );
                status?
            }
        };
        let width = scale.apply(header.width);
        let height = pixels.len() / (3 * width);
        Ok((Rgb::new(height, width, pixels), status))
    })?;
    let reason = match status {
        Status::Whole => None,
        Status::Filled(reason) => Some(reason),
    };
    Ok((to_buffer(image)?, reason))
}
