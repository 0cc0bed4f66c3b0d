//! Published sets of `RandAugment` operations, and the ranges of their arguments.

use crate::Error;
use crate::error::{by_name, named};

/// A published set of operations with its arithmetic; docs/loader.md compares them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// FIBER's: ten operations with the arithmetic of NumPy and OpenCV, applied to the resized
    /// image; pixels from outside are gray.
    Fiber,
    /// METER's: fourteen operations with the arithmetic of Pillow, applied to the image as stored,
    /// before it is cropped and resized; pixels from outside are black.
    Meter,
}

named!(Policy, "policy", [Fiber = "fiber", Meter = "meter"]);

/// Kind of operation; what it computes depends on the [`Policy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpKind {
    /// No change.
    Identity,
    /// Stretch each channel to [0, 255].
    AutoContrast,
    /// Equalize the histogram of each channel.
    Equalize,
    /// Rotate by an angle in degrees.
    Rotate,
    /// Keep a number of bits of each value, rounded down.
    Posterize,
    /// Invert values from a threshold on.
    Solarize,
    /// Add a level, then invert values from 128 on.
    SolarizeAdd,
    /// Scale the difference from the pixel's gray level.
    Color,
    /// Scale the difference from the image's mean gray level.
    Contrast,
    /// Scale all values.
    Brightness,
    /// Scale the difference from a smoothed image.
    Sharpness,
    /// Shear by a factor along rows.
    ShearX,
    /// Shear by a factor along columns.
    ShearY,
    /// Shift by a number of pixels along rows.
    TranslateX,
    /// Shift by a number of pixels along columns.
    TranslateY,
}

named!(
    OpKind,
    "operations",
    [
        Identity = "Identity",
        AutoContrast = "AutoContrast",
        Equalize = "Equalize",
        Rotate = "Rotate",
        Posterize = "Posterize",
        Solarize = "Solarize",
        SolarizeAdd = "SolarizeAdd",
        Color = "Color",
        Contrast = "Contrast",
        Brightness = "Brightness",
        Sharpness = "Sharpness",
        ShearX = "ShearX",
        ShearY = "ShearY",
        TranslateX = "TranslateX",
        TranslateY = "TranslateY"
    ]
);

impl OpKind {
    /// True if the operation moves pixels, so that boxes would be wrong.
    pub(crate) fn moves_pixels(self) -> bool {
        use OpKind::{Rotate, ShearX, ShearY, TranslateX, TranslateY};
        matches!(self, ShearX | ShearY | TranslateX | TranslateY | Rotate)
    }
}

impl Policy {
    /// Operations in published order.
    #[must_use]
    pub fn operations(self) -> &'static [OpKind] {
        use OpKind::{
            AutoContrast, Brightness, Color, Contrast, Equalize, Identity, Posterize, Rotate,
            Sharpness, ShearX, ShearY, Solarize, SolarizeAdd, TranslateX, TranslateY,
        };
        match self {
            Self::Fiber => &[
                Identity,
                AutoContrast,
                Equalize,
                Brightness,
                Sharpness,
                ShearX,
                ShearY,
                TranslateX,
                TranslateY,
                Rotate,
            ],
            Self::Meter => &[
                AutoContrast,
                Equalize,
                Rotate,
                Posterize,
                Solarize,
                SolarizeAdd,
                Color,
                Contrast,
                Brightness,
                Sharpness,
                ShearX,
                ShearY,
                TranslateX,
                TranslateY,
            ],
        }
    }

    /// Look up one of the policy's operations by name.
    pub(crate) fn operation(self, name: &str) -> Result<OpKind, Error> {
        let kinds = self.operations().iter();
        let named: Vec<_> = kinds.map(|&kind| (kind, kind.name())).collect();
        by_name("operations", name, &named)
    }

    /// Maximum magnitude.
    pub(crate) fn max_magnitude(self) -> f64 {
        match self {
            Self::Fiber => 10.0,
            Self::Meter => 30.0,
        }
    }

    /// Published magnitude.
    pub(crate) fn magnitude(self) -> f64 {
        match self {
            Self::Fiber => 7.0,
            Self::Meter => 9.0,
        }
    }

    /// Published probability of applying a sampled operation.
    pub(crate) fn probability(self) -> f64 {
        match self {
            Self::Fiber => 0.5,
            Self::Meter => 1.0,
        }
    }

    /// True if operations are applied to the image as stored, before it is cropped and resized.
    pub(crate) fn is_before_resize(self) -> bool {
        self == Self::Meter
    }

    /// Absolute argument for a magnitude; `None` if this kind takes no argument.
    ///
    /// As in the published code, translations in pixels do not scale with the image.
    pub(crate) fn argument(self, kind: OpKind, magnitude: f64) -> Option<f64> {
        use OpKind::{
            AutoContrast, Brightness, Color, Contrast, Equalize, Identity, Posterize, Rotate,
            Sharpness, ShearX, ShearY, Solarize, SolarizeAdd, TranslateX, TranslateY,
        };
        let part = magnitude / self.max_magnitude();
        Some(match (kind, self) {
            (Identity | AutoContrast | Equalize, _) => return None,
            (Rotate, _) => part * 30.0,
            (Posterize, _) => part * 4.0,
            (Solarize, _) => part * 256.0,
            (SolarizeAdd, _) => part * 110.0,
            (ShearX | ShearY, _) => part * 0.3,
            (TranslateX | TranslateY, Self::Fiber) => part * 10.0,
            (TranslateX | TranslateY, Self::Meter) => part * 100.0,
            // Written as in the published code, which rounds differently.
            (Color | Contrast | Brightness | Sharpness, Self::Fiber) => part * 1.8 + 0.1,
            (Color | Contrast | Brightness | Sharpness, Self::Meter) => part * (1.9 - 0.1) + 0.1,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(policy: Policy, magnitude: f64) -> Vec<Option<f64>> {
        let kinds = policy.operations().iter();
        kinds
            .map(|&kind| policy.argument(kind, magnitude))
            .collect()
    }

    #[test]
    fn no_magnitude_means_no_change_of_place() {
        for policy in [Policy::Fiber, Policy::Meter] {
            for &kind in policy.operations() {
                let argument = policy.argument(kind, 0.0);
                assert!(!kind.moves_pixels() || argument == Some(0.0), "{kind:?}");
            }
        }
    }

    #[test]
    fn names_and_arguments_are_the_published_ones() {
        assert_eq!(
            arguments(Policy::Fiber, 7.0),
            [
                [None; 3].as_slice(),
                &[Some(1.36), Some(1.36), Some(0.21), Some(0.21)],
                &[Some(7.0), Some(7.0), Some(21.0)],
            ]
            .concat()
        );
        let factor = Some(0.639_999_999_999_999_9);
        assert_eq!(
            arguments(Policy::Meter, 9.0),
            [
                [None, None, Some(9.0), Some(1.2), Some(76.8), Some(33.0)].as_slice(),
                &[factor; 4],
                &[Some(0.09), Some(0.09), Some(30.0), Some(30.0)],
            ]
            .concat()
        );
    }

    #[test]
    fn operations_of_another_policy_are_unknown() {
        assert_eq!(
            Policy::Meter.operation("Posterize").unwrap(),
            OpKind::Posterize
        );
        let message = Policy::Fiber
            .operation("Posterize")
            .unwrap_err()
            .to_string();
        assert!(message.contains("'Posterize'; expected 'Identity', "));
        assert!(Policy::Meter.operation("Identity").is_err());
    }
}
