//! Which pixel of the stored image each pixel of a transformed mask shows.

use std::ops::Range;

use crate::boxes::Crop;
use crate::image::orientation::{self, swaps_sides};

/// Columns and rows of a nearest neighbor resize, for an image that is cropped, resized and cut to a
/// window.
pub(crate) struct Nearest {
    /// In pixels of the upright image.
    pub crop: Crop,
    /// (height, width) that the crop is resized to.
    pub resized: (usize, usize),
    /// Part of the resized image.
    pub window: Crop,
    /// True if the window is mirrored.
    pub flip: bool,
}

/// Rows and columns of the stored image for the rows and columns of a mask. Both ascend or descend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SampleGrid {
    /// (height, width) of the stored image in pixels.
    pub source: (usize, usize),
    /// Stored row of each output row, or of each output column if transposed.
    pub rows: Vec<usize>,
    /// Stored column of each output column, or of each output row if transposed.
    pub columns: Vec<usize>,
    /// True if the orientation swaps rows and columns.
    pub transposed: bool,
    /// (height, width) of the output with its padding, in pixels.
    pub padded: (usize, usize),
}

/// Positions up to which sums are accumulated; those of any usual image.
const ACCUMULATED: usize = 1 << 20;

/// Source positions of `window` in a resize of `length` pixels to `resized`.
///
/// Pillow adds the scale once for each pixel, so the rounding errors of a sum matter.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss
)] // Sizes are far below 2^53, and positions are not negative.
fn positions(length: usize, resized: usize, window: Range<usize>) -> Vec<usize> {
    let scale = length as f64 / resized as f64;
    let mut at = scale * 0.5;
    if window.start <= ACCUMULATED {
        (0..window.start).for_each(|_| at += scale);
    } else {
        at = (window.start as f64 + 0.5) * scale;
    }
    window
        .map(|_| {
            let position = (at as usize).min(length.saturating_sub(1));
            at += scale;
            position
        })
        .collect()
}

impl SampleGrid {
    /// The grid of an image of `source` = (height, width) stored pixels that is turned by its EXIF
    /// orientation before the resize.
    pub fn new(
        nearest: &Nearest,
        source: (usize, usize),
        exif: u8,
        padded: (usize, usize),
    ) -> Self {
        let Nearest {
            crop,
            resized,
            window,
            flip,
        } = nearest;
        let down = positions(
            crop.height,
            resized.0,
            window.top..window.top + window.height,
        );
        let mut across = positions(
            crop.width,
            resized.1,
            window.left..window.left + window.width,
        );
        if *flip {
            across.reverse();
        }
        let down = down.into_iter().map(|y| y + crop.top);
        let across = across.into_iter().map(|x| x + crop.left);
        let transposed = swaps_sides(exif);
        // The row of a pixel depends on one coordinate of the upright image only.
        let row = |at: usize| orientation::source_of(exif, source, (at, at)).0;
        let column = |at: usize| orientation::source_of(exif, source, (at, at)).1;
        let (rows, columns) = if transposed {
            (across.map(row).collect(), down.map(column).collect())
        } else {
            (down.map(row).collect(), across.map(column).collect())
        };
        Self {
            source,
            rows,
            columns,
            transposed,
            padded,
        }
    }

    /// The grid of a whole image of `size` = (height, width) that is not resized.
    pub fn whole(size: (usize, usize)) -> Self {
        Self {
            source: size,
            rows: (0..size.0).collect(),
            columns: (0..size.1).collect(),
            transposed: false,
            padded: size,
        }
    }

    /// (height, width) of the output without padding.
    pub fn size(&self) -> (usize, usize) {
        if self.transposed {
            (self.columns.len(), self.rows.len())
        } else {
            (self.rows.len(), self.columns.len())
        }
    }
}

/// Places in a list that ascends or descends whose values are in a range.
pub(crate) fn places(values: &[usize], range: Range<usize>) -> Range<usize> {
    let is_descending = values.first() > values.last();
    let first =
        |is_before: &dyn Fn(usize) -> bool| values.partition_point(|&value| is_before(value));
    if is_descending {
        first(&|value| value >= range.end)..first(&|value| value >= range.start)
    } else {
        first(&|value| value < range.start)..first(&|value| value < range.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_pixel_is_every_position() {
        assert_eq!(positions(1, 3, 0..3), [0, 0, 0]);
        assert_eq!(positions(3, 1, 0..1), [1]);
        assert_eq!(positions(4, 2, 0..2), [1, 3]);
        assert_eq!(positions(5, 10, 4..7), [2, 2, 3]);
    }

    #[test]
    fn a_far_window_is_near_the_sums() {
        let far = ACCUMULATED + 10;
        assert_eq!(positions(7 * far, far, far - 2..far)[1], 7 * far - 4);
        assert_eq!(
            positions(far, 2 * far, far + 4..far + 5),
            [usize::midpoint(far, 4)]
        );
    }

    #[test]
    fn places_are_found_in_both_directions() {
        let up = [0, 0, 2, 3, 3, 9];
        assert_eq!(places(&up, 0..1), 0..2);
        assert_eq!(places(&up, 1..4), 2..5);
        assert_eq!(places(&up, 4..9), 5..5);
        let down = [9, 3, 3, 2, 0, 0];
        assert_eq!(places(&down, 0..1), 4..6);
        assert_eq!(places(&down, 1..4), 1..4);
        assert!(places(&down, 4..9).is_empty());
        assert_eq!(places(&[5, 5], 5..6), 0..2);
        assert!(places(&[], 0..9).is_empty());
    }
}
