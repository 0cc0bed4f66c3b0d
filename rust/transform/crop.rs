//! Random crops, and resized sizes that keep the aspect ratio.

use crate::Error;
use crate::boxes::Crop;
use crate::rng::Rng;

/// Random crops with about the same aspect ratio as the image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RandomCrop {
    pub probability: f64,
    /// (low, high) range of the crop's fraction of the image area.
    pub scale: (f64, f64),
}

impl RandomCrop {
    pub fn off() -> Self {
        Self {
            probability: 0.0,
            scale: (1.0, 1.0),
        }
    }
}

/// (low, high) range of a crop's width / height, relative to that of the image.
const CUT_RATIO: (f64, f64) = (3.0 / 4.0, 4.0 / 3.0);

/// Check that a range of area fractions is valid.
pub(crate) fn check_scale(name: &'static str, scale: (f64, f64)) -> Result<(), Error> {
    if 0.0 < scale.0 && scale.0 <= scale.1 && scale.1 <= 1.0 {
        return Ok(());
    }
    let reason = format!("{scale:?}; expected a range within (0, 1]");
    Err(Error::argument(name, reason))
}

/// Size whose shorter side is `shorter`, or less if the longer side would exceed `max_size`.
///
/// Sizes are rounded as in the published detector: a shorter side that must shrink is rounded to
/// nearest, and the longer side is truncated. The longer side may therefore exceed `max_size` by up
/// to a third if the shorter side is at least 2 pixels. Below that, the published rule has no bound
/// or leaves no image; here, the shorter side is then 1 pixel and the longer side at most
/// `max_size`, without keeping the aspect ratio.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss
)] // Sizes are far below 2^53.
pub fn shorter_side(
    height: usize,
    width: usize,
    shorter: usize,
    max_size: usize,
) -> (usize, usize) {
    let least = height.min(width) as f64;
    let most = height.max(width) as f64;
    let mut size = shorter;
    if most / least * size as f64 > max_size as f64 {
        size = ((max_size as f64 * least / most).round_ties_even() as usize).max(1);
    }
    let mut longer = ((size as f64 * most / least) as usize).max(1);
    if size == 1 {
        longer = longer.min(max_size.max(1));
    }
    if width < height {
        (longer, size)
    } else {
        (size, longer)
    }
}

/// Sample a crop with about the same aspect ratio as the image.
#[allow(clippy::cast_precision_loss)] // Sizes are far below 2^53.
pub(crate) fn cut_out(height: usize, width: usize, scale: (f64, f64), rng: &mut Rng) -> Crop {
    let own = width as f64 / height as f64;
    random_crop(
        height,
        width,
        scale,
        (CUT_RATIO.0 * own, CUT_RATIO.1 * own),
        rng,
    )
}

/// Sample a crop like torchvision's `RandomResizedCrop`.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss
)] // Sizes are far below 2^53.
pub(crate) fn random_crop(
    height: usize,
    width: usize,
    scale: (f64, f64),
    ratio: (f64, f64),
    rng: &mut Rng,
) -> Crop {
    let area = (height * width) as f64;
    for _ in 0..10 {
        let target = area * rng.range(scale.0, scale.1);
        let aspect = rng.range(ratio.0.ln(), ratio.1.ln()).exp();
        let crop_width = (target * aspect).sqrt().round_ties_even() as usize;
        let crop_height = (target / aspect).sqrt().round_ties_even() as usize;
        if (1..=width).contains(&crop_width) && (1..=height).contains(&crop_height) {
            return Crop {
                top: rng.index(height - crop_height + 1),
                left: rng.index(width - crop_width + 1),
                height: crop_height,
                width: crop_width,
            };
        }
    }
    // No crop fits, so take the largest center crop with an allowed ratio.
    let whole = width as f64 / height as f64;
    let (mut crop_height, mut crop_width) = (height, width);
    if whole < ratio.0 {
        crop_height = ((width as f64 / ratio.0).round() as usize).clamp(1, height);
    } else if whole > ratio.1 {
        crop_width = ((height as f64 * ratio.1).round() as usize).clamp(1, width);
    }
    Crop {
        top: (height - crop_height) / 2,
        left: (width - crop_width) / 2,
        height: crop_height,
        width: crop_width,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_precision_loss)] // Small numbers.

    use super::*;
    use crate::rng::Purpose;

    fn rng(index: u64) -> Rng {
        Rng::new(0, 0, index, Purpose::Image(0))
    }

    #[test]
    fn crops_stay_inside_and_within_their_ranges() {
        let (scale, ratio) = ((0.5, 1.0), (0.75, 4.0 / 3.0));
        for index in 0..2000 {
            let (height, width) = (50 + rng(index).index(100), 100);
            let crop = random_crop(height, width, scale, ratio, &mut rng(index));
            assert!(crop.top + crop.height <= height && crop.left + crop.width <= width);
            let area = (crop.height * crop.width) as f64 / (height * width) as f64;
            let aspect = crop.width as f64 / crop.height as f64;
            // With sides of at least 35 pixels, rounding exceeds the ranges by less than 3 %.
            assert!((0.485..=1.0).contains(&area), "{area}");
            assert!((0.73..1.37).contains(&aspect), "{aspect}");
        }
    }

    #[test]
    fn extreme_aspect_ratios_get_a_central_crop() {
        let crop = random_crop(1000, 10, (0.5, 1.0), (0.75, 4.0 / 3.0), &mut rng(0));
        assert_eq!((crop.height, crop.width, crop.top), (13, 10, 493));
        let crop = random_crop(10, 1000, (0.5, 1.0), (0.75, 4.0 / 3.0), &mut rng(0));
        assert_eq!((crop.height, crop.width, crop.left), (10, 13, 493));
    }

    #[test]
    fn shorter_side_keeps_within_the_longest() {
        assert_eq!(shorter_side(480, 640, 480, 1333), (480, 640));
        assert_eq!(shorter_side(480, 640, 800, 1333), (800, 1066));
        assert_eq!(shorter_side(2000, 500, 800, 1333), (1332, 333));
    }

    #[test]
    fn shorter_side_is_bounded_for_any_aspect_ratio() {
        // A shorter side of 2 or more follows the published code, for any longer side.
        assert_eq!(shorter_side(3, 2000, 800, 1333), (2, 1333));
        assert_eq!(shorter_side(2, 1700, 800, 1333), (2, 1700));
        // The shorter side would be 1 or 0.
        assert_eq!(shorter_side(1, 1000, 800, 1333), (1, 1000));
        assert_eq!(shorter_side(1, 1500, 800, 1333), (1, 1333));
        assert_eq!(shorter_side(9000, 1, 800, 1333), (1333, 1));
        assert_eq!(shorter_side(1, 100_000, 800, 1333), (1, 1333));
        assert_eq!(shorter_side(5, 30_000, 800, 1333), (1, 1333));
        assert_eq!(shorter_side(1, 100_000, 1, 100_000), (1, 100_000));
        for most in 1..20_000 {
            let (short, long) = shorter_side(1 + most % 7, most, 800, 1333);
            assert!(
                short >= 1 && 3 * long <= 4 * 1333,
                "{most}: {short}, {long}"
            );
        }
    }
}
