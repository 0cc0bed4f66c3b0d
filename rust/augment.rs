//! What happens to a picture on its way into a batch, and to the boxes in it.
//!
//! [`Transform::plan`] draws every random choice first, [`Plan::apply`] and [`Plan::move_boxes`] then
//! follow the same plan, so that picture and boxes cannot part.

use crate::Error;
use crate::boxes::{self, BoxXyxy};
use crate::image::Rgb;
use crate::random::Draws;
use crate::resize::{self, Crop, Filter};

/// Means of ImageNet's channels, red first, of values in [0, 1].
pub const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// Standard deviations of ImageNet's channels, red first, of values in [0, 1].
pub const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

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

/// Order in which the channels are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelOrder {
    /// Red first.
    Rgb,
    /// Blue first.
    Bgr,
}

impl ChannelOrder {
    /// Find an order by name.
    ///
    /// # Errors
    /// [`Error::Argument`] for another name.
    pub fn from_name(name: &str) -> Result<Self, Error> {
        match name {
            "rgb" => Ok(Self::Rgb),
            "bgr" => Ok(Self::Bgr),
            _ => Err(Error::argument(
                "channel_order",
                format!("'{name}' is no order; expected 'rgb' or 'bgr'"),
            )),
        }
    }

    /// Name in lower case.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Rgb => "rgb",
            Self::Bgr => "bgr",
        }
    }
}

/// Geometry, flip and normalisation.
#[derive(Clone, Debug, PartialEq)]
pub struct Transform {
    /// Crop and size.
    pub geometry: Geometry,
    /// Kernel of the resize.
    pub filter: Filter,
    /// Probability of mirroring left and right.
    pub flip_probability: f64,
    /// Order in which channels are written; `mean` and `std` stay red first.
    pub channel_order: ChannelOrder,
    /// Subtracted from values in [0, 1].
    pub mean: [f32; 3],
    /// Divides what is left.
    pub std: [f32; 3],
}

/// The choices made for one picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// What is cut out of the stored picture.
    pub crop: Crop,
    /// Height after the resize in pixels.
    pub height: usize,
    /// Width after the resize in pixels.
    pub width: usize,
    /// Whether left and right are mirrored.
    pub flip: bool,
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
        if !self.std.iter().all(|&std| std > 0.0 && std.is_finite()) {
            return Err(Error::argument(
                "std",
                format!("{:?} are not all above 0", self.std),
            ));
        }
        if !self.mean.iter().all(|mean| mean.is_finite()) {
            return Err(Error::argument(
                "mean",
                format!("{:?} are not all finite", self.mean),
            ));
        }
        Ok(())
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

    /// For each written channel, the stored one and the normalised value of each byte.
    #[must_use]
    pub fn channel_tables(&self) -> [(usize, [f32; 256]); 3] {
        let order = match self.channel_order {
            ChannelOrder::Rgb => [0, 1, 2],
            ChannelOrder::Bgr => [2, 1, 0],
        };
        order.map(|channel| {
            let mut table = [0.0; 256];
            for (value, entry) in (0_u16..).zip(&mut table) {
                *entry = (f32::from(value) / 255.0 - self.mean[channel]) / self.std[channel];
            }
            (channel, table)
        })
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
        Ok(resized)
    }

    /// Carry the plan out on boxes of the stored picture; `None` for those that the crop drops.
    ///
    /// # Errors
    /// [`Error::EmptyBox`] for a box that lies outside the stored picture.
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
