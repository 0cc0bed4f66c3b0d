//! BMP decoder for 1, 4, 8, 16, 24 and 32 bits per pixel: uncompressed, bit fields or RLE.

use super::samples::Samples;
use crate::Error;
use crate::decode_limits::DecodeLimits;
use crate::try_alloc;

/// Size of the file header in bytes.
const FILE_HEADER: usize = 14;
/// Size of the oldest info header (OS/2), whose palette has three bytes per color.
const CORE_HEADER: usize = 12;

/// Pixel encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Storage {
    Plain,
    /// RLE8 or RLE4.
    Runs,
    /// Bit fields: masks for red, green, blue and alpha; 0 means none.
    Masks([u32; 4]),
}

#[derive(Clone, Debug)]
struct BmpHeader {
    height: usize,
    width: usize,
    from_top: bool,
    bits: usize,
    storage: Storage,
    /// Offset of the pixel data.
    start: usize,
    palette: Vec<[u8; 3]>,
}

/// Read little-endian integers.
fn number<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Error> {
    let found = bytes.get(at..).and_then(<[u8]>::first_chunk).copied();
    found.ok_or_else(|| Error::decode("BMP: the file ends inside the header"))
}

fn word(bytes: &[u8], at: usize) -> Result<usize, Error> {
    number(bytes, at).map(|found| usize::from(u16::from_le_bytes(found)))
}

fn double_word(bytes: &[u8], at: usize) -> Result<u32, Error> {
    number(bytes, at).map(u32::from_le_bytes)
}

fn unsupported(what: &str) -> Error {
    Error::unsupported(format!("BMP: unsupported {what}"))
}

fn read_header(bytes: &[u8]) -> Result<BmpHeader, Error> {
    let length = double_word(bytes, FILE_HEADER)? as usize;
    let at = |offset: usize| FILE_HEADER + offset;
    let (height, width, bits, compression, colors) = match length {
        CORE_HEADER => {
            let (width, height) = (word(bytes, at(4))?, word(bytes, at(6))?);
            let height = i64::try_from(height).unwrap_or(0);
            (height, width, word(bytes, at(10))?, 0, 0)
        }
        40..=256 => (
            i64::from(double_word(bytes, at(8))?.cast_signed()),
            double_word(bytes, at(4))? as usize,
            word(bytes, at(14))?,
            double_word(bytes, at(16))?,
            double_word(bytes, at(32))? as usize,
        ),
        _ => return Err(unsupported(&format!("header size {length}"))),
    };
    let storage = match (compression, bits) {
        (0, 16) => Storage::Masks([0x7C00, 0x03E0, 0x001F, 0]),
        (0, 1 | 4 | 8 | 24 | 32) => Storage::Plain,
        (1, 8) | (2, 4) => Storage::Runs,
        (3 | 6, 16 | 32) => {
            let mask = |number: usize| double_word(bytes, at(40 + 4 * number));
            let alpha = if length >= 56 { mask(3)? } else { 0 };
            Storage::Masks([mask(0)?, mask(1)?, mask(2)?, alpha])
        }
        _ => {
            let what = format!("{bits} bits per pixel with compression {compression}");
            return Err(unsupported(&what));
        }
    };
    let palette = if bits <= 8 {
        let size = if length == CORE_HEADER { 3 } else { 4 };
        let most = 1 << bits;
        let count = if colors == 0 { most } else { colors.min(most) };
        let stored = bytes.get(at(length)..at(length) + count * size);
        let stored =
            stored.ok_or_else(|| Error::decode("BMP: the file ends inside the palette"))?;
        stored
            .chunks_exact(size)
            .map(|c| [c[2], c[1], c[0]])
            .collect()
    } else {
        Vec::new()
    };
    Ok(BmpHeader {
        height: usize::try_from(height.unsigned_abs()).unwrap_or(usize::MAX),
        width,
        from_top: height < 0,
        bits,
        storage,
        start: double_word(bytes, 10)? as usize,
        palette,
    })
}

/// See [`super::samples`]; [`Error::Unsupported`] if the variant is unsupported.
pub(crate) fn size(bytes: &[u8]) -> Result<(usize, usize), Error> {
    read_header(bytes).map(|header| (header.height, header.width))
}

pub(crate) fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<Samples, Error> {
    let header = read_header(bytes)?;
    let (height, width) = (header.height, header.width);
    limits.check_size(height, width)?;
    let stored = bytes.get(header.start..).unwrap_or_default();
    let channels = match header.storage {
        Storage::Masks([.., alpha]) if alpha != 0 => 4,
        _ => 3,
    };
    let color = |index: u8| {
        let found = header.palette.get(usize::from(index));
        found.copied().unwrap_or_default()
    };
    let is_rle = header.storage == Storage::Runs;
    let row_bytes = (width * header.bits).div_ceil(32) * 4;
    // Checked before anything of the size in the header is allocated.
    if !is_rle && stored.len() / row_bytes < height {
        return Err(Error::decode(format!(
            "BMP: {} bytes of pixel data; expected {height} rows of {row_bytes} bytes",
            stored.len()
        )));
    }
    // The samples, and the indices of RLE data or the RGB copy without alpha.
    let copy = if is_rle { height * width } else { 0 };
    let copy = if channels == 4 {
        3 * height * width
    } else {
        copy
    };
    limits.check_bytes((height, width), height * width * channels + copy)?;
    let what = try_alloc::of_image(height, width);
    let indices = if is_rle {
        unroll(stored, &header)?
    } else {
        Vec::new()
    };
    let mut pixels = try_alloc::with_capacity(height * width * channels, what)?;
    for y in 0..height {
        let row = if header.from_top { y } else { height - 1 - y };
        if is_rle {
            let row = indices.get(row * width..(row + 1) * width);
            pixels.extend(
                row.unwrap_or_default()
                    .iter()
                    .flat_map(|&index| color(index)),
            );
        } else {
            let row = stored.get(row * row_bytes..(row + 1) * row_bytes);
            spread(row.unwrap_or_default(), &header, color, &mut pixels);
        }
    }
    Ok(Samples::new(height, width, channels, pixels))
}

/// Append the samples of one row to the output.
fn spread(row: &[u8], header: &BmpHeader, color: impl Fn(u8) -> [u8; 3], pixels: &mut Vec<u8>) {
    let (bits, width) = (header.bits, header.width);
    match (header.storage, bits) {
        (Storage::Masks(masks), _) => {
            let channels = if masks[3] == 0 { 3 } else { 4 };
            for pixel in row.chunks_exact(bits / 8).take(width) {
                let bytes = pixel.iter().rev();
                let value = bytes.fold(0, |value, &b| value << 8 | u32::from(b));
                pixels.extend(masks.iter().take(channels).map(|&mask| masked(value, mask)));
            }
        }
        (_, 24 | 32) => {
            let stored = row.chunks_exact(bits / 8).take(width);
            pixels.extend(stored.flat_map(|pixel| [pixel[2], pixel[1], pixel[0]]));
        }
        _ => {
            let parts = row.iter().flat_map(|&byte| {
                (0..8 / bits).map(move |part| byte << (part * bits) >> (8 - bits))
            });
            pixels.extend(parts.take(width).flat_map(color));
        }
    }
}

/// Extract the bits selected by a mask and scale them to eight bits.
fn masked(value: u32, mask: u32) -> u8 {
    if mask == 0 {
        return 0;
    }
    let shift = mask.trailing_zeros();
    let (most, found) = (u64::from(mask >> shift), u64::from((value & mask) >> shift));
    u8::try_from(if most > 255 {
        found >> (most.ilog2() - 7)
    } else {
        found * 255 / most
    })
    .unwrap_or(u8::MAX)
}

/// Decode RLE data to palette indices, bottom row first; skipped pixels are 0.
fn unroll(stored: &[u8], header: &BmpHeader) -> Result<Vec<u8>, Error> {
    let (height, width) = (header.height, header.width);
    let mut indices = try_alloc::filled(0, height * width, try_alloc::of_image(height, width))?;
    let (mut x, mut y) = (0, 0);
    let mut rest = stored;
    let ended = || Error::decode("BMP: the file ends inside the RLE data");
    // The high nibble is the first of two pixels.
    let half = |byte: u8, number: usize| match (header.bits, number % 2) {
        (8, _) => byte,
        (_, 0) => byte >> 4,
        _ => byte & 0x0F,
    };
    let mut put = |x: &mut usize, y: usize, index: u8| {
        if *x < width
            && y < height
            && let Some(place) = indices.get_mut(y * width + *x)
        {
            *place = index;
        }
        *x += 1;
    };
    loop {
        let (&[count, value], after) = rest.split_first_chunk().ok_or_else(ended)?;
        rest = after;
        match (count, value) {
            (0, 0) => (x, y) = (0, y + 1),
            (0, 1) => break,
            (0, 2) => {
                let (&[right, up], after) = rest.split_first_chunk().ok_or_else(ended)?;
                rest = after;
                x += usize::from(right);
                y += usize::from(up);
            }
            (0, count) => {
                let count = usize::from(count);
                let length = (count * header.bits).div_ceil(8);
                let padded = length.next_multiple_of(2);
                let (bytes, after) = rest.split_at_checked(padded).ok_or_else(ended)?;
                rest = after;
                for number in 0..count {
                    let byte = bytes.get(number * header.bits / 8).copied().unwrap_or(0);
                    put(&mut x, y, half(byte, number));
                }
            }
            (count, value) => {
                for number in 0..usize::from(count) {
                    put(&mut x, y, half(value, number));
                }
            }
        }
    }
    Ok(indices)
}
