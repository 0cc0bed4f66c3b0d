//! What happens to a picture on its way into a batch, and to the boxes in it.
//!
//! [`Transform::plan`] draws every random choice first, [`Plan::apply`] and [`Plan::move_boxes`] then
//! follow the same plan, so that picture and boxes cannot part.

use crate::Error;
use crate::boxes::{self, BoxXyxy};
use crate::image::Rgb;
use crate::normalize::Normalization;
use crate::rand_augment::{Operation, RandAugment};
use crate::random::Draws;
use crate::resize::{self, Crop, Filter};

/// The geometry of a transform.
#[derive(Clone, Debug, PartialEq)]
pub enum Geometry {
    /// Resize to a square; the aspect ratio is not kept.
    Squash {
        /// Side in pixels.
        size: usize,
    },
    /// Cut a random rectangle out and resize it to a square.
    RandomResizedCrop {
        /// Side in pixels.
        size: usize,
        /// Least and largest part of the picture's area.
        scale: (f64, f64),
        /// Least and largest width / height.
        ratio: (f64, f64),
    },
    /// Resize so that the shorter side has a given length; the aspect ratio is kept.
    ShorterSide {
        /// Lengths in pixels, one of which is drawn.
        sizes: Vec<usize>,
        /// Longest allowed longer side in pixels.
        max_size: usize,
        /// Batches are padded right and bottom to a multiple of this many pixels.
        divisor: usize,
    },
}

/// Geometry, flip, further operations and normalisation.
#[derive(Clone, Debug, PartialEq)]
pub struct Transform {
    /// Crop and size.
    pub geometry: Geometry,
    /// Kernel of the resize.
    pub filter: Filter,
    /// Probability of mirroring left and right.
    pub flip_probability: f64,
    /// What is done to the resized picture.
    pub rand_augment: RandAugment,
    /// How bytes become values.
    pub normalization: Normalization,
}

/// The choices made for one picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// What is cut out of the stored picture.
    pub crop: Crop,
    /// Height after the resize in pixels.
    pub height: usize,
    /// Width after the resize in pixels.
    pub width: usize,
    /// Whether left and right are mirrored.
    pub flip: bool,
    /// What is done to the resized picture, in this order.
    pub operations: Vec<Operation>,
    filter: Filter,
}

impl Transform {
    /// Check every field.
    ///
    /// # Errors
    /// [`Error::Argument`] that names the field.
    pub fn check(&self) -> Result<(), Error> {
        self.geometry.check()?;
        if !(0.0..=1.0).contains(&self.flip_probability) {
            return Err(Error::argument(
                "flip_probability",
                format!("{} is not between 0 and 1", self.flip_probability),
            ));
        }
        self.rand_augment.check()?;
        self.normalization.check()
    }

    /// Draw what happens to a picture of `height` x `width` pixels.
    pub fn plan(&self, height: usize, width: usize, draws: &mut Draws) -> Plan {
        let whole = Crop {
            top: 0,
            left: 0,
            height,
            width,
        };
        let (crop, size) = match &self.geometry {
            Geometry::Squash { size } => (whole, (*size, *size)),
            Geometry::RandomResizedCrop { size, scale, ratio } => (
                random_crop(height, width, *scale, *ratio, draws),
                (*size, *size),
            ),
            Geometry::ShorterSide {
                sizes, max_size, ..
            } => {
                let shorter = sizes[draws.index(sizes.len())];
                (whole, shorter_side(height, width, shorter, *max_size))
            }
        };
        Plan {
            crop,
            height: size.0,
            width: size.1,
            flip: draws.unit() < self.flip_probability,
            operations: self.rand_augment.draw(draws),
            filter: self.filter,
        }
    }

    /// Multiple of pixels to which a batch is padded.
    #[must_use]
    pub fn divisor(&self) -> usize {
        match self.geometry {
            Geometry::ShorterSide { divisor, .. } => divisor,
            _ => 1,
        }
    }
}

impl Geometry {
    fn check(&self) -> Result<(), Error> {
        match self {
            Self::Squash { size: 0 } | Self::RandomResizedCrop { size: 0, .. } => {
                Err(Error::argument("size", "0 pixels; expected 1 or more"))
            }
            Self::RandomResizedCrop { scale, ratio, .. } => {
                if !(0.0 < scale.0 && scale.0 <= scale.1 && scale.1 <= 1.0) {
                    return Err(Error::argument(
                        "scale",
                        format!("{scale:?} is no range inside (0, 1]"),
                    ));
                }
                if !(0.0 < ratio.0 && ratio.0 <= ratio.1 && ratio.1.is_finite()) {
                    return Err(Error::argument(
                        "ratio",
                        format!("{ratio:?} is no range above 0"),
                    ));
                }
                Ok(())
            }
            Self::ShorterSide {
                sizes,
                max_size,
                divisor,
            } => {
                if sizes.is_empty() || sizes.contains(&0) {
                    return Err(Error::argument(
                        "sizes",
                        format!("{sizes:?}; expected one or more lengths above 0"),
                    ));
                }
                if *max_size == 0 || *divisor == 0 {
                    return Err(Error::argument(
                        "max_size, divisor",
                        format!("{max_size} and {divisor}; expected 1 or more"),
                    ));
                }
                Ok(())
            }
            Self::Squash { .. } => Ok(()),
        }
    }
}

/// Height and width whose shorter side is `shorter`, or less where the longer would pass `max_size`.
///
/// Rounding as in the published detector: a size that must shrink is rounded to nearest, the longer
/// side is truncated.
#[must_use]
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
    let longer = ((size as f64 * most / least) as usize).max(1);
    if width < height {
        (longer, size)
    } else {
        (size, longer)
    }
}

/// The rectangle of torchvision's `RandomResizedCrop`.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss
)] // Sizes are far below 2^53.
fn random_crop(
    height: usize,
    width: usize,
    scale: (f64, f64),
    ratio: (f64, f64),
    draws: &mut Draws,
) -> Crop {
    let area = (height * width) as f64;
    for _ in 0..10 {
        let target = area * draws.range(scale.0, scale.1);
        let aspect = draws.range(ratio.0.ln(), ratio.1.ln()).exp();
        let crop_width = (target * aspect).sqrt().round() as usize;
        let crop_height = (target / aspect).sqrt().round() as usize;
        if (1..=width).contains(&crop_width) && (1..=height).contains(&crop_height) {
            return Crop {
                top: draws.index(height - crop_height + 1),
                left: draws.index(width - crop_width + 1),
                height: crop_height,
                width: crop_width,
            };
        }
    }
    // No rectangle fitted: the largest central one of an allowed ratio.
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

impl Plan {
    /// Carry the plan out on the picture.
    ///
    /// # Errors
    /// [`Error::Argument`] where the plan was made for another size.
    pub fn apply(&self, image: &Rgb) -> Result<Rgb, Error> {
        let mut resized = resize::resize(image, self.crop, self.height, self.width, self.filter)?;
        if self.flip {
            mirror(&mut resized);
        }
        for operation in &self.operations {
            operation.apply(&mut resized);
        }
        Ok(resized)
    }

    /// Carry the plan out on boxes of the stored picture; `None` for those that the crop drops.
    ///
    /// # Errors
    /// [`Error::EmptyBox`] for a box that lies outside the stored picture, [`Error::BoxOutside`] for one
    /// that reaches more than a pixel outside.
    pub fn move_boxes(
        &self,
        boxes_xyxy: &[BoxXyxy],
        height: usize,
        width: usize,
    ) -> Result<Vec<Option<BoxXyxy>>, Error> {
        let clipped = boxes::clip_all(boxes_xyxy, height, width)?;
        Ok(clipped
            .into_iter()
            .map(|box_xyxy| {
                let cropped = boxes::crop(box_xyxy, self.crop)?;
                let from = (self.crop.height, self.crop.width);
                let scaled = boxes::scale(cropped, from, (self.height, self.width));
                Some(if self.flip {
                    boxes::mirror(scaled, self.width)
                } else {
                    scaled
                })
            })
            .collect())
    }
}

fn mirror(image: &mut Rgb) {
    for row in image.pixels.chunks_exact_mut(image.width * 3) {
        let (pixels, _) = row.as_chunks_mut::<3>();
        pixels.reverse();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_precision_loss)] // Small numbers.

    use super::*;
    use crate::random::Purpose;

    fn draws(index: u64) -> Draws {
        Draws::new(0, 0, index, Purpose::Picture(0))
    }

    fn transform(geometry: Geometry, flip_probability: f64) -> Transform {
        Transform {
            geometry,
            filter: Filter::Bilinear,
            flip_probability,
            rand_augment: RandAugment::off(),
            normalization: Normalization::default(),
        }
    }

    #[test]
    fn one_pixel_goes_through_everything() {
        let image = Rgb {
            height: 1,
            width: 1,
            pixels: vec![1, 2, 3],
        };
        let crop = Geometry::RandomResizedCrop {
            size: 4,
            scale: (0.5, 1.0),
            ratio: (0.75, 4.0 / 3.0),
        };
        let shorter = Geometry::ShorterSide {
            sizes: vec![4],
            max_size: 8,
            divisor: 32,
        };
        for geometry in [Geometry::Squash { size: 4 }, crop, shorter] {
            let plan = transform(geometry, 1.0).plan(1, 1, &mut draws(0));
            let output = plan.apply(&image).unwrap();
            assert_eq!((output.height, output.width), (4, 4));
            assert_eq!(output.pixels, [1, 2, 3].repeat(16));
        }
    }

    #[test]
    fn crops_stay_inside_and_within_their_ranges() {
        let (scale, ratio) = ((0.5, 1.0), (0.75, 4.0 / 3.0));
        for index in 0..2000 {
            let (height, width) = (50 + draws(index).index(100), 100);
            let crop = random_crop(height, width, scale, ratio, &mut draws(index));
            assert!(crop.top + crop.height <= height && crop.left + crop.width <= width);
            let area = (crop.height * crop.width) as f64 / (height * width) as f64;
            let aspect = crop.width as f64 / crop.height as f64;
            // Whole pixels of a side of 35 or more leave the ranges by less than 3 %.
            assert!((0.485..=1.0).contains(&area), "{area}");
            assert!((0.73..1.37).contains(&aspect), "{aspect}");
        }
    }

    #[test]
    fn an_extreme_picture_gets_a_central_crop() {
        let crop = random_crop(1000, 10, (0.5, 1.0), (0.75, 4.0 / 3.0), &mut draws(0));
        assert_eq!((crop.height, crop.width, crop.top), (13, 10, 493));
        let crop = random_crop(10, 1000, (0.5, 1.0), (0.75, 4.0 / 3.0), &mut draws(0));
        assert_eq!((crop.height, crop.width, crop.left), (10, 13, 493));
    }

    #[test]
    fn shorter_side_keeps_within_the_longest() {
        assert_eq!(shorter_side(480, 640, 480, 1333), (480, 640));
        assert_eq!(shorter_side(480, 640, 800, 1333), (800, 1066));
        assert_eq!(shorter_side(2000, 500, 800, 1333), (1332, 333));
        assert_eq!(shorter_side(1, 100_000, 800, 1333), (1, 100_000));
    }

    #[test]
    fn every_size_is_drawn() {
        let geometry = Geometry::ShorterSide {
            sizes: vec![10, 20, 30],
            max_size: 100,
            divisor: 1,
        };
        let transform = transform(geometry, 0.0);
        let mut seen: Vec<usize> = (0..50)
            .map(|index| transform.plan(5, 5, &mut draws(index)).height)
            .collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, [10, 20, 30]);
    }

    #[test]
    fn wrong_settings_are_named() {
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
        };
        assert_eq!(name(&transform(sizes, 0.0)), "sizes");
    }
}
