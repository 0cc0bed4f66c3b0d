//! RandAugment (Cubuk et al. 2020) as used to fine-tune the published image-text models: a few
//! random operations per image, all with the same magnitude.

use crate::Error;
use crate::error::check_probability;
use crate::image::Rgb;
use crate::rng::Rng;
use crate::transform::affine::{self, Affine};
use crate::transform::pillow_affine::{self, NearestMap};
pub use crate::transform::policy::{OpKind, Policy};
use crate::transform::{enhance, pillow_enhance};

/// An operation: its kind and argument.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Operation {
    /// Set of operations that this one is from.
    pub policy: Policy,
    /// Kind of operation.
    pub kind: OpKind,
    /// Signed argument; unused if the kind takes none.
    pub argument: f64,
}

impl Operation {
    /// Apply the operation in place.
    pub(crate) fn apply(&self, image: &mut Rgb) -> Result<(), Error> {
        match (self.kind, self.policy) {
            (OpKind::Identity, _) => {}
            (OpKind::AutoContrast, _) => enhance::auto_contrast(image),
            (OpKind::Equalize, _) => enhance::equalize(image),
            (OpKind::Brightness, _) => enhance::brightness(image, self.argument),
            (OpKind::Posterize, _) => pillow_enhance::posterize(image, self.argument),
            (OpKind::Solarize, _) => pillow_enhance::solarize(image, self.argument),
            (OpKind::SolarizeAdd, _) => pillow_enhance::solarize_add(image, self.argument),
            (OpKind::Color, _) => pillow_enhance::color(image, self.argument),
            (OpKind::Contrast, _) => pillow_enhance::contrast(image, self.argument),
            (OpKind::Sharpness, Policy::Fiber) => {
                enhance::sharpness::<true>(image, self.argument);
            }
            (OpKind::Sharpness, Policy::Meter) => {
                enhance::sharpness::<false>(image, self.argument);
            }
            (_, Policy::Fiber) => self.warp_bilinear(image),
            (_, Policy::Meter) => return self.warp_nearest(image),
        }
        Ok(())
    }

    fn warp_bilinear(&self, image: &mut Rgb) {
        let map = match self.kind {
            OpKind::ShearX => Affine::shear_x(self.argument),
            OpKind::ShearY => Affine::shear_y(self.argument),
            OpKind::TranslateX => Affine::translate_x(self.argument),
            OpKind::TranslateY => Affine::translate_y(self.argument),
            _ => Affine::rotate(self.argument, image.height, image.width),
        };
        affine::warp(image, &map);
    }

    fn warp_nearest(&self, image: &mut Rgb) -> Result<(), Error> {
        let map = match self.kind {
            OpKind::ShearX => NearestMap::shear_x(self.argument),
            OpKind::ShearY => NearestMap::shear_y(self.argument),
            OpKind::TranslateX => NearestMap::translate_x(self.argument),
            OpKind::TranslateY => NearestMap::translate_y(self.argument),
            _ => NearestMap::rotate(self.argument, image.height, image.width),
        };
        pillow_affine::warp(image, &map)
    }
}

/// Parameters of RandAugment.
#[derive(Clone, Debug, PartialEq)]
pub struct RandAugment {
    /// Published set of operations.
    pub policy: Policy,
    /// Number of operations per image, sampled with replacement; none if 0.
    pub num_ops: usize,
    /// Strength of every operation, from 0 to the maximum of the policy.
    pub magnitude: f64,
    /// Probability of applying each sampled operation.
    pub probability: f64,
    /// Kinds to sample from uniformly.
    pub operations: Vec<OpKind>,
}

impl RandAugment {
    /// The published parameters: two operations per image.
    #[must_use]
    pub fn published(policy: Policy) -> Self {
        Self {
            policy,
            num_ops: 2,
            magnitude: policy.magnitude(),
            probability: policy.probability(),
            operations: policy.operations().to_vec(),
        }
    }

    /// No operations.
    #[must_use]
    pub fn off() -> Self {
        Self {
            num_ops: 0,
            ..Self::published(Policy::Fiber)
        }
    }

    /// True if images are changed before they are cropped and resized.
    pub(crate) fn is_before_resize(&self) -> bool {
        self.num_ops > 0 && self.policy.is_before_resize()
    }

    /// Check every field.
    ///
    /// # Errors
    /// [`Error::Argument`] that names the invalid field.
    pub fn check(&self) -> Result<(), Error> {
        let largest = self.policy.max_magnitude();
        if !(0.0..=largest).contains(&self.magnitude) {
            let (magnitude, policy) = (self.magnitude, self.policy.name());
            let reason = format!("{magnitude}; expected 0 to {largest} for policy '{policy}'");
            return Err(Error::argument("magnitude", reason));
        }
        for kind in &self.operations {
            self.policy.operation(kind.name())?;
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
        let others = names(false, self.policy.operations());
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
            let argument = self.policy.argument(kind, self.magnitude).unwrap_or(0.0);
            if happens {
                let is_reversed = negative && kind.moves_pixels();
                let argument = if is_reversed { -argument } else { argument };
                operations.push(Operation {
                    policy: self.policy,
                    kind,
                    argument,
                });
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

    const POLICIES: [Policy; 2] = [Policy::Fiber, Policy::Meter];

    fn published() -> RandAugment {
        RandAugment::published(Policy::Fiber)
    }

    fn drawn(settings: &RandAugment, index: u64) -> Vec<Operation> {
        settings.draw(&mut Rng::new(0, 0, index, Purpose::Image(0)))
    }

    #[test]
    fn one_pixel_goes_through_every_operation() {
        let changed = |policy: Policy, kind: OpKind| {
            let mut image = Rgb::new(1, 1, vec![10, 100, 200]);
            let argument = policy.argument(kind, policy.magnitude()).unwrap_or(0.0);
            let operation = Operation {
                policy,
                kind,
                argument,
            };
            operation.apply(&mut image).unwrap();
            assert_eq!((image.height, image.width, image.pixels.len()), (1, 1, 3));
            image.pixels
        };
        for &kind in Policy::Fiber.operations() {
            let pixels = changed(Policy::Fiber, kind);
            match kind {
                OpKind::Brightness => assert_eq!(pixels, [13, 136, 255]),
                OpKind::TranslateX | OpKind::TranslateY => assert_eq!(pixels, [128; 3]),
                // The only pixel is half a pixel away from the center of rotation.
                OpKind::Rotate => assert_ne!(pixels, [10, 100, 200]),
                _ => assert_eq!(pixels, [10, 100, 200], "{kind:?}"),
            }
        }
        for &kind in Policy::Meter.operations() {
            let pixels = changed(Policy::Meter, kind);
            match kind {
                OpKind::Posterize => assert_eq!(pixels, [0, 0, 128]),
                OpKind::Solarize => assert_eq!(pixels, [10, 155, 55]),
                OpKind::SolarizeAdd => assert_eq!(pixels, [43, 122, 22]),
                OpKind::Color | OpKind::Contrast => assert_eq!(pixels, [36, 94, 158]),
                OpKind::Brightness => assert_eq!(pixels, [6, 64, 128]),
                OpKind::TranslateX | OpKind::TranslateY => assert_eq!(pixels, [0; 3]),
                _ => assert_eq!(pixels, [10, 100, 200], "{kind:?}"),
            }
        }
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
        for settings in POLICIES.map(RandAugment::published) {
            let operations: Vec<Operation> = (0..4000).flat_map(|i| drawn(&settings, i)).collect();
            let kinds = &settings.operations;
            let share = operations.len() as f64 / kinds.len() as f64;
            assert!(settings.policy == Policy::Fiber || operations.len() == 8000);
            for &kind in kinds {
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
        let meter = RandAugment::published(Policy::Meter);
        assert_eq!(
            name(RandAugment {
                magnitude,
                ..meter.clone()
            }),
            "none"
        );
        assert_eq!(
            name(RandAugment {
                operations: vec![OpKind::Identity],
                ..meter
            }),
            "operations"
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
