//! Antialiased resize, equal to Pillow's `Image.resize` of eight-bit pictures.
//!
//! A separable convolution: rows first, then columns, each pass with weights in 22-bit fixed point
//! and eight-bit results. The weights follow Pillow's `Resample.c` step by step, because a sum in
//! another order rounds differently.

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
