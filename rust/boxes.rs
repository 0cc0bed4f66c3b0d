//! Boxes in half-open float pixel coordinates (xyxy, 0 <= x <= image width), and integer crops.

#![allow(clippy::cast_precision_loss)] // Sizes are far below 2^53.

use crate::Error;

/// A crop rectangle in integer pixel coordinates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crop {
    /// Top row.
    pub top: usize,
    /// Left column.
    pub left: usize,
    /// Height in rows.
    pub height: usize,
    /// Width in columns.
    pub width: usize,
}

impl Crop {
    /// The crop that covers the whole image.
    #[must_use]
    pub fn whole(height: usize, width: usize) -> Self {
        Self {
            top: 0,
            left: 0,
            height,
            width,
        }
    }
}

/// (x0, y0, x1, y1) in pixels.
pub type BoxXyxy = [f64; 4];

/// A crop drops boxes that retain less than this fraction of their area.
pub(crate) const LEAST_AREA_LEFT: f64 = 0.1;

/// Rounding tolerance: a box may exceed its image by this many pixels and is then clipped.
pub(crate) const SLACK_PIXELS: f64 = 1.0;

/// Area in square pixels; 0 if inverted.
pub(crate) fn area([x0, y0, x1, y1]: BoxXyxy) -> f64 {
    (x1 - x0).max(0.0) * (y1 - y0).max(0.0)
}

/// Clip a box to the image.
pub(crate) fn clip([x0, y0, x1, y1]: BoxXyxy, height: usize, width: usize) -> BoxXyxy {
    let (height, width) = (height as f64, width as f64);
    [
        x0.clamp(0.0, width),
        y0.clamp(0.0, height),
        x1.clamp(0.0, width),
        y1.clamp(0.0, height),
    ]
}

/// Clip every box to its image; [`Error::InvalidBox`] if a box has no area inside the image or
/// exceeds it by more than [`SLACK_PIXELS`].
pub(crate) fn clip_all(
    boxes: &[BoxXyxy],
    height: usize,
    width: usize,
) -> Result<Vec<BoxXyxy>, Error> {
    boxes
        .iter()
        .enumerate()
        .map(|(index, &box_xyxy)| clip_one(index, box_xyxy, height, width))
        .collect()
}

#[inline]
fn clip_one(
    index: usize,
    box_xyxy: BoxXyxy,
    height: usize,
    width: usize,
) -> Result<BoxXyxy, Error> {
    let [x0, y0, x1, y1] = box_xyxy;
    let invalid = |reason: String| Error::InvalidBox {
        index,
        reason: format!("({x0}, {y0}, {x1}, {y1}){reason}"),
    };
    let clipped = clip(box_xyxy, height, width);
    if area(clipped) <= 0.0 || box_xyxy.iter().any(|edge| edge.is_nan()) {
        let reason = if x0 < x1 && y0 < y1 {
            format!(", with no area inside the image of height {height} and width {width} pixels")
        } else {
            "; expected numbers with x0 < x1 and y0 < y1".to_owned()
        };
        return Err(invalid(reason));
    }
    let beyond = box_xyxy
        .iter()
        .zip(clipped)
        .map(|(edge, cut)| (edge - cut).abs())
        .fold(0.0, f64::max);
    if beyond > SLACK_PIXELS {
        return Err(invalid(format!(
            ", {beyond} pixels outside the image of height {height} and width {width} pixels; \
             expected at most {SLACK_PIXELS}"
        )));
    }
    Ok(clipped)
}

/// Scale factors (y, x) of a resize operation.
pub(crate) fn ratios(from: (usize, usize), to: (usize, usize)) -> (f64, f64) {
    (to.0 as f64 / from.0 as f64, to.1 as f64 / from.1 as f64)
}

/// Scale a box by factors (y, x).
pub(crate) fn multiply([x0, y0, x1, y1]: BoxXyxy, (y_ratio, x_ratio): (f64, f64)) -> BoxXyxy {
    [x0 * x_ratio, y0 * y_ratio, x1 * x_ratio, y1 * y_ratio]
}

#[cfg(test)]
pub(crate) mod reference {
    //! Individual steps, as a reference for the fused transform.

    use super::*;

    /// Map a box into a crop. `None` if its center is outside or too little of the box remains.
    pub(crate) fn crop([x0, y0, x1, y1]: BoxXyxy, crop: Crop) -> Option<BoxXyxy> {
        let (left, top) = (crop.left as f64, crop.top as f64);
        let (height, width) = (crop.height as f64, crop.width as f64);
        let moved = [x0 - left, y0 - top, x1 - left, y1 - top];
        let x = f64::midpoint(moved[0], moved[2]);
        let y = f64::midpoint(moved[1], moved[3]);
        let inside = (0.0..width).contains(&x) && (0.0..height).contains(&y);
        let left_over = clip(moved, crop.height, crop.width);
        (inside && area(left_over) >= LEAST_AREA_LEFT * area(moved)).then_some(left_over)
    }

    /// Scale a box for a resize from size `from` to size `to`, both (height, width).
    pub(crate) fn scale(box_xyxy: BoxXyxy, from: (usize, usize), to: (usize, usize)) -> BoxXyxy {
        multiply(box_xyxy, ratios(from, to))
    }

    /// Mirror a box horizontally in an image of `width` pixels.
    pub(crate) fn mirror([x0, y0, x1, y1]: BoxXyxy, width: usize) -> BoxXyxy {
        let width = width as f64;
        [width - x1, y0, width - x0, y1]
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::float_cmp)] // Integers and halves are exact.

    use super::reference::{crop, mirror, scale};
    use super::*;

    const CROP: Crop = Crop {
        top: 10,
        left: 20,
        height: 30,
        width: 40,
    };

    #[test]
    fn no_boxes_stay_none() {
        assert!(clip_all(&[], 3, 4).is_ok_and(|boxes| boxes.is_empty()));
    }

    #[test]
    fn boxes_are_clipped_or_rejected() {
        let boxes = clip_all(&[[-1.0, 1.0, 2.5, 4.0]], 3, 4);
        assert_eq!(boxes.ok(), Some(vec![[0.0, 1.0, 2.5, 3.0]]));
        for outside in [
            [4.0, 0.0, 9.0, 3.0],
            [1.0, 1.0, 1.0, 2.0],
            [f64::NAN, 0.0, 2.0, 2.0],
        ] {
            let result = clip_all(&[[0.0, 0.0, 1.0, 1.0], outside], 3, 4);
            let message = result.unwrap_err().to_string();
            assert!(message.starts_with("box 1 is ("), "{message}");
            let expected = ["), with no area inside", "); expected numbers"];
            assert!(
                expected.iter().any(|text| message.contains(text)),
                "{message}"
            );
        }
        for too_far in [
            [-1.001, 1.0, 2.5, 3.0],
            [0.0, -2.0, 2.0, 2.0],
            [1.0, 1.0, 5.5, 2.0],
            [1.0, 1.0, 2.0, f64::INFINITY],
        ] {
            let result = clip_all(&[[0.0, 0.0, 1.0, 1.0], too_far], 3, 4);
            let message = result.unwrap_err().to_string();
            assert!(message.starts_with("box 1 is ("), "{message}");
            assert!(
                message.contains(" pixels outside the image of height 3"),
                "{message}"
            );
        }
    }

    #[test]
    fn crop_drops_by_center_and_area() {
        assert_eq!(
            crop([25.0, 15.0, 30.0, 20.0], CROP),
            Some([5.0, 5.0, 10.0, 10.0])
        );
        // The center is left of the crop.
        assert_eq!(crop([0.0, 15.0, 39.0, 20.0], CROP), None);
        // The center is inside, but less than a tenth of the area.
        assert_eq!(crop([-500.0, -500.0, 600.0, 600.0], CROP), None);
        assert_eq!(
            crop([19.0, 9.0, 61.0, 41.0], CROP),
            Some([0.0, 0.0, 40.0, 30.0])
        );
    }

    #[test]
    fn mirror_twice_is_nothing() {
        let boxed = [1.0, 2.0, 3.5, 4.0];
        assert_eq!(mirror(boxed, 10), [6.5, 2.0, 9.0, 4.0]);
        assert_eq!(mirror(mirror(boxed, 10), 10), boxed);
    }

    #[test]
    fn scale_has_a_ratio_for_each_axis() {
        assert_eq!(
            scale([1.0, 2.0, 3.0, 4.0], (10, 20), (5, 60)),
            [3.0, 1.0, 9.0, 2.0]
        );
    }
}
