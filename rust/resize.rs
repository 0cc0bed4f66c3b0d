//! Antialiased resize, equal to Pillow's `Image.resize` of eight-bit pictures value by value.
//!
//! A separable convolution: rows first, then columns, each pass with weights in 22-bit fixed point
//! and eight-bit results. The weights follow Pillow's `Resample.c` step by step, because a sum in
//! another order rounds differently. Rows always come first, as in the Pillow that the published
//! models were trained with; Pillow 13 takes columns first where the height shrinks and the width
//! does not, or does less, and so gives other values there.

use crate::Error;
use crate::image::Rgb;

/// Bits behind the point of a weight: eight bits of pixel and two of headroom are kept free.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// The convolution kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Triangle, support 1.
    Bilinear,
    /// Keys' cubic with a = -0.5, support 2.
    Bicubic,
}

impl Filter {
    /// Find a filter by name.
    ///
    /// # Errors
    /// [`Error::Argument`] for another name.
    pub fn from_name(name: &str) -> Result<Self, Error> {
        match name {
            "bilinear" => Ok(Self::Bilinear),
            "bicubic" => Ok(Self::Bicubic),
            _ => Err(Error::argument(
                "filter",
                format!("'{name}' is no filter; expected 'bilinear' or 'bicubic'"),
            )),
        }
    }

    /// Name in lower case.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bilinear => "bilinear",
            Self::Bicubic => "bicubic",
        }
    }

    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Self::Bilinear if x < 1.0 => 1.0 - x,
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            _ => 0.0,
        }
    }
}

/// A rectangle of whole pixels inside a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crop {
    /// First row.
    pub top: usize,
    /// First column.
    pub left: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

/// Weights of one axis: for each output position, the first input position and its weights.
struct Weights {
    starts: Vec<usize>,
    /// `taps` entries for each output position, in fixed point; unused ones are absent.
    counts: Vec<usize>,
    values: Vec<i32>,
    taps: usize,
}

impl Weights {
    fn new(input: usize, output: usize, filter: Filter) -> Self {
        #![allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss
        )] // Sizes are far below 2^53, positions are clamped to the picture.
        let scale = input as f64 / output as f64;
        let filter_scale = scale.max(1.0);
        let support = filter.support() * filter_scale;
        let taps = support.ceil() as usize * 2 + 1;
        let inverse = 1.0 / filter_scale;
        let mut weights = Self {
            starts: Vec::with_capacity(output),
            counts: Vec::with_capacity(output),
            values: vec![0; output * taps],
            taps,
        };
        let mut row = Vec::with_capacity(taps);
        for (position, values) in weights.values.chunks_exact_mut(taps).enumerate() {
            let center = (position as f64 + 0.5) * scale;
            let start = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(input);
            row.clear();
            let mut sum = 0.0;
            for tap in 0..end - start {
                let weight = filter.weight(((tap + start) as f64 - center + 0.5) * inverse);
                row.push(weight);
                sum += weight;
            }
            for (value, weight) in values.iter_mut().zip(&row) {
                let weight = if sum == 0.0 { *weight } else { weight / sum };
                let fixed = weight * f64::from(1_u32 << PRECISION_BITS);
                *value = (fixed + 0.5_f64.copysign(fixed)) as i32;
            }
            weights.starts.push(start);
            weights.counts.push(end - start);
        }
        weights
    }

    /// (first input position, weights) of every output position.
    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        self.starts
            .iter()
            .zip(&self.counts)
            .zip(self.values.chunks_exact(self.taps))
            .map(|((&start, &count), values)| (start, &values[..count]))
    }
}

/// Cut a rectangle out of a picture and resize it to `height` x `width` pixels.
///
/// # Errors
/// [`Error::Argument`] where a size is 0 or the crop leaves the picture.
pub fn resize(
    image: &Rgb,
    crop: Crop,
    height: usize,
    width: usize,
    filter: Filter,
) -> Result<Rgb, Error> {
    check(image, crop, height, width)?;
    // Only the rows that the vertical pass reads go through the horizontal one.
    let cropped = horizontal(image, crop, width, filter);
    let pixels = vertical(cropped, crop.height, height, width, filter);
    Ok(Rgb {
        height,
        width,
        pixels,
    })
}

fn check(image: &Rgb, crop: Crop, height: usize, width: usize) -> Result<(), Error> {
    if height == 0 || width == 0 {
        return Err(Error::argument(
            "size",
            format!("cannot resize to {height} x {width} pixels; expected 1 or more"),
        ));
    }
    if crop.height == 0
        || crop.width == 0
        || crop.top + crop.height > image.height
        || crop.left + crop.width > image.width
    {
        return Err(Error::argument(
            "crop",
            format!(
                "{crop:?} is not inside a picture of {} x {} pixels",
                image.height, image.width
            ),
        ));
    }
    Ok(())
}

/// `crop.height` rows of `width` pixels.
fn horizontal(image: &Rgb, crop: Crop, width: usize, filter: Filter) -> Vec<u8> {
    let rows = image
        .pixels
        .chunks_exact(image.width * 3)
        .skip(crop.top)
        .take(crop.height)
        .map(|row| &row[crop.left * 3..(crop.left + crop.width) * 3]);
    let mut output = Vec::with_capacity(crop.height * width * 3);
    if crop.width == width {
        rows.for_each(|row| output.extend_from_slice(row));
        return output;
    }
    let weights = Weights::new(crop.width, width, filter);
    for row in rows {
        for (start, values) in weights.iter() {
            let mut sums = [1_i32 << (PRECISION_BITS - 1); 3];
            let taps = row[start * 3..].chunks_exact(3);
            for (pixel, &value) in taps.zip(values) {
                for (sum, &channel) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(channel) * value;
                }
            }
            output.extend(sums.map(clip));
        }
    }
    output
}

/// `height` rows out of `input` rows of `width` pixels.
fn vertical(pixels: Vec<u8>, input: usize, height: usize, width: usize, filter: Filter) -> Vec<u8> {
    if input == height {
        return pixels;
    }
    let stride = width * 3;
    let mut output = Vec::with_capacity(height * stride);
    let mut sums = vec![0_i32; stride];
    for (start, values) in Weights::new(input, height, filter).iter() {
        sums.fill(1 << (PRECISION_BITS - 1));
        for (row, &value) in pixels[start * stride..].chunks_exact(stride).zip(values) {
            for (sum, &channel) in sums.iter_mut().zip(row) {
                *sum += i32::from(channel) * value;
            }
        }
        output.extend(sums.iter().map(|&sum| clip(sum)));
    }
    output
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Clamped.
fn clip(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(image: &Rgb) -> Crop {
        Crop {
            top: 0,
            left: 0,
            height: image.height,
            width: image.width,
        }
    }

    fn gradient(height: usize, width: usize) -> Rgb {
        let pixels = (0..height * width * 3)
            .map(|i| u8::try_from(i * 7 % 256).unwrap())
            .collect();
        Rgb {
            height,
            width,
            pixels,
        }
    }

    #[test]
    fn one_pixel_fills_any_size() {
        let image = gradient(1, 1);
        for filter in [Filter::Bilinear, Filter::Bicubic] {
            let output = resize(&image, whole(&image), 3, 5, filter).unwrap();
            assert_eq!(output.pixels, image.pixels.repeat(15));
        }
    }

    #[test]
    fn the_same_size_changes_nothing() {
        let image = gradient(7, 9);
        let output = resize(&image, whole(&image), 7, 9, Filter::Bicubic).unwrap();
        assert_eq!(output, image);
    }

    #[test]
    fn halving_averages_with_a_triangle() {
        // Weights 1, 3, 3, 1 of eight, without what lies outside.
        let image = Rgb {
            height: 1,
            width: 4,
            pixels: [0, 40, 80, 120].iter().flat_map(|&v| [v; 3]).collect(),
        };
        let output = resize(&image, whole(&image), 1, 2, Filter::Bilinear).unwrap();
        assert_eq!(output.pixels, [29, 29, 29, 91, 91, 91]);
    }

    #[test]
    fn a_crop_is_resized_as_if_it_were_the_picture() {
        let image = gradient(20, 30);
        let crop = Crop {
            top: 3,
            left: 5,
            height: 11,
            width: 13,
        };
        let mut cut = Vec::new();
        for y in 3..14 {
            cut.extend_from_slice(&image.pixels[(y * 30 + 5) * 3..(y * 30 + 18) * 3]);
        }
        let cut = Rgb {
            height: 11,
            width: 13,
            pixels: cut,
        };
        assert_eq!(
            resize(&image, crop, 7, 29, Filter::Bicubic).unwrap(),
            resize(&cut, whole(&cut), 7, 29, Filter::Bicubic).unwrap()
        );
    }

    #[test]
    fn weights_add_up_to_one() {
        for (input, output) in [(1, 1), (1, 7), (7, 1), (97, 13), (13, 97), (5000, 3)] {
            for filter in [Filter::Bilinear, Filter::Bicubic] {
                for (start, values) in Weights::new(input, output, filter).iter() {
                    assert!(start + values.len() <= input);
                    let sum: i64 = values.iter().map(|&value| i64::from(value)).sum();
                    let rounding = i64::try_from(values.len()).unwrap();
                    assert!((sum - (1 << PRECISION_BITS)).abs() <= rounding);
                }
            }
        }
    }

    #[test]
    fn sizes_and_crops_are_checked() {
        let image = gradient(2, 3);
        assert!(resize(&image, whole(&image), 0, 1, Filter::Bilinear).is_err());
        let crop = Crop {
            left: 1,
            ..whole(&image)
        };
        assert!(resize(&image, crop, 1, 1, Filter::Bilinear).is_err());
        assert!(Filter::from_name("nearest").is_err());
    }
}
