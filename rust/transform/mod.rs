//! Transforms of an image and its boxes or masks.
//!
//! [`Transform::sample`] makes all random choices. The resulting [`SampledTransform`] is applied to
//! the image and to its boxes or masks, so they always match.

pub(crate) mod affine;
mod affine_rows;
pub mod boxes;
pub mod color_jitter;
pub(crate) mod crop;
mod enhance;
pub(crate) mod geometry;
pub(crate) mod params;
mod pillow_affine;
mod pillow_enhance;
pub mod policy;
pub mod rand_augment;
#[cfg(target_arch = "x86_64")]
mod simd;

use crate::Error;
use crate::error::check_probability;
use crate::normalize::Normalization;
use crate::resize::Method;
use crate::resize::alpha::Alpha;
use crate::rng::Rng;
use crate::transform::color_jitter::ColorJitter;
pub use crate::transform::geometry::Geometry;
use crate::transform::geometry::Placement;
use crate::transform::params::SampledTransform;
use crate::transform::rand_augment::RandAugment;

/// Geometry, flip, color changes, RandAugment and normalization.
#[derive(Clone, Debug, PartialEq)]
pub struct Transform {
    /// Crop and output size.
    pub geometry: Geometry,
    /// Resize method.
    pub method: Method,
    /// Probability of a horizontal flip.
    pub flip_probability: f64,
    /// Color changes applied to the resized image.
    pub color_jitter: ColorJitter,
    /// Operations applied to the resized image after the color changes, or before everything else;
    /// see [`rand_augment::Policy`].
    pub rand_augment: RandAugment,
    /// What becomes of the alpha channel.
    pub alpha: Alpha,
    /// Normalization of the pixel values.
    pub normalization: Normalization,
}

impl Transform {
    /// Check every field.
    ///
    /// # Errors
    /// [`Error::Argument`] that names the invalid field.
    pub fn check(&self) -> Result<(), Error> {
        self.geometry.check()?;
        check_probability("flip_probability", self.flip_probability)?;
        self.color_jitter.check()?;
        self.rand_augment.check()?;
        self.normalization.check()
    }

    /// True if images should be decoded with their alpha channel.
    ///
    /// `RandAugment` takes opaque images: what is applied before the resize drops alpha, as in the
    /// published code.
    pub(crate) fn keeps_alpha(&self) -> bool {
        self.alpha == Alpha::Premultiply && !self.rand_augment.is_before_resize()
    }

    /// Sample a transform for an image of `height` x `width` pixels.
    pub(crate) fn sample(&self, height: usize, width: usize, rng: &mut Rng) -> SampledTransform {
        let Placement {
            crop,
            size,
            whole,
            window,
        } = self.geometry.sample(height, width, rng);
        let flip = rng.unit() < self.flip_probability;
        let colors = self.color_jitter.draw(rng);
        let operations = self.rand_augment.draw(rng);
        let (source_operations, operations) = if self.rand_augment.is_before_resize() {
            (operations, Vec::new())
        } else {
            (Vec::new(), operations)
        };
        SampledTransform {
            source_operations,
            crop,
            height: size.0,
            width: size.1,
            flip,
            colors,
            operations,
            method: self.method,
            whole,
            window,
        }
    }

    /// Number of pixels to a multiple of which a batch is padded.
    pub(crate) fn divisor(&self) -> usize {
        match self.geometry {
            Geometry::ShorterSide { divisor, .. } => divisor,
            // No image is larger.
            Geometry::ScaleJitter { size, .. } => size,
            _ => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_precision_loss)] // Small numbers.

    use super::*;
    use crate::image::Rgb;
    use crate::resize::Filter;
    use crate::rng::Purpose;
    use crate::transform::crop::{RandomCrop, shorter_side};
    use crate::transform::geometry::center;
    use crate::transform::policy::Policy;

    fn rng(index: u64) -> Rng {
        Rng::new(0, 0, index, Purpose::Image(0))
    }

    fn transform(geometry: Geometry, flip_probability: f64) -> Transform {
        Transform {
            geometry,
            method: Filter::Bilinear.into(),
            flip_probability,
            color_jitter: ColorJitter::off(),
            rand_augment: RandAugment::off(),
            alpha: Alpha::Drop,
            normalization: Normalization::default(),
        }
    }

    #[test]
    fn one_pixel_goes_through_everything() {
        let image = Rgb::new(1, 1, vec![1, 2, 3]);
        let crop = Geometry::RandomResizedCrop {
            size: 4,
            scale: (0.5, 1.0),
            ratio: (0.75, 4.0 / 3.0),
        };
        let shorter = Geometry::ShorterSide {
            sizes: vec![4],
            max_size: 8,
            divisor: 32,
            cut: RandomCrop::off(),
        };
        for geometry in [Geometry::Squash { size: 4 }, crop, shorter] {
            let sampled = transform(geometry, 1.0).sample(1, 1, &mut rng(0));
            let output = sampled.apply(&image).unwrap();
            assert_eq!((output.height, output.width), (4, 4));
            assert_eq!(output.pixels, [1, 2, 3].repeat(16));
        }
    }

    #[test]
    fn a_centered_window_is_rounded_as_in_torchvision() {
        // round(0.5) is 0, round(1.5) and round(2.5) are 2.
        assert_eq!([0, 1, 2, 3, 4, 5, 7].map(center), [0, 0, 1, 2, 2, 2, 4]);
        let transform = transform(Geometry::CenterCrop { size: 48 }, 0.0);
        let sampled = transform.sample(64, 97, &mut rng(0));
        let window = sampled.window.unwrap();
        assert_eq!((sampled.height, sampled.width), (48, 48));
        assert_eq!((window.resized, window.top, window.left), ((48, 72), 0, 12));
        // A very narrow image is not resized as a whole.
        let sampled = transform.sample(1, 3_000_000, &mut rng(0));
        assert_eq!(sampled.window.unwrap().resized, (48, 144_000_000));
        let output = sampled
            .apply(&Rgb::new(1, 3_000_000, vec![7; 9_000_000]))
            .unwrap();
        assert_eq!(output.pixels, vec![7; 48 * 48 * 3]);
        assert!(transform.geometry.check_boxes().is_err());
    }

    fn cutting(probability: f64, scale: (f64, f64)) -> Transform {
        let geometry = Geometry::ShorterSide {
            sizes: vec![20, 30],
            max_size: 100,
            divisor: 1,
            cut: RandomCrop { probability, scale },
        };
        transform(geometry, 0.5)
    }

    #[test]
    fn crops_have_the_given_probability_and_area() {
        let transform = cutting(0.25, (0.3, 0.6));
        let mut cuts = 0;
        for index in 0..2000 {
            let sampled = transform.sample(90, 160, &mut rng(index));
            let crop = sampled.crop;
            let Some(whole) = sampled.uncut(90, 160) else {
                assert_eq!((crop.height, crop.width), (90, 160));
                continue;
            };
            cuts += 1;
            assert!(crop.top + crop.height <= 90 && crop.left + crop.width <= 160);
            let area = (crop.height * crop.width) as f64 / (90.0 * 160.0);
            assert!((0.28..=0.62).contains(&area), "{area}");
            let ratio = crop.width as f64 / crop.height as f64 / (160.0 / 90.0);
            assert!((0.72..1.39).contains(&ratio), "{ratio}");
            // The crop is resized like a separate image, and the whole image is resized to the same
            // shorter side.
            let shorter = sampled.height.min(sampled.width);
            assert_eq!(
                (sampled.height, sampled.width),
                shorter_side(crop.height, crop.width, shorter, 100)
            );
            assert_eq!(
                (whole.height, whole.width),
                shorter_side(90, 160, shorter, 100)
            );
            assert_eq!((whole.crop.height, whole.crop.width), (90, 160));
            assert_eq!(
                (whole.flip, &whole.operations),
                (sampled.flip, &sampled.operations)
            );
            assert_eq!(whole.uncut(90, 160), None);
        }
        // Four standard deviations.
        assert!((422..=578).contains(&cuts), "{cuts}");
    }

    #[test]
    fn disabled_crops_take_no_random_numbers() {
        for index in 0..20 {
            let never = cutting(0.0, (0.3, 0.6)).sample(90, 160, &mut rng(index));
            // The side, then the flip.
            let mut own = rng(index);
            let shorter = [20, 30][own.index(2)];
            let size = shorter_side(90, 160, shorter, 100);
            assert_eq!((never.height, never.width), size);
            assert_eq!(never.flip, own.unit() < 0.5);
            assert_eq!(never.uncut(90, 160), None);
        }
    }

    #[test]
    fn operations_of_a_policy_come_before_the_resize_or_after_it() {
        let mut transform = transform(Geometry::Squash { size: 4 }, 0.0);
        transform.alpha = Alpha::Premultiply;
        assert!(transform.keeps_alpha());
        for (policy, before, after) in [(Policy::Fiber, 0, 2), (Policy::Meter, 2, 0)] {
            transform.rand_augment = RandAugment {
                probability: 1.0,
                ..RandAugment::published(policy)
            };
            let sampled = transform.sample(5, 7, &mut rng(0));
            let counts = (sampled.source_operations.len(), sampled.operations.len());
            assert_eq!(counts, (before, after));
            assert_eq!(transform.keeps_alpha(), policy == Policy::Fiber);
        }
        transform.rand_augment.num_ops = 0;
        assert!(transform.keeps_alpha());
    }

    #[test]
    fn every_size_is_sampled() {
        let geometry = Geometry::ShorterSide {
            sizes: vec![10, 20, 30],
            max_size: 100,
            divisor: 1,
            cut: RandomCrop::off(),
        };
        let transform = transform(geometry, 0.0);
        let mut seen: Vec<usize> = (0..50)
            .map(|index| transform.sample(5, 5, &mut rng(index)).height)
            .collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, [10, 20, 30]);
    }

    #[test]
    fn wrong_arguments_are_named() {
        let name = |transform: &Transform| match transform.check() {
            Err(Error::Argument { name, .. }) => name,
            _ => "none",
        };
        assert_eq!(name(&transform(Geometry::Squash { size: 0 }, 0.0)), "size");
        let good = transform(Geometry::Squash { size: 1 }, 1.0);
        assert_eq!(name(&good), "none");
        let flip = transform(Geometry::Squash { size: 1 }, 1.1);
        assert_eq!(name(&flip), "flip_probability");
        let sizes = Geometry::ShorterSide {
            sizes: vec![],
            max_size: 1,
            divisor: 1,
            cut: RandomCrop::off(),
        };
        assert_eq!(name(&transform(sizes, 0.0)), "sizes");
        let large = Geometry::Squash { size: 13_378 };
        assert_eq!(name(&transform(large, 0.0)), "size");
        for (max_size, divisor, fault) in [
            (100_000, 32, "none"),
            (1_000_000, 32, "sizes, max_size"),
            (1333, 1 << 20, "sizes, max_size"),
            (usize::MAX, 2, "sizes, max_size"),
        ] {
            let sizes = Geometry::ShorterSide {
                sizes: vec![800],
                max_size,
                divisor,
                cut: RandomCrop::off(),
            };
            assert_eq!(name(&transform(sizes, 0.0)), fault);
        }
        assert_eq!(name(&cutting(1.5, (0.5, 1.0))), "crop_probability");
        assert_eq!(name(&cutting(0.5, (0.0, 1.0))), "crop_scale");
        assert_eq!(name(&cutting(0.5, (0.5, 1.1))), "crop_scale");
    }
}
