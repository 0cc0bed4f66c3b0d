//! Decode image files to 8-bit RGB.
//!
//! The format is detected from the content, not from the file name. The output matches Pillow's
//! `convert("RGB")`: alpha is dropped unless it is kept or a background color is given, gray is
//! replicated, and orientation tags are not applied. Only the upper eight bits of 16-bit samples
//! are used, also for gray, where Pillow would clip at 255.

use std::cell::RefCell;

mod bmp;
mod gif;
mod group4;
pub(crate) mod orientation;
mod pixels;
mod png;
mod samples;
mod tiff;
mod webp;

use crate::decode_limits::DecodeLimits;
use crate::error::catch_panic;
pub use crate::image::pixels::{AlphaUse, Decoded, Rgb, RgbView, Rgba};
pub(crate) use crate::image::samples::divide_by_255;
use crate::{Error, jpeg, try_alloc};

/// Supported formats, for error messages.
const KNOWN: &str = "JPEG, PNG, WebP, GIF, BMP or TIFF";

/// Supported formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Baseline and progressive JPEG.
    Jpeg,
    /// PNG; for an APNG, the default image.
    Png,
    /// WebP; for an animation, the first frame.
    WebP,
    /// The first frame of a GIF.
    Gif,
    /// A Windows bitmap.
    Bmp,
    /// The first image of a TIFF or `BigTIFF`.
    Tiff,
}

impl Format {
    /// Lowercase name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Jpeg => "jpeg",
            Self::Png => "png",
            Self::WebP => "webp",
            Self::Gif => "gif",
            Self::Bmp => "bmp",
            Self::Tiff => "tiff",
        }
    }

    /// Detect the format from the first bytes.
    pub(crate) fn of(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.starts_with(&[0xFF, 0xD8]) {
            Ok(Self::Jpeg)
        } else if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
            Ok(Self::Png)
        } else if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
            Ok(Self::WebP)
        } else if bytes.starts_with(b"GIF87a") || bytes.starts_with(b"GIF89a") {
            Ok(Self::Gif)
        } else if bytes.starts_with(b"BM") {
            Ok(Self::Bmp)
        } else if [b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"]
            .iter()
            .any(|start| bytes.starts_with(*start))
        {
            Ok(Self::Tiff)
        } else if let Some(name) = not_decoded(bytes) {
            let reason = format!("{name}: unsupported; expected a {KNOWN} file");
            Err(Error::unsupported(reason))
        } else if bytes.is_empty() {
            let reason = format!("empty file; expected a {KNOWN} file");
            Err(Error::decode(reason))
        } else {
            let start: Vec<String> = bytes.iter().take(8).map(|b| format!("{b:02x}")).collect();
            let start = start.join(" ");
            let reason = format!("starts with bytes {start}; expected a {KNOWN} file");
            Err(Error::decode(reason))
        }
    }
}

/// Detect a known but unsupported format.
fn not_decoded(bytes: &[u8]) -> Option<&'static str> {
    if bytes.get(4..8) == Some(b"ftyp") {
        return match bytes.get(8..12)? {
            b"avif" | b"avis" => Some("AVIF"),
            b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" | b"mif1" | b"msf1" => {
                Some("HEIF")
            }
            _ => None,
        };
    }
    let beginnings: [(&[u8], &'static str); 8] = [
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\xFF\x4F\xFF\x51", "JPEG 2000"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\xFF\x0A", "JPEG XL"),
        (b"8BPS\0", "Photoshop"),
        (b"qoif", "QOI"),
        (b"\0\0\x01\0", "ICO"),
        (b"%PDF-", "PDF"),
    ];
    let found = beginnings
        .iter()
        .find(|(begins, _)| bytes.starts_with(begins));
    found.map(|(_, name)| *name)
}

/// Read (height, width) and format without decoding the pixels.
///
/// # Errors
/// [`Error::Decode`] if the format is unknown or the header is corrupt, [`Error::Unsupported`] if
/// the format is known but unsupported.
pub fn probe(bytes: &[u8]) -> Result<(usize, usize, Format), Error> {
    let format = Format::of(bytes)?;
    let (height, width) = guarded(|| match format {
        Format::Jpeg => jpeg::read_header(bytes).map(|header| (header.height, header.width)),
        Format::Png => png::size(bytes),
        Format::WebP => webp::size(bytes),
        Format::Gif => gif::size(bytes),
        Format::Bmp => bmp::size(bytes),
        Format::Tiff => tiff::size(bytes),
    })?;
    Ok((height, width, format))
}

/// Read the EXIF (or TIFF) orientation: 1 (upright) to 8.
///
/// A missing or malformed tag is read as 1; it is no reason to reject an image.
pub(crate) fn orientation(bytes: &[u8], format: Format) -> u8 {
    let found = match format {
        Format::Jpeg => jpeg::read_header(bytes)
            .map(|header| header.orientation)
            .ok(),
        Format::Png => png::orientation(bytes),
        Format::WebP => webp::orientation(bytes),
        Format::Tiff => tiff::orientation(bytes),
        Format::Gif | Format::Bmp => None,
    };
    found.unwrap_or(1)
}

/// Decode an image file and blend alpha over a background color; without one, alpha is dropped.
///
/// # Errors
/// See [`decode`].
pub fn decode_over(
    bytes: &[u8],
    limits: DecodeLimits,
    background: Option<[u8; 3]>,
) -> Result<Rgb, Error> {
    let alpha = background.map_or(AlphaUse::Drop, AlphaUse::Over);
    decode(bytes, limits, alpha).map(Decoded::into_rgb)
}

/// Decode an image file.
///
/// # Errors
/// [`Error::Decode`] if the file is corrupt, [`Error::Unsupported`] if its kind is unsupported,
/// [`Error::TooManyPixels`] or [`Error::TooManyBytes`] if it exceeds a limit.
pub(crate) fn decode(
    bytes: &[u8],
    limits: DecodeLimits,
    alpha: AlphaUse,
) -> Result<Decoded, Error> {
    let format = Format::of(bytes)?;
    let image = guarded(|| {
        let samples = match format {
            Format::Jpeg => return decode_whole_jpeg(bytes, limits).map(Decoded::Rgb),
            Format::Png => png::decode(bytes, &limits),
            Format::WebP => webp::decode(bytes, &limits),
            Format::Gif => gif::decode(bytes, &limits, alpha),
            Format::Bmp => bmp::decode(bytes, &limits),
            Format::Tiff => tiff::decode(bytes, &limits),
        };
        samples.and_then(|samples| samples.convert(alpha, &limits))
    })?;
    let ((height, width), channels, pixels) = image.parts();
    if pixels.len() != height * width * channels {
        return Err(Error::decode(format!(
            "decoded {} bytes from an image of {height} x {width} pixels",
            pixels.len()
        )));
    }
    Ok(image)
}

/// Run a decoder, which may panic on corrupt bytes.
fn guarded<T>(decode: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_panic(decode, |why| {
        Error::decode(format!("corrupt data; the decoder panicked: {why}"))
    })
}

thread_local! {
    /// One decoder per thread; it keeps its buffers between images.
    static JPEG: RefCell<jpeg::Decoder> = RefCell::new(jpeg::Decoder::new());
}

/// Decode a JPEG; the status reports whether damaged parts were filled.
pub(crate) fn decode_jpeg(
    bytes: &[u8],
    request: &jpeg::Request,
) -> Result<(Rgb, jpeg::Status), Error> {
    let header = jpeg::read_header(bytes)?;
    let size = (header.height, header.width);
    request.limits.check_size(size.0, size.1)?;
    let [height, width] = [header.height, header.width].map(|side| request.scale.apply(side));
    let height = request.stop_row.map_or(height, |row| row.min(height));
    let output_bytes = height * width * 3;
    request.limits.check_bytes(size, output_bytes)?;
    let what = try_alloc::of_image(height, width);
    let mut pixels = try_alloc::with_capacity(output_bytes, what)?;
    let request = &jpeg::Request {
        output_bytes,
        ..*request
    };
    let mut sink = |_, rows: &[u8]| pixels.extend_from_slice(rows);
    let status = JPEG.with_borrow_mut(|decoder| decoder.decode(bytes, request, &mut sink))?;
    Ok((Rgb::new(height, width, pixels), status))
}

fn decode_whole_jpeg(bytes: &[u8], limits: DecodeLimits) -> Result<Rgb, Error> {
    let request = jpeg::Request {
        scale: jpeg::Scale::Full,
        stop_row: None,
        limits,
        output_bytes: 0,
    };
    match decode_jpeg(bytes, &request)? {
        (image, jpeg::Status::Whole) => Ok(image),
        (_, jpeg::Status::Filled(reason)) => Err(Error::decode(reason)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::png;

    /// A one-pixel PNG, written by the same crate that reads it.
    fn png_of(color: png::ColorType, depth: png::BitDepth, data: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, 1, 1);
        encoder.set_color(color);
        encoder.set_depth(depth);
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(data).unwrap();
        writer.finish().unwrap();
        bytes
    }

    fn decode(bytes: &[u8], limits: DecodeLimits) -> Result<Rgb, Error> {
        decode_over(bytes, limits, None)
    }

    fn pixel(bytes: &[u8]) -> Vec<u8> {
        decode(bytes, DecodeLimits::default()).unwrap().pixels
    }

    #[test]
    fn empty_input_is_not_an_image() {
        for bytes in [
            &b""[..],
            b"\xFF",
            b"GIF89a",
            b"\xFF\xD8",
            b"\x89PNG\r\n\x1a\n",
        ] {
            assert!(matches!(
                decode(bytes, DecodeLimits::default()),
                Err(Error::Decode { path: None, .. })
            ));
            assert!(probe(bytes).is_err());
        }
    }

    #[test]
    fn unsupported_formats_differ_from_corrupt_ones() {
        for (bytes, name) in [
            (&b"\0\0\0\x1cftypavif\0\0\0\0"[..], "AVIF"),
            (b"\0\0\0\x1cftypheic\0\0\0\0", "HEIF"),
            (b"\0\0\0\x0cjP  \r\n\x87\n\0", "JPEG 2000"),
            (b"\xFF\x0A\0\0", "JPEG XL"),
        ] {
            let error = decode(bytes, DecodeLimits::default()).unwrap_err();
            assert_eq!(error.status(), "unsupported", "{error}");
            assert!(error.to_string().starts_with(name), "{error}");
        }
        for bytes in [&b"\0\0\0\x1cftypmp42"[..], b"\0\0\0\x1cftyp", b"words"] {
            assert_eq!(
                decode(bytes, DecodeLimits::default()).unwrap_err().status(),
                "corrupt"
            );
        }
    }

    #[test]
    fn every_kind_of_pixel_becomes_rgb() {
        use png::{BitDepth, ColorType};
        let of = |color, depth, data: &[u8]| pixel(&png_of(color, depth, data));
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
    fn alpha_is_kept_unless_opaque() {
        use png::{BitDepth, ColorType};
        let keep = |color, data: &[u8]| {
            let bytes = png_of(color, BitDepth::Eight, data);
            super::decode(&bytes, DecodeLimits::default(), AlphaUse::Keep).unwrap()
        };
        let rgba = |pixel: [u8; 4]| Decoded::Rgba(Rgba::new(1, 1, pixel.to_vec()));
        let rgb = |pixel: [u8; 3]| Decoded::Rgb(Rgb::new(1, 1, pixel.to_vec()));
        assert_eq!(keep(ColorType::Rgba, &[1, 2, 3, 9]), rgba([1, 2, 3, 9]));
        assert_eq!(keep(ColorType::Rgba, &[1, 2, 3, 255]), rgb([1, 2, 3]));
        assert_eq!(keep(ColorType::GrayscaleAlpha, &[7, 0]), rgba([7, 7, 7, 0]));
        assert_eq!(keep(ColorType::GrayscaleAlpha, &[7, 255]), rgb([7; 3]));
        assert_eq!(keep(ColorType::Rgb, &[1, 2, 3]), rgb([1, 2, 3]));
    }

    #[test]
    fn size_is_checked_before_decoding() {
        let bytes = png_of(png::ColorType::Rgb, png::BitDepth::Eight, &[1, 2, 3]);
        assert_eq!(probe(&bytes).unwrap(), (1, 1, Format::Png));
        assert!(matches!(
            decode(&bytes, DecodeLimits::of_pixels(0)),
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
