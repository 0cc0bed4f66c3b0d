//! Affine warps to the nearest pixel, bit-exact with Pillow's `Image.transform` and `Image.rotate`
//! with a black border.
//!
//! Pillow tabulates sources of a map that does not mix the axes, uses fixed-point numbers for
//! others, and sums in double precision if an image is too large for those. The three round
//! differently.

// Numbers are far below the limits of their target types, since images are.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss
)]

use std::ops::Range;

use crate::Error;
use crate::image::Rgb;
use crate::try_alloc;

/// Pillow's fixed-point numbers have this many fractional bits.
const BITS: u32 = 16;
const ONE: i64 = 1 << BITS;
/// Coordinates must be smaller for fixed-point numbers.
const FIXED_LIMIT: f64 = 32_768.0;

/// Map from output pixels to source coordinates, each `c[0] * x + c[1] * y + c[2]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct NearestMap {
    x: [f64; 3],
    y: [f64; 3],
}

impl NearestMap {
    const IDENTITY: Self = Self {
        x: [1.0, 0.0, 0.0],
        y: [0.0, 1.0, 0.0],
    };

    /// Shear to the left by `factor` pixels per row.
    pub(crate) fn shear_x(factor: f64) -> Self {
        Self {
            x: [1.0, factor, 0.0],
            ..Self::IDENTITY
        }
    }

    /// Shear up by `factor` pixels per column.
    pub(crate) fn shear_y(factor: f64) -> Self {
        Self {
            y: [factor, 1.0, 0.0],
            ..Self::IDENTITY
        }
    }

    /// Shift left by a number of pixels.
    pub(crate) fn translate_x(pixels: f64) -> Self {
        Self {
            x: [1.0, 0.0, pixels],
            ..Self::IDENTITY
        }
    }

    /// Shift up by a number of pixels.
    pub(crate) fn translate_y(pixels: f64) -> Self {
        Self {
            y: [0.0, 1.0, pixels],
            ..Self::IDENTITY
        }
    }

    /// Rotate counterclockwise around the center by an angle in degrees.
    pub(crate) fn rotate(degrees: f64, height: usize, width: usize) -> Self {
        let angle = -(degrees.rem_euclid(360.0) * (std::f64::consts::PI / 180.0));
        let (sin, cos) = (rounded(angle.sin()), rounded(angle.cos()));
        let (x, y) = (width as f64 / 2.0, height as f64 / 2.0);
        Self {
            x: [cos, sin, cos * -x + sin * -y + x],
            y: [-sin, cos, -sin * -x + cos * -y + y],
        }
    }

    /// Source coordinates of the corner of an output pixel.
    fn at(&self, x: f64, y: f64) -> [f64; 2] {
        [self.x, self.y].map(|c| x * c[0] + y * c[1] + c[2])
    }

    /// Source coordinates of the center of the first output pixel.
    fn first(&self) -> [f64; 2] {
        [self.x, self.y].map(|c| c[2] + c[0] * 0.5 + c[1] * 0.5)
    }

    fn fits_fixed(&self, height: usize, width: usize) -> bool {
        let (height, width) = (height as f64, width as f64);
        let corners = [(0.0, 0.0), (width, height), (0.0, height), (width, 0.0)];
        let mut coordinates = corners.into_iter().flat_map(|(x, y)| self.at(x, y));
        coordinates.all(|coordinate| coordinate.abs() < FIXED_LIMIT)
    }
}

/// The nearest number with 15 decimals.
fn rounded(number: f64) -> f64 {
    format!("{number:.15}").parse().unwrap_or(number)
}

/// Warp an image; pixels from outside the image are black.
pub(crate) fn warp(image: &mut Rgb, map: &NearestMap) -> Result<(), Error> {
    let (height, width) = (image.height, image.width);
    let what = try_alloc::of_image(height, width);
    let mut output = try_alloc::filled(0, image.pixels.len(), what)?;
    let rows = output.chunks_exact_mut((width * 3).max(1));
    if map.x[1] == 0.0 && map.y[0] == 0.0 {
        let [first_column, first_row] = map.first();
        let columns = runs(first_column, map.x[0], width);
        let sources = runs(first_row, map.y[1], height);
        let mut rows: Vec<&mut [u8]> = rows.collect();
        for (to_row, from_row, count) in sources {
            for (row, from) in rows.iter_mut().skip(to_row).take(count).zip(from_row..) {
                for &(to, column, count) in &columns {
                    copy(row, to, image, (from, column), count);
                }
            }
        }
    } else if map.fits_fixed(height, width) {
        let fixed = |number: f64| (number * ONE as f64 + 0.5).floor() as i64;
        let first = map.first().map(fixed);
        let [x, y] = [map.x, map.y].map(|c| c.map(fixed));
        for (row, number) in rows.zip(0..) {
            let start = [first[0] + number * x[1], first[1] + number * y[1]];
            if x[0] == ONE {
                shifted_row(row, image, start, y[0]);
            } else {
                fixed_row(row, image, start, [x[0], y[0]]);
            }
        }
    } else {
        let [mut row_x, mut row_y] = map.first();
        for row in rows {
            let (mut x, mut y) = (row_x, row_y);
            for to in 0..width {
                if x >= 0.0 && x < width as f64 && y >= 0.0 && y < height as f64 {
                    copy(row, to, image, (y as usize, x as usize), 1);
                }
                (x, y) = (x + map.x[0], y + map.y[0]);
            }
            (row_x, row_y) = (row_x + map.x[1], row_y + map.y[1]);
        }
    }
    image.pixels = output;
    Ok(())
}

/// Copy `count` pixels of a row of the source.
fn copy(row: &mut [u8], to: usize, image: &Rgb, (y, x): (usize, usize), count: usize) {
    let start = (y * image.width + x) * 3;
    let output = row.get_mut(to * 3..(to + count) * 3);
    if let (Some(output), Some(source)) = (output, image.pixels.get(start..start + count * 3)) {
        output.copy_from_slice(source);
    }
}

/// Sources of `length` outputs along one axis, as (first output, first source, count) of runs in
/// which both advance by one. Outputs from outside are in no run.
fn runs(first: f64, step: f64, length: usize) -> Vec<(usize, usize, usize)> {
    let mut runs: Vec<(usize, usize, usize)> = Vec::new();
    let mut coordinate = first;
    for output in 0..length {
        if coordinate >= 0.0 && coordinate < length as f64 {
            let source = coordinate as usize;
            match runs.last_mut() {
                Some((to, from, count)) if *to + *count == output && *from + *count == source => {
                    *count += 1;
                }
                _ => runs.push((output, source, 1)),
            }
        }
        coordinate += step;
    }
    runs
}

/// Range of the steps `k` below `count` for which `start + k * step` is a pixel below `length`.
fn steps_inside(start: i64, step: i64, length: usize, count: usize) -> Range<i64> {
    let end = (length as i64) * ONE;
    let count = count as i64;
    // The first k with `start + k * step >= bound`, for a positive step.
    let reaches = |bound: i64, start: i64, step: i64| (bound - start + step - 1).div_euclid(step);
    let (first, last) = match step {
        0 if (0..end).contains(&start) => (0, count),
        0 => (0, 0),
        1.. => (reaches(0, start, step), reaches(end, start, step)),
        // Mirrored: `end - 1 - coordinate` ascends.
        _ => {
            let mirrored = end - 1 - start;
            (reaches(0, mirrored, -step), reaches(end, mirrored, -step))
        }
    };
    let first = first.clamp(0, count);
    first..last.clamp(first, count)
}

/// Compute a row whose sources advance by one column per pixel, a run of one source row at a time.
fn shifted_row(row: &mut [u8], image: &Rgb, [x, y]: [i64; 2], step: i64) {
    let Range { start, end } = steps_inside(x, ONE, image.width, image.width);
    let inside = steps_inside(y, step, image.height, image.width);
    let (mut to, end) = (start.max(inside.start), end.min(inside.end));
    while to < end {
        let coordinate = y + to * step;
        let rest = coordinate & (ONE - 1);
        let count = match step {
            0 => end - to,
            1.. => (ONE - rest + step - 1) / step,
            _ => rest / -step + 1,
        };
        let count = count.min(end - to);
        let column = (x >> BITS) + to;
        let from = ((coordinate >> BITS) as usize, column as usize);
        copy(row, to as usize, image, from, count as usize);
        to += count;
    }
}

/// Compute a row pixel by pixel.
fn fixed_row(row: &mut [u8], image: &Rgb, [x, y]: [i64; 2], [step_x, step_y]: [i64; 2]) {
    let columns = steps_inside(x, step_x, image.width, image.width);
    let rows = steps_inside(y, step_y, image.height, image.width);
    let first = columns.start.max(rows.start);
    let last = columns.end.min(rows.end).max(first);
    let (mut x, mut y) = (x + first * step_x, y + first * step_y);
    let pixels = row.get_mut(first as usize * 3..last as usize * 3);
    for pixel in pixels.unwrap_or_default().as_chunks_mut::<3>().0 {
        let place = ((y >> BITS) as usize * image.width + (x >> BITS) as usize) * 3;
        if let Some(source) = image.pixels.get(place..place + 3) {
            pixel.copy_from_slice(source);
        }
        (x, y) = (x + step_x, y + step_y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{gradient, gray};

    fn warped(mut image: Rgb, map: &NearestMap) -> Rgb {
        warp(&mut image, map).unwrap();
        image
    }

    #[test]
    fn one_pixel_can_move_out() {
        let image = gray(1, &[7]);
        assert_eq!(warped(image.clone(), &NearestMap::translate_x(0.4)), image);
        for map in [
            NearestMap::translate_x(0.5),
            NearestMap::translate_y(-0.6),
            NearestMap::translate_y(1e9),
        ] {
            assert_eq!(warped(image.clone(), &map), gray(1, &[0]));
        }
        assert_eq!(warped(image.clone(), &NearestMap::shear_x(0.09)), image);
        assert_eq!(warped(image.clone(), &NearestMap::rotate(9.0, 1, 1)), image);
    }

    #[test]
    fn translation_moves_left_and_up() {
        let image = gray(3, &[1, 2, 3, 4, 5, 6]);
        let left = warped(image.clone(), &NearestMap::translate_x(1.0));
        assert_eq!(left, gray(3, &[2, 3, 0, 5, 6, 0]));
        let right = warped(image.clone(), &NearestMap::translate_x(-2.0));
        assert_eq!(right, gray(3, &[0, 0, 1, 0, 0, 4]));
        let up = warped(image, &NearestMap::translate_y(1.0));
        assert_eq!(up, gray(3, &[4, 5, 6, 0, 0, 0]));
    }

    #[test]
    fn shears_move_left_and_up() {
        let image = gray(3, &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
        let sheared = warped(image.clone(), &NearestMap::shear_x(0.9));
        // Shifts of 0.45, 1.35 and 2.25 pixels from the centers of the rows.
        assert_eq!(sheared, gray(3, &[1, 2, 3, 5, 6, 0, 9, 0, 0]));
        let sheared = warped(image, &NearestMap::shear_y(-0.9));
        assert_eq!(sheared, gray(3, &[1, 0, 0, 4, 2, 0, 7, 5, 3]));
    }

    #[test]
    fn rotation_by_90_degrees_is_counterclockwise() {
        let image = gray(2, &[10, 20, 30, 40]);
        let turned = warped(image.clone(), &NearestMap::rotate(90.0, 2, 2));
        assert_eq!(turned, gray(2, &[20, 40, 10, 30]));
        assert_eq!(
            warped(image.clone(), &NearestMap::rotate(-360.0, 2, 2)),
            image
        );
    }

    /// The definition of the fixed-point warp, pixel by pixel.
    fn by_definition(image: &Rgb, map: &NearestMap) -> Rgb {
        let fixed = |number: f64| (number * 65_536.0 + 0.5).floor() as i64;
        let [first_x, first_y] = map.first().map(fixed);
        let mut output = gray(image.width, &vec![0; image.width * image.height]);
        for y in 0..image.height {
            for x in 0..image.width {
                let (column, row) = (x as i64, y as i64);
                let from_x = first_x + row * fixed(map.x[1]) + column * fixed(map.x[0]);
                let from_y = first_y + row * fixed(map.y[1]) + column * fixed(map.y[0]);
                let (from_x, from_y) = (from_x >> 16, from_y >> 16);
                if (0..image.width as i64).contains(&from_x)
                    && (0..image.height as i64).contains(&from_y)
                {
                    let from = (from_y as usize, from_x as usize);
                    copy(&mut output.pixels[3 * y * image.width..], x, image, from, 1);
                }
            }
        }
        output
    }

    #[test]
    fn runs_are_those_of_the_definition() {
        for (height, width) in [(1, 40), (40, 1), (2, 2), (37, 53), (64, 97)] {
            let image = gradient(height, width);
            for factor in [0.09, -0.09, 0.3, -1.7, 2.0, 1e-9, 3e-5, -40.0] {
                for map in [NearestMap::shear_x(factor), NearestMap::shear_y(factor)] {
                    let found = warped(image.clone(), &map);
                    assert_eq!(
                        found,
                        by_definition(&image, &map),
                        "{height} {width} {map:?}"
                    );
                }
            }
            for degrees in [9.0, -9.0, 30.0, 89.0, 135.5, 181.0, -0.001] {
                let map = NearestMap::rotate(degrees, height, width);
                let found = warped(image.clone(), &map);
                assert_eq!(
                    found,
                    by_definition(&image, &map),
                    "{height} {width} {map:?}"
                );
            }
        }
    }
}
