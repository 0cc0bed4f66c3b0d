//! Color conversion of rows to RGB.

use crate::jpeg::markers::ColorSpace;

/// Factors of the JFIF conversion, in units of 2^-16: Cr to red, Cb and Cr to green, Cb to blue.
const RED: i32 = 91881;
const GREEN_CB: i32 = 22554;
const GREEN_CR: i32 = 46802;
const BLUE: i32 = 116_130;
const HALF: i32 = 1 << 15;

/// The same for loops with 16-bit products, in units of 2^-15: Cr minus one, and Cb minus two. They
/// give the same rounded products for all 256 values.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(in crate::jpeg) const RED_15: i16 = 13173;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(in crate::jpeg) const BLUE_15: i16 = -7471;
/// In units of 2^-16: Cb, and Cr minus one.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(in crate::jpeg) const GREEN_16: [i16; 2] = [-22554, 18734];

/// Convert a row of pixels to RGB.
///
/// `rows` are the rows of the components, at least as long as the output row, whose first `done`
/// pixels are already converted.
pub(in crate::jpeg) fn convert(space: ColorSpace, rows: [&[u8]; 4], out: &mut [u8], done: usize) {
    let [first, second, third, fourth] = rows.map(|row| row.get(done..).unwrap_or_default());
    let pixels = out.chunks_exact_mut(3).skip(done);
    match space {
        ColorSpace::Gray => {
            for (pixel, &gray) in pixels.zip(first) {
                pixel.fill(gray);
            }
        }
        ColorSpace::Rgb => {
            for (((pixel, &red), &green), &blue) in pixels.zip(first).zip(second).zip(third) {
                pixel.copy_from_slice(&[red, green, blue]);
            }
        }
        ColorSpace::YCbCr => {
            for (((pixel, &y), &cb), &cr) in pixels.zip(first).zip(second).zip(third) {
                pixel.copy_from_slice(&rgb(y, cb, cr));
            }
        }
        ColorSpace::Cmyk => {
            let inks = first.iter().zip(second).zip(third).zip(fourth);
            for (pixel, (((&c, &m), &y), &k)) in pixels.zip(inks) {
                pixel.copy_from_slice(&[ink(c, k), ink(m, k), ink(y, k)]);
            }
        }
        ColorSpace::Ycck => {
            let inks = first.iter().zip(second).zip(third).zip(fourth);
            for (pixel, (((&y, &cb), &cr), &k)) in pixels.zip(inks) {
                pixel.copy_from_slice(&rgb(y, cb, cr).map(|value| ink(255 - value, k)));
            }
        }
    }
}

#[inline]
fn rgb(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    let limit = |value: i32| value.clamp(0, 255) as u8;
    [
        limit(y + ((RED * cr + HALF) >> 16)),
        limit(y + ((HALF - GREEN_CB * cb - GREEN_CR * cr) >> 16)),
        limit(y + ((BLUE * cb + HALF) >> 16)),
    ]
}

/// Convert CMYK to RGB as Pillow does; Adobe stores inverted values, where 255 is no ink.
#[inline]
fn ink(ink: u8, black: u8) -> u8 {
    let (ink, light) = (255 - u32::from(ink), u32::from(black));
    let product = ink * light + 128;
    light.saturating_sub((product + (product >> 8)) >> 8) as u8
}
