//! Geometric part of a transform: crop, output size, and the window of the output.

use crate::Error;
use crate::boxes::Crop;
use crate::error::check_probability;
use crate::resize;
use crate::rng::Rng;
use crate::transform::crop::{RandomCrop, check_scale, cut_out, random_crop, shorter_side};
use crate::transform::params::Window;

/// Maximum scale of [`Geometry::ScaleJitter`].
const MOST_SCALE: f64 = 64.0;

/// Geometric part of a transform.
#[derive(Clone, Debug, PartialEq)]
pub enum Geometry {
    /// Resize to a square without keeping the aspect ratio.
    Squash {
        /// Side in pixels.
        size: usize,
    },
    /// Crop a random rectangle and resize it to a square.
    RandomResizedCrop {
        /// Side in pixels.
        size: usize,
        /// (low, high) range of the crop's fraction of the image area.
        scale: (f64, f64),
        /// (low, high) range of the crop's width / height.
        ratio: (f64, f64),
    },
    /// Resize the shorter side to a sampled length, keeping the aspect ratio.
    ShorterSide {
        /// Lengths in pixels, one of which is sampled.
        sizes: Vec<usize>,
        /// Maximum length of the longer side in pixels.
        max_size: usize,
        /// Batches are padded on the right and bottom to a multiple of this many pixels.
        divisor: usize,
        /// Random crop before the resize.
        cut: RandomCrop,
    },
    /// Resize the shorter side, keeping the aspect ratio, and cut out the central square.
    CenterCrop {
        /// Side in pixels.
        size: usize,
    },
    /// Resize to a sampled scale of a square, keeping the aspect ratio, cut out at most the square,
    /// and pad to it on the right and bottom.
    ScaleJitter {
        /// Side of the square in pixels.
        size: usize,
        /// (low, high) range of the scale: the image is resized to fit in a square of `scale * size`
        /// pixels.
        scale: (f64, f64),
        /// Value of the padding in the image, before normalization.
        padding: u8,
    },
}

/// A sampled crop and its output.
pub(crate) struct Placement {
    pub crop: Crop,
    /// (height, width) of the output without padding.
    pub size: (usize, usize),
    /// See `SampledTransform::whole`.
    pub whole: Option<(usize, usize)>,
    /// If the output is a window of the resized crop.
    pub window: Option<Window>,
}

/// Margin before a centered window, rounded to nearest or even as in torchvision's `CenterCrop`.
pub(crate) fn center(margin: usize) -> usize {
    let half = margin / 2;
    if margin % 4 == 3 { half + 1 } else { half }
}

/// Size of an image that fits in a square of `scale * side` pixels, each side rounded to nearest or
/// even and at least 1, as in detectron2's `ResizeScale`.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss
)] // Sizes are far below 2^53.
fn scaled(height: usize, width: usize, side: usize, scale: f64) -> (usize, usize) {
    let wanted = side as f64 * scale;
    let ratio = (wanted / height as f64).min(wanted / width as f64);
    let round = |length: usize| ((length as f64 * ratio).round_ties_even() as usize).max(1);
    (round(height), round(width))
}

/// Offset of a window with a margin, `at` from 0 to 1, rounded to nearest or even as in detectron2's
/// `FixedSizeCrop`.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss
)] // Sizes are far below 2^53.
fn offset(margin: usize, at: f64) -> usize {
    (margin as f64 * at).round_ties_even() as usize
}

impl Geometry {
    /// Place an image of `height` x `width` pixels.
    pub(crate) fn sample(&self, height: usize, width: usize, rng: &mut Rng) -> Placement {
        let whole = Crop::whole(height, width);
        let (mut whole_size, mut window) = (None, None);
        let (crop, size) = match self {
            Self::Squash { size } => (whole, (*size, *size)),
            Self::RandomResizedCrop { size, scale, ratio } => (
                random_crop(height, width, *scale, *ratio, rng),
                (*size, *size),
            ),
            Self::CenterCrop { size } => {
                let resized = shorter_side(height, width, *size, usize::MAX);
                window = Some(Window {
                    resized,
                    top: center(resized.0 - size),
                    left: center(resized.1 - size),
                });
                (whole, (*size, *size))
            }
            Self::ScaleJitter { size, scale, .. } => {
                let resized = scaled(height, width, *size, rng.range(scale.0, scale.1));
                let cut = (resized.0.min(*size), resized.1.min(*size));
                // As published, one number for both offsets.
                let at = rng.unit();
                window = Some(Window {
                    resized,
                    top: offset(resized.0 - cut.0, at),
                    left: offset(resized.1 - cut.1, at),
                });
                (whole, cut)
            }
            Self::ShorterSide {
                sizes,
                max_size,
                cut,
                ..
            } => {
                let shorter = sizes[rng.index(sizes.len())];
                let uncut = shorter_side(height, width, shorter, *max_size);
                // Disabled crops consume no random numbers.
                if cut.probability > 0.0 && rng.unit() < cut.probability {
                    whole_size = Some(uncut);
                    let crop = cut_out(height, width, cut.scale, rng);
                    let size = shorter_side(crop.height, crop.width, shorter, *max_size);
                    (crop, size)
                } else {
                    (whole, uncut)
                }
            }
        };
        Placement {
            crop,
            size,
            whole: whole_size,
            window,
        }
    }

    /// Output (height, width) in pixels with padding, if it is the same for all images.
    pub(crate) fn fixed_size(&self) -> Option<(usize, usize)> {
        match self {
            Self::Squash { size }
            | Self::CenterCrop { size }
            | Self::RandomResizedCrop { size, .. }
            | Self::ScaleJitter { size, .. } => Some((*size, *size)),
            Self::ShorterSide { .. } => None,
        }
    }

    /// Value of the padding before normalization; `None` if it is 0 after normalization.
    pub(crate) fn padding(&self) -> Option<u8> {
        match self {
            Self::ScaleJitter { padding, .. } => Some(*padding),
            _ => None,
        }
    }

    /// Check that boxes can be transformed.
    pub(crate) fn check_boxes(&self) -> Result<(), Error> {
        let name = match self {
            Self::CenterCrop { .. } => "center_crop",
            Self::ScaleJitter { .. } => "scale_jitter",
            _ => return Ok(()),
        };
        let reason = format!("{name} cannot be used with boxes; expected another transform");
        Err(Error::argument("transform", reason))
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        match self {
            Self::Squash { size } | Self::CenterCrop { size } => {
                resize::check_output("size", *size, *size)
            }
            Self::RandomResizedCrop { size, scale, ratio } => {
                resize::check_output("size", *size, *size)?;
                check_scale("scale", *scale)?;
                if !(0.0 < ratio.0 && ratio.0 <= ratio.1 && ratio.1.is_finite()) {
                    let reason = format!("{ratio:?}; expected an ascending range above 0");
                    return Err(Error::argument("ratio", reason));
                }
                Ok(())
            }
            Self::ScaleJitter { size, scale, .. } => {
                resize::check_output("size", *size, *size)?;
                if !(0.0 < scale.0 && scale.0 <= scale.1 && scale.1 <= MOST_SCALE) {
                    let reason = format!("{scale:?}; expected a range within (0, {MOST_SCALE}]");
                    return Err(Error::argument("scale", reason));
                }
                Ok(())
            }
            Self::ShorterSide {
                sizes,
                max_size,
                divisor,
                cut,
            } => {
                check_scale("crop_scale", cut.scale)?;
                check_probability("crop_probability", cut.probability)?;
                if sizes.is_empty() || sizes.contains(&0) {
                    let reason = format!("{sizes:?}; expected one or more lengths above 0");
                    return Err(Error::argument("sizes", reason));
                }
                if *max_size == 0 || *divisor == 0 {
                    let reason = format!("{max_size} and {divisor}; expected 1 or more");
                    return Err(Error::argument("max_size, divisor", reason));
                }
                let padded = |side: usize| side.checked_next_multiple_of(*divisor);
                let shorter = sizes.iter().copied().max().map(|size| size.min(*max_size));
                let largest = shorter.and_then(padded).zip(padded(*max_size));
                let (height, width) = largest.unwrap_or((usize::MAX, usize::MAX));
                resize::check_output("sizes, max_size", height, width)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Purpose;

    #[test]
    fn sizes_of_a_scale_are_rounded_as_in_detectron2() {
        assert_eq!(scaled(480, 640, 1024, 1.0), (768, 1024));
        assert_eq!(scaled(3, 2, 5, 0.5), (2, 2));
        assert_eq!(scaled(1, 4000, 100, 0.1), (1, 10));
        // 0.5 and 2.5.
        assert_eq!((offset(1, 0.5), offset(5, 0.5)), (0, 2));
    }

    #[test]
    fn a_scaled_image_is_cut_at_one_place_of_both_sides() {
        let geometry = Geometry::ScaleJitter {
            size: 100,
            scale: (0.1, 2.0),
            padding: 128,
        };
        let (mut cut, mut padded) = (0, 0);
        for index in 0..500 {
            let mut rng = Rng::new(0, 0, index, Purpose::Image(0));
            let mut own = rng.clone();
            let placed = geometry.sample(60, 90, &mut rng);
            let resized = scaled(60, 90, 100, own.range(0.1, 2.0));
            let at = own.unit();
            let window = placed.window.unwrap();
            assert_eq!(window.resized, resized);
            assert_eq!(placed.size, (resized.0.min(100), resized.1.min(100)));
            assert_eq!(window.left, offset(resized.1 - placed.size.1, at));
            assert_eq!(window.top, offset(resized.0 - placed.size.0, at));
            assert!(window.top + placed.size.0 <= resized.0);
            cut += usize::from(resized.1 > 100);
            padded += usize::from(placed.size.0 < 100);
            assert_eq!(rng.bits(), own.bits());
        }
        assert!(cut > 200 && padded > 200, "{cut} {padded}");
        assert!(geometry.check_boxes().is_err());
        for scale in [(0.0, 1.0), (2.0, 1.0), (1.0, f64::NAN), (1.0, 65.0)] {
            let wrong = Geometry::ScaleJitter {
                size: 100,
                scale,
                padding: 128,
            };
            assert!(matches!(
                wrong.check(),
                Err(Error::Argument { name: "scale", .. })
            ));
        }
    }
}
