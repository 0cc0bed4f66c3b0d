//! The choices made for one picture, carried out on it and on its boxes.

use crate::Error;
use crate::boxes::BoxXyxy;
use crate::boxes::Crop;
use crate::image::{Rgb, RgbView};
use crate::jpeg::Scale;
use crate::resize::{self, Method};
use crate::transform::boxes::BoxTransform;
use crate::transform::color_jitter::ColorChange;
use crate::transform::rand_augment::Operation;

/// The choices made for one picture.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledTransform {
    /// What is cut out of the stored picture.
    pub crop: Crop,
    /// Height after the resize in pixels.
    pub height: usize,
    /// Width after the resize in pixels.
    pub width: usize,
    /// Whether left and right are mirrored.
    pub flip: bool,
    /// What is done to the colours of the resized picture, in this order.
    pub colors: Vec<ColorChange>,
    /// What is done to the resized picture after that, in this order.
    pub operations: Vec<Operation>,
    /// How it is resized.
    pub method: Method,
    /// (height, width) in pixels that the whole picture would be resized to; where a part is cut out
    /// by [`RandomCrop`], boxes may ask for it.
    pub(crate) whole: Option<(usize, usize)>,
}

impl SampledTransform {
    /// The same plan for the whole picture of `height` x `width` pixels, if this one cuts a part out
    /// of a picture that might be whole.
    #[must_use]
    pub fn uncut(&self, height: usize, width: usize) -> Option<Self> {
        let (whole_height, whole_width) = self.whole?;
        Some(Self {
            crop: Crop {
                top: 0,
                left: 0,
                height,
                width,
            },
            height: whole_height,
            width: whole_width,
            whole: None,
            ..self.clone()
        })
    }

    /// Carry the plan out on the picture.
    ///
    /// # Errors
    /// [`Error::Argument`] where the plan was made for another size.
    pub fn apply<'a>(&self, image: impl Into<RgbView<'a>>) -> Result<Rgb, Error> {
        let mut resized = resize::resize(image, self.crop, self.height, self.width, self.method)?;
        self.change(&mut resized);
        Ok(resized)
    }

    /// Whether [`Self::change`] needs the whole picture at once; a mere flip does not.
    #[must_use]
    pub fn needs_whole(&self) -> bool {
        !(self.colors.is_empty() && self.operations.is_empty())
    }

    /// Mirror the resized picture and do to it what else the plan says.
    pub fn change(&self, resized: &mut Rgb) {
        if self.flip {
            mirror(resized);
        }
        for change in &self.colors {
            change.apply(resized);
        }
        for operation in &self.operations {
            operation.apply(resized);
        }
    }

    /// Carry the plan out on boxes of the stored picture; `None` for those that the crop drops.
    ///
    /// # Errors
    /// [`Error::EmptyBox`] for a box that lies outside the stored picture, [`Error::BoxOutside`] for one
    /// that reaches more than a pixel outside.
    pub fn transform_boxes(
        &self,
        boxes_xyxy: &[BoxXyxy],
        height: usize,
        width: usize,
    ) -> Result<Vec<Option<BoxXyxy>>, Error> {
        let box_transform = BoxTransform {
            from: (height, width),
            crop: self.crop,
            to: (self.height, self.width),
            flip: self.flip,
        };
        box_transform.move_all(boxes_xyxy)
    }
}

fn mirror(image: &mut Rgb) {
    for row in image.pixels.chunks_exact_mut(image.width * 3) {
        let (pixels, _) = row.as_chunks_mut::<3>();
        pixels.reverse();
    }
}

/// The smallest scale of which the crop still has the pixels of the output.
pub(crate) fn scale_for(sampled: &SampledTransform) -> Scale {
    let fits = |scale: &Scale| {
        sampled.crop.height >= scale.divisor() * sampled.height
            && sampled.crop.width >= scale.divisor() * sampled.width
    };
    [Scale::Eighth, Scale::Quarter, Scale::Half]
        .into_iter()
        .find(fits)
        .unwrap_or_default()
}

/// The crop in pixels of the scaled picture, its edges rounded to the nearest.
pub(crate) fn scaled(crop: Crop, scale: Scale, source: (usize, usize)) -> Crop {
    let divisor = scale.divisor();
    let edge = |edge: usize, size: usize| ((edge + divisor / 2) / divisor).min(size);
    let span = |start: usize, length: usize, size: usize| {
        let first = edge(start, size - 1);
        let end = edge(start + length, size).max(first + 1);
        (first, end - first)
    };
    let (top, height) = span(crop.top, crop.height, source.0);
    let (left, width) = span(crop.left, crop.width, source.1);
    Crop {
        top,
        left,
        height,
        width,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::config;
    use crate::loader::record::Task;

    #[test]
    fn a_crop_keeps_its_place_in_a_scaled_picture() {
        let crop = Crop {
            top: 16,
            left: 33,
            height: 64,
            width: 100,
        };
        let expected = Crop {
            top: 4,
            left: 8,
            height: 16,
            width: 25,
        };
        assert_eq!(scaled(crop, Scale::Quarter, (25, 50)), expected);
        assert_eq!(scaled(crop, Scale::Full, (100, 200)), crop);
        // The last column of an odd picture, and less than a pixel of the scaled one.
        let crop = Crop {
            top: 0,
            left: 16,
            height: 1,
            width: 1,
        };
        let expected = Crop {
            top: 0,
            left: 2,
            height: 1,
            width: 1,
        };
        assert_eq!(scaled(crop, Scale::Eighth, (1, 3)), expected);
    }

    #[test]
    fn the_scale_leaves_the_pixels_that_are_needed() {
        let mut sampled = config(Task::ImageText).transform.sample(
            64,
            64,
            &mut crate::rng::Rng::new(0, 0, 0, crate::rng::Purpose::Picture(0)),
        );
        for (side, scale) in [
            (15, Scale::Full),
            (16, Scale::Half),
            (63, Scale::Quarter),
            (64, Scale::Eighth),
        ] {
            sampled.crop = Crop::whole(side, 64);
            assert_eq!((sampled.height, scale_for(&sampled)), (8, scale));
        }
    }
}
