//! Affine warps, bit-exact with OpenCV 5.0's `warpAffine` with bilinear interpolation and a
//! constant border.
//!
//! OpenCV computes in single precision with fused multiply-adds, and its vector loop rounds
//! differently from its scalar tail. Both are reproduced because a different order of operations
//! changes some pixels. The reference is OpenCV on x86 with AVX2 and FMA; on other processors,
//! OpenCV itself gives different values, but this module gives the same values as on x86.

// OpenCV uses single precision; all numbers are far below the limits of their target types.
#![allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)]

use std::cell::Cell;

use crate::image::Rgb;
use crate::simd;
use crate::transform::affine_rows::WarpRows;
#[cfg(target_arch = "x86_64")]
use crate::transform::simd::affine_avx512;

/// Border value of every channel.
pub const FILL: u8 = 128;
/// Maximum side in pixels; single precision cannot resolve larger coordinates.
pub const MAX_SIDE: usize = 1 << 22;

/// Map from output pixels to source coordinates, each `c[0] * x + c[1] * y + c[2]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affine {
    pub(crate) x: [f32; 3],
    pub(crate) y: [f32; 3],
}

impl Affine {
    /// Shear to the right by `factor` pixels per row.
    pub fn shear_x(factor: f64) -> Self {
        Self::inverse(&[[1.0, f64::from(factor as f32), 0.0], [0.0, 1.0, 0.0]])
    }

    /// Shear down by `factor` pixels per column.
    pub fn shear_y(factor: f64) -> Self {
        Self::inverse(&[[1.0, 0.0, 0.0], [f64::from(factor as f32), 1.0, 0.0]])
    }

    /// Shift left by a number of pixels.
    pub fn translate_x(pixels: f64) -> Self {
        Self::inverse(&[[1.0, 0.0, f64::from(-pixels as f32)], [0.0, 1.0, 0.0]])
    }

    /// Shift up by a number of pixels.
    pub fn translate_y(pixels: f64) -> Self {
        Self::inverse(&[[1.0, 0.0, 0.0], [0.0, 1.0, f64::from(-pixels as f32)]])
    }

    /// Rotate counterclockwise around the center by an angle in degrees.
    pub fn rotate(degrees: f64, height: usize, width: usize) -> Self {
        let (sin, cos) = (degrees * (std::f64::consts::PI / 180.0)).sin_cos();
        let (x, y) = (width as f64 / 2.0, height as f64 / 2.0);
        Self::inverse(&[
            [cos, sin, (1.0 - cos) * x - sin * y],
            [-sin, cos, sin * x + (1.0 - cos) * y],
        ])
    }

    /// Inverse map (output to source), computed in the same order as in OpenCV.
    fn inverse(forward: &[[f64; 3]; 2]) -> Self {
        let [[xx, xy, x], [yx, yy, y]] = *forward;
        let scale = 1.0 / (xx * yy - xy * yx);
        let (x_row, y_row) = ([yy * scale, xy * -scale], [yx * -scale, xx * scale]);
        let back = |row: [f64; 2]| {
            let offset = -row[0] * x - row[1] * y;
            [row[0] as f32, row[1] as f32, offset as f32]
        };
        Self {
            x: back(x_row),
            y: back(y_row),
        }
    }

    /// Integer offset (columns, rows) of the source, if no interpolation is needed.
    fn whole_shift(&self) -> Option<(isize, isize)> {
        let plain = self.x[..2] == [1.0, 0.0] && self.y[..2] == [0.0, 1.0];
        let whole = self.x[2].fract() == 0.0 && self.y[2].fract() == 0.0;
        (plain && whole).then_some((self.x[2] as isize, self.y[2] as isize))
    }
}

/// Warp an image; pixels from outside the image are [`FILL`].
///
/// The image must have at least one pixel, and sides of at most [`MAX_SIDE`].
pub fn warp(image: &mut Rgb, map: &Affine) {
    if let Some((right, down)) = map.whole_shift() {
        shift_rows(image, down);
        shift_columns(image, right);
        return;
    }
    let mut output = SPARE.take();
    output.resize(image.pixels.len(), 0);
    #[cfg(target_arch = "x86_64")]
    let is_done = affine_avx512::warp(image, map.x, map.y, &mut output);
    #[cfg(not(target_arch = "x86_64"))]
    let is_done = false;
    if !is_done {
        simd::run(WarpRows {
            image,
            map,
            output: &mut output,
        });
    }
    SPARE.set(std::mem::replace(&mut image.pixels, output));
}

thread_local! {
    /// Buffer kept from the previous image; allocating one per image would take 25 % of the time.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

fn shift_columns(image: &mut Rgb, right: isize) {
    let stride = image.width * 3;
    let shift = right.unsigned_abs().min(image.width) * 3;
    for row in image.pixels.chunks_exact_mut(stride) {
        if right >= 0 {
            row.copy_within(shift.., 0);
            row[stride - shift..].fill(FILL);
        } else {
            row.copy_within(..stride - shift, shift);
            row[..shift].fill(FILL);
        }
    }
}

fn shift_rows(image: &mut Rgb, down: isize) {
    let (shift, bytes) = (down.unsigned_abs().min(image.height), image.pixels.len());
    let shift = shift * image.width * 3;
    if down >= 0 {
        image.pixels.copy_within(shift.., 0);
        image.pixels[bytes - shift..].fill(FILL);
    } else {
        image.pixels.copy_within(..bytes - shift, shift);
        image.pixels[..shift].fill(FILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::gray;

    fn noise(height: usize, width: usize) -> Rgb {
        let mut rng = crate::rng::Rng::new(1, 2, 3, crate::rng::Purpose::Image(0));
        Rgb {
            height,
            width,
            pixels: (0..height * width * 3)
                .map(|_| u8::try_from(rng.below(256)).unwrap())
                .collect(),
        }
    }

    fn warp(image: &Rgb, map: &Affine) -> Rgb {
        let mut output = image.clone();
        super::warp(&mut output, map);
        output
    }

    #[test]
    fn one_pixel_can_move_out() {
        let image = gray(1, &[7]);
        assert_eq!(warp(&image, &Affine::translate_x(0.0)), image);
        assert_eq!(warp(&image, &Affine::translate_x(1.0)), gray(1, &[FILL]));
        assert_eq!(warp(&image, &Affine::translate_y(-1e9)), gray(1, &[FILL]));
        assert_eq!(warp(&image, &Affine::shear_x(0.21)), image);
        assert_eq!(warp(&image, &Affine::rotate(0.0, 1, 1)), image);
    }

    #[test]
    fn translation_moves_left_and_up() {
        let image = gray(3, &[1, 2, 3, 4, 5, 6]);
        let left = warp(&image, &Affine::translate_x(1.0));
        assert_eq!(left, gray(3, &[2, 3, FILL, 5, 6, FILL]));
        let right = warp(&image, &Affine::translate_x(-2.0));
        assert_eq!(right, gray(3, &[FILL, FILL, 1, FILL, FILL, 4]));
        let up = warp(&image, &Affine::translate_y(1.0));
        assert_eq!(up, gray(3, &[4, 5, 6, FILL, FILL, FILL]));
        assert_eq!(warp(&image, &Affine::translate_x(9.0)), gray(3, &[FILL; 6]));
    }

    #[test]
    fn half_a_pixel_is_the_mean_with_ties_to_even() {
        let image = gray(3, &[10, 20, 41]);
        // 15, 30.5 and, with half of it from outside, 84.5.
        let moved = warp(&image, &Affine::translate_x(0.5));
        assert_eq!(moved, gray(3, &[15, 30, 84]));
    }

    #[test]
    fn shears_keep_the_first_row_or_column() {
        let image = gray(2, &[10, 20, 30, 40]);
        // Row 1 comes from half a pixel to the left: 79 and 35.
        let sheared = warp(&image, &Affine::shear_x(0.5));
        assert_eq!(sheared, gray(2, &[10, 20, 79, 35]));
        // Column 1 comes from half a pixel above: 74 and 30.
        let sheared = warp(&image, &Affine::shear_y(0.5));
        assert_eq!(sheared, gray(2, &[10, 74, 30, 30]));
    }

    #[test]
    fn rotation_by_90_degrees_is_counterclockwise() {
        // Rotation around the corner shared by four pixels, whose centers are at integers: (x, y)
        // maps to (y, 2 - x).
        let turned = warp(&gray(2, &[10, 20, 30, 40]), &Affine::rotate(90.0, 2, 2));
        assert_eq!(turned, gray(2, &[FILL, FILL, 20, 40]));
    }

    #[test]
    fn other_instructions_give_the_same_bytes() {
        for (height, width) in [(1, 40), (40, 1), (2, 2), (37, 53), (33, 16), (90, 131)] {
            let image = noise(height, width);
            for map in [
                Affine::rotate(-21.0, height, width),
                Affine::rotate(170.0, height, width),
                Affine::shear_x(-0.3),
                Affine::shear_y(0.21),
                Affine::translate_x(2.3),
                Affine::translate_y(-0.4),
                Affine::shear_x(1e38),
            ] {
                let results = [false, true].map(|wide| {
                    let mut output = vec![0; image.pixels.len()];
                    let work = WarpRows {
                        image: &image,
                        map: &map,
                        output: &mut output,
                    };
                    if wide {
                        simd::run(work);
                    } else {
                        simd::SimdLoop::run(work);
                    }
                    output
                });
                let widest = warp(&image, &map).pixels;
                assert!(
                    results.iter().all(|result| *result == widest),
                    "{height} x {width}: {map:?}"
                );
            }
        }
    }
}
