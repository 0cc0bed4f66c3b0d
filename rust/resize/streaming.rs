//! Streaming resize: takes source rows from top to bottom, emits finished rows, and keeps only the
//! rows that are still needed.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::Error;
use crate::boxes::Crop;
use crate::cpu_features::Instructions;
use crate::resize::simd::{Across, COLUMNS, Passes, Quads, Rows};
use crate::resize::weights::{QUAD, QuadWeights, Span, Weights};
use crate::resize::{Filter, Method, Precision, ResizeTarget, check_output};

/// Buffers and weight tables, reused between resizes.
#[derive(Debug)]
pub struct ResizeScratch {
    passes: Passes,
    across: WeightCache<Across>,
    down: WeightCache<QuadWeights>,
    /// Four source rows, each in three planes.
    planes: Vec<u8>,
    /// Horizontally resized rows, in groups of four.
    ring: Vec<u8>,
    /// An output row with padding.
    row: Vec<u8>,
    /// Ring offsets of the rows that an output row depends on.
    starts: Vec<usize>,
}

impl Default for ResizeScratch {
    fn default() -> Self {
        Self::new(Instructions::best())
    }
}

impl ResizeScratch {
    /// Create empty buffers for the given instruction set, or a lower one if the processor lacks
    /// it.
    #[must_use]
    pub fn new(instructions: Instructions) -> Self {
        Self {
            passes: Passes::new(instructions),
            across: WeightCache::default(),
            down: WeightCache::default(),
            planes: Vec::new(),
            ring: Vec::new(),
            row: Vec::new(),
            starts: Vec::new(),
        }
    }
}

/// Input size in pixels, output positions, the filter, and whether the weights are rounded.
type Key = (usize, Span, Filter, bool);

/// Recently used tables, most recent first.
#[derive(Debug)]
struct WeightCache<T>(VecDeque<(Key, Arc<T>)>);

impl<T> Default for WeightCache<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T> WeightCache<T> {
    /// Image sizes vary, but in most datasets a few sizes are frequent.
    const ENTRIES: usize = 16;

    fn get(&mut self, key: Key, make: impl FnOnce(Weights) -> T) -> Arc<T> {
        let found = self.0.iter().position(|(known, _)| *known == key);
        let entry = found.and_then(|place| self.0.remove(place));
        let (input, output, filter, _) = key;
        let (_, table) =
            entry.unwrap_or_else(|| (key, Arc::new(make(Weights::new(input, output, filter)))));
        self.0.truncate(Self::ENTRIES - 1);
        self.0.push_front((key, Arc::clone(&table)));
        table
    }
}

/// A streaming resize operation.
#[derive(Debug)]
pub struct RowResizer<'a> {
    scratch: &'a mut ResizeScratch,
    across: Arc<Across>,
    down: Arc<QuadWeights>,
    /// (height, width) of the source.
    source: (usize, usize),
    crop: Crop,
    /// (height, width) of the output.
    output: (usize, usize),
    /// Output width with padding.
    columns: usize,
    /// Bytes of a group of four rows in the ring.
    quad: usize,
    /// Bytes of one channel of a source row, with padding.
    plane: usize,
    /// Number of rows received inside the crop.
    received: usize,
    /// Number of output rows emitted.
    emitted: usize,
}

impl<'a> RowResizer<'a> {
    /// Crop an image of `source` (height, width) and resize it to `output`, a [`ResizeTarget`] or
    /// (height, width).
    ///
    /// `method` is a [`Method`], or a [`Filter`] for a bit-exact resize.
    ///
    /// # Errors
    /// [`Error::Argument`] if a size is 0 or the crop extends beyond the image.
    pub fn new(
        scratch: &'a mut ResizeScratch,
        source: (usize, usize),
        crop: Crop,
        output: impl Into<ResizeTarget>,
        method: impl Into<Method>,
    ) -> Result<Self, Error> {
        let ResizeTarget { whole, window } = output.into();
        check(source, crop, whole, window)?;
        let output = (window.height, window.width);
        let Method { filter, precision } = method.into();
        let passes = scratch.passes;
        let axes = [(crop.height, whole.0), (crop.width, whole.1)];
        let is_fast = precision == Precision::Fast && passes.are_fast(axes);
        let rows = Span {
            whole: whole.0,
            first: window.top,
            length: window.height,
        };
        let columns = Span {
            whole: whole.1,
            first: window.left,
            length: window.width,
        };
        let down = (crop.height, rows, filter, is_fast);
        let across = (crop.width, columns, filter, is_fast);
        let rounded = |weights: Weights| {
            if is_fast { weights.round() } else { weights }
        };
        let lay_out = |weights| passes.lay_out(rounded(weights), is_fast);
        let across = scratch.across.get(across, lay_out);
        let down = scratch
            .down
            .get(down, |weights| QuadWeights::new(&rounded(weights)));
        let columns = output.1.next_multiple_of(COLUMNS);
        let plane = across.plane(crop.width);
        grow(&mut scratch.planes, 3 * QUAD * plane);
        let quad = 3 * QUAD * columns * across.value_bytes();
        grow(&mut scratch.ring, down.most * quad);
        grow(&mut scratch.row, 3 * columns);
        Ok(Self {
            scratch,
            across,
            down,
            source,
            crop,
            output,
            columns,
            quad,
            plane,
            received: 0,
            emitted: 0,
        })
    }

    /// Index of the last source row that is needed.
    #[must_use]
    pub fn last_row_needed(&self) -> usize {
        self.crop.top + self.down.needed - 1
    }

    /// Push source rows from top to bottom. `take` receives each completed output row: its index
    /// and RGB bytes.
    ///
    /// Rows above the crop or after [`Self::last_row_needed`] are ignored and may be omitted.
    ///
    /// # Errors
    /// [`Error::Argument`] if rows are missing or repeated, or the last row is incomplete.
    pub fn push_rows(
        &mut self,
        first_row: usize,
        rows: &[u8],
        emit: &mut dyn FnMut(usize, &[u8]),
    ) -> Result<(), Error> {
        let stride = self.source.1 * 3;
        if !rows.len().is_multiple_of(stride) {
            let reason = format!("{} bytes; expected rows of {stride} bytes", rows.len());
            return Err(Error::argument("rows", reason));
        }
        if self.received == self.down.needed {
            return Ok(());
        }
        let next = self.crop.top + self.received;
        if first_row > next || (self.received > 0 && first_row != next) {
            let reason = format!("row {first_row}; expected row {next}");
            return Err(Error::argument("rows", reason));
        }
        let columns = self.crop.left * 3..(self.crop.left + self.crop.width) * 3;
        let needed = self.down.needed - self.received;
        for row in rows
            .chunks_exact(stride)
            .skip(next - first_row)
            .take(needed)
        {
            let row = row.get(columns.clone()).unwrap_or_default();
            let place = self.received % QUAD * 3;
            let planes = [0, 1, 2].map(|channel| (place + channel) * self.plane);
            let scratch = &mut *self.scratch;
            scratch.passes.split(row, &mut scratch.planes, planes);
            self.received += 1;
            if self.received.is_multiple_of(QUAD) || self.received == self.down.needed {
                self.finish_quad();
                self.emit_rows(emit);
            }
        }
        Ok(())
    }

    /// Apply the horizontal pass to the most recent rows. An unfinished group contains old rows,
    /// whose weights are 0.
    fn finish_quad(&mut self) {
        let number = (self.received - 1) / QUAD;
        // Rows above those that the window depends on.
        if self
            .down
            .of(self.emitted)
            .is_some_and(|(first, _)| number < first)
        {
            return;
        }
        let start = number % self.down.most * self.quad;
        let scratch = &mut *self.scratch;
        if let Some(quads) = scratch.ring.get_mut(start..) {
            let rows = Rows {
                planes: &scratch.planes,
                plane: self.plane,
                columns: self.columns,
            };
            scratch.passes.across(&self.across, rows, quads);
        }
    }

    fn emit_rows(&mut self, emit: &mut dyn FnMut(usize, &[u8])) {
        let finished = self.received.div_ceil(QUAD);
        let (quad, most) = (self.quad, self.down.most);
        let bytes = 3 * self.output.1;
        let scratch = &mut *self.scratch;
        while let Some((first, weights)) = self.down.of(self.emitted) {
            if first + weights.len() > finished {
                break;
            }
            scratch.starts.clear();
            let numbers = first..first + weights.len();
            let starts = numbers.map(|number| number % most * quad);
            scratch.starts.extend(starts);
            let quads = Quads {
                ring: &scratch.ring,
                starts: &scratch.starts,
                weights,
                columns: self.columns,
            };
            scratch.passes.down(&self.across, quads, &mut scratch.row);
            emit(self.emitted, scratch.row.get(..bytes).unwrap_or_default());
            self.emitted += 1;
        }
    }
}

/// Grow a buffer; its contents are arbitrary.
fn grow(memory: &mut Vec<u8>, bytes: usize) {
    if memory.len() < bytes {
        memory.resize(bytes, 0);
    }
}

fn check(
    source: (usize, usize),
    crop: Crop,
    whole: (usize, usize),
    window: Crop,
) -> Result<(), Error> {
    check_output("size", window.height, window.width)?;
    let inside = |start: usize, length: usize, whole: usize| {
        length > 0 && start.checked_add(length).is_some_and(|end| end <= whole)
    };
    if !inside(crop.top, crop.height, source.0) || !inside(crop.left, crop.width, source.1) {
        return Err(Error::argument(
            "crop",
            format!(
                "{crop:?}; expected a crop inside an image of {} x {} pixels",
                source.0, source.1
            ),
        ));
    }
    if !inside(window.top, window.height, whole.0) || !inside(window.left, window.width, whole.1) {
        return Err(Error::argument(
            "window",
            format!(
                "{window:?}; expected a window inside a resized image of {} x {} pixels",
                whole.0, whole.1
            ),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::gradient;
    use crate::image::Rgb;
    use crate::resize::{resize, resize_with};

    fn whole(image: &Rgb) -> Crop {
        Crop::whole(image.height, image.width)
    }

    /// Push rows in portions, from the first row of the crop to the last row needed.
    fn streamed(scratch: &mut ResizeScratch, image: &Rgb, crop: Crop, portion: usize) -> Vec<u8> {
        let source = (image.height, image.width);
        let mut resizer = RowResizer::new(scratch, source, crop, (9, 13), Filter::Bicubic).unwrap();
        let rows: Vec<&[u8]> = image.pixels.chunks(image.width * 3).collect();
        let numbers: Vec<usize> = (crop.top..=resizer.last_row_needed()).collect();
        let mut pixels = Vec::new();
        for numbers in numbers.chunks(portion) {
            let rows = rows[numbers[0]..numbers[0] + numbers.len()].concat();
            let mut emit = |y, row: &[u8]| {
                assert_eq!(y * 13 * 3, pixels.len());
                pixels.extend_from_slice(row);
            };
            resizer.push_rows(numbers[0], &rows, &mut emit).unwrap();
        }
        pixels
    }

    #[test]
    fn rows_in_portions_give_the_same_with_all_instructions() {
        let crop = |top, left, height, width| Crop {
            top,
            left,
            height,
            width,
        };
        for (height, width, crop) in [
            (20, 30, crop(0, 0, 20, 30)),
            (40, 33, crop(7, 3, 30, 29)),
            (5, 7, crop(1, 2, 3, 4)),
            (300, 900, crop(2, 1, 291, 890)),
        ] {
            let image = gradient(height, width);
            let mut plain = ResizeScratch::new(Instructions::Scalar);
            let expected = streamed(&mut plain, &image, crop, 1);
            assert_eq!(expected.len(), 9 * 13 * 3);
            for instructions in Instructions::available() {
                let mut scratch = ResizeScratch::new(instructions);
                for portion in [1, 3, 8, 1000] {
                    assert!(
                        streamed(&mut scratch, &image, crop, portion) == expected,
                        "{instructions:?}, {portion} rows of {crop:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn tables_are_cached() {
        let mut scratch = ResizeScratch::default();
        let image = gradient(4, 6);
        for side in (1..40).chain([1, 39, 38]) {
            let output = (side, side);
            let found = resize_with(&mut scratch, &image, whole(&image), output, Filter::Bicubic);
            let fresh = resize(&image, whole(&image), side, side, Filter::Bicubic);
            assert_eq!(found.unwrap(), fresh.unwrap());
            assert!(scratch.down.0.len() <= WeightCache::<QuadWeights>::ENTRIES);
        }
        assert_eq!(scratch.down.0[0].0, (4, 38.into(), Filter::Bicubic, false));
        assert_eq!(
            scratch.across.0[1].0,
            (6, 39.into(), Filter::Bicubic, false)
        );
    }

    #[test]
    fn missing_and_repeated_rows_are_named() {
        let mut scratch = ResizeScratch::default();
        let image = gradient(9, 2);
        let (size, crop) = ((9, 2), whole(&image));
        let mut resizer =
            RowResizer::new(&mut scratch, size, crop, (3, 3), Filter::Bilinear).unwrap();
        let mut push = |first, bytes: &[u8]| {
            let pushed = resizer.push_rows(first, bytes, &mut |_, _| {});
            pushed.err().map(|error| error.to_string())
        };
        assert_eq!(push(0, &image.pixels[..12]), None);
        assert_eq!(
            push(3, &image.pixels[..6]).unwrap(),
            "rows: row 3; expected row 2"
        );
        assert!(push(1, &image.pixels[..6]).is_some());
        assert!(push(2, &image.pixels[..5]).unwrap().contains("5 bytes"));
        assert_eq!(push(2, &image.pixels[12..]), None);
        // No more rows are needed.
        assert_eq!(push(20, &image.pixels[..6]), None);
    }
}
