//! Bytes of a picture file -> RGB, eight bits a channel.
//!
//! The format is told from the content, never from a name. What comes out is what Pillow's
//! `convert("RGB")` gives: alpha is dropped, grey is repeated, orientation tags are not applied. Of 16
//! bits the upper eight are taken, for grey too, which Pillow would cut off at 255.

use std::cell::RefCell;
use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::{Error, jpeg};

/// The most pixels of a picture unless another limit is given; twice Pillow's warning level.
pub const MAX_PIXELS: usize = 178_956_970;

/// A picture: `height * width * 3` bytes, rows from the top, red first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rgb {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// The bytes.
    pub pixels: Vec<u8>,
}

/// Formats that can be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Baseline and progressive JPEG.
    Jpeg,
    /// PNG; of an animated one, the still picture.
    Png,
    /// WebP; of an animated one, the first frame.
    WebP,
}

impl Format {
    /// Name in lower case.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Jpeg => "jpeg",
            Self::Png => "png",
            Self::WebP => "webp",
        }
    }

    /// Tell the format from the first bytes.
    ///
    /// # Errors
    /// [`Error::Decode`] where they belong to no known format.
    pub fn of(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.starts_with(&[0xFF, 0xD8]) {
            Ok(Self::Jpeg)
        } else if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
            Ok(Self::Png)
        } else if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
            Ok(Self::WebP)
        } else if bytes.is_empty() {
            Err(Error::decode("no bytes; expected a JPEG, PNG or WebP file"))
        } else {
            let start: Vec<String> = bytes.iter().take(8).map(|b| format!("{b:02x}")).collect();
            Err(Error::decode(format!(
                "bytes that start with {} are no JPEG, PNG or WebP file",
                start.join(" ")
            )))
        }
    }
}

/// Read (height, width) and format without decoding the pixels.
///
/// # Errors
/// [`Error::Decode`] for an unknown format or a broken header.
pub fn probe(bytes: &[u8]) -> Result<(usize, usize, Format), Error> {
    let format = Format::of(bytes)?;
    let (height, width) = guarded(|| match format {
        Format::Jpeg => jpeg::read_header(bytes).map(|header| (header.height, header.width)),
        Format::Png => png_reader(bytes).map(|reader| png_size(&reader)),
        Format::WebP => webp_decoder(bytes).map(|decoder| webp_size(&decoder)),
    })?;
    Ok((height, width, format))
}

/// Decode a picture file.
///
/// # Errors
/// [`Error::Decode`] for an unknown format or broken or missing bytes, [`Error::TooManyPixels`]
/// above `max_pixels`, told from the header before memory for the pixels is taken.
pub fn decode(bytes: &[u8], max_pixels: usize) -> Result<Rgb, Error> {
    let format = Format::of(bytes)?;
    let image = guarded(|| match format {
        Format::Jpeg => decode_whole_jpeg(bytes, max_pixels),
        Format::Png => decode_png(bytes, max_pixels),
        Format::WebP => decode_webp(bytes, max_pixels),
    })?;
    if image.pixels.len() != image.height * image.width * 3 {
        return Err(Error::decode(format!(
            "{} bytes came out of a picture of {} x {} pixels",
            image.pixels.len(),
            image.height,
            image.width
        )));
    }
    Ok(image)
}

/// Turn a panic inside a decoder, which only broken bytes can cause, into an error.
fn guarded<T>(decode: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(decode)).unwrap_or_else(|_| {
        Err(Error::decode(
            "broken bytes, at which the decoder gave up unexpectedly",
        ))
    })
}

/// Refuse a picture without pixels, or with more than `limit`.
///
/// # Errors
/// [`Error::Decode`] and [`Error::TooManyPixels`].
pub(crate) fn check_size(height: usize, width: usize, limit: usize) -> Result<(), Error> {
    if height == 0 || width == 0 {
        return Err(Error::decode(format!(
            "picture of {height} x {width} pixels; expected 1 or more"
        )));
    }
    if height.saturating_mul(width) > limit {
        return Err(Error::TooManyPixels {
            height,
            width,
            limit,
        });
    }
    Ok(())
}

thread_local! {
    /// One for each thread, so that its memory is kept from picture to picture.
    static JPEG: RefCell<jpeg::Decoder> = RefCell::new(jpeg::Decoder::new());
}

/// Decode a JPEG, filled in where it is damaged, and say whether it was.
///
/// # Errors
/// As [`jpeg::Decoder::decode`].
pub fn decode_jpeg(bytes: &[u8], request: &jpeg::Request) -> Result<(Rgb, jpeg::Status), Error> {
    let header = jpeg::read_header(bytes)?;
    check_size(header.height, header.width, request.max_pixels)?;
    let (height, width) = (
        request.scale.apply(header.height),
        request.scale.apply(header.width),
    );
    let height = request.stop_row.map_or(height, |row| row.min(height));
    let mut pixels = Vec::with_capacity(height * width * 3);
    let mut sink = |_, rows: &[u8]| pixels.extend_from_slice(rows);
    let status = JPEG.with_borrow_mut(|decoder| decoder.decode(bytes, request, &mut sink))?;
    Ok((
        Rgb {
            height,
            width,
            pixels,
        },
        status,
    ))
}

fn decode_whole_jpeg(bytes: &[u8], max_pixels: usize) -> Result<Rgb, Error> {
    let request = jpeg::Request {
        scale: jpeg::Scale::Full,
        stop_row: None,
        max_pixels,
    };
    match decode_jpeg(bytes, &request)? {
        (image, jpeg::Status::Whole) => Ok(image),
        (_, jpeg::Status::Filled(reason)) => Err(Error::decode(reason)),
    }
}

type Png<'a> = png::Reader<Cursor<&'a [u8]>>;

fn png_reader(bytes: &[u8]) -> Result<Png<'_>, Error> {
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_transformations(png::Transformations::EXPAND | png::Transformations::STRIP_16);
    decoder.read_info().map_err(|e| broken_png(&e))
}

fn png_size(reader: &Png<'_>) -> (usize, usize) {
    let info = reader.info();
    (info.height as usize, info.width as usize)
}

fn decode_png(bytes: &[u8], max_pixels: usize) -> Result<Rgb, Error> {
    let mut reader = png_reader(bytes)?;
    let (height, width) = png_size(&reader);
    check_size(height, width, max_pixels)?;
    let size = reader
        .output_buffer_size()
        .ok_or_else(|| Error::decode("PNG: more bytes than memory can hold"))?;
    let mut pixels = vec![0; size];
    let frame = reader.next_frame(&mut pixels).map_err(|e| broken_png(&e))?;
    pixels.truncate(frame.buffer_size());
    Ok(Rgb {
        height: frame.height as usize,
        width: frame.width as usize,
        pixels: to_rgb(pixels, frame.color_type.samples()),
    })
}

fn broken_png(error: &png::DecodingError) -> Error {
    Error::decode(format!("PNG: {error}"))
}

type WebP<'a> = image_webp::WebPDecoder<Cursor<&'a [u8]>>;

fn webp_decoder(bytes: &[u8]) -> Result<WebP<'_>, Error> {
    image_webp::WebPDecoder::new(Cursor::new(bytes)).map_err(|e| broken_webp(&e))
}

fn webp_size(decoder: &WebP<'_>) -> (usize, usize) {
    let (width, height) = decoder.dimensions();
    (height as usize, width as usize)
}

fn decode_webp(bytes: &[u8], max_pixels: usize) -> Result<Rgb, Error> {
    let mut decoder = webp_decoder(bytes)?;
    let (height, width) = webp_size(&decoder);
    check_size(height, width, max_pixels)?;
    let size = decoder
        .output_buffer_size()
        .ok_or_else(|| Error::decode("WebP: more bytes than memory can hold"))?;
    let mut pixels = vec![0; size];
    decoder
        .read_image(&mut pixels)
        .map_err(|e| broken_webp(&e))?;
    Ok(Rgb {
        height,
        width,
        pixels: to_rgb(pixels, if decoder.has_alpha() { 4 } else { 3 }),
    })
}

fn broken_webp(error: &image_webp::DecodingError) -> Error {
    Error::decode(format!("WebP: {error}"))
}

/// Repeat grey, drop alpha.
fn to_rgb(pixels: Vec<u8>, channels: usize) -> Vec<u8> {
    match channels {
        1 => pixels.iter().flat_map(|&grey| [grey; 3]).collect(),
        2 => pixels.chunks_exact(2).flat_map(|p| [p[0]; 3]).collect(),
        4 => pixels
            .chunks_exact(4)
            .flat_map(|p| [p[0], p[1], p[2]])
            .collect(),
        _ => pixels,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A PNG of one pixel, written by the same crate that reads it.
    fn png(color: png::ColorType, depth: png::BitDepth, data: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, 1, 1);
        encoder.set_color(color);
        encoder.set_depth(depth);
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(data).unwrap();
        writer.finish().unwrap();
        bytes
    }

    fn pixel(bytes: &[u8]) -> Vec<u8> {
        decode(bytes, MAX_PIXELS).unwrap().pixels
    }

    #[test]
    fn no_bytes_are_no_picture() {
        for bytes in [
            &b""[..],
            b"\xFF",
            b"GIF89a",
            b"\xFF\xD8",
            b"\x89PNG\r\n\x1a\n",
        ] {
            assert!(matches!(
                decode(bytes, MAX_PIXELS),
                Err(Error::Decode { path: None, .. })
            ));
            assert!(probe(bytes).is_err());
        }
    }

    #[test]
    fn every_kind_of_pixel_becomes_rgb() {
        use png::{BitDepth, ColorType};
        let of = |color, depth, data: &[u8]| pixel(&png(color, depth, data));
        assert_eq!(of(ColorType::Grayscale, BitDepth::One, &[0x80]), [255; 3]);
        assert_eq!(of(ColorType::Grayscale, BitDepth::Four, &[0x50]), [0x55; 3]);
        assert_eq!(
            of(ColorType::Grayscale, BitDepth::Sixteen, &[0x12, 0xFF]),
            [0x12; 3]
        );
        assert_eq!(
            of(ColorType::GrayscaleAlpha, BitDepth::Eight, &[7, 0]),
            [7; 3]
        );
        assert_eq!(of(ColorType::Rgb, BitDepth::Eight, &[1, 2, 3]), [1, 2, 3]);
        assert_eq!(
            of(ColorType::Rgba, BitDepth::Eight, &[1, 2, 3, 0]),
            [1, 2, 3]
        );
    }

    #[test]
    fn size_is_checked_before_decoding() {
        let bytes = png(png::ColorType::Rgb, png::BitDepth::Eight, &[1, 2, 3]);
        assert_eq!(probe(&bytes).unwrap(), (1, 1, Format::Png));
        assert!(matches!(
            decode(&bytes, 0),
            Err(Error::TooManyPixels {
                height: 1,
                width: 1,
                limit: 0
            })
        ));
    }

    #[test]
    fn a_panic_becomes_an_error() {
        let result: Result<(), Error> = guarded(|| panic!("as a decoder might"));
        assert!(matches!(result, Err(Error::Decode { .. })));
    }
}
