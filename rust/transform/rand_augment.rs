//! RandAugment (Cubuk et al. 2020) as used to fine-tune the published image-text models: a few
//! random operations per image, all with the same magnitude.

use crate::Error;
use crate::error::{check_probability, named};
use crate::image::Rgb;
use crate::rng::Rng;
use crate::transform::affine::{self, Affine};
use crate::transform::enhance;

/// Maximum magnitude.
pub(crate) const MAX_MAGNITUDE: f64 = 10.0;

/// Kind of operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpKind {
    /// No change.
    Identity,
    /// See [`enhance::auto_contrast`].
    AutoContrast,
    /// See [`enhance::equalize`].
    Equalize,
    /// [`enhance::brightness`] with a factor.
    Brightness,
    /// [`enhance::sharpness`] with a factor.
    Sharpness,
    /// [`Affine::shear_x`] with a factor.
    ShearX,
    /// [`Affine::shear_y`] with a factor.
    ShearY,
    /// [`Affine::translate_x`] by a number of pixels.
    TranslateX,
    /// [`Affine::translate_y`] by a number of pixels.
    TranslateY,
    /// [`Affine::rotate`] by an angle in degrees.
    Rotate,
}

named!(
    OpKind,
    "operations",
    [
        Identity = "Identity",
        AutoContrast = "AutoContrast",
        Equalize = "Equalize",
        Brightness = "Brightness",
        Sharpness = "Sharpness",
        ShearX = "ShearX",
        ShearY = "ShearY",
        TranslateX = "TranslateX",
        TranslateY = "TranslateY",
        Rotate = "Rotate"
    ]
);

impl OpKind {
    fn all() -> Vec<Self> {
        Self::NAMES.iter().map(|&(kind, _)| kind).collect()
    }

    /// True if the operation moves pixels, so that boxes would be wrong.
    pub(crate) fn moves_pixels(self) -> bool {
        use OpKind::{Rotate, ShearX, ShearY, TranslateX, TranslateY};
        matches!(self, ShearX | ShearY | TranslateX | TranslateY | Rotate)
    }

    /// Absolute argument for a magnitude; `None` if this kind takes no argument.
    ///
    /// As in the published code, translations in pixels do not scale with the image.
    pub(crate) fn argument(self, magnitude: f64) -> Option<f64> {
        let part = magnitude / MAX_MAGNITUDE;
        match self {
            Self::Identity | Self::AutoContrast | Self::Equalize => None,
            Self::Brightness | Self::Sharpness => Some(part * 1.8 + 0.1),
            Self::ShearX | Self::ShearY => Some(part * 0.3),
            Self::TranslateX | Self::TranslateY => Some(part * 10.0),
            Self::Rotate => Some(part * 30.0),
        }
    }
}

/// An operation: its kind and argument.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Operation {
    /// Kind of operation.
    pub kind: OpKind,
    /// Signed argument; unused if the kind takes none.
    pub argument: f64,
}

impl Operation {
    /// Apply the operation in place.
    pub(crate) fn apply(&self, image: &mut Rgb) {
        let map = match self.kind {
            OpKind::Identity => return,
            OpKind::AutoContrast => return enhance::auto_contrast(image),
            OpKind::Equalize => return enhance::equalize(image),
            OpKind::Brightness => return enhance::brightness(image, self.argument),
            OpKind::Sharpness => return enhance::sharpness(image, self.argument),
            OpKind::ShearX => Affine::shear_x(self.argument),
            OpKind::ShearY => Affine::shear_y(self.argument),
            OpKind::TranslateX => Affine::translate_x(self.argument),
            OpKind::TranslateY => Affine::translate_y(self.argument),
            OpKind::Rotate => Affine::rotate(self.argument, image.height, image.width),
        };
        affine::warp(image, &map);
    }
}

/// Parameters of RandAugment.
#[derive(Clone, Debug, PartialEq)]
pub struct RandAugment {
    /// Number of operations per image, sampled with replacement; none if 0.
    pub num_ops: usize,
    /// Strength of every operation, from 0 to [`MAX_MAGNITUDE`].
    pub magnitude: f64,
    /// Probability of applying each sampled operation.
    pub probability: f64,
    /// Kinds to sample from uniformly.
    pub operations: Vec<OpKind>,
}

impl RandAugment {
    /// The published parameters, but with no operations per image.
    #[must_use]
    pub fn off() -> Self {
        Self {
            num_ops: 0,
            magnitude: 7.0,
            probability: 0.5,
            operations: OpKind::all(),
        }
    }

    /// Check every field.
    ///
    /// # Errors
    /// [`Error::Argument`] that names the invalid field.
    pub fn check(&self) -> Result<(), Error> {
        if !(0.0..=MAX_MAGNITUDE).contains(&self.magnitude) {
            let reason = format!("{}; expected 0 to {MAX_MAGNITUDE}", self.magnitude);
            return Err(Error::argument("magnitude", reason));
        }
        check_probability("probability", self.probability)?;
        if self.num_ops > 0 && self.operations.is_empty() {
            let reason = format!(
                "empty, but num_ops is {}; expected at least one operation",
                self.num_ops
            );
            return Err(Error::argument("operations", reason));
        }
        Ok(())
    }

    /// Check that no operation moves pixels, because boxes would not be moved.
    pub(crate) fn check_boxes(&self) -> Result<(), Error> {
        let names = |moving: bool, from: &[OpKind]| {
            let kinds = from.iter().filter(|kind| kind.moves_pixels() == moving);
            kinds.map(|kind| kind.name()).collect::<Vec<_>>().join(", ")
        };
        let moving = names(true, &self.operations);
        if self.num_ops == 0 || moving.is_empty() {
            return Ok(());
        }
        let others = names(false, &OpKind::all());
        let reason =
            format!("{moving} cannot be used with boxes; expected only operations from {others}");
        Err(Error::argument("rand_augment", reason))
    }

    /// Sample the operations for an image.
    pub(crate) fn draw(&self, rng: &mut Rng) -> Vec<Operation> {
        let mut operations = Vec::with_capacity(self.num_ops);
        for _ in 0..self.num_ops {
            // Every operation consumes the same number of random numbers, whether or not it is
            // applied.
            let kind = self.operations[rng.index(self.operations.len())];
            let (happens, negative) = (rng.unit() < self.probability, rng.unit() < 0.5);
            let argument = kind.argument(self.magnitude).unwrap_or(0.0);
            if happens {
                let is_reversed = negative && kind.moves_pixels();
                let argument = if is_reversed { -argument } else { argument };
                operations.push(Operation { kind, argument });
            }
        }
        operations
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_precision_loss)] // Small numbers.

    use super::*;
    use crate::rng::Purpose;

    fn published() -> RandAugment {
        RandAugment {
            num_ops: 2,
            ..RandAugment::off()
        }
    }

    fn drawn(settings: &RandAugment, index: u64) -> Vec<Operation> {
        settings.draw(&mut Rng::new(0, 0, index, Purpose::Image(0)))
    }

    #[test]
    fn one_pixel_goes_through_every_operation() {
        for kind in OpKind::all() {
            let mut image = Rgb::new(1, 1, vec![10, 100, 200]);
            let argument = kind.argument(7.0).unwrap_or(0.0);
            Operation { kind, argument }.apply(&mut image);
            assert_eq!((image.height, image.width, image.pixels.len()), (1, 1, 3));
            match kind {
                OpKind::Brightness => assert_eq!(image.pixels, [13, 136, 255]),
                OpKind::TranslateX | OpKind::TranslateY => assert_eq!(image.pixels, [128; 3]),
                // The only pixel is half a pixel away from the center of rotation.
                OpKind::Rotate => assert_ne!(image.pixels, [10, 100, 200]),
                _ => assert_eq!(image.pixels, [10, 100, 200], "{kind:?}"),
            }
        }
    }

    #[test]
    fn names_and_arguments_are_the_published_ones() {
        for &(kind, name) in OpKind::NAMES {
            assert_eq!(
                (OpKind::from_name(name).unwrap(), kind.name()),
                (kind, name)
            );
        }
        assert!(OpKind::from_name("Posterize").is_err());
        let kinds = OpKind::all().into_iter();
        let arguments: Vec<_> = kinds.map(|kind| kind.argument(7.0)).collect();
        let factors = [Some(1.36), Some(1.36), Some(0.21), Some(0.21)];
        assert_eq!(arguments[..3], [None; 3]);
        assert_eq!(arguments[3..7], factors);
        assert_eq!(arguments[7..], [Some(7.0), Some(7.0), Some(21.0)]);
    }

    #[test]
    fn half_of_the_operations_are_applied() {
        let settings = published();
        let mut counts = [0; 3];
        for index in 0..2000 {
            let operations = drawn(&settings, index);
            assert_eq!(operations, drawn(&settings, index));
            counts[operations.len()] += 1;
        }
        // Means 500, 1000, 500; standard deviations below 23.
        for (count, mean) in counts.into_iter().zip([500_i32, 1000, 500]) {
            assert!((count - mean).abs() < 90, "{counts:?}");
        }
    }

    #[test]
    fn every_kind_is_sampled_in_both_directions() {
        let settings = published();
        let operations: Vec<Operation> = (0..4000).flat_map(|i| drawn(&settings, i)).collect();
        let share = operations.len() as f64 / 10.0;
        for kind in OpKind::all() {
            let own: Vec<_> = operations
                .iter()
                .filter(|found| found.kind == kind)
                .collect();
            let negative = own.iter().filter(|found| found.argument < 0.0).count();
            // Four standard deviations.
            assert!((own.len() as f64 - share).abs() < 4.0 * share.sqrt());
            let expected = if kind.moves_pixels() { 0.5 } else { 0.0 };
            let difference = negative as f64 - own.len() as f64 * expected;
            assert!(difference.abs() <= 4.0 * (share * 0.25).sqrt(), "{kind:?}");
        }
    }

    #[test]
    fn wrong_arguments_are_named() {
        let name = |settings: RandAugment| match settings.check() {
            Err(Error::Argument { name, .. }) => name,
            _ => "none",
        };
        assert_eq!(name(published()), "none");
        let magnitude = 10.5;
        assert_eq!(
            name(RandAugment {
                magnitude,
                ..published()
            }),
            "magnitude"
        );
        let probability = f64::NAN;
        assert_eq!(
            name(RandAugment {
                probability,
                ..published()
            }),
            "probability"
        );
        let operations = Vec::new();
        assert_eq!(
            name(RandAugment {
                operations,
                ..published()
            }),
            "operations"
        );
    }

    #[test]
    fn boxes_reject_operations_that_move_pixels() {
        let mut settings = published();
        let message = settings.check_boxes().unwrap_err().to_string();
        assert!(
            message.contains("ShearX, ShearY") && message.contains("boxes"),
            "{message}"
        );
        assert!(
            message.contains("expected only operations from Identity, AutoContrast"),
            "{message}"
        );
        settings.operations.retain(|kind| !kind.moves_pixels());
        assert!(settings.check_boxes().is_ok());
        assert!(RandAugment::off().check_boxes().is_ok());
    }
}
