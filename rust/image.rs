//! Bytes of a picture file -> RGB, eight bits a channel.
//!
//! The format is told from the content, never from a name. What comes out is what Pillow's
//! `convert("RGB")` gives: alpha is dropped, grey is repeated, orientation tags are not applied.

use std::io::Cursor;

use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

use crate::Error;

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
    let (height, width) = match format {
        Format::Jpeg => {
            let mut decoder = jpeg_decoder(bytes, ColorSpace::RGB);
            decoder.decode_headers().map_err(|e| jpeg_error(&e))?;
            let info = decoder
                .info()
                .ok_or_else(|| Error::decode("JPEG without a frame header"))?;
            (usize::from(info.height), usize::from(info.width))
        }
        Format::Png => {
            let reader = png::Decoder::new(Cursor::new(bytes))
                .read_info()
                .map_err(|e| Error::decode(format!("PNG: {e}")))?;
            (reader.info().height as usize, reader.info().width as usize)
        }
        Format::WebP => {
            let decoder = image_webp::WebPDecoder::new(Cursor::new(bytes))
                .map_err(|e| Error::decode(format!("WebP: {e}")))?;
            let (width, height) = decoder.dimensions();
            (height as usize, width as usize)
        }
    };
    Ok((height, width, format))
}

/// Decode a picture file.
///
/// # Errors
/// [`Error::Decode`] for an unknown format or broken bytes, [`Error::TooManyPixels`] above
/// `max_pixels`, told from the header before any memory is taken.
pub fn decode(bytes: &[u8], max_pixels: usize) -> Result<Rgb, Error> {
    let (height, width, format) = probe(bytes)?;
    if height.saturating_mul(width) > max_pixels {
        return Err(Error::TooManyPixels {
            height,
            width,
            limit: max_pixels,
        });
    }
    let image = match format {
        Format::Jpeg => decode_jpeg(bytes),
        Format::Png => decode_png(bytes),
        Format::WebP => decode_webp(bytes),
    }?;
    if image.height == 0 || image.width == 0 {
        return Err(Error::decode("picture without pixels"));
    }
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

fn jpeg_decoder(bytes: &[u8], output: ColorSpace) -> JpegDecoder<ZCursor<&[u8]>> {
    let options = DecoderOptions::default()
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .set_strict_mode(true)
        .jpeg_set_out_colorspace(output);
    JpegDecoder::new_with_options(ZCursor::new(bytes), options)
}

fn jpeg_error(error: &zune_jpeg::errors::DecodeErrors) -> Error {
    Error::decode(format!("JPEG: {error}"))
}

fn decode_jpeg(bytes: &[u8]) -> Result<Rgb, Error> {
    let mut decoder = jpeg_decoder(bytes, ColorSpace::RGB);
    let pixels = decoder.decode().map_err(|e| jpeg_error(&e))?;
    let info = decoder
        .info()
        .ok_or_else(|| Error::decode("JPEG without a frame header"))?;
    Ok(Rgb {
        height: usize::from(info.height),
        width: usize::from(info.width),
        pixels,
    })
}

fn decode_png(bytes: &[u8]) -> Result<Rgb, Error> {
    let broken = |e: png::DecodingError| Error::decode(format!("PNG: {e}"));
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_transformations(png::Transformations::EXPAND | png::Transformations::STRIP_16);
    let mut reader = decoder.read_info().map_err(broken)?;
    let size = reader
        .output_buffer_size()
        .ok_or_else(|| Error::decode("PNG: more bytes than memory can hold"))?;
    let mut pixels = vec![0; size];
    let frame = reader.next_frame(&mut pixels).map_err(broken)?;
    pixels.truncate(frame.buffer_size());
    Ok(Rgb {
        height: frame.height as usize,
        width: frame.width as usize,
        pixels: to_rgb(pixels, frame.color_type.samples()),
    })
}

fn decode_webp(bytes: &[u8]) -> Result<Rgb, Error> {
    let broken = |e: image_webp::DecodingError| Error::decode(format!("WebP: {e}"));
    let mut decoder = image_webp::WebPDecoder::new(Cursor::new(bytes)).map_err(broken)?;
    let (width, height) = decoder.dimensions();
    let size = decoder
        .output_buffer_size()
        .ok_or_else(|| Error::decode("WebP: more bytes than memory can hold"))?;
    let mut pixels = vec![0; size];
    decoder.read_image(&mut pixels).map_err(broken)?;
    Ok(Rgb {
        height: height as usize,
        width: width as usize,
        pixels: to_rgb(pixels, if decoder.has_alpha() { 4 } else { 3 }),
    })
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
