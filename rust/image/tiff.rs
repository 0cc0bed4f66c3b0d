//! Decode the first image of a TIFF or `BigTIFF` (crate `tiff`): gray and palette images of 1 to 8
//! bits, and gray, RGB and CMYK with 8 or 16 bits, with or without alpha, in one plane or several;
//! uncompressed, LZW, Deflate, `PackBits` or fax group 4. The orientation is not applied. What is
//! not supported is an error that names it; docs/loader.md has the list.

use std::borrow::Cow;
use std::io::Cursor;

use tiff::ColorType;
use tiff::decoder::{ChunkType, Decoder, DecodingResult, Limits};
use tiff::tags::Tag;

use super::group4;
use super::samples::{Samples, divide_by_255};
use crate::decode_limits::DecodeLimits;
use crate::{Error, exif, try_alloc};

/// Maximum bytes per pixel: five channels of 16 bits.
const PIXEL_BYTES: usize = 10;
/// Value of `Compression` for fax group 4.
const GROUP_4: u32 = 4;
/// Value of `PlanarConfiguration` for separate planes.
const PLANAR: u32 = 2;
/// Values of `PhotometricInterpretation`.
const BLACK_IS_ZERO: u8 = 1;
const PALETTE: u32 = 3;
/// Kinds of pixels that are not decoded, by `PhotometricInterpretation`.
const OTHER_PIXELS: [(u32, &str); 7] = [
    (4, "transparency mask"),
    (6, "YCbCr"),
    (8, "CIELab"),
    (9, "ICCLab"),
    (10, "ITULab"),
    (32844, "LogL"),
    (32845, "LogLuv"),
];
/// Kinds of compression that are not decoded, by `Compression`.
const OTHER_COMPRESSION: [(u32, &str); 12] = [
    (2, "CCITT run lengths"),
    (3, "CCITT group 3"),
    (6, "old-style JPEG"),
    (7, "JPEG"),
    (32771, "CCITT run lengths by word"),
    (32809, "ThunderScan"),
    (34676, "SGI Log"),
    (34677, "SGI Log (24 bits)"),
    (34712, "JPEG 2000"),
    (34925, "LZMA"),
    (50000, "ZSTD"),
    (50001, "WebP"),
];
/// Values of `FillOrder` that are not decoded.
const OTHER_ORDERS: [(u32, &str); 1] = [(2, "lowest bit first")];
/// Values of `SampleFormat` that are not decoded.
const OTHER_SAMPLES: [(u32, &str); 3] = [
    (2, "signed integers"),
    (3, "floating point"),
    (6, "complex numbers"),
];

type Tiff<'a> = Decoder<Cursor<&'a [u8]>>;

fn decoder(bytes: &[u8]) -> Result<Tiff<'_>, Error> {
    Decoder::new(Cursor::new(bytes)).map_err(|e| fault(&e))
}

fn size_of(decoder: &mut Tiff<'_>) -> Result<(usize, usize), Error> {
    let (width, height) = decoder.dimensions().map_err(|e| fault(&e))?;
    Ok((height as usize, width as usize))
}

/// Value of a tag; 0 if it is missing.
fn tag(decoder: &mut Tiff<'_>, tag: Tag) -> Result<u32, Error> {
    // A tag with a value for each channel has the same one for all of them.
    let found = decoder.find_tag_unsigned_vec(tag).map_err(|e| fault(&e))?;
    Ok(found
        .and_then(|values| values.first().copied())
        .unwrap_or(0))
}

pub(crate) fn size(bytes: &[u8]) -> Result<(usize, usize), Error> {
    size_of(&mut decoder(bytes)?)
}

pub(crate) fn orientation(bytes: &[u8]) -> Option<u8> {
    if is_big(bytes) {
        let found = tag(&mut decoder(bytes).ok()?, Tag::Orientation).ok()?;
        return u8::try_from(found).ok().filter(|it| (1..=8).contains(it));
    }
    exif::of_tiff(bytes)
}

/// True for the variant with 64-bit offsets.
fn is_big(bytes: &[u8]) -> bool {
    bytes.starts_with(b"II+\0") || bytes.starts_with(b"MM\0+")
}

pub(crate) fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<Samples, Error> {
    let mut decoder = decoder(bytes)?;
    let (height, width) = size_of(&mut decoder)?;
    limits.check_size(height, width)?;
    check_features(&mut decoder)?;
    let palette = palette(&mut decoder)?;
    // The crate rejects palette images, but decodes the indices if they are declared as gray.
    let declared = match palette {
        Some(_) => Cow::Owned(declare_gray(bytes)?),
        None => Cow::Borrowed(bytes),
    };
    let mut decoder = Decoder::new(Cursor::new(&*declared)).map_err(|e| fault(&e))?;
    let mut own = Limits::default();
    own.decoding_buffer_size = limits.max_pixels.saturating_mul(PIXEL_BYTES);
    own.intermediate_buffer_size = own.decoding_buffer_size;
    decoder = decoder.with_limits(own);
    let color = decoder.colortype().map_err(|e| fault(&e))?;
    let (bits, channels) = (color.bit_depth(), usize::from(color.num_samples()));
    let planar = tag(&mut decoder, Tag::PlanarConfiguration)? == PLANAR && channels > 1;
    if planar {
        check_tiles(&mut decoder, height, width)?;
    }
    // The stored samples, their 8-bit copy, and that of planes.
    let sample_bytes = usize::from(bits).div_ceil(8) + 1 + usize::from(planar);
    if tag(&mut decoder, Tag::Compression)? == GROUP_4 {
        if (channels, bits) != (1, 1) {
            return Err(unsupported(
                "CCITT group 4 with more than one bit per pixel",
            ));
        }
        check_group4(&mut decoder, &declared)?;
    }
    let size = height * width * channels * sample_bytes;
    limits.check_bytes((height, width), size.saturating_add(3 * height * width))?;
    try_alloc::check(size, try_alloc::of_image(height, width))?;
    let mut stored = read(&mut decoder)?;
    if planar {
        stored = interleave(&stored, height * width, channels);
    }
    let (channels, bytes) = match (color, palette) {
        (ColorType::Gray(1 | 2 | 4 | 8), Some(palette)) => {
            let indices = unpack(&stored, (height, width), bits, 1);
            let color = |index: u8| palette.get(usize::from(index)).copied().unwrap_or([0; 3]);
            (3, indices.into_iter().flat_map(color).collect())
        }
        (_, Some(_)) => return Err(unsupported(&format!("palette with {bits}-bit indices"))),
        (ColorType::Gray(1 | 2 | 4), None) => {
            let scale = u8::MAX / ((1 << bits) - 1);
            (1, unpack(&stored, (height, width), bits, scale))
        }
        (ColorType::Gray(8 | 16), None) => (1, stored),
        (
            ColorType::Multiband {
                bit_depth: 8 | 16,
                num_samples: 2,
            },
            None,
        ) => (2, stored),
        (ColorType::RGB(8 | 16), None) => (3, stored),
        (ColorType::RGBA(8 | 16), None) => (4, stored),
        (ColorType::CMYK(8 | 16), None) => (3, from_cmyk(&stored)),
        (other, None) => return Err(unsupported(&format!("color type {other:?}"))),
    };
    Ok(Samples::new(height, width, channels, bytes))
}

/// Reject what the crate does not decode, or not to Pillow's values, by name.
fn check_features(decoder: &mut Tiff<'_>) -> Result<(), Error> {
    for (which, names, what) in [
        (Tag::Compression, &OTHER_COMPRESSION[..], "compression"),
        (
            Tag::PhotometricInterpretation,
            &OTHER_PIXELS[..],
            "color space",
        ),
        (Tag::SampleFormat, &OTHER_SAMPLES[..], "sample format"),
        (Tag::FillOrder, &OTHER_ORDERS[..], "order of bits"),
    ] {
        let found = tag(decoder, which)?;
        if let Some((_, name)) = names.iter().find(|(value, _)| *value == found) {
            return Err(unsupported(&format!("{what}: {name}")));
        }
    }
    Ok(())
}

/// Reject planes in tiles that exceed the image, whose padding the crate computes for one plane.
fn check_tiles(decoder: &mut Tiff<'_>, height: usize, width: usize) -> Result<(), Error> {
    for (side, which) in [(width, Tag::TileWidth), (height, Tag::TileLength)] {
        let tile = tag(decoder, which)? as usize;
        if tile > 0 && side % tile != 0 {
            return Err(unsupported(
                "separate planes in tiles that exceed the image",
            ));
        }
    }
    Ok(())
}

/// Reject strips or tiles of fax group 4 whose damage the crate would repair.
fn check_group4(decoder: &mut Tiff<'_>, bytes: &[u8]) -> Result<(), Error> {
    let (count, places) = match decoder.get_chunk_type() {
        ChunkType::Strip => (
            decoder.strip_count(),
            [Tag::StripOffsets, Tag::StripByteCounts],
        ),
        ChunkType::Tile => (
            decoder.tile_count(),
            [Tag::TileOffsets, Tag::TileByteCounts],
        ),
    };
    let count = count.map_err(|e| fault(&e))?;
    let [offsets, sizes] = places.map(|place| decoder.find_tag_unsigned_vec::<usize>(place));
    let offsets = offsets.map_err(|e| fault(&e))?.unwrap_or_default();
    let sizes = sizes.map_err(|e| fault(&e))?.unwrap_or_default();
    let (width, _) = decoder.chunk_dimensions();
    let width = u16::try_from(width).map_err(|_| unsupported("CCITT group 4 of such a width"))?;
    for (number, (offset, size)) in (0..count).zip(offsets.into_iter().zip(sizes)) {
        let end = offset.saturating_add(size).min(bytes.len());
        let strip = bytes.get(offset..end).unwrap_or_default();
        let (_, rows) = decoder.chunk_data_dimensions(number);
        group4::check(strip, width, rows).map_err(|what| {
            Error::decode(format!("TIFF: CCITT group 4: {what} of part {number}"))
        })?;
    }
    Ok(())
}

/// Read all planes, keeping the upper eight bits of each sample.
fn read(decoder: &mut Tiff<'_>) -> Result<Vec<u8>, Error> {
    let mut samples = DecodingResult::U8(Vec::new());
    let layout = decoder.read_image_to_buffer(&mut samples);
    let expected = layout.map_err(|e| fault(&e))?.complete_len;
    if samples.as_buffer(0).byte_len() < expected {
        return Err(Error::decode("TIFF: too many bytes to fit in memory"));
    }
    match samples {
        DecodingResult::U8(bytes) => Ok(bytes),
        DecodingResult::U16(words) => Ok(words.iter().map(|word| word.to_be_bytes()[0]).collect()),
        _ => Err(unsupported(
            "sample size (more than 16 bits, or of another type)",
        )),
    }
}

/// Put the samples of each pixel next to one another.
fn interleave(planes: &[u8], pixels: usize, channels: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(planes.len());
    for pixel in 0..pixels {
        let samples = (0..channels).map(|channel| planes.get(channel * pixels + pixel));
        bytes.extend(samples.map(|sample| sample.copied().unwrap_or(0)));
    }
    bytes
}

/// Colors of a palette image; None for other images.
fn palette(decoder: &mut Tiff<'_>) -> Result<Option<Vec<[u8; 3]>>, Error> {
    if tag(decoder, Tag::PhotometricInterpretation)? != PALETTE {
        return Ok(None);
    }
    let values = decoder.get_tag_u16_vec(Tag::ColorMap);
    let values: Vec<u8> = values
        .map_err(|e| fault(&e))?
        .into_iter()
        .map(|value| value.to_be_bytes()[0])
        .collect();
    let third = values.len() / 3;
    let (red, rest) = values.split_at(third);
    let (green, blue) = rest.split_at(third);
    let colors = red.iter().zip(green).zip(blue);
    Ok(Some(colors.map(|((&r, &g), &b)| [r, g, b]).collect()))
}

/// Copy a palette file with `PhotometricInterpretation` set to gray.
fn declare_gray(bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let broken = || Error::decode("TIFF: the file ends inside its directory");
    let big_endian = bytes.starts_with(b"MM");
    let number = |at: usize, size: usize| {
        let field = bytes.get(at..at + size).ok_or_else(broken)?;
        let digits: &mut dyn Iterator<Item = &u8> = if big_endian {
            &mut field.iter()
        } else {
            &mut field.iter().rev()
        };
        let value = digits.fold(0_u64, |value, &byte| value << 8 | u64::from(byte));
        usize::try_from(value).map_err(|_| broken())
    };
    // Sizes of an offset, of the number of entries, and of an entry with its value at the end.
    let (offset, count, entry) = if is_big(bytes) {
        (8, 8, 20)
    } else {
        (4, 2, 12)
    };
    let directory = number(if is_big(bytes) { 8 } else { 4 }, offset)?;
    let first = directory.checked_add(count).ok_or_else(broken)?;
    for index in 0..number(directory, count)? {
        let at = index
            .checked_mul(entry)
            .and_then(|at| at.checked_add(first));
        let at = at.filter(|at| *at < bytes.len()).ok_or_else(broken)?;
        if number(at, 2)? != usize::from(Tag::PhotometricInterpretation.to_u16()) {
            continue;
        }
        let mut copy = try_alloc::with_capacity(bytes.len(), || "a copy of the file".to_owned())?;
        copy.extend_from_slice(bytes);
        let value = at + entry - offset;
        let field = copy.get_mut(value..value + 2).ok_or_else(broken)?;
        field.copy_from_slice(&if big_endian {
            [0, BLACK_IS_ZERO]
        } else {
            [BLACK_IS_ZERO, 0]
        });
        return Ok(copy);
    }
    Err(broken())
}

/// Expand samples of 1, 2, 4 or 8 bits to bytes, times `scale`; rows are byte-aligned.
fn unpack(stored: &[u8], (height, width): (usize, usize), bits: u8, scale: u8) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(height * width);
    let row_bytes = (width * usize::from(bits)).div_ceil(8);
    for row in stored.chunks_exact(row_bytes).take(height) {
        let samples = row
            .iter()
            .flat_map(|&byte| (0..8 / bits).map(move |part| (byte << (part * bits)) >> (8 - bits)));
        bytes.extend(samples.take(width).map(|sample| sample * scale));
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
