//! PNG, by the crate `png`: palettes and few bits are spread out, of 16 bits the upper eight are taken.

use std::io::Cursor;

use super::Samples;
use crate::Error;
use crate::image::check_size;
use crate::memory;

type Reader<'a> = png::Reader<Cursor<&'a [u8]>>;

fn reader(bytes: &[u8]) -> Result<Reader<'_>, Error> {
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_transformations(png::Transformations::EXPAND | png::Transformations::STRIP_16);
    decoder.read_info().map_err(|e| broken(&e))
}

fn size_of(reader: &Reader<'_>) -> (usize, usize) {
    let info = reader.info();
    (info.height as usize, info.width as usize)
}

/// Read (height, width).
///
/// # Errors
/// [`Error::Decode`] for a broken header.
pub(crate) fn size(bytes: &[u8]) -> Result<(usize, usize), Error> {
    reader(bytes).map(|reader| size_of(&reader))
}

/// Decode the still picture, of an animation too.
///
/// # Errors
/// [`Error::Decode`] for broken bytes, [`Error::TooManyPixels`].
pub(crate) fn decode(bytes: &[u8], max_pixels: usize) -> Result<Samples, Error> {
    let mut reader = reader(bytes)?;
    let (height, width) = size_of(&reader);
    check_size(height, width, max_pixels)?;
    let size = reader
        .output_buffer_size()
        .ok_or_else(|| Error::decode("PNG: more bytes than memory can hold"))?;
    let mut pixels = memory::filled(0, size, memory::of_picture(height, width))?;
    let frame = reader.next_frame(&mut pixels).map_err(|e| broken(&e))?;
    pixels.truncate(frame.buffer_size());
    Ok(Samples {
        height: frame.height as usize,
        width: frame.width as usize,
        channels: frame.color_type.samples(),
        bytes: pixels,
    })
}

fn broken(error: &png::DecodingError) -> Error {
    Error::decode(format!("PNG: {error}"))
}
