//! Fused box transform that clips, crops, resizes, mirrors and packs boxes in one pass.

use crate::Error;
use crate::boxes::{self, BoxXyxy, Crop, LEAST_AREA_LEFT, SLACK_PIXELS};

/// Geometry of a transform: clip to the image, crop, resize and mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BoxTransform {
    /// (height, width) of the stored image.
    pub from: (usize, usize),
    /// The crop, in pixels of the stored image.
    pub crop: Crop,
    /// (height, width) of the output that the crop is resized to.
    pub to: (usize, usize),
    /// Mirror horizontally.
    pub flip: bool,
}

impl BoxTransform {
    /// Transform all boxes; `None` if the crop drops a box because its center is outside or too
    /// little of it remains.
    ///
    /// # Errors
    /// [`Error::InvalidBox`] if a box has no area inside the image or extends too far outside.
    pub fn move_all(&self, boxes: &[BoxXyxy]) -> Result<Vec<Option<BoxXyxy>>, Error> {
        let steps = BoxMap::new(self);
        let mut are_sound = true;
        let moved = boxes.iter().map(|&box_xyxy| {
            let (moved, is_kept, is_sound) = steps.carry_out(box_xyxy);
            are_sound &= is_sound;
            is_kept.then_some(moved)
        });
        let moved = moved.collect();
        self.check(are_sound, boxes)?;
        Ok(moved)
    }

    /// Transform all boxes and append them to those of other images in single precision.
    ///
    /// # Errors
    /// See [`Self::move_all`]; on error, no box of this image is appended.
    pub fn pack(&self, boxes: &[BoxXyxy], packed: &mut PackedBoxes) -> Result<(), Error> {
        let steps = BoxMap::new(self);
        let (before, kept_before) = (packed.boxes_xyxy.len(), packed.kept.len());
        packed.boxes_xyxy.resize(before + boxes.len(), [0.0; 4]);
        packed.kept.resize(kept_before + boxes.len(), false);
        let (mut end, mut are_sound) = (before, true);
        for (kept, &box_xyxy) in packed.kept.iter_mut().skip(kept_before).zip(boxes) {
            let (moved, is_kept, is_sound) = steps.carry_out(box_xyxy);
            // A dropped box is overwritten by the next one.
            if let Some(place) = packed.boxes_xyxy.get_mut(end) {
                #[allow(clippy::cast_possible_truncation)] // Batches are float32.
                let single = moved.map(|edge| edge as f32);
                *place = single;
            }
            *kept = is_kept;
            end += usize::from(is_kept);
            are_sound &= is_sound;
        }
        if let Err(fault) = self.check(are_sound, boxes) {
            packed.boxes_xyxy.truncate(before);
            packed.kept.truncate(kept_before);
            return Err(fault);
        }
        packed.boxes_xyxy.truncate(end);
        packed
            .per_image
            .push(i64::try_from(end - before).unwrap_or(i64::MAX));
        Ok(())
    }

    /// Report the first invalid box, if any.
    fn check(&self, are_sound: bool, boxes: &[BoxXyxy]) -> Result<(), Error> {
        if are_sound {
            return Ok(());
        }
        boxes::clip_all(boxes, self.from.0, self.from.1).map(drop)
    }
}

/// A [`BoxTransform`] converted to floats.
struct BoxMap {
    /// (y, x) each.
    image: (f64, f64),
    corner: (f64, f64),
    part: (f64, f64),
    ratios: (f64, f64),
    /// A mirrored x coordinate is this value minus x.
    mirror: Option<f64>,
}

impl BoxMap {
    #[allow(clippy::cast_precision_loss)] // Sizes are far below 2^53.
    fn new(box_transform: &BoxTransform) -> Self {
        let pair = |y: usize, x: usize| (y as f64, x as f64);
        let crop = box_transform.crop;
        Self {
            image: pair(box_transform.from.0, box_transform.from.1),
            corner: pair(crop.top, crop.left),
            part: pair(crop.height, crop.width),
            ratios: boxes::ratios((crop.height, crop.width), box_transform.to),
            mirror: box_transform.flip.then_some(box_transform.to.1 as f64),
        }
    }

    /// Clip, crop, resize and mirror without branches. Returns the box, whether the crop keeps it,
    /// and whether it is valid (see [`boxes::clip_all`]).
    #[inline]
    #[allow(clippy::needless_bitwise_bool)]
    fn carry_out(&self, [x0, y0, x1, y1]: BoxXyxy) -> (BoxXyxy, bool, bool) {
        let (height, width) = self.image;
        // False for NaN.
        let near = |edge: f64, limit: f64| (edge >= -SLACK_PIXELS) & (edge - limit <= SLACK_PIXELS);
        let is_near = near(x0, width) & near(y0, height) & near(x1, width) & near(y1, height);
        let (x0, x1) = (at_most(x0, width), at_most(x1, width));
        let (y0, y1) = (at_most(y0, height), at_most(y1, height));
        let is_sound = is_near & (x1 > x0) & (y1 > y0);
        let (top, left) = self.corner;
        let (x0, x1, y0, y1) = (x0 - left, x1 - left, y0 - top, y1 - top);
        let (x, y) = (0.5 * (x0 + x1), 0.5 * (y0 + y1));
        let whole = (x1 - x0) * (y1 - y0);
        let (height, width) = self.part;
        let (x0, x1) = (at_most(x0, width), at_most(x1, width));
        let (y0, y1) = (at_most(y0, height), at_most(y1, height));
        let left_over = (x1 - x0) * (y1 - y0);
        let is_kept = (x >= 0.0)
            & (x < width)
            & (y >= 0.0)
            & (y < height)
            & (left_over >= LEAST_AREA_LEFT * whole);
        let [x0, y0, x1, y1] = boxes::multiply([x0, y0, x1, y1], self.ratios);
        let resized = match self.mirror {
            Some(width) => [width - x1, y0, width - x0, y1],
            None => [x0, y0, x1, y1],
        };
        (resized, is_kept, is_sound)
    }
}

/// Clamp to [0, limit]; 0 for NaN.
#[inline]
fn at_most(edge: f64, limit: f64) -> f64 {
    let positive = if edge > 0.0 { edge } else { 0.0 };
    if positive < limit { positive } else { limit }
}

/// Boxes of several images, concatenated.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PackedBoxes {
    /// (G, 4) in pixels.
    pub boxes_xyxy: Vec<[f32; 4]>,
    /// Number of boxes per image.
    pub per_image: Vec<i64>,
    /// For each input box, true if it was kept.
    pub kept: Vec<bool>,
}

impl PackedBoxes {
    /// Clear the contents but keep the allocations.
    pub fn clear(&mut self) {
        self.boxes_xyxy.clear();
        self.per_image.clear();
        self.kept.clear();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::float_cmp)] // Identical operations give identical numbers.

    use super::*;
    use crate::boxes::clip_all;
    use crate::boxes::reference::{crop, mirror, scale};
    use crate::rng::{Purpose, Rng};

    /// The unfused reference transform.
    fn in_parts(box_transform: &BoxTransform, boxes: &[BoxXyxy]) -> Vec<Option<BoxXyxy>> {
        let (height, width) = box_transform.from;
        clip_all(boxes, height, width)
            .unwrap()
            .into_iter()
            .map(|box_xyxy| {
                let cut = crop(box_xyxy, box_transform.crop)?;
                let scaled = scale(
                    cut,
                    (box_transform.crop.height, box_transform.crop.width),
                    box_transform.to,
                );
                Some(if box_transform.flip {
                    mirror(scaled, box_transform.to.1)
                } else {
                    scaled
                })
            })
            .collect()
    }

    #[test]
    fn the_fused_transform_equals_its_steps() {
        let mut rng = Rng::new(0, 0, 0, Purpose::Order);
        let mut packed = PackedBoxes::default();
        let (mut counts, mut expected) = (Vec::new(), Vec::new());
        for number in 0..200 {
            let from = (20 + rng.index(60), 20 + rng.index(60));
            let cut = Crop {
                top: rng.index(10),
                left: rng.index(10),
                height: 1 + rng.index(from.0 - 10),
                width: 1 + rng.index(from.1 - 10),
            };
            let whole = Crop {
                top: 0,
                left: 0,
                height: from.0,
                width: from.1,
            };
            let box_transform = BoxTransform {
                from,
                crop: if number % 2 == 0 { cut } else { whole },
                to: (1 + rng.index(99), 1 + rng.index(99)),
                flip: rng.index(2) == 0,
            };
            let boxes: Vec<BoxXyxy> = (0..rng.index(9))
                .map(|_| {
                    let (x, y) = (rng.range(-0.9, 15.0), rng.range(-0.9, 15.0));
                    [x, y, x + rng.range(1.0, 5.9), y + rng.range(1.0, 5.9)]
                })
                .collect();
            let moved = in_parts(&box_transform, &boxes);
            assert_eq!(box_transform.move_all(&boxes).unwrap(), moved);
            box_transform.pack(&boxes, &mut packed).unwrap();
            counts.push(i64::try_from(moved.iter().flatten().count()).unwrap());
            expected.extend(moved);
        }
        #[allow(clippy::cast_possible_truncation)] // Same conversion as when packing.
        let single = expected.iter().flatten().map(|b| b.map(|edge| edge as f32));
        assert!(single.eq(packed.boxes_xyxy.iter().copied()));
        assert!(
            packed.kept.iter().eq(expected
                .iter()
                .map(Option::is_some)
                .collect::<Vec<_>>()
                .iter())
        );
        assert_eq!(packed.per_image, counts);
        assert!(packed.kept.contains(&false) && counts.contains(&0));
    }

    #[test]
    fn an_error_packs_nothing() {
        let box_transform = BoxTransform {
            from: (3, 4),
            crop: Crop {
                top: 0,
                left: 0,
                height: 3,
                width: 4,
            },
            to: (3, 4),
            flip: false,
        };
        let mut packed = PackedBoxes::default();
        box_transform
            .pack(&[[0.0, 0.0, 1.0, 1.0]], &mut packed)
            .unwrap();
        let before = packed.clone();
        let faulty = [[0.0, 0.0, 1.0, 1.0], [5.0, 0.0, 9.0, 3.0]];
        assert!(matches!(
            box_transform.pack(&faulty, &mut packed),
            Err(Error::InvalidBox { index: 1, .. })
        ));
        assert_eq!(packed, before);
        packed.clear();
        assert_eq!(packed, PackedBoxes::default());
    }

    #[test]
    fn recorded_boxes_of_the_published_detector() {
        // Three boxes of a 640 x 480 image from the recorded case `boxlist`. It counts the last
        // pixel as inside, so a mirrored box starts at width - 1 - x1.
        let boxes = [
            [10.0, 20.0, 110.0, 220.0],
            [0.0, 0.0, 639.0, 479.0],
            [100.5, 50.25, 101.5, 60.75],
        ];
        let whole = Crop {
            top: 0,
            left: 0,
            height: 480,
            width: 640,
        };
        let mut box_transform = BoxTransform {
            from: (480, 640),
            crop: whole,
            to: (800, 1066),
            flip: false,
        };
        let mut packed = PackedBoxes::default();
        box_transform.pack(&boxes, &mut packed).unwrap();
        let expected: [[f32; 4]; 3] = [
            [16.65625, 33.333_332, 183.21875, 366.666_66],
            [0.0, 0.0, 1_064.334_4, 798.333_3],
            [167.395_31, 83.75, 169.060_93, 101.25],
        ];
        for (found, expected) in packed.boxes_xyxy.iter().zip(expected) {
            for (edge, expected) in found.iter().zip(expected) {
                // Two ulps in single precision, which the recorded code uses to multiply.
                assert!(
                    (edge - expected).abs() <= expected * 2.4e-7,
                    "{edge} {expected}"
                );
            }
        }
        packed.clear();
        (box_transform.to, box_transform.flip) = ((480, 640), true);
        let half_open = boxes.map(|[x0, y0, x1, y1]| [x0, y0, x1 + 1.0, y1 + 1.0]);
        box_transform.pack(&half_open, &mut packed).unwrap();
        let expected: [[f32; 4]; 3] = [
            [529.0, 20.0, 629.0, 220.0],
            [0.0, 0.0, 639.0, 479.0],
            [537.5, 50.25, 538.5, 60.75],
        ];
        let closed = packed
            .boxes_xyxy
            .iter()
            .map(|&[x0, y0, x1, y1]| [x0, y0, x1 - 1.0, y1 - 1.0]);
        assert!(closed.eq(expected));
    }
}
