//! WebP, by the crate `image-webp`; of an animation the first frame.

use std::io::Cursor;

use super::Samples;
use crate::Error;
use crate::image::check_size;
use crate::memory;

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

/// Decode a picture.
///
/// # Errors
/// [`Error::Decode`] for broken bytes, [`Error::TooManyPixels`].
pub(crate) fn decode(bytes: &[u8], max_pixels: usize) -> Result<Samples, Error> {
    let mut decoder = decoder(bytes)?;
    let (height, width) = size_of(&decoder);
    check_size(height, width, max_pixels)?;
    let size = decoder
        .output_buffer_size()
        .ok_or_else(|| Error::decode("WebP: more bytes than memory can hold"))?;
    // The decoder takes up to 4 bytes a pixel of its own.
    let own = 4 * height * width;
    let what = memory::of_picture(height, width);
    memory::check(size.saturating_add(own), what)?;
    let mut pixels = memory::filled(0, size, what)?;
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
