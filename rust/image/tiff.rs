//! Decode the first image of a TIFF (crate `tiff`): bilevel, or gray, RGB and CMYK with 8 or 16
//! bits, with or without alpha; uncompressed, LZW, Deflate, `PackBits` or fax group 4. The
//! orientation is not applied.

use std::io::Cursor;

use tiff::ColorType;
use tiff::decoder::{Decoder, DecodingResult, Limits};
use tiff::tags::Tag;

use super::samples::{Samples, divide_by_255};
use crate::image::check_size;
use crate::{Error, exif, try_alloc};

/// Maximum bytes per pixel: five channels of 16 bits.
const PIXEL_BYTES: usize = 10;
/// Value of `PlanarConfiguration` for separate planes.
const PLANAR: u32 = 2;

type Tiff<'a> = Decoder<Cursor<&'a [u8]>>;

fn decoder(bytes: &[u8]) -> Result<Tiff<'_>, Error> {
    Decoder::new(Cursor::new(bytes)).map_err(|e| fault(&e))
}

fn size_of(decoder: &mut Tiff<'_>) -> Result<(usize, usize), Error> {
    let (width, height) = decoder.dimensions().map_err(|e| fault(&e))?;
    Ok((height as usize, width as usize))
}

pub(crate) fn size(bytes: &[u8]) -> Result<(usize, usize), Error> {
    size_of(&mut decoder(bytes)?)
}

pub(crate) fn orientation(bytes: &[u8]) -> Option<u8> {
    exif::of_tiff(bytes)
}

pub(crate) fn decode(bytes: &[u8], max_pixels: usize) -> Result<Samples, Error> {
    let mut decoder = decoder(bytes)?;
    let (height, width) = size_of(&mut decoder)?;
    check_size(height, width, max_pixels)?;
    let mut limits = Limits::default();
    limits.decoding_buffer_size = max_pixels.saturating_mul(PIXEL_BYTES);
    limits.intermediate_buffer_size = limits.decoding_buffer_size;
    decoder = decoder.with_limits(limits);
    let color = decoder.colortype().map_err(|e| fault(&e))?;
    let layout = decoder.find_tag_unsigned(Tag::PlanarConfiguration);
    if layout.map_err(|e| fault(&e))? == Some(PLANAR) && color.num_samples() > 1 {
        return Err(unsupported("planar configuration (separate planes)"));
    }
    // The stored samples and their 8-bit copy.
    let sample_bytes = usize::from(color.bit_depth()).div_ceil(8) + 1;
    let size = height * width * usize::from(color.num_samples()) * sample_bytes;
    try_alloc::check(size, try_alloc::of_image(height, width))?;
    let stored = match decoder.read_image().map_err(|e| fault(&e))? {
        DecodingResult::U8(bytes) => bytes,
        DecodingResult::U16(words) => words.iter().map(|word| word.to_be_bytes()[0]).collect(),
        _ => return Err(unsupported("sample size (neither 8 nor 16 bits)")),
    };
    let (channels, bytes) = match color {
        ColorType::Gray(1) => (1, unpack(&stored, height, width)),
        ColorType::Gray(8 | 16) => (1, stored),
        ColorType::Multiband {
            bit_depth: 8 | 16,
            num_samples: 2,
        } => (2, stored),
        ColorType::RGB(8 | 16) => (3, stored),
        ColorType::RGBA(8 | 16) => (4, stored),
        ColorType::CMYK(8 | 16) => (3, from_cmyk(&stored)),
        other => return Err(unsupported(&format!("color type {other:?}"))),
    };
    Ok(Samples::new(height, width, channels, bytes))
}

/// Expand one bit per pixel to bytes; rows are byte-aligned.
fn unpack(stored: &[u8], height: usize, width: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(height * width);
    for row in stored.chunks_exact(width.div_ceil(8)).take(height) {
        let bits = row
            .iter()
            .flat_map(|byte| (0..8).map(move |bit| byte << bit & 0x80));
        bytes.extend(bits.take(width).map(|bit| if bit == 0 { 0 } else { 255 }));
    }
    bytes
}

/// Convert CMYK to RGB as Pillow does.
fn from_cmyk(stored: &[u8]) -> Vec<u8> {
    let (pixels, _) = stored.as_chunks::<4>();
    pixels
        .iter()
        .flat_map(|&[cyan, magenta, yellow, black]| {
            let light = 255 - black;
            [cyan, magenta, yellow]
                .map(|ink| light - divide_by_255(u32::from(ink) * u32::from(light)))
        })
        .collect()
}

fn unsupported(what: &str) -> Error {
    Error::unsupported(format!("TIFF: unsupported {what}"))
}

fn fault(error: &tiff::TiffError) -> Error {
    match error {
        tiff::TiffError::UnsupportedError(what) => {
            Error::unsupported(format!("TIFF: unsupported: {what}"))
        }
        other => Error::decode(format!("TIFF: {other}")),
    }
}
