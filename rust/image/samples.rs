//! Decoded samples of formats other than JPEG, and their conversion to RGB.
//!
//! Each format has its own module: `size` reads (height, width) from the header, `decode` returns
//! 8-bit samples, and `orientation` reads the EXIF orientation, 1 to 8, if the format has one. A
//! corrupt header is an [`Error::Decode`].
//!
//! AVIF is not supported: the AV1 decoders in Rust (`rav1d`, `re_rav1d`) are translations of dav1d
//! with its C interface, and are fast only if an assembler is available at build time.

use crate::image::Rgb;
use crate::{Error, try_alloc};

/// Decoded samples: gray or RGB, with or without alpha.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Samples {
    height: usize,
    width: usize,
    /// 1: gray, 2: gray and alpha, 3: RGB, 4: RGBA.
    channels: usize,
    /// Interleaved samples.
    bytes: Vec<u8>,
}

impl Samples {
    pub(crate) fn new(height: usize, width: usize, channels: usize, bytes: Vec<u8>) -> Self {
        Self {
            height,
            width,
            channels,
            bytes,
        }
    }

    /// Convert to RGB: replicate gray, and blend alpha over a background or drop it without one.
    pub(crate) fn over(self, background: Option<[u8; 3]>) -> Result<Rgb, Error> {
        let pixels = match (self.channels, background) {
            (1, _) => self.pixels::<1>(|&[gray]| [gray; 3])?,
            (2, None) => self.pixels::<2>(|&[gray, _]| [gray; 3])?,
            (2, Some(below)) => {
                self.pixels::<2>(|&[gray, alpha]| blend([gray; 3], alpha, below))?
            }
            (4, None) => self.pixels::<4>(|&[r, g, b, _]| [r, g, b])?,
            (4, Some(below)) => {
                self.pixels::<4>(|&[r, g, b, alpha]| blend([r, g, b], alpha, below))?
            }
            _ => self.bytes,
        };
        Ok(Rgb::new(self.height, self.width, pixels))
    }

    fn pixels<const N: usize>(
        &self,
        color: impl Fn(&[u8; N]) -> [u8; 3],
    ) -> Result<Vec<u8>, Error> {
        let (from, _) = self.bytes.as_chunks::<N>();
        let what = try_alloc::of_image(self.height, self.width);
        let mut pixels = try_alloc::with_capacity(3 * from.len(), what)?;
        pixels.extend(from.iter().flat_map(color));
        Ok(pixels)
    }
}

/// Blend one color over another, rounded as in Pillow's `paste` with a mask.
fn blend(color: [u8; 3], alpha: u8, below: [u8; 3]) -> [u8; 3] {
    let mut mixed = color;
    for (channel, below) in mixed.iter_mut().zip(below) {
        let sum =
            u32::from(*channel) * u32::from(alpha) + u32::from(below) * u32::from(255 - alpha);
        *channel = divide_by_255(sum);
    }
    mixed
}

/// Divide a product of two bytes, or a weighted average of such products, by 255 and round.
pub(crate) fn divide_by_255(product: u32) -> u8 {
    let product = product + 128;
    u8::try_from(((product >> 8) + product) >> 8).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(channels: usize, bytes: &[u8], background: Option<[u8; 3]>) -> Vec<u8> {
        let samples = Samples::new(1, bytes.len() / channels, channels, bytes.to_vec());
        samples.over(background).unwrap().pixels
    }

    #[test]
    fn alpha_is_dropped_or_blended() {
        assert!(over(4, &[], Some([1, 2, 3])).is_empty());
        assert_eq!(over(1, &[7, 9], Some([1, 2, 3])), [7, 7, 7, 9, 9, 9]);
        assert_eq!(over(2, &[7, 0], None), [7; 3]);
        assert_eq!(over(2, &[7, 0], Some([1, 2, 3])), [1, 2, 3]);
        assert_eq!(over(3, &[7, 8, 9], Some([1, 2, 3])), [7, 8, 9]);
        assert_eq!(over(4, &[7, 8, 9, 255], Some([1, 2, 3])), [7, 8, 9]);
        assert_eq!(
            over(4, &[200, 100, 0, 128], Some([0, 100, 255])),
            [100, 100, 127]
        );
        assert_eq!(over(4, &[1, 2, 3, 0], None), [1, 2, 3]);
    }

    #[test]
    fn division_by_255_rounds() {
        for product in 0..=255 * 255 {
            assert_eq!(u32::from(divide_by_255(product)), (product * 2 + 255) / 510);
        }
    }
}
