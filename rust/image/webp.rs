//! WebP, by the crate `image-webp`; of an animation the first frame.

use std::io::Cursor;
use std::ops::Range;

use super::samples::Samples;
use crate::image::check_size;
use crate::{Error, exif, try_alloc};

/// `RIFF`, how many bytes follow, and `WEBP`.
const HEADER_BYTES: usize = 12;
/// Where it stands how many follow.
const LENGTH: Range<usize> = 4..8;

type Decoder<'a> = image_webp::WebPDecoder<Cursor<&'a [u8]>>;

fn decoder(bytes: &[u8]) -> Result<Decoder<'_>, Error> {
    image_webp::WebPDecoder::new(Cursor::new(bytes)).map_err(|e| broken(&e))
}

fn size_of(decoder: &Decoder<'_>) -> (usize, usize) {
    let (width, height) = decoder.dimensions();
    (height as usize, width as usize)
}

/// Read (height, width).
///
/// # Errors
/// [`Error::Decode`] for a broken header.
pub(crate) fn size(bytes: &[u8]) -> Result<(usize, usize), Error> {
    decoder(bytes).map(|decoder| size_of(&decoder))
}

/// Read where the header says that the file ends.
fn end(bytes: &[u8]) -> Option<usize> {
    let length = u32::from_le_bytes(*bytes.get(LENGTH)?.first_chunk::<4>()?);
    usize::try_from(length).ok()?.checked_add(LENGTH.end)
}

/// Read how EXIF says that the picture is to be turned, 1 to 8.
///
/// The crate would take as much memory as the chunk says that it has bytes.
pub(crate) fn orientation(bytes: &[u8]) -> Option<u8> {
    let end = end(bytes)?;
    let mut rest = bytes.get(..end).unwrap_or(bytes).get(HEADER_BYTES..)?;
    loop {
        let (kind, behind) = rest.split_first_chunk::<4>()?;
        let (length, behind) = behind.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        if kind == b"EXIF" {
            return exif::of_chunk(behind.get(..length)?);
        }
        // A chunk of odd length has a byte behind it.
        rest = behind.get(length.checked_next_multiple_of(2)?..)?;
    }
}

/// Decode a picture.
///
/// # Errors
/// [`Error::Decode`] for broken bytes, [`Error::TooManyPixels`].
pub(crate) fn decode(bytes: &[u8], max_pixels: usize) -> Result<Samples, Error> {
    let mut decoder = decoder(bytes)?;
    // The crate takes what follows a gap for the picture's own bytes.
    if let Some(end) = end(bytes).filter(|end| *end > bytes.len()) {
        let found = bytes.len();
        return Err(Error::decode(format!(
            "WebP: {found} bytes; its header says {end}"
        )));
    }
    let (height, width) = size_of(&decoder);
    check_size(height, width, max_pixels)?;
    let size = decoder
        .output_buffer_size()
        .ok_or_else(|| Error::decode("WebP: more bytes than memory can hold"))?;
    // The decoder takes up to 4 bytes a pixel of its own.
    let own = 4 * height * width;
    let what = try_alloc::of_picture(height, width);
    try_alloc::check(size.saturating_add(own), what)?;
    let mut pixels = try_alloc::filled(0, size, what)?;
    decoder.read_image(&mut pixels).map_err(|e| broken(&e))?;
    Ok(Samples {
        height,
        width,
        channels: if decoder.has_alpha() { 4 } else { 3 },
        bytes: pixels,
    })
}

fn broken(error: &image_webp::DecodingError) -> Error {
    Error::decode(format!("WebP: {error}"))
}
