//! Resize of images with alpha, bit-exact with Pillow's `Image.resize` in mode RGBA: colors are
//! multiplied by alpha, resized, and divided by the resized alpha.

use crate::Error;
use crate::boxes::Crop;
use crate::error::named;
use crate::image::{Rgb, Rgba, divide_by_255};
use crate::resize::{Method, ResizeScratch, ResizeTarget, RowResizer};
use crate::try_alloc;

/// What becomes of the alpha channel of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Alpha {
    /// Dropped before everything else.
    #[default]
    Drop,
    /// Colors are weighted by it while they are resized; then it is dropped.
    Premultiply,
}

named!(Alpha, "alpha", [Drop = "drop", Premultiply = "premultiply"]);

/// Crop an image and resize it to a target, weighting colors by alpha; the result has none.
///
/// As in Pillow, nothing is weighted if the crop has the size of the target already.
pub(crate) fn resize_premultiplied(
    scratch: &mut ResizeScratch,
    image: &Rgba,
    crop: Crop,
    target: ResizeTarget,
    method: Method,
) -> Result<Rgb, Error> {
    let is_resized = (crop.height, crop.width) != target.whole;
    let color: fn(&[u8; 4]) -> [u8; 3] = if is_resized {
        |&[r, g, b, alpha]| [r, g, b].map(|value| times(value, alpha))
    } else {
        |&[r, g, b, _]| [r, g, b]
    };
    let mut colors = resize(scratch, image, (crop, target, method), color)?;
    if is_resized {
        let alphas = resize(scratch, image, (crop, target, method), |pixel| {
            [pixel[3]; 3]
        })?;
        for (value, &alpha) in colors.pixels.iter_mut().zip(&alphas.pixels) {
            *value = divide(*value, alpha);
        }
    }
    Ok(colors)
}

/// Resize an image whose three channels are computed from four.
fn resize(
    scratch: &mut ResizeScratch,
    image: &Rgba,
    (crop, target, method): (Crop, ResizeTarget, Method),
    channels: impl Fn(&[u8; 4]) -> [u8; 3],
) -> Result<Rgb, Error> {
    let source = (image.height, image.width);
    let mut resizer = RowResizer::new(scratch, source, crop, target, method)?;
    let (height, width) = (target.window.height, target.window.width);
    let what = try_alloc::of_image(height, width);
    let mut pixels = try_alloc::with_capacity(height * width * 3, what)?;
    let mut row = Vec::with_capacity(image.width * 3);
    for y in crop.top..=resizer.last_row_needed() {
        let stored = image.pixels.get(4 * y * image.width..);
        let (stored, _) = stored.unwrap_or_default().as_chunks::<4>();
        row.clear();
        row.extend(stored.iter().take(image.width).flat_map(&channels));
        resizer.push_rows(y, &row, &mut |_, resized| pixels.extend_from_slice(resized))?;
    }
    Ok(Rgb::new(height, width, pixels))
}

/// Product of two fractions of 255, rounded.
fn times(value: u8, alpha: u8) -> u8 {
    divide_by_255(u32::from(value) * u32::from(alpha))
}

/// Quotient of two fractions of 255, truncated; an alpha of 0 leaves the value.
fn divide(value: u8, alpha: u8) -> u8 {
    match alpha {
        0 | u8::MAX => value,
        _ => u8::try_from(255 * u32::from(value) / u32::from(alpha)).unwrap_or(u8::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resize::Filter;

    fn resized(image: &Rgba, size: (usize, usize)) -> Vec<u8> {
        let crop = Crop::whole(image.height, image.width);
        let (target, method) = (size.into(), Filter::Bilinear.into());
        let scratch = &mut ResizeScratch::default();
        let resized = resize_premultiplied(scratch, image, crop, target, method);
        resized.unwrap().pixels
    }

    #[test]
    fn one_transparent_pixel_is_black_at_any_other_size() {
        let image = Rgba::new(1, 1, vec![9, 8, 7, 0]);
        assert_eq!(resized(&image, (1, 1)), [9, 8, 7]);
        assert_eq!(resized(&image, (2, 2)), [0; 12]);
    }

    #[test]
    fn transparent_pixels_have_no_weight() {
        let image = Rgba::new(
            1,
            4,
            [[200, 100, 50, 255], [0, 0, 255, 0]].repeat(2).concat(),
        );
        // Alpha of the left half is (3 * 255 + 0) * 3 / 8 and so on; the color stays.
        for pixel in resized(&image, (1, 2)).as_chunks::<3>().0 {
            for (found, expected) in pixel.iter().zip([200_u8, 100, 50]) {
                assert!(found.abs_diff(expected) <= 1, "{pixel:?}");
            }
        }
    }

    #[test]
    fn opaque_images_are_resized_as_without_alpha() {
        let rgb: Vec<u8> = (0..5 * 7 * 3).map(|value| value * 2).collect();
        let (pixels, _) = rgb.as_chunks::<3>();
        let rgba = pixels.iter().flat_map(|&[r, g, b]| [r, g, b, 255]);
        let rgba = Rgba::new(5, 7, rgba.collect());
        let rgb = Rgb::new(5, 7, rgb);
        let crop = Crop::whole(5, 7);
        let expected = crate::resize::resize(&rgb, crop, 3, 9, Filter::Bilinear).unwrap();
        assert_eq!(resized(&rgba, (3, 9)), expected.pixels);
    }

    #[test]
    fn quotients_are_truncated_and_clamped() {
        assert_eq!((times(255, 255), times(255, 7), times(1, 127)), (255, 7, 0));
        assert_eq!((divide(3, 0), divide(3, 255), divide(3, 7)), (3, 3, 109));
        assert_eq!(divide(9, 7), 255);
    }
}
