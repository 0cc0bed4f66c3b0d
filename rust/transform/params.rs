//! Sampled parameters of a transform, which are applied to an image and its boxes.

use crate::Error;
use crate::boxes::{BoxXyxy, Crop};
use crate::image::{Rgb, RgbView, Rgba};
use crate::jpeg::Scale;
use crate::masks::sample_grid::{Nearest, SampleGrid};
use crate::resize::alpha::resize_premultiplied;
use crate::resize::{self, Method, ResizeScratch, ResizeTarget};
use crate::transform::boxes::BoxTransform;
use crate::transform::color_jitter::ColorChange;
use crate::transform::rand_augment::Operation;
use crate::try_alloc;

/// A transform whose random choices have been made.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledTransform {
    /// Operations applied to the whole image before everything else, in order.
    pub source_operations: Vec<Operation>,
    pub crop: Crop,
    pub height: usize,
    pub width: usize,
    pub flip: bool,
    /// Color changes applied to the resized image, in order.
    pub colors: Vec<ColorChange>,
    /// Operations applied to the resized image after that, in order.
    pub operations: Vec<Operation>,
    pub method: Method,
    /// If [`RandomCrop`] cropped the image, the (height, width) in pixels that the whole image
    /// would be resized to.
    pub(crate) whole: Option<(usize, usize)>,
    /// If the output is a window of the resized image.
    pub(crate) window: Option<Window>,
}

/// Position of the output in the resized image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// (height, width) of the resized image.
    pub resized: (usize, usize),
    pub top: usize,
    pub left: usize,
}

impl SampledTransform {
    /// What the resize computes.
    pub(crate) fn target(&self) -> ResizeTarget {
        match self.window {
            None => (self.height, self.width).into(),
            Some(Window { resized, top, left }) => ResizeTarget {
                whole: resized,
                window: Crop {
                    top,
                    left,
                    height: self.height,
                    width: self.width,
                },
            },
        }
    }

    /// The same transform without the crop, for a whole image of `height` x `width` pixels; `None`
    /// unless [`RandomCrop`] cropped the image.
    pub fn uncut(&self, height: usize, width: usize) -> Option<Self> {
        let (whole_height, whole_width) = self.whole?;
        Some(Self {
            crop: Crop::whole(height, width),
            height: whole_height,
            width: whole_width,
            whole: None,
            ..self.clone()
        })
    }

    pub fn apply<'a>(&self, image: impl Into<RgbView<'a>>) -> Result<Rgb, Error> {
        let image = image.into();
        let mut resized = if self.source_operations.is_empty() {
            resize::resize_to(image, self.crop, self.target(), self.method)?
        } else {
            let what = try_alloc::of_image(image.height, image.width);
            let mut pixels = try_alloc::with_capacity(image.pixels.len(), what)?;
            pixels.extend_from_slice(image.pixels);
            let mut copy = Rgb::new(image.height, image.width, pixels);
            self.change_source(&mut copy)?;
            resize::resize_to(&copy, self.crop, self.target(), self.method)?
        };
        self.change(&mut resized)?;
        Ok(resized)
    }

    /// [`Self::apply`] for an image with alpha; see [`resize_premultiplied`].
    pub fn apply_with_alpha(&self, image: &Rgba) -> Result<Rgb, Error> {
        let scratch = &mut ResizeScratch::default();
        let mut resized = self.resize_with_alpha(scratch, image)?;
        self.change(&mut resized)?;
        Ok(resized)
    }

    /// Crop and resize an image with alpha.
    pub fn resize_with_alpha(
        &self,
        scratch: &mut ResizeScratch,
        image: &Rgba,
    ) -> Result<Rgb, Error> {
        resize_premultiplied(scratch, image, self.crop, self.target(), self.method)
    }

    /// Apply the steps before the crop, in place.
    pub fn change_source(&self, image: &mut Rgb) -> Result<(), Error> {
        self.source_operations
            .iter()
            .try_for_each(|operation| operation.apply(image))
    }

    /// Number of copies of the whole image that [`Self::change_source`] needs at a time.
    pub fn source_copies(&self) -> usize {
        let mut operations = self.source_operations.iter();
        usize::from(operations.any(|operation| operation.kind.moves_pixels()))
    }

    /// True if [`Self::change`] needs the whole image at once; a flip alone does not.
    pub fn needs_whole(&self) -> bool {
        !(self.colors.is_empty() && self.operations.is_empty())
    }

    /// Apply all steps after the resize, in place.
    pub fn change(&self, resized: &mut Rgb) -> Result<(), Error> {
        if self.flip {
            mirror(resized);
        }
        for change in &self.colors {
            change.apply(resized);
        }
        self.operations
            .iter()
            .try_for_each(|operation| operation.apply(resized))
    }

    /// Which pixel of a stored image of `source` = (height, width) pixels each pixel of a mask shows,
    /// if the EXIF `orientation` is applied first and the output is padded to `padded`.
    pub(crate) fn sample_grid(
        &self,
        source: (usize, usize),
        orientation: u8,
        padded: (usize, usize),
    ) -> SampleGrid {
        let target = self.target();
        let nearest = Nearest {
            crop: self.crop,
            resized: target.whole,
            window: target.window,
            flip: self.flip,
        };
        SampleGrid::new(&nearest, source, orientation, padded)
    }

    /// Transform boxes of the stored image; `None` if the crop drops a box.
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

/// The smallest decoding scale at which the crop is at least as large as the output.
pub(crate) fn scale_for(sampled: &SampledTransform) -> Scale {
    let (height, width) = sampled.target().whole;
    let fits = |scale: &Scale| {
        sampled.crop.height >= scale.divisor() * height
            && sampled.crop.width >= scale.divisor() * width
    };
    [Scale::Eighth, Scale::Quarter, Scale::Half]
        .into_iter()
        .find(fits)
        .unwrap_or_default()
}

/// The crop in pixels of the scaled image, with edges rounded to nearest.
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
    fn crops_are_scaled() {
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
        // The last column of an image with odd width, less than a pixel of the scaled image.
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
    fn the_scale_keeps_enough_pixels() {
        let mut sampled = config(Task::ImageText).transform.sample(
            64,
            64,
            &mut crate::rng::Rng::new(0, 0, 0, crate::rng::Purpose::Image(0)),
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
