//! Color operations of `RandAugment`, bit-exact with Pillow's `ImageOps` and `ImageEnhance` on 8-bit
//! RGB.
//!
//! `ImageOps.autocontrast`, `ImageOps.equalize` and `ImageEnhance.Brightness` give the values of
//! [`enhance`].

// Loops are inlined to be compiled for several instruction sets; casts follow a clamp.
#![allow(
    clippy::inline_always,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss
)]

use crate::image::Rgb;
use crate::simd::{self, SimdLoop};
use crate::transform::enhance;

/// Keep the upper bits of each value; `bits` is truncated, and from 1 to 8.
pub(crate) fn posterize(image: &mut Rgb, bits: f64) {
    let dropped = 8 - (bits as u32).clamp(1, 8);
    enhance::by_table(image, |value| f32::from(value >> dropped << dropped));
}

/// Invert values that are not below a threshold.
pub(crate) fn solarize(image: &mut Rgb, threshold: f64) {
    enhance::by_table(image, |value| inverted_from(threshold, value));
}

/// Add a level, truncate to [0, 255], and invert values that are not below 128.
pub(crate) fn solarize_add(image: &mut Rgb, addition: f64) {
    enhance::by_table(image, |value| {
        let sum = (f64::from(value) + addition).clamp(0.0, 255.0);
        inverted_from(128.0, sum as u8)
    });
}

fn inverted_from(threshold: f64, value: u8) -> f32 {
    let is_below = f64::from(value) < threshold;
    f32::from(if is_below { value } else { 255 - value })
}

/// Blend with the mean gray level of the image: a factor of 0 gives the mean, 1 the image.
pub(crate) fn contrast(image: &mut Rgb, factor: f64) {
    let (mean, factor) = (mean_gray(image), factor as f32);
    enhance::by_table(image, |value| blend(mean, f32::from(value), factor));
}

/// Blend with the gray image: a factor of 0 gives gray, 1 the image.
pub(crate) fn color(image: &mut Rgb, factor: f64) {
    let factor = factor as f32;
    simd::run(BlendWithGray { image, factor });
}

/// Blend of two levels, as in `Image.blend`; the caller clamps and truncates it.
#[inline(always)]
fn blend(from: f32, to: f32, factor: f32) -> f32 {
    from + factor * (to - from)
}

/// Level of a pixel, as in `convert("L")`.
#[inline(always)]
fn gray([red, green, blue]: [u8; 3]) -> u8 {
    let [red, green, blue] = [red, green, blue].map(u32::from);
    // The sum is below 2^24.
    ((red * 19_595 + green * 38_470 + blue * 7_471 + 32_768) >> 16) as u8
}

/// Mean of the gray levels, rounded.
fn mean_gray(image: &Rgb) -> f32 {
    struct Sum<'a>(&'a Rgb, &'a mut u64);
    impl SimdLoop for Sum<'_> {
        #[inline(always)]
        fn run(self) {
            for pixels in self.0.pixels.chunks(3 * 1024) {
                let pixels = pixels.as_chunks::<3>().0.iter();
                let sum: u32 = pixels.map(|&pixel| u32::from(gray(pixel))).sum();
                *self.1 += u64::from(sum);
            }
        }
    }
    let mut sum = 0;
    simd::run(Sum(image, &mut sum));
    let count = (image.height * image.width).max(1);
    (sum as f64 / count as f64 + 0.5).floor() as f32
}

struct BlendWithGray<'a> {
    image: &'a mut Rgb,
    factor: f32,
}

impl SimdLoop for BlendWithGray<'_> {
    #[inline(always)]
    fn run(self) {
        /// Bytes of a block; the gray level of each pixel is repeated for its three.
        const BLOCK: usize = 3 * 64;
        let mut grays = [0_u8; BLOCK];
        for block in self.image.pixels.chunks_mut(BLOCK) {
            let pixels = block.as_chunks::<3>().0;
            for (level, &pixel) in grays.as_chunks_mut::<3>().0.iter_mut().zip(pixels) {
                *level = [gray(pixel); 3];
            }
            for (value, &gray) in block.iter_mut().zip(&grays) {
                let mixed = blend(f32::from(gray), f32::from(*value), self.factor);
                let whole = mixed.clamp(0.0, 255.0).trunc();
                *value = (whole + simd::INTEGER).to_bits() as u8;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::gray as gray_image;

    fn changed(values: &[u8], change: impl Fn(&mut Rgb)) -> Vec<u8> {
        let mut image = gray_image(values.len(), values);
        change(&mut image);
        image.pixels.iter().step_by(3).copied().collect()
    }

    #[test]
    fn posterized_values_keep_their_upper_bits() {
        let values = [0, 1, 127, 128, 200, 255];
        let bits = |bits| changed(&values, |image| posterize(image, bits));
        // As METER's magnitude 9: one bit.
        assert_eq!(bits(1.2), [0, 0, 0, 128, 128, 128]);
        assert_eq!(bits(0.4), bits(1.0));
        assert_eq!(bits(4.0), [0, 0, 112, 128, 192, 240]);
        assert_eq!((bits(8.0), bits(99.0)), (values.to_vec(), values.to_vec()));
    }

    #[test]
    fn values_from_the_threshold_on_are_inverted() {
        let values = [0, 76, 77, 255];
        let found = changed(&values, |image| solarize(image, 76.8));
        assert_eq!(found, [0, 76, 178, 0]);
        let found = changed(&values, |image| solarize(image, 256.0));
        assert_eq!(found, values);
        // 33, 109, 110, 255.
        let found = changed(&values, |image| solarize_add(image, 33.9));
        assert_eq!(found, [33, 109, 110, 0]);
        let found = changed(&[94, 95], |image| solarize_add(image, 33.0));
        assert_eq!(found, [127, 127]);
    }

    #[test]
    fn contrast_and_color_leave_gray_means() {
        assert_eq!(changed(&[7], |image| contrast(image, 0.0)), [7]);
        // The mean is 50.5, which is rounded up.
        let values = [1, 100];
        assert_eq!(changed(&values, |image| contrast(image, 0.0)), [51, 51]);
        assert_eq!(changed(&values, |image| contrast(image, 1.9)), [0, 144]);
        assert_eq!(changed(&values, |image| color(image, 0.3)), values);
        let mut image = Rgb::new(1, 1, vec![10, 100, 200]);
        // (10 * 19595 + 100 * 38470 + 200 * 7471) / 65536 = 84.5.
        color(&mut image, 0.0);
        assert_eq!(image.pixels, [84; 3]);
        let mut image = Rgb::new(1, 1, vec![10, 100, 200]);
        color(&mut image, 1.9);
        assert_eq!(image.pixels, [0, 114, 255]);
    }
}
