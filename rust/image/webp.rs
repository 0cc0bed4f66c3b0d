//! WebP decoder (crate `image-webp`); only the first frame of an animation is read.

use std::io::Cursor;
use std::ops::Range;

use super::samples::Samples;
use crate::decode_limits::DecodeLimits;
use crate::{Error, exif, try_alloc};

/// Length of the file header: `RIFF`, the size of the rest, `WEBP`.
const HEADER_BYTES: usize = 12;
/// Position of that size.
const LENGTH: Range<usize> = 4..8;

type Decoder<'a> = image_webp::WebPDecoder<Cursor<&'a [u8]>>;

fn decoder(bytes: &[u8]) -> Result<Decoder<'_>, Error> {
    image_webp::WebPDecoder::new(Cursor::new(bytes)).map_err(|e| broken(&e))
}

fn size_of(decoder: &Decoder<'_>) -> (usize, usize) {
    let (width, height) = decoder.dimensions();
    (height as usize, width as usize)
}

pub(crate) fn size(bytes: &[u8]) -> Result<(usize, usize), Error> {
    decoder(bytes).map(|decoder| size_of(&decoder))
}

/// End of the file according to its header.
fn end(bytes: &[u8]) -> Option<usize> {
    let length = u32::from_le_bytes(*bytes.get(LENGTH)?.first_chunk::<4>()?);
    usize::try_from(length).ok()?.checked_add(LENGTH.end)
}

/// Parsed here because the crate would allocate as much as the chunk's header claims.
pub(crate) fn orientation(bytes: &[u8]) -> Option<u8> {
    let end = end(bytes)?;
    let mut rest = bytes.get(..end).unwrap_or(bytes).get(HEADER_BYTES..)?;
    loop {
        let (kind, tail) = rest.split_first_chunk::<4>()?;
        let (length, tail) = tail.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        if kind == b"EXIF" {
            return exif::of_chunk(tail.get(..length)?);
        }
        // Chunks are padded to even length.
        rest = tail.get(length.checked_next_multiple_of(2)?..)?;
    }
}

pub(crate) fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<Samples, Error> {
    let mut decoder = decoder(bytes)?;
    // The crate would decode bytes after a gap as pixels.
    if let Some(end) = end(bytes).filter(|end| *end > bytes.len()) {
        let found = bytes.len();
        let reason =
            format!("WebP: file has {found} bytes; expected {end} according to its header");
        return Err(Error::decode(reason));
    }
    let (height, width) = size_of(&decoder);
    limits.check_size(height, width)?;
    let size = decoder
        .output_buffer_size()
        .ok_or_else(|| Error::decode("WebP: too many bytes to fit in memory"))?;
    // The decoder itself allocates up to 4 bytes per pixel.
    let own = 4 * height * width;
    let what = try_alloc::of_image(height, width);
    limits.check_bytes((height, width), size.saturating_add(own))?;
    try_alloc::check(size.saturating_add(own), what)?;
    let mut pixels = try_alloc::filled(0, size, what)?;
    decoder.read_image(&mut pixels).map_err(|e| broken(&e))?;
    Ok(Samples::new(
        height,
        width,
        if decoder.has_alpha() { 4 } else { 3 },
        pixels,
    ))
}

fn broken(error: &image_webp::DecodingError) -> Error {
    Error::decode(format!("WebP: {error}"))
}
