//! Rotate and mirror images according to the EXIF orientation.

use crate::image::{Decoded, Rgb, Rgba};
use crate::{Error, try_alloc};

/// True if `orientation` (EXIF, 1 to 8) swaps height and width.
pub fn swaps_sides(orientation: u8) -> bool {
    (5..=8).contains(&orientation)
}

/// Position (row, column) in a stored image of `size` = (height, width) of the pixel at (y, x) of the
/// upright image.
///
/// The row depends on one of the two only, and the column on the other; see [`swaps_sides`].
pub fn source_of(orientation: u8, size: (usize, usize), (y, x): (usize, usize)) -> (usize, usize) {
    let from_bottom = |at: usize| size.0.saturating_sub(1 + at);
    let from_right = |at: usize| size.1.saturating_sub(1 + at);
    match orientation {
        2 => (y, from_right(x)),
        3 => (from_bottom(y), from_right(x)),
        4 => (from_bottom(y), x),
        5 => (x, y),
        6 => (from_bottom(x), y),
        7 => (from_bottom(x), from_right(y)),
        8 => (x, from_right(y)),
        _ => (y, x),
    }
}

/// Rotate and mirror an image so that it is upright, given its EXIF `orientation`; values other
/// than 2 to 8 change nothing.
pub fn apply_orientation(image: Decoded, orientation: u8) -> Result<Decoded, Error> {
    if !(2..=8).contains(&orientation) {
        return Ok(image);
    }
    let (size, channels, pixels) = image.parts();
    let (height, width) = if swaps_sides(orientation) {
        (size.1, size.0)
    } else {
        size
    };
    let what = try_alloc::of_image(height, width);
    let mut upright = try_alloc::with_capacity(pixels.len(), what)?;
    for y in 0..height {
        for x in 0..width {
            let (row, column) = source_of(orientation, size, (y, x));
            let start = (row * size.1 + column) * channels;
            let pixel = pixels.get(start..start + channels);
            upright.extend_from_slice(pixel.unwrap_or_default());
        }
    }
    Ok(match image {
        Decoded::Rgb(_) => Decoded::Rgb(Rgb::new(height, width, upright)),
        Decoded::Rgba(_) => Decoded::Rgba(Rgba::new(height, width, upright)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Red channel after orienting an image with rows 0 1 2 and 3 4 5.
    fn turned(orientation: u8) -> (usize, usize, Vec<u8>) {
        let image = Rgb::new(2, 3, (0..6).flat_map(|red| [red, 0, 9]).collect());
        let turned = apply_orientation(Decoded::Rgb(image), orientation).unwrap();
        let turned = turned.into_rgb();
        let reds = turned.pixels.chunks_exact(3).map(|pixel| pixel[0]);
        (turned.height, turned.width, reds.collect())
    }

    #[test]
    fn alpha_moves_with_its_pixel() {
        let image = Decoded::Rgba(Rgba::new(1, 2, vec![1, 2, 3, 4, 5, 6, 7, 8]));
        let expected = Decoded::Rgba(Rgba::new(2, 1, vec![5, 6, 7, 8, 1, 2, 3, 4]));
        assert_eq!(apply_orientation(image, 8).unwrap(), expected);
    }

    #[test]
    fn every_orientation_stands_upright() {
        assert_eq!(turned(1), (2, 3, vec![0, 1, 2, 3, 4, 5]));
        assert_eq!(turned(2), (2, 3, vec![2, 1, 0, 5, 4, 3]));
        assert_eq!(turned(3), (2, 3, vec![5, 4, 3, 2, 1, 0]));
        assert_eq!(turned(4), (2, 3, vec![3, 4, 5, 0, 1, 2]));
        assert_eq!(turned(5), (3, 2, vec![0, 3, 1, 4, 2, 5]));
        assert_eq!(turned(6), (3, 2, vec![3, 0, 4, 1, 5, 2]));
        assert_eq!(turned(7), (3, 2, vec![5, 2, 4, 1, 3, 0]));
        assert_eq!(turned(8), (3, 2, vec![2, 5, 1, 4, 0, 3]));
        assert_eq!(turned(0), turned(1));
        assert_eq!(turned(9), turned(1));
    }
}
