//! Antialiased resize, bit-exact with Pillow's `Image.resize` for 8-bit images or, on request,
//! within one level of it.
//!
//! A separable convolution, rows first and then columns; each pass uses 22-bit fixed-point weights
//! and returns 8-bit results. The Pillow versions used to train the published models also resize
//! rows first. Pillow 12.3 resizes columns first for some shapes and 13 for more (where the height
//! shrinks and the width does not, or shrinks less); results differ there.

pub mod alpha;
pub(crate) mod simd;
mod streaming;
mod weights;

use std::cell::RefCell;

use crate::Error;
use crate::boxes::Crop;
use crate::decode_limits::MAX_PIXELS;
use crate::error::named;
use crate::image::{Rgb, RgbView};
pub use crate::resize::streaming::{ResizeScratch, RowResizer};
use crate::try_alloc;

/// Interpolation filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Triangle filter with support 1.
    Bilinear,
    /// Keys' cubic filter with a = -0.5 and support 2.
    Bicubic,
}

named!(
    Filter,
    "filter",
    [Bilinear = "bilinear", Bicubic = "bicubic"]
);

impl Filter {
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Self::Bilinear if x < 1.0 => 1.0 - x,
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            _ => 0.0,
        }
    }
}

/// Accuracy relative to Pillow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// Bit-exact results.
    #[default]
    Exact,
    /// Results within one level, where this is faster on the processor in use.
    Fast,
}

named!(Precision, "resize", [Exact = "exact", Fast = "fast"]);

/// Filter and precision of a resize operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method {
    /// Interpolation filter.
    pub filter: Filter,
    /// Accuracy relative to Pillow.
    pub precision: Precision,
}

impl From<Filter> for Method {
    /// The given filter, bit-exact.
    fn from(filter: Filter) -> Self {
        Self {
            filter,
            precision: Precision::Exact,
        }
    }
}

/// Check that an output size is valid.
pub(crate) fn check_output(name: &'static str, height: usize, width: usize) -> Result<(), Error> {
    match height.checked_mul(width) {
        Some(1..=MAX_PIXELS) => Ok(()),
        _ => Err(Error::argument(
            name,
            format!(
                "{height} x {width} pixels; expected 1 or more, and at most {MAX_PIXELS} in total"
            ),
        )),
    }
}

/// What a resize computes: the whole resized image, or a window of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResizeTarget {
    /// (height, width) of the whole resized image.
    pub whole: (usize, usize),
    /// Computed part of the resized image.
    pub window: Crop,
}

impl From<(usize, usize)> for ResizeTarget {
    /// The whole image of (height, width) pixels.
    fn from(whole: (usize, usize)) -> Self {
        let window = Crop::whole(whole.0, whole.1);
        Self { whole, window }
    }
}

/// Crop an image and resize it to `height` x `width` pixels.
pub(crate) fn resize<'a>(
    image: impl Into<RgbView<'a>>,
    crop: Crop,
    height: usize,
    width: usize,
    method: impl Into<Method>,
) -> Result<Rgb, Error> {
    resize_to(image, crop, (height, width), method)
}

/// Crop an image and resize it to a target.
pub(crate) fn resize_to<'a>(
    image: impl Into<RgbView<'a>>,
    crop: Crop,
    target: impl Into<ResizeTarget>,
    method: impl Into<Method>,
) -> Result<Rgb, Error> {
    thread_local! {
        static SCRATCH: RefCell<ResizeScratch> = RefCell::default();
    }
    SCRATCH.with_borrow_mut(|scratch| resize_with(scratch, image, crop, target, method))
}

/// Like [`resize`], with the caller's buffers and instruction set; `output` is a [`ResizeTarget`] or
/// (height, width).
///
/// # Errors
/// See [`resize`].
pub fn resize_with<'a>(
    scratch: &mut ResizeScratch,
    image: impl Into<RgbView<'a>>,
    crop: Crop,
    output: impl Into<ResizeTarget>,
    method: impl Into<Method>,
) -> Result<Rgb, Error> {
    let image = image.into();
    let target = output.into();
    let (height, width) = (target.window.height, target.window.width);
    let source = (image.height, image.width);
    let mut resizer = RowResizer::new(scratch, source, crop, target, method)?;
    let what = try_alloc::of_image(height, width);
    let mut pixels = try_alloc::with_capacity(height * width * 3, what)?;
    resizer.push_rows(0, image.pixels, &mut |_, row| {
        pixels.extend_from_slice(row);
    })?;
    Ok(Rgb::new(height, width, pixels))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::gradient;

    fn whole(image: &Rgb) -> Crop {
        Crop::whole(image.height, image.width)
    }

    #[test]
    fn one_pixel_fills_any_size() {
        let image = gradient(1, 1);
        for filter in [Filter::Bilinear, Filter::Bicubic] {
            let output = resize(&image, whole(&image), 3, 5, filter).unwrap();
            assert_eq!(output.pixels, image.pixels.repeat(15));
        }
    }

    #[test]
    fn the_same_size_changes_nothing() {
        let image = gradient(7, 9);
        let output = resize(&image, whole(&image), 7, 9, Filter::Bicubic).unwrap();
        assert_eq!(output, image);
    }

    #[test]
    fn halving_averages_with_a_triangle() {
        // Weights 1/8, 3/8, 3/8 and 1/8, without those outside the image.
        let image = Rgb::new(
            1,
            4,
            [0, 40, 80, 120].iter().flat_map(|&v| [v; 3]).collect(),
        );
        let output = resize(&image, whole(&image), 1, 2, Filter::Bilinear).unwrap();
        assert_eq!(output.pixels, [29, 29, 29, 91, 91, 91]);
    }

    #[test]
    fn a_crop_is_resized_like_an_image() {
        let image = gradient(20, 30);
        let crop = Crop {
            top: 3,
            left: 5,
            height: 11,
            width: 13,
        };
        let mut cut = Vec::new();
        for y in 3..14 {
            cut.extend_from_slice(&image.pixels[(y * 30 + 5) * 3..(y * 30 + 18) * 3]);
        }
        let cut = Rgb::new(11, 13, cut);
        assert_eq!(
            resize(&image, crop, 7, 29, Filter::Bicubic).unwrap(),
            resize(&cut, whole(&cut), 7, 29, Filter::Bicubic).unwrap()
        );
    }

    #[test]
    fn a_window_is_a_part_of_the_resized_image() {
        let image = gradient(61, 83);
        for whole in [(20, 40), (61, 90), (130, 83), (150, 170)] {
            let crop = Crop::whole(image.height, image.width);
            let all = resize(&image, crop, whole.0, whole.1, Filter::Bicubic).unwrap();
            for (top, left, height, width) in [(0, 0, 9, 40), (11, 3, 9, 37), (19, 39, 1, 1)] {
                let window = Crop {
                    top,
                    left,
                    height,
                    width,
                };
                let target = ResizeTarget { whole, window };
                let part = resize_to(&image, crop, target, Filter::Bicubic).unwrap();
                let rows = all.pixels.chunks_exact(whole.1 * 3).skip(top).take(height);
                let expected: Vec<u8> = rows
                    .flat_map(|row| row[left * 3..(left + width) * 3].to_vec())
                    .collect();
                assert_eq!(part.pixels, expected, "{whole:?} {window:?}");
            }
        }
    }

    #[test]
    fn sizes_and_crops_are_checked() {
        let image = gradient(2, 3);
        assert!(resize(&image, whole(&image), 0, 1, Filter::Bilinear).is_err());
        let crop = Crop {
            left: 1,
            ..whole(&image)
        };
        assert!(resize(&image, crop, 1, 1, Filter::Bilinear).is_err());
        assert!(Filter::from_name("nearest").is_err());
    }
}
