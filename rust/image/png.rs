//! PNG decoder (crate `png`): palettes and low bit depths are expanded, and only the upper eight of
//! 16 bits are kept.

use std::io::Cursor;

use super::samples::Samples;
use crate::decode_limits::DecodeLimits;
use crate::{Error, exif, try_alloc};

const SIGNATURE_BYTES: usize = 8;
/// Size in bytes of the checksum after a chunk's data.
const CHECKSUM_BYTES: usize = 4;

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

pub(crate) fn size(bytes: &[u8]) -> Result<(usize, usize), Error> {
    reader(bytes).map(|reader| size_of(&reader))
}

/// The chunk may follow the pixels, and the crate reads such chunks only after decoding them.
pub(crate) fn orientation(bytes: &[u8]) -> Option<u8> {
    let mut rest = bytes.get(SIGNATURE_BYTES..)?;
    loop {
        let (length, tail) = rest.split_first_chunk::<4>()?;
        let (kind, tail) = tail.split_first_chunk::<4>()?;
        let (data, tail) =
            tail.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
        match kind {
            b"eXIf" => return exif::of_chunk(data),
            b"IEND" => return None,
            _ => rest = tail.get(CHECKSUM_BYTES..)?,
        }
    }
}

/// Decode the image; for an APNG, the default image.
pub(crate) fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<Samples, Error> {
    let mut reader = reader(bytes)?;
    let (height, width) = size_of(&reader);
    limits.check_size(height, width)?;
    let size = reader
        .output_buffer_size()
        .ok_or_else(|| Error::decode("PNG: too many bytes to fit in memory"))?;
    let (color, _) = reader.output_color_type();
    let copy = if color.samples() == 3 {
        0
    } else {
        3 * height * width
    };
    limits.check_bytes((height, width), size.saturating_add(copy))?;
    let mut pixels = try_alloc::filled(0, size, try_alloc::of_image(height, width))?;
    let frame = reader.next_frame(&mut pixels).map_err(|e| broken(&e))?;
    pixels.truncate(frame.buffer_size());
    Ok(Samples::new(
        frame.height as usize,
        frame.width as usize,
        frame.color_type.samples(),
        pixels,
    ))
}

fn broken(error: &png::DecodingError) -> Error {
    Error::decode(format!("PNG: {error}"))
}
