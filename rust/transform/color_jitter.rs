//! Random brightness, contrast, saturation and hue, as in torchvision's `ColorJitter` on uint8
//! tensors.
//!
//! The arithmetic is torchvision's, in single precision, except that the image mean for contrast is
//! summed exactly. torchvision sums in a different order, so values close to a rounding boundary
//! may differ by one level.

// Loops are inlined to be compiled for several instruction sets; casts follow a clamp.
#![allow(
    clippy::inline_always,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss
)]

use crate::Error;
use crate::error::by_name;
use crate::image::Rgb;
use crate::rng::Rng;
use crate::simd::{self as simd, SimdLoop};
use crate::transform::enhance;

/// One color change and its factor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum ColorChange {
    /// Scale all values.
    Brightness(f64),
    /// Blend with the mean gray level of the image.
    Contrast(f64),
    /// Blend each pixel with its gray level.
    Saturation(f64),
    /// Shift the hue by a fraction of the color circle.
    Hue(f64),
}

type WithFactor = fn(f64) -> ColorChange;

impl ColorChange {
    const KINDS: [(WithFactor, &'static str); 4] = [
        (Self::Brightness, "brightness"),
        (Self::Contrast, "contrast"),
        (Self::Saturation, "saturation"),
        (Self::Hue, "hue"),
    ];

    /// Look up a change by name.
    pub(crate) fn from_name(name: &str, factor: f64) -> Result<Self, Error> {
        let change = by_name("change", name, &Self::KINDS)?;
        let (low, high) = if name == "hue" { HUES } else { FACTORS };
        if !(low..=high).contains(&factor) {
            let reason = format!("{factor} for {name}; expected {low} to {high}");
            return Err(Error::argument("factor", reason));
        }
        Ok(change(factor))
    }

    /// Apply the change in place.
    pub(crate) fn apply(self, image: &mut Rgb) {
        match self {
            Self::Brightness(factor) => enhance::brightness(image, factor),
            Self::Contrast(factor) => {
                let mean = mean_gray(image);
                let ratio = [factor as f32, (1.0 - factor) as f32];
                enhance::by_table(image, |value| blend(f32::from(value), mean, ratio));
            }
            Self::Saturation(factor) => simd::run(Saturate {
                image,
                ratio: [factor as f32, (1.0 - factor) as f32],
            }),
            Self::Hue(turn) => simd::run(HueShift {
                image,
                turn: turn as f32,
            }),
        }
    }
}

/// Valid factors and hue shifts; larger factors would leave only black and white.
const FACTORS: (f64, f64) = (0.0, 1e6);
const HUES: (f64, f64) = (-0.5, 0.5);

/// Ranges of the factors; the four changes are applied in random order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ColorJitter {
    /// (low, high) range of the factor.
    pub brightness: (f64, f64),
    /// (low, high) range of the factor.
    pub contrast: (f64, f64),
    /// (low, high) range of the factor.
    pub saturation: (f64, f64),
    /// (low, high) range of the shift, as a fraction of the color circle.
    pub hue: (f64, f64),
}

impl ColorJitter {
    /// No change.
    #[must_use]
    pub fn off() -> Self {
        Self {
            brightness: (1.0, 1.0),
            contrast: (1.0, 1.0),
            saturation: (1.0, 1.0),
            hue: (0.0, 0.0),
        }
    }

    /// Check every field.
    ///
    /// # Errors
    /// [`Error::Argument`] that names the invalid field.
    pub fn check(&self) -> Result<(), Error> {
        for (name, range) in self.ranges() {
            let (low, high) = if name == "hue" { HUES } else { FACTORS };
            if !(low <= range.0 && range.0 <= range.1 && range.1 <= high) {
                let reason = format!("{range:?}; expected a range within {low} to {high}");
                return Err(Error::argument(name, reason));
            }
        }
        Ok(())
    }

    /// All ranges with their names.
    pub(crate) fn ranges(&self) -> [(&'static str, (f64, f64)); 4] {
        [
            ("brightness", self.brightness),
            ("contrast", self.contrast),
            ("saturation", self.saturation),
            ("hue", self.hue),
        ]
    }

    /// Sample the changes for an image; disabled changes consume no random numbers.
    pub(crate) fn draw(&self, rng: &mut Rng) -> Vec<ColorChange> {
        if *self == Self::off() {
            return Vec::new();
        }
        let ranges = self.ranges().into_iter().zip(Self::off().ranges());
        let mut changes: Vec<_> = (ColorChange::KINDS.into_iter().zip(ranges))
            .map(|((change, _), ((_, range), (_, off)))| {
                (change(rng.range(range.0, range.1)), range == off)
            })
            .collect();
        for last in (1..changes.len()).rev() {
            changes.swap(last, rng.index(last + 1));
        }
        let some = changes.into_iter().filter(|&(_, is_off)| !is_off);
        some.map(|(change, _)| change).collect()
    }
}

/// Number of pixels per block.
const BLOCK: usize = 64;

/// Planar channels of a block.
type Channels = [[f32; BLOCK]; 3];

/// Apply a change to blocks; values past the last pixel of the image are arbitrary.
#[inline(always)]
fn for_blocks(image: &mut Rgb, mut change: impl FnMut(&mut Channels)) {
    for bytes in image.pixels.chunks_mut(3 * BLOCK) {
        let mut channels = [[0.0; BLOCK]; 3];
        let [red, green, blue] = &mut channels;
        let values = red.iter_mut().zip(green).zip(blue);
        for (pixel, ((red, green), blue)) in bytes.as_chunks::<3>().0.iter().zip(values) {
            [*red, *green, *blue] = pixel.map(f32::from);
        }
        change(&mut channels);
        let [red, green, blue] = &channels;
        let values = red.iter().zip(green).zip(blue);
        for (pixel, ((&red, &green), &blue)) in bytes.as_chunks_mut::<3>().0.iter_mut().zip(values)
        {
            *pixel = [red, green, blue].map(|value| value as u8);
        }
    }
}

/// Integer gray level of a pixel.
#[inline(always)]
fn gray(red: f32, green: f32, blue: f32) -> f32 {
    let sum = green.mul_add(0.587, red * 0.2989);
    blue.mul_add(0.114, sum).floor()
}

#[inline(always)]
fn blend(value: f32, other: f32, ratio: [f32; 2]) -> f32 {
    other.mul_add(ratio[1], value * ratio[0]).clamp(0.0, 255.0)
}

/// Mean of the integer gray levels.
fn mean_gray(image: &mut Rgb) -> f32 {
    struct Sum<'a>(&'a mut Rgb, &'a mut u64);
    impl SimdLoop for Sum<'_> {
        #[inline(always)]
        fn run(self) {
            for pixels in self.0.pixels.chunks(3 * BLOCK) {
                let mut sum = 0;
                for &[red, green, blue] in pixels.as_chunks::<3>().0 {
                    sum += gray(red.into(), green.into(), blue.into()) as i32;
                }
                *self.1 += u64::from(sum.unsigned_abs());
            }
        }
    }
    let (mut sum, pixels) = (0, image.pixels.len() / 3);
    simd::run(Sum(image, &mut sum));
    (sum as f64 / pixels.max(1) as f64) as f32
}

struct Saturate<'a> {
    image: &'a mut Rgb,
    ratio: [f32; 2],
}

impl SimdLoop for Saturate<'_> {
    #[inline(always)]
    fn run(self) {
        for_blocks(self.image, |channels| {
            let [red, green, blue] = channels;
            for ((red, green), blue) in red.iter_mut().zip(green).zip(blue) {
                let gray = gray(*red, *green, *blue);
                *red = blend(*red, gray, self.ratio);
                *green = blend(*green, gray, self.ratio);
                *blue = blend(*blue, gray, self.ratio);
            }
        });
    }
}

struct HueShift<'a> {
    image: &'a mut Rgb,
    turn: f32,
}

impl SimdLoop for HueShift<'_> {
    #[inline(always)]
    fn run(self) {
        for_blocks(self.image, |channels| {
            let [red, green, blue] = channels;
            for ((red, green), blue) in red.iter_mut().zip(green).zip(blue) {
                let [hue, saturation, value] = to_hsv([*red, *green, *blue]);
                let turned = turned(hue, self.turn);
                let rgb = to_rgb(turned, saturation, value);
                // Almost 256, so that 1 becomes 255.
                [*red, *green, *blue] = rgb.map(|unit| unit * (256.0 - 1e-3));
            }
        });
    }
}

/// Convert levels to hue, saturation and value in [0, 1].
#[inline(always)]
fn to_hsv(rgb: [f32; 3]) -> [f32; 3] {
    let [red, green, blue] = rgb.map(|level| level * (1.0 / 255.0) as f32);
    let (most, least) = (red.max(green).max(blue), red.min(green).min(blue));
    let range = most - least;
    let is_gray = range == 0.0;
    let saturation = range / if is_gray { 1.0 } else { most };
    let divisor = if is_gray { 1.0 } else { range };
    let of = |channel: f32| (most - channel) / divisor;
    let (from_red, from_green, from_blue) = (of(red), of(green), of(blue));
    let sixths = if red >= most {
        from_blue - from_green
    } else if green >= most {
        from_red + 2.0 - from_blue
    } else {
        from_green + 4.0 - from_red
    };
    let hue = sixths * (1.0 / 6.0) as f32 + 1.0;
    [hue - hue.floor(), saturation, most]
}

/// Shift a hue, modulo 1.
#[inline(always)]
fn turned(hue: f32, turn: f32) -> f32 {
    let sum = hue + turn;
    if sum < 0.0 {
        sum + 1.0
    } else {
        sum - sum.floor()
    }
}

#[inline(always)]
fn to_rgb(hue: f32, saturation: f32, value: f32) -> [f32; 3] {
    let sixths = hue * 6.0;
    let sector = sixths.floor();
    let part = sixths - sector;
    let (of_part, without) = (saturation * part, 1.0 - saturation);
    let falling = ((1.0 - of_part) * value).clamp(0.0, 1.0);
    let rising = ((of_part + without) * value).clamp(0.0, 1.0);
    let low = (without * value).clamp(0.0, 1.0);
    // A hue that is rounded up to 1 is the same as 0.
    let sector = if sector >= 6.0 { 0.0 } else { sector };
    let pick = |of: [f32; 6]| {
        let mut picked = of[5];
        for (number, value) in [4.0, 3.0, 2.0, 1.0, 0.0]
            .into_iter()
            .zip([of[4], of[3], of[2], of[1], of[0]])
        {
            picked = if sector <= number { value } else { picked };
        }
        picked
    };
    [
        pick([value, falling, low, low, rising, value]),
        pick([rising, value, value, falling, low, low]),
        pick([low, low, rising, value, value, falling]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Purpose;

    fn pixel(rgb: [u8; 3], change: ColorChange) -> Vec<u8> {
        let mut image = Rgb::new(1, 1, rgb.to_vec());
        change.apply(&mut image);
        image.pixels
    }

    #[test]
    fn one_pixel_of_every_change() {
        use ColorChange::{Brightness, Contrast, Hue, Saturation};
        let rgb = [10, 100, 200];
        assert_eq!(pixel(rgb, Brightness(1.5)), [15, 150, 255]);
        // The gray level is 0.2989 * 10 + 0.587 * 100 + 0.114 * 200 = 84.489.
        assert_eq!(pixel(rgb, Contrast(0.0)), [84; 3]);
        assert_eq!(pixel(rgb, Contrast(0.5)), [47, 92, 142]);
        assert_eq!(pixel(rgb, Saturation(0.0)), [84; 3]);
        assert_eq!(pixel(rgb, Saturation(2.0)), [0, 116, 255]);
        assert_eq!(pixel([255, 0, 0], Hue(1.0 / 3.0)), [0, 255, 0]);
        assert_eq!(pixel([255, 0, 0], Hue(-1.0 / 3.0)), [0, 0, 255]);
        assert_eq!(pixel([7, 7, 7], Hue(0.3)), [7; 3]);
    }

    #[test]
    fn disabled_jitter_takes_no_random_numbers() {
        let mut rng = Rng::new(0, 0, 0, Purpose::Image(0));
        assert!(ColorJitter::off().draw(&mut rng).is_empty());
        assert_eq!(rng.bits(), Rng::new(0, 0, 0, Purpose::Image(0)).bits());
    }

    #[test]
    fn every_order_and_the_whole_range_are_sampled() {
        let jitter = ColorJitter {
            brightness: (0.5, 1.5),
            contrast: (0.9, 1.0),
            ..ColorJitter::off()
        };
        let (mut first, mut least, mut largest) = (0, 2.0_f64, 0.0_f64);
        for index in 0..1000 {
            let mut rng = Rng::new(0, 0, index, Purpose::Image(0));
            let changes = jitter.draw(&mut rng);
            assert_eq!(changes.len(), 2);
            for (place, change) in changes.iter().enumerate() {
                match *change {
                    ColorChange::Brightness(factor) => {
                        first += usize::from(place == 0);
                        (least, largest) = (least.min(factor), largest.max(factor));
                    }
                    ColorChange::Contrast(factor) => assert!((0.9..1.0).contains(&factor)),
                    _ => panic!("{change:?} was off"),
                }
            }
        }
        // Four standard deviations of 16.
        assert!((436..564).contains(&first), "{first}");
        assert!(least < 0.51 && largest > 1.49 && least >= 0.5 && largest < 1.5);
    }

    #[test]
    fn wrong_arguments_are_named() {
        let hue = ColorJitter {
            hue: (-0.6, 0.0),
            ..ColorJitter::off()
        };
        let contrast = ColorJitter {
            contrast: (1.0, 0.5),
            ..ColorJitter::off()
        };
        for (jitter, expected) in [(hue, "hue"), (contrast, "contrast")] {
            let error = jitter.check().unwrap_err();
            assert!(matches!(error, Error::Argument { name, .. } if name == expected));
        }
        assert!(ColorJitter::off().check().is_ok());
        assert!(ColorChange::from_name("gamma", 1.0).is_err());
        assert!(ColorChange::from_name("hue", 0.6).is_err());
        assert!(ColorChange::from_name("contrast", f64::NAN).is_err());
    }
}
