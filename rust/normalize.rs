//! RGB bytes -> normalised single-precision planes, padded to a common size.

use crate::Error;
use crate::image::Rgb;

/// Means of ImageNet's channels, red first, of values in [0, 1].
pub const IMAGENET_MEAN: [f64; 3] = [0.485, 0.456, 0.406];
/// Standard deviations of ImageNet's channels, red first, of values in [0, 1].
pub const IMAGENET_STD: [f64; 3] = [0.229, 0.224, 0.225];

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

/// How bytes become values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normalization {
    /// Order in which channels are written; `mean` and `std` stay red first.
    pub channel_order: ChannelOrder,
    /// Subtracted from values in [0, 1].
    pub mean: [f64; 3],
    /// Divides what is left.
    pub std: [f64; 3],
}

impl Default for Normalization {
    fn default() -> Self {
        Self {
            channel_order: ChannelOrder::Rgb,
            mean: IMAGENET_MEAN,
            std: IMAGENET_STD,
        }
    }
}

impl Normalization {
    /// Check every field.
    ///
    /// # Errors
    /// [`Error::Argument`] that names the field.
    pub fn check(&self) -> Result<(), Error> {
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

    /// For each written channel, the stored one and the normalised value of each byte.
    fn tables(&self) -> [(usize, [f32; 256]); 3] {
        let order = match self.channel_order {
            ChannelOrder::Rgb => [0, 1, 2],
            ChannelOrder::Bgr => [2, 1, 0],
        };
        order.map(|channel| {
            // The arithmetic of torchvision's ToTensor and Normalize in single precision.
            #[allow(clippy::cast_possible_truncation)]
            let (mean, std) = (self.mean[channel] as f32, self.std[channel] as f32);
            let mut table = [0.0; 256];
            for (value, entry) in (0_u16..).zip(&mut table) {
                *entry = (f32::from(value) / 255.0 - mean) / std;
            }
            (channel, table)
        })
    }
}

/// Write pictures one after the other, channel by channel, padded right and bottom with zeros.
///
/// Gives the values and the padded (height, width): the largest, rounded up to the divisor.
#[must_use]
pub fn write(
    pictures: &[&Rgb],
    normalization: &Normalization,
    divisor: usize,
) -> (Vec<f32>, (usize, usize)) {
    let largest = |side: fn(&&Rgb) -> usize| {
        let largest = pictures.iter().map(side).max().unwrap_or(0);
        largest.next_multiple_of(divisor)
    };
    let (height, width) = (largest(|image| image.height), largest(|image| image.width));
    let mut values = vec![0.0; pictures.len() * 3 * height * width];
    let tables = normalization.tables();
    let planes = values.chunks_exact_mut((height * width).max(1));
    let channels = pictures
        .iter()
        .flat_map(|image| tables.iter().map(move |table| (image, table)));
    for (plane, (image, (channel, table))) in planes.zip(channels) {
        let rows = image.pixels.chunks_exact(image.width * 3);
        for (output, row) in plane.chunks_exact_mut(width).zip(rows) {
            let (pixels, _) = row.as_chunks::<3>();
            for (value, pixel) in output.iter_mut().zip(pixels) {
                *value = table[usize::from(pixel[*channel])];
            }
        }
    }
    (values, (height, width))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_pictures_give_no_values() {
        let (values, size) = write(&[], &Normalization::default(), 32);
        assert!(values.is_empty());
        assert_eq!(size, (0, 0));
    }

    #[test]
    fn values_are_normalised_in_the_order_asked_for() {
        let image = Rgb {
            height: 1,
            width: 1,
            pixels: vec![0, 128, 255],
        };
        let normalization = Normalization {
            channel_order: ChannelOrder::Bgr,
            ..Normalization::default()
        };
        let (values, _) = write(&[&image], &normalization, 1);
        let expected = [
            (1.0 - 0.406) / 0.225,
            (128.0 / 255.0 - 0.456) / 0.224,
            (0.0 - 0.485) / 0.229,
        ];
        for (value, expected) in values.iter().zip(expected) {
            assert!((f64::from(*value) - expected).abs() < 1e-6);
        }
    }

    #[test]
    fn wrong_settings_are_named() {
        for (mean, std, expected) in [
            ([0.0; 3], [1.0, 0.0, 1.0], "std"),
            ([f64::NAN; 3], [1.0; 3], "mean"),
        ] {
            let normalization = Normalization {
                mean,
                std,
                ..Normalization::default()
            };
            let error = normalization.check().unwrap_err();
            assert!(matches!(error, Error::Argument { name, .. } if name == expected));
        }
    }
}
