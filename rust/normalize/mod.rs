//! Normalize RGB bytes into padded batches.

pub mod layout;
mod simd;

use crate::Error;
use crate::cpu_features::Instructions;
use crate::error::named;
use crate::image::Rgb;
use crate::normalize::layout::{Dtype, Layout};
use crate::normalize::simd::{Arithmetic, ByteTable, ChannelTables, SEGMENT, bytes_of, fetch};
use crate::resize::simd::Passes;
use crate::try_alloc;

/// ImageNet means in RGB order, for values in [0, 1].
pub const IMAGENET_MEAN: [f64; 3] = [0.485, 0.456, 0.406];
/// ImageNet standard deviations in RGB order, for values in [0, 1].
pub const IMAGENET_STD: [f64; 3] = [0.229, 0.224, 0.225];

/// Channel order of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelOrder {
    /// RGB.
    Rgb,
    /// BGR.
    Bgr,
}

named!(ChannelOrder, "channel_order", [Rgb = "rgb", Bgr = "bgr"]);

/// Normalization parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normalization {
    /// Channel order of the output; `mean` and `std` are always in RGB order.
    pub channel_order: ChannelOrder,
    /// Subtracted from values in [0, 1].
    pub mean: [f64; 3],
    /// Divisor after the subtraction.
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
    /// [`Error::Argument`] that names the invalid field.
    pub fn check(&self) -> Result<(), Error> {
        if !self.std.iter().all(|&std| std > 0.0 && std.is_finite()) {
            let reason = format!("{:?}; expected numbers above 0", self.std);
            return Err(Error::argument("std", reason));
        }
        if !self.mean.iter().all(|mean| mean.is_finite()) {
            let reason = format!("{:?}; expected finite numbers", self.mean);
            return Err(Error::argument("mean", reason));
        }
        Ok(())
    }

    /// Source channel of each output channel.
    fn channels(&self) -> [usize; 3] {
        match self.channel_order {
            ChannelOrder::Rgb => [0, 1, 2],
            ChannelOrder::Bgr => [2, 1, 0],
        }
    }

    /// Normalized value for each byte of a source channel, computed as by torchvision's `ToTensor`
    /// and `Normalize`.
    #[allow(clippy::cast_possible_truncation)] // Single precision, as in torchvision.
    fn table(&self, channel: usize) -> [f32; 256] {
        let (mean, std) = (self.mean[channel] as f32, self.std[channel] as f32);
        let mut table = [0.0; 256];
        for (value, entry) in (0_u16..).zip(&mut table) {
            *entry = (f32::from(value) / 255.0 - mean) / std;
        }
        table
    }

    /// Arithmetic that exactly reproduces the table of a source channel, if there is any.
    #[allow(clippy::cast_possible_truncation)] // Rounded.
    fn arithmetic(&self, channel: usize) -> Option<Arithmetic> {
        let std = f64::from(self.std[channel] as f32);
        let high = (1.0 / std) as f32;
        let arithmetic = Arithmetic {
            mean: self.mean[channel] as f32,
            scale: [high, (1.0 / std - f64::from(high)) as f32],
        };
        let table = self.table(channel);
        let same = (0_u8..=255)
            .zip(table)
            .all(|(byte, value)| arithmetic.value(byte).to_bits() == value.to_bits());
        (same && table.iter().all(|value| value.is_finite())).then_some(arithmetic)
    }
}

/// Writes normalized rows into a batch.
#[derive(Clone, Debug)]
pub(crate) struct RowWriter {
    layout: Layout,
    values: ChannelTables,
    /// Stored value of the padding in each output channel.
    padding: [[u8; 4]; 3],
}

impl RowWriter {
    /// Build the lookup tables.
    ///
    /// # Errors
    /// [`Error::Argument`] if the mean or standard deviation is invalid.
    pub fn new(
        normalization: &Normalization,
        layout: Layout,
        dtype: Dtype,
        instructions: Instructions,
    ) -> Result<Self, Error> {
        normalization.check()?;
        let channels = normalization.channels();
        let tables = channels.map(|channel| {
            let values = normalization.table(channel);
            ByteTable::new(|byte| dtype.stored(byte, values[usize::from(byte)]))
        });
        let [first, second, third] = channels.map(|channel| normalization.arithmetic(channel));
        let arithmetic = match (first, second, third) {
            // uint8 output needs no arithmetic.
            _ if dtype == Dtype::Uint8 => Some([Arithmetic::default(); 3]),
            (Some(first), Some(second), Some(third)) => Some([first, second, third]),
            _ => None,
        };
        let values = ChannelTables {
            passes: Passes::new(instructions),
            dtype,
            channels,
            tables,
            arithmetic,
        };
        Ok(Self {
            layout,
            values,
            padding: [[0; 4]; 3],
        })
    }

    /// Pad with a byte, which is normalized like those of an image, in place of zeros.
    #[must_use]
    pub fn padded_with(mut self, byte: u8, normalization: &Normalization) -> Self {
        let dtype = self.values.dtype;
        self.padding = normalization
            .channels()
            .map(|channel| dtype.stored(byte, normalization.table(channel)[usize::from(byte)]));
        self
    }

    /// Fill values of an output channel, or pixels of all channels, with the padding.
    fn fill(&self, part: &mut [u8], channels: std::ops::Range<usize>) {
        if self.padding == [[0; 4]; 3] {
            part.fill(0);
            return;
        }
        let bytes = self.values.dtype.bytes();
        let own = self.padding.get(channels).unwrap_or_default();
        let values = own.iter().cycle();
        for (value, stored) in part.chunks_exact_mut(bytes).zip(values) {
            value.copy_from_slice(stored.get(..bytes).unwrap_or_default());
        }
    }

    /// Number of bytes of an image of `size` (height, width).
    #[must_use]
    pub fn slot_bytes(&self, size: (usize, usize)) -> usize {
        size.0 * size.1 * 3 * self.values.dtype.bytes()
    }

    /// Write a row of RGB bytes to row `y` of the image in `slot`, optionally mirrored, and fill
    /// the rest of the row with the padding.
    ///
    /// `slot` holds the bytes of one image of the batch, whose padded size is `slot_size` (height,
    /// width).
    ///
    /// # Errors
    /// [`Error::Argument`] if the row or the slot has the wrong length.
    pub fn write_row(
        &self,
        row: &[u8],
        slot: &mut [u8],
        slot_size: (usize, usize),
        y: usize,
        flip: bool,
    ) -> Result<(), Error> {
        if !row.len().is_multiple_of(3) || row.len() / 3 > slot_size.1 || y >= slot_size.0 {
            return Err(Error::argument(
                "row",
                format!(
                    "row {y} has {} bytes; expected a row within {} x {} pixels of 3 bytes each",
                    row.len(),
                    slot_size.0,
                    slot_size.1
                ),
            ));
        }
        self.check_slot(slot, slot_size)?;
        self.put_row(row, slot, slot_size, y, flip);
        Ok(())
    }

    fn put_row(
        &self,
        row: &[u8],
        slot: &mut [u8],
        slot_size: (usize, usize),
        y: usize,
        flip: bool,
    ) {
        let bytes = self.values.dtype.bytes();
        let (stride, used) = (slot_size.1 * bytes, row.len() / 3 * bytes);
        match self.layout {
            Layout::Chw => {
                let (red, rest) = slot.split_at_mut(stride * slot_size.0);
                let (green, blue) = rest.split_at_mut(stride * slot_size.0);
                let mut channels = 0..;
                let mut planes = [red, green, blue].map(|plane| {
                    let (row, below) = plane[y * stride..].split_at_mut(stride);
                    fetch_later(below, stride, used);
                    let channel = channels.next().unwrap_or_default();
                    self.fill(&mut row[used..], channel..channel + 1);
                    row
                });
                for_segments(row, flip, |x, segment| {
                    let place = x * bytes..x * bytes + segment.len() / 3 * bytes;
                    let outputs = planes.each_mut().map(|plane| &mut plane[place.clone()]);
                    self.values.write_planes(segment, flip, outputs);
                });
            }
            Layout::Hwc => {
                let (output, below) = slot[y * 3 * stride..].split_at_mut(3 * stride);
                fetch_later(below, 3 * stride, 3 * used);
                self.fill(&mut output[3 * used..], 0..3);
                for_segments(row, flip, |x, segment| {
                    let output = &mut output[3 * x * bytes..][..segment.len() * bytes];
                    self.values.write_pixels(segment, flip, output);
                });
            }
        }
    }

    /// Fill the rows below an image of `height` rows with the padding.
    ///
    /// # Errors
    /// [`Error::Argument`] if the slot has the wrong length.
    pub fn pad_below(
        &self,
        slot: &mut [u8],
        slot_size: (usize, usize),
        height: usize,
    ) -> Result<(), Error> {
        self.check_slot(slot, slot_size)?;
        let parts = match self.layout {
            Layout::Chw => 3,
            Layout::Hwc => 1,
        };
        let written = self.slot_bytes((height, slot_size.1)) / parts;
        let each = 3 / parts;
        for (number, part) in (0..).zip(slot.chunks_exact_mut((slot.len() / parts).max(1))) {
            let channels = number * each..(number + 1) * each;
            self.fill(part.get_mut(written..).unwrap_or_default(), channels);
        }
        Ok(())
    }

    fn check_slot(&self, slot: &[u8], slot_size: (usize, usize)) -> Result<(), Error> {
        if slot.len() == self.slot_bytes(slot_size) {
            return Ok(());
        }
        Err(Error::argument(
            "slot",
            format!(
                "{} bytes; expected {} for {} x {} pixels",
                slot.len(),
                self.slot_bytes(slot_size),
                slot_size.0,
                slot_size.1
            ),
        ))
    }
}

/// Prefetch distance in rows; a few rows are finished at a time.
const AHEAD: usize = 3;

/// Prefetch a later output row so that its stores do not stall.
fn fetch_later(below: &[u8], stride: usize, used: usize) {
    let start = (AHEAD - 1) * stride;
    if let Some(row) = below.get(start..start + used) {
        fetch(row);
    }
}

/// Segments of a row, each with its first output column.
fn for_segments(row: &[u8], flip: bool, mut write: impl FnMut(usize, &[u8])) {
    let segments = row.len().div_ceil(3 * SEGMENT);
    for number in 0..segments {
        let start = 3 * SEGMENT * number;
        let end = row.len().min(start + 3 * SEGMENT);
        if flip {
            write(start / 3, &row[row.len() - end..row.len() - start]);
        } else {
            write(start / 3, &row[start..end]);
        }
    }
}

/// Normalize images into a planar batch, padded on the right and bottom: with zeros, or with a
/// normalized byte.
///
/// Returns the values and the padded (height, width): the largest image, rounded up to `divisor`.
pub(crate) fn write(
    images: &[&Rgb],
    normalization: &Normalization,
    divisor: usize,
    padding: Option<u8>,
) -> Result<(Vec<f32>, (usize, usize)), Error> {
    let largest = |side: fn(&&Rgb) -> usize| {
        let largest = images.iter().map(side).max().unwrap_or(0);
        largest.next_multiple_of(divisor)
    };
    let (height, width) = (largest(|image| image.height), largest(|image| image.width));
    let count = images.len().saturating_mul(3 * height * width);
    let mut values = try_alloc::filled(0.0, count, try_alloc::of_image(height, width))?;
    let instructions = Instructions::best();
    let mut writer = RowWriter::new(normalization, Layout::Chw, Dtype::Float32, instructions)?;
    if let Some(byte) = padding {
        writer = writer.padded_with(byte, normalization);
    }
    let slots = values.chunks_exact_mut((3 * height * width).max(1));
    for (slot, image) in slots.zip(images) {
        let slot = bytes_of(slot);
        for (y, row) in image.pixels.chunks_exact(image.width * 3).enumerate() {
            writer.put_row(row, slot, (height, width), y, false);
        }
        writer.pad_below(slot, (height, width), image.height)?;
    }
    Ok((values, (height, width)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_images_give_no_values() {
        let (values, size) = write(&[], &Normalization::default(), 32, None).unwrap();
        assert!(values.is_empty());
        assert_eq!(size, (0, 0));
    }

    #[test]
    fn values_are_normalized_in_the_requested_order() {
        let image = Rgb::new(1, 1, vec![0, 128, 255]);
        let normalization = Normalization {
            channel_order: ChannelOrder::Bgr,
            ..Normalization::default()
        };
        let (values, _) = write(&[&image], &normalization, 1, None).unwrap();
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
    fn padding_is_normalized_like_pixels() {
        let image = Rgb::new(2, 1, vec![128, 128, 128, 0, 0, 0]);
        let normalization = Normalization::default();
        let (values, size) = write(&[&image], &normalization, 3, Some(128)).unwrap();
        assert_eq!(size, (3, 3));
        let (planes, _) = values.as_chunks::<9>();
        for plane in planes {
            let mut expected = [plane[0]; 9];
            expected[3] = plane[3];
            assert_eq!(plane.map(f32::to_bits), expected.map(f32::to_bits));
            assert!(plane[0] > plane[3]);
        }
        let (zeros, _) = write(&[&image], &normalization, 3, None).unwrap();
        assert!(zeros[1..3].iter().all(|value| value.to_bits() == 0));
        for (layout, dtype) in [(Layout::Chw, Dtype::Float16), (Layout::Hwc, Dtype::Uint8)] {
            let writer = RowWriter::new(&normalization, layout, dtype, Instructions::Scalar);
            let writer = writer.unwrap().padded_with(7, &normalization);
            let mut slot = vec![0xAA; writer.slot_bytes((3, 3))];
            let rows = image.pixels.chunks_exact(3).enumerate();
            rows.for_each(|(y, row)| writer.write_row(row, &mut slot, (3, 3), y, false).unwrap());
            writer.pad_below(&mut slot, (3, 3), 2).unwrap();
            let value = |at: usize| match dtype {
                Dtype::Uint8 => vec![slot[at]],
                _ => slot[2 * at..2 * at + 2].to_vec(),
            };
            // (1, 0), (1, 1) and (2, 2) of the first channel.
            let offsets = if layout == Layout::Hwc {
                [9, 12, 24]
            } else {
                [3, 4, 8]
            };
            assert_eq!(value(offsets[1]), value(offsets[2]));
            assert_ne!(value(offsets[0]), value(offsets[1]));
        }
    }

    #[test]
    fn wrong_arguments_are_named() {
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
