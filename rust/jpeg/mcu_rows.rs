//! Convert blocks to pixel rows, a few MCU rows at a time, so that no plane of the whole image is
//! allocated.

use super::block::Block;
use super::frame::Frame;
use super::markers::ColorSpace;
use super::pixels::upsample::{self, Upsampling};
use super::pixels::{color, idct};
use super::simd::Simd;

/// Number of blocks transformed per call.
const BLOCKS: usize = 32;

/// Samples of a component: one MCU row and the last rows of the previous MCU row.
#[derive(Default)]
struct Plane {
    samples: Vec<u8>,
    stride: usize,
    /// Number of rows kept from the previous MCU row.
    kept: usize,
    /// Number of sample rows per MCU row.
    rows: usize,
    /// Samples per block side.
    scale: usize,
    /// Number of sample rows for `max_v` rows of the image.
    group: usize,
    /// Number of valid samples.
    width: usize,
    height: usize,
    upsampling: Option<Upsampling>,
    /// A row buffer of the image's width.
    wide: Vec<u8>,
    /// Quantization table, latched in the component's first scan.
    quantization: Option<[u16; 64]>,
}

impl Plane {
    /// A row of samples; rows above and below the image repeat the nearest row.
    fn row(&self, mcu_row: usize, row: usize) -> &[u8] {
        let at = row.min(self.height - 1) + self.kept - mcu_row * self.rows;
        let start = at * self.stride;
        self.samples
            .get(start..start + self.width)
            .unwrap_or_default()
    }
}

/// Destination of pixel rows.
pub(super) enum Target<'t> {
    /// Callback that gets the index of the first row and complete rows.
    Sink(&'t mut dyn FnMut(usize, &[u8])),
    /// Buffer for the whole image.
    Image(&'t mut [u8]),
}

/// Converts MCU rows to pixel rows.
pub(super) struct McuRows {
    pub(super) simd: Simd,
    planes: Vec<Plane>,
    pub(super) height: usize,
    pub(super) width: usize,
    /// Image rows per MCU row and per group.
    mcu_height: usize,
    group_height: usize,
    has_context: bool,
    next_row: usize,
    pixels: Vec<u8>,
}

impl McuRows {
    pub(super) fn new(simd: Simd) -> Self {
        Self {
            simd,
            planes: Vec::new(),
            height: 0,
            width: 0,
            mcu_height: 0,
            group_height: 0,
            has_context: false,
            next_row: 0,
            pixels: Vec::new(),
        }
    }

    /// Start an image whose blocks become `size` x `size` samples each.
    pub(super) fn reset(&mut self, frame: &Frame, size: usize) {
        let count = frame.components.len();
        self.planes.truncate(count);
        self.planes.resize_with(count, Plane::default);
        self.height = (frame.height * size).div_ceil(8);
        self.width = (frame.width * size).div_ceil(8);
        self.mcu_height = frame.max_v * size;
        self.group_height = frame.max_v;
        self.next_row = 0;
        for (plane, component) in self.planes.iter_mut().zip(&frame.components) {
            let (mut scale, mut h, mut v) =
                (size, frame.max_h / component.h, frame.max_v / component.v);
            // A larger inverse DCT replaces upsampling if both directions allow it.
            while scale < 8 && h % 2 == 0 && v % 2 == 0 {
                (scale, h, v) = (scale * 2, h / 2, v / 2);
            }
            plane.scale = scale;
            plane.width = (frame.width * component.h * scale).div_ceil(8 * frame.max_h);
            plane.height = (frame.height * component.v * scale).div_ceil(8 * frame.max_v);
            plane.rows = component.v * scale;
            plane.group = plane.rows / size;
            plane.stride = frame.mcus_wide * component.h * scale;
            plane.upsampling = Some(Upsampling::new(h, v, plane.width, size > 1));
            plane.quantization = None;
        }
        self.has_context = self
            .planes
            .iter()
            .any(|plane| plane.upsampling.is_some_and(Upsampling::needs_context));
        for plane in &mut self.planes {
            plane.kept = if self.has_context { 2 * plane.group } else { 0 };
            plane.samples.clear();
            plane
                .samples
                .resize((plane.kept + plane.rows) * plane.stride, 128);
            plane.wide.resize(frame.mcus_wide * frame.max_h * size, 0);
        }
    }

    /// True if all rows up to row `end` were emitted.
    pub(super) fn is_done(&self, end: usize) -> bool {
        self.next_row >= end
    }

    /// Set the quantization table of a component unless it has one.
    pub(super) fn set_quantization(&mut self, index: usize, table: &[u16; 64]) {
        if let Some(plane) = self.planes.get_mut(index) {
            plane.quantization.get_or_insert(*table);
        }
    }

    pub(super) fn quantization(&self, index: usize) -> Option<[u16; 64]> {
        self.planes.get(index).and_then(|plane| plane.quantization)
    }

    /// Transform blocks of one block row (`row` in its MCU row), starting at block `first`.
    pub(super) fn transform<'b>(
        &mut self,
        index: usize,
        row: usize,
        mut first: usize,
        mut blocks: impl Iterator<Item = &'b Block>,
    ) {
        let mut some = [&Block::ZERO; BLOCKS];
        loop {
            let places = some.iter_mut().zip(blocks.by_ref());
            let count = places.map(|(to, block)| *to = block).count();
            if count == 0 {
                return;
            }
            let some = some.get(..count).unwrap_or_default();
            self.transform_some(index, row, first, some);
            first += count;
        }
    }

    fn transform_some(&mut self, index: usize, row: usize, first: usize, blocks: &[&Block]) {
        let Some(plane) = self.planes.get_mut(index) else {
            return;
        };
        let quantization = plane.quantization.unwrap_or([0; 64]);
        let start = (plane.kept + row * plane.scale) * plane.stride;
        let at = start + first * plane.scale;
        let out = plane.samples.get_mut(at..).unwrap_or_default();
        let simd = self.simd;
        if simd.transform(blocks, &quantization, plane.scale, out, plane.stride) {
            return;
        }
        for (column, block) in blocks.iter().enumerate() {
            let out = out.get_mut(column * plane.scale..).unwrap_or_default();
            idct::transform(block, &quantization, plane.scale, out, plane.stride);
        }
    }

    /// Emit the rows completed by an MCU row, up to row `end` of the image.
    pub(super) fn emit(
        &mut self,
        mcu_row: usize,
        space: ColorSpace,
        end: usize,
        target: &mut Target<'_>,
    ) {
        let below = (mcu_row + 1) * self.mcu_height;
        let complete = if below >= self.height {
            self.height
        } else if self.has_context {
            below - self.group_height
        } else {
            below
        };
        let (first, last) = (self.next_row, complete.min(end));
        if first < last {
            let row_bytes = self.width * 3;
            match target {
                Target::Sink(sink) => {
                    let mut pixels = std::mem::take(&mut self.pixels);
                    pixels.resize((last - first) * row_bytes, 0);
                    self.fill(mcu_row, first, space, &mut pixels);
                    sink(first, &pixels);
                    self.pixels = pixels;
                }
                Target::Image(pixels) => {
                    let pixels = pixels.get_mut(first * row_bytes..last * row_bytes);
                    self.fill(mcu_row, first, space, pixels.unwrap_or_default());
                }
            }
            self.next_row = last;
        }
        for plane in &mut self.planes {
            let start = plane.rows * plane.stride;
            plane
                .samples
                .copy_within(start..start + plane.kept * plane.stride, 0);
        }
    }

    /// Fill pixel rows, starting at row `first`.
    fn fill(&mut self, mcu_row: usize, first: usize, space: ColorSpace, pixels: &mut [u8]) {
        for (row, out) in (first..).zip(pixels.chunks_exact_mut(self.width * 3)) {
            self.pixels_of(mcu_row, row, space, out);
        }
    }

    fn pixels_of(&mut self, mcu_row: usize, row: usize, space: ColorSpace, out: &mut [u8]) {
        let simd = self.simd;
        for plane in &mut self.planes {
            let Some(upsampling) = plane.upsampling else {
                return;
            };
            let near = row / upsampling.rows();
            let is_lower = row % 2 == 1;
            let far = (near + usize::from(is_lower)).saturating_sub(usize::from(!is_lower));
            let mut wide = std::mem::take(&mut plane.wide);
            let samples = |row: usize| plane.row(mcu_row, row);
            match upsampling {
                Upsampling::None => {}
                Upsampling::Repeat { h, .. } => upsample::repeat(samples(near), h, &mut wide),
                Upsampling::Wide => {
                    let done = simd.wide(samples(near), &mut wide);
                    upsample::wide(samples(near), &mut wide, done);
                }
                Upsampling::High => {
                    upsample::high(samples(near), samples(far), is_lower, &mut wide);
                }
                Upsampling::Both => {
                    let done = simd.both(samples(near), samples(far), &mut wide);
                    upsample::both(samples(near), samples(far), &mut wide, done);
                }
            }
            plane.wide = wide;
        }
        let mut rows: [&[u8]; 4] = [&[]; 4];
        for (to, plane) in rows.iter_mut().zip(&self.planes) {
            *to = match plane.upsampling {
                Some(Upsampling::None) => plane.row(mcu_row, row),
                _ => &plane.wide,
            };
        }
        let done = match space {
            ColorSpace::YCbCr => simd.convert(rows[0], rows[1], rows[2], out),
            _ => 0,
        };
        color::convert(space, rows, out, done);
    }
}
