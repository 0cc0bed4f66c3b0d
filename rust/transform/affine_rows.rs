//! Rows of an affine warp: source coordinates, the four neighbors, and their interpolation.

// Loops are inlined so that they are compiled for several instruction sets; all numbers are far
// below the limits of their target types.
#![allow(
    clippy::inline_always,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss
)]

use crate::image::Rgb;
use crate::simd::{self as simd, INTEGER};
use crate::transform::affine::{Affine, FILL};

/// Number of pixels per iteration of OpenCV's vector loop.
const BLOCK: usize = 16;

/// Compute all output rows: find sources, fetch four neighbors, interpolate.
pub(crate) struct WarpRows<'a> {
    pub(crate) image: &'a Rgb,
    pub(crate) map: &'a Affine,
    pub(crate) output: &'a mut [u8],
}

impl simd::SimdLoop for WarpRows<'_> {
    #[inline(always)]
    fn run(self) {
        let mut row = Row::new(self.image.width);
        let stride = self.image.width * 3;
        for (y, output) in self.output.chunks_exact_mut(stride).enumerate() {
            locate(self.map.x, y, &mut row.columns, &mut row.across);
            locate(self.map.y, y, &mut row.rows, &mut row.down);
            row.find_starts(self.image);
            row.fetch(self.image);
            row.interpolate();
            write_row(&row.corners[0], output);
        }
    }
}

/// Data for one output row, with one entry per pixel.
struct Row {
    /// Column of the top left neighbor.
    columns: Vec<i32>,
    /// Row of the top left neighbor.
    rows: Vec<i32>,
    /// Byte offset of the top left neighbor; [`OUTSIDE`] if any of the four is outside the image.
    starts: Vec<u32>,
    /// Weights of the right neighbors.
    across: Vec<f32>,
    /// Weights of the bottom neighbors.
    down: Vec<f32>,
    /// Top left, top right, bottom left and bottom right neighbors, with red in the lowest byte and
    /// an arbitrary highest byte. In the end, the first array holds the output row.
    corners: [Vec<u32>; 4],
}

/// An offset that no pixel has, because images are smaller.
const OUTSIDE: u32 = u32::MAX;

/// Split one source coordinate of row `y` into its integer part and fraction.
#[inline(always)]
fn locate(coordinate: [f32; 3], y: usize, whole: &mut [i32], rest: &mut [f32]) {
    let [per_x, per_y, offset] = coordinate;
    let of_row = y as f32 * per_y;
    let start = of_row + offset;
    let blocks = whole.len() / BLOCK * BLOCK;
    let split = |source: f32| {
        let floor = source.floor();
        let integer = (floor + INTEGER).to_bits().wrapping_sub(INTEGER.to_bits());
        (integer as i32, source - floor)
    };
    for (x, (whole, rest)) in (0_i32..).zip(whole.iter_mut().zip(&mut *rest)).take(blocks) {
        (*whole, *rest) = split(per_x.mul_add(x as f32, start));
    }
    for (x, (whole, rest)) in whole.iter_mut().zip(rest).enumerate().skip(blocks) {
        (*whole, *rest) = split(per_x.mul_add(x as f32, of_row) + offset);
    }
}

impl Row {
    fn new(width: usize) -> Self {
        Self {
            columns: vec![0; width],
            rows: vec![0; width],
            starts: vec![0; width],
            across: vec![0.0; width],
            down: vec![0.0; width],
            corners: std::array::from_fn(|_| vec![0; width]),
        }
    }

    #[inline(always)]
    fn find_starts(&mut self, image: &Rgb) {
        let (last_row, last_column) = (image.height as u32 - 1, image.width as u32 - 1);
        let places = self.rows.iter().zip(&self.columns);
        for (start, (&row, &column)) in self.starts.iter_mut().zip(places) {
            // Negative values become large.
            let (row, column) = (row as u32, column as u32);
            let place = row.wrapping_mul(last_column + 1).wrapping_add(column);
            let inside = row < last_row && column < last_column;
            *start = if inside {
                place.wrapping_mul(3)
            } else {
                OUTSIDE
            };
        }
    }

    #[inline(always)]
    fn fetch(&mut self, image: &Rgb) {
        let stride = image.width * 3;
        let width = self.starts.len();
        let [a, b, c, d] = &mut self.corners;
        let (a, b, c, d) = (
            &mut a[..width],
            &mut b[..width],
            &mut c[..width],
            &mut d[..width],
        );
        let (rows, columns) = (&self.rows[..width], &self.columns[..width]);
        for (x, &start) in self.starts.iter().enumerate() {
            // The eight bytes from the first pixel of a pair on contain both pixels.
            let start = start as usize;
            let end = start.saturating_add(stride + 8);
            if let Some(bytes) = image.pixels.get(start..end) {
                let (upper, lower) = (first_eight(bytes), first_eight(&bytes[stride..]));
                (a[x], b[x]) = (upper as u32, (upper >> 24) as u32);
                (c[x], d[x]) = (lower as u32, (lower >> 24) as u32);
            } else {
                [a[x], b[x], c[x], d[x]] = at_border(image, rows[x], columns[x]);
            }
        }
    }

    #[inline(always)]
    fn interpolate(&mut self) {
        let [a, b, c, d] = &mut self.corners;
        let weights = self.across.iter().zip(&self.down);
        for ((((a, b), c), d), (&across, &down)) in a.iter_mut().zip(b).zip(c).zip(d).zip(weights) {
            let mut mixed = 0;
            for shift in [0, 8, 16] {
                let upper = mix(channel(*a, shift), channel(*b, shift), across);
                let lower = mix(channel(*c, shift), channel(*d, shift), across);
                let rounded = (mix(upper, lower, down) + INTEGER).to_bits() & 255;
                mixed |= rounded << shift;
            }
            *a = mixed;
        }
    }
}

/// Pack pixels into three bytes each.
#[inline(always)]
fn write_row(pixels: &[u32], output: &mut [u8]) {
    let (fours, rest) = pixels.as_chunks::<4>();
    let (twelves, end) = output.as_chunks_mut::<12>();
    for (bytes, &[a, b, c, d]) in twelves.iter_mut().zip(fours) {
        let words = [a | b << 24, b >> 8 | c << 16, c >> 16 | d << 8];
        for (bytes, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *bytes = word.to_le_bytes();
        }
    }
    for (bytes, pixel) in end.as_chunks_mut::<3>().0.iter_mut().zip(rest) {
        bytes.copy_from_slice(&pixel.to_le_bytes()[..3]);
    }
}

#[inline(always)]
fn first_eight(bytes: &[u8]) -> u64 {
    bytes
        .first_chunk()
        .map_or(0, |&eight| u64::from_le_bytes(eight))
}

/// Fetch a pixel and its right and bottom neighbors, some of which may be outside the image.
#[inline(never)] // Rarely called, from a loop with no registers to spare.
pub(crate) fn at_border(image: &Rgb, row: i32, column: i32) -> [u32; 4] {
    let near = |place: i32, end: usize| place >= -1 && (place < 0 || (place as usize) < end);
    if near(row, image.height) && near(column, image.width) {
        let places = [(0, 0), (0, 1), (1, 0), (1, 1)];
        places.map(|(down, right)| pixel(image, row + down, column + right))
    } else {
        [u32::from_le_bytes([FILL; 4]); 4]
    }
}

/// One pixel, or [`FILL`] outside the image.
fn pixel(image: &Rgb, row: i32, column: i32) -> u32 {
    let place = usize::try_from(row).ok().zip(usize::try_from(column).ok());
    let found = place.filter(|&(row, column)| row < image.height && column < image.width);
    let [red, green, blue] = found.map_or([FILL; 3], |(row, column)| {
        let start = (row * image.width + column) * 3;
        [0, 1, 2].map(|channel| image.pixels[start + channel])
    });
    u32::from_le_bytes([red, green, blue, 0])
}

#[inline(always)]
fn channel(pixel: u32, shift: u32) -> f32 {
    ((pixel >> shift) & 255) as i32 as f32
}

#[inline(always)]
fn mix(from: f32, to: f32, weight: f32) -> f32 {
    weight.mul_add(to - from, from)
}
