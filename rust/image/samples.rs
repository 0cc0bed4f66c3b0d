//! Decoded samples of formats other than JPEG, and their conversion to RGB or RGBA.
//!
//! Each format has its own module: `size` reads (height, width) from the header, `decode` returns
//! 8-bit samples, and `orientation` reads the EXIF orientation, 1 to 8, if the format has one. A
//! corrupt header is an [`Error::Decode`].
//!
//! AVIF is not supported: the AV1 decoders in Rust (`rav1d`, `re_rav1d`) are translations of dav1d
//! with its C interface, and are fast only if an assembler is available at build time.

use crate::decode_limits::DecodeLimits;
use crate::image::{AlphaUse, Decoded, Rgb, Rgba};
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

    /// Replicate gray; drop, blend or keep alpha.
    pub(crate) fn convert(self, alpha: AlphaUse, limits: &DecodeLimits) -> Result<Decoded, Error> {
        let (height, width) = (self.height, self.width);
        if alpha == AlphaUse::Keep && !self.is_opaque() {
            let pixels = if self.channels == 2 {
                limits.check_bytes((height, width), (2 + 4) * height * width)?;
                self.pixels::<2, 4>(|&[gray, alpha]| [gray, gray, gray, alpha])?
            } else {
                self.bytes
            };
            return Ok(Decoded::Rgba(Rgba::new(height, width, pixels)));
        }
        let background = match alpha {
            AlphaUse::Over(below) => Some(below),
            AlphaUse::Drop | AlphaUse::Keep => None,
        };
        let pixels = match (self.channels, background) {
            (1, _) => self.pixels::<1, 3>(|&[gray]| [gray; 3])?,
            (2, None) => self.pixels::<2, 3>(|&[gray, _]| [gray; 3])?,
            (2, Some(below)) => {
                self.pixels::<2, 3>(|&[gray, alpha]| blend([gray; 3], alpha, below))?
            }
            (4, None) => self.pixels::<4, 3>(|&[r, g, b, _]| [r, g, b])?,
            (4, Some(below)) => {
                self.pixels::<4, 3>(|&[r, g, b, alpha]| blend([r, g, b], alpha, below))?
            }
            _ => self.bytes,
        };
        Ok(Decoded::Rgb(Rgb::new(height, width, pixels)))
    }

    /// True if there is no alpha, or all of it is 255.
    fn is_opaque(&self) -> bool {
        let has_alpha = matches!(self.channels, 2 | 4);
        let alpha = self.bytes.iter().skip(self.channels - 1);
        !has_alpha || alpha.step_by(self.channels).all(|&alpha| alpha == u8::MAX)
    }

    fn pixels<const N: usize, const M: usize>(
        &self,
        color: impl Fn(&[u8; N]) -> [u8; M],
    ) -> Result<Vec<u8>, Error> {
        let (from, _) = self.bytes.as_chunks::<N>();
        let what = try_alloc::of_image(self.height, self.width);
        let mut pixels = try_alloc::with_capacity(M * from.len(), what)?;
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
        let alpha = background.map_or(AlphaUse::Drop, AlphaUse::Over);
        let limits = DecodeLimits::default();
        samples.convert(alpha, &limits).unwrap().into_rgb().pixels
    }

    #[test]
    fn a_copy_with_alpha_counts() {
        let mut limits = DecodeLimits::default();
        for (most, fits) in [(12, true), (11, false)] {
            limits.max_decode_bytes = most;
            let samples = Samples::new(1, 2, 2, vec![7, 0, 9, 255]);
            assert_eq!(samples.convert(AlphaUse::Keep, &limits).is_ok(), fits);
        }
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
