//! Masks of a sample: checked when it is prepared, and decoded beside its pixels.

use crate::Error;
use crate::decode_limits::DecodeLimits;
use crate::loader::probed_image::ProbedImage;
use crate::loader::record::{Masks, Record, SharedBytes};
use crate::masks::id_map;
use crate::masks::planes::Planes;
use crate::masks::stored_mask::{self, MaskScratch};
use crate::masks::{self, FIELD};
use crate::transform::params::SampledTransform;

/// Masks that are to be decoded.
#[derive(Clone)]
pub struct PreparedMasks {
    masks: Masks,
    /// Content of the map.
    bytes: Option<SharedBytes>,
    /// (height, width) of the image as stored.
    size: (usize, usize),
    /// EXIF orientation to apply; 1 if there is none.
    orientation: u8,
    labels: Vec<i64>,
    crowd: Vec<bool>,
    /// Masks of each phrase, or the mask of each box, if it has one.
    phrases: Vec<Vec<usize>>,
    /// True if only phrases are wanted.
    of_boxes: bool,
}

/// Decoded masks of a sample.
#[derive(Clone, Debug, Default)]
pub struct SampleMasks {
    /// Masks that are not of crowds.
    pub masks: Planes,
    /// Class of each of these masks.
    pub labels: Vec<i64>,
    /// For each phrase, the union of its masks; for each box, its mask, or an empty one.
    pub phrases: Planes,
    /// Masks of which the crop left no pixel; they are kept.
    pub emptied: usize,
}

fn check_count(field: &'static str, found: usize, count: usize, each: &str) -> Result<(), Error> {
    if found == count {
        return Ok(());
    }
    let many = if each == "box" {
        "boxes".to_owned()
    } else {
        format!("{each}s")
    };
    let reason = format!("{found} entries for {count} {many}; expected one for each {each}");
    Err(Error::field(field, reason))
}

/// Check masks against an image of `size` = (height, width); return the content of their map, if
/// they are in one.
fn read_map(masks: &Masks, size: (usize, usize)) -> Result<Option<SharedBytes>, Error> {
    match masks {
        Masks::Each(masks) => {
            for (index, mask) in masks.iter().enumerate() {
                let named = |reason: String| masks::problem(index, reason);
                mask.check(size).map_err(named)?;
            }
            Ok(None)
        }
        Masks::Map { image, ids } => {
            let bytes = image.read()?;
            let content = (*bytes).as_ref();
            let found = id_map::probe(content, ids.coding);
            let found = found.map_err(|fault| image.name_fault(fault))?;
            if found != size {
                let reason = format!(
                    "the id map has {} x {} pixels (height x width), but the image has {} x {}",
                    found.0, found.1, size.0, size.1
                );
                return Err(Error::field(FIELD, reason));
            }
            Ok(Some(bytes))
        }
    }
}

impl PreparedMasks {
    /// Check the masks of a record against its image, and read its map.
    pub(crate) fn new(record: &Record, image: &ProbedImage) -> Result<Self, Error> {
        let (count, size) = (record.masks.len(), image.stored_size());
        check_count("mask_labels", record.mask_labels.len(), count, "mask")?;
        if !record.mask_crowd.is_empty() {
            check_count("mask_crowd", record.mask_crowd.len(), count, "mask")?;
        }
        let phrases = record.phrases.len();
        check_count("phrase_masks", record.phrase_masks.len(), phrases, "phrase")?;
        let mut chosen = record.phrase_masks.iter().flatten();
        if let Some(mask) = chosen.find(|&&mask| mask >= count) {
            let reason = format!("mask {mask}; expected indices of {count} masks");
            return Err(Error::field("phrase_masks", reason));
        }
        Ok(Self {
            bytes: read_map(&record.masks, size)?,
            masks: record.masks.clone(),
            size,
            orientation: image.orientation(),
            labels: record.mask_labels.clone(),
            crowd: record.mask_crowd.clone(),
            phrases: record.phrase_masks.clone(),
            of_boxes: false,
        })
    }

    /// Check the masks of some boxes of a record against its image, and read its map.
    pub(crate) fn of_boxes(
        record: &Record,
        image: &ProbedImage,
        kept: &[usize],
    ) -> Result<Self, Error> {
        let (count, boxes) = (record.masks.len(), record.boxes_xyxy.len());
        if !record.box_masks.is_empty() {
            check_count("box_masks", record.box_masks.len(), boxes, "box")?;
        }
        let is_known = |mask: i64| usize::try_from(mask).is_ok_and(|mask| mask < count);
        let mut chosen = record.box_masks.iter();
        if let Some(mask) = chosen.find(|&&mask| mask != -1 && !is_known(mask)) {
            let reason = format!("mask {mask}; expected -1 or indices of {count} masks");
            return Err(Error::field("box_masks", reason));
        }
        let mask_of = |&index: &usize| {
            let mask = record.box_masks.get(index);
            let mask = mask.and_then(|&mask| usize::try_from(mask).ok());
            mask.into_iter().collect()
        };
        let size = image.stored_size();
        Ok(Self {
            bytes: read_map(&record.masks, size)?,
            masks: record.masks.clone(),
            size,
            orientation: image.orientation(),
            labels: Vec::new(),
            crowd: Vec::new(),
            phrases: kept.iter().map(mask_of).collect(),
            of_boxes: true,
        })
    }

    /// Apply a transform, with padding to `padded` = (height, width).
    pub(crate) fn decode(
        &self,
        sampled: &SampledTransform,
        padded: (usize, usize),
        limits: &DecodeLimits,
        scratch: &mut MaskScratch,
    ) -> Result<SampleMasks, Error> {
        let count = self.masks.len();
        stored_mask::check_bytes(count + self.phrases.len(), padded)?;
        let grid = sampled.sample_grid(self.size, self.orientation, padded);
        let (mut planes, is_seen) = match (&self.masks, &self.bytes) {
            (Masks::Each(each), _) => (
                stored_mask::sample(each, &grid, scratch)?,
                vec![true; count],
            ),
            (Masks::Map { image, ids }, Some(bytes)) => {
                let found = id_map::sample((**bytes).as_ref(), ids, &grid, limits);
                found.map_err(|fault| image.name_fault(fault))?
            }
            (Masks::Map { .. }, None) => {
                return Err(Error::Worker("an id map was not read".to_owned()));
            }
        };
        let phrases = planes.unions(&self.phrases)?;
        let is_crowd = |index: usize| self.crowd.get(index).is_some_and(|&crowd| crowd);
        let seen = (0..count).zip(is_seen);
        let kept = seen.filter(|&(index, seen)| !self.of_boxes && seen && !is_crowd(index));
        let kept: Vec<usize> = kept.map(|(index, _)| index).collect();
        planes.keep(&kept);
        let labels = kept.iter().filter_map(|&index| self.labels.get(index));
        let is_empty = |&index: &usize| planes.get(index).iter().all(|&byte| byte == 0);
        Ok(SampleMasks {
            labels: labels.copied().collect(),
            emptied: (0..kept.len()).filter(is_empty).count(),
            masks: planes,
            phrases,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::fixtures::{config, png, record};
    use crate::loader::record::{StoredImage, Task};
    use crate::loader::sample::prepare_sample;
    use crate::masks::id_map::{Coding, MapIds};
    use crate::masks::polygon::Polygons;
    use crate::masks::rle::{Counts, Rle};
    use crate::masks::stored_mask::StoredMask;
    use crate::transform::Geometry;

    fn rle(counts: &[i64], size: (usize, usize)) -> StoredMask {
        let counts = Counts::Plain(counts.into());
        StoredMask::Rle(Rle { counts, size })
    }

    /// A record of 10 x 20 pixels with its upper left quarter twice, the second time a crowd.
    fn masked() -> Record {
        let rings = vec![vec![0.0, 0.0, 10.0, 0.0, 10.0, 5.0, 0.0, 5.0]];
        let quarter = StoredMask::Polygons(Polygons { rings });
        let bits = [[0xFF_u8, 0b1100_0000, 0].repeat(5), vec![0; 15]].concat();
        let crowd = StoredMask::Packed {
            bits: Arc::new(bits),
            size: (10, 20),
        };
        Record {
            masks: Masks::Each(Arc::from([quarter, crowd, rle(&[199, 1], (10, 20))])),
            mask_labels: vec![3, 4, 5],
            mask_crowd: vec![false, true, false],
            phrases: vec!["the left cup".to_owned(), "a dog".to_owned()],
            phrase_masks: vec![vec![1, 2], vec![]],
            ..record("a")
        }
    }

    fn decoded(record: &Record, geometry: Geometry, flip: f64) -> Result<SampleMasks, String> {
        let mut config = config(Task::Segmentation);
        config.transform.geometry = geometry;
        config.transform.flip_probability = flip;
        let decode = || {
            let prepared = prepare_sample(&config, record)?;
            let (_, sampled) = &prepared.images[0];
            let size = (sampled.height, sampled.width);
            let masks = prepared.masks.unwrap();
            masks.decode(sampled, size, &config.limits, &mut MaskScratch::default())
        };
        decode().map_err(|error| error.to_string())
    }

    #[test]
    fn masks_follow_their_image() {
        let found = decoded(&masked(), Geometry::Squash { size: 4 }, 0.0).unwrap();
        assert_eq!(found.masks.bytes, [0xC0, 0xC0, 0, 0, 0, 0, 0, 0]);
        assert_eq!((found.labels, found.emptied), (vec![3, 5], 1));
        assert_eq!(found.phrases.bytes, [0xC0, 0xC0, 0, 0, 0, 0, 0, 0]);
        let found = decoded(&masked(), Geometry::Squash { size: 20 }, 1.0).unwrap();
        assert_eq!(found.masks.bytes[..3], [0, 0b0011_1111, 0xF0]);
        assert_eq!(found.masks.bytes[117..], [0x80, 0, 0]);
        assert_eq!(found.emptied, 0);
    }

    #[test]
    fn masks_of_boxes_follow_the_boxes_that_are_kept() {
        let (cup, spans) = ([1.0, 2.0, 5.0, 6.0], vec![(4, 8)]);
        let record = Record {
            boxes_xyxy: vec![cup; 4],
            char_spans: vec![spans.clone(), Vec::new(), spans.clone(), spans],
            box_masks: vec![0, 1, -1, 0],
            ..masked()
        };
        let mut config = config(Task::GroundingMasks);
        config.transform.geometry = Geometry::Squash { size: 4 };
        config.transform.flip_probability = 1.0;
        let decode = |record: &Record| {
            let prepared = prepare_sample(&config, record)?;
            let (_, sampled) = &prepared.images[0];
            let masks = prepared.masks.unwrap();
            masks.decode(sampled, (4, 4), &config.limits, &mut MaskScratch::default())
        };
        // The second box has no token, the third no mask.
        let found = decode(&record).unwrap();
        assert_eq!(found.masks.count, 0);
        let quarter = [0x30, 0x30, 0, 0];
        assert_eq!(found.phrases.bytes, [quarter, [0; 4], quarter].concat());
        for (box_masks, expected) in [
            (vec![0, 1], "box_masks: 2 entries for 4 boxes"),
            (vec![0, 1, -2, 0], "box_masks: mask -2"),
            (vec![0, 3, -1, 0], "box_masks: mask 3"),
        ] {
            let record = Record {
                box_masks,
                ..record.clone()
            };
            let message = decode(&record).err().unwrap().to_string();
            assert!(message.contains(expected), "{message}");
        }
        let without = Record {
            box_masks: Vec::new(),
            ..record
        };
        assert_eq!(decode(&without).unwrap().phrases.bytes, [0; 12]);
    }

    #[test]
    fn an_id_map_is_sampled_and_its_lacking_ids_are_left_out() {
        // Brighter to the right: 0, 12, 25 and so on.
        let ids = MapIds {
            ids: vec![1, 12, 25],
            void: (0..=255).collect(),
            coding: Coding::Gray,
            may_lack: true,
        };
        let mut record = masked();
        let image = StoredImage::Bytes(Arc::new(png(10, 20)));
        record.masks = Masks::Map {
            image,
            ids: Arc::new(ids),
        };
        record.mask_crowd.clear();
        let found = decoded(&record, Geometry::Squash { size: 20 }, 0.0).unwrap();
        assert_eq!(found.labels, [4, 5]);
        assert_eq!(found.masks.bytes[..3], [0b0100_0000, 0, 0]);
        assert_eq!(found.phrases.bytes[..3], [0b0110_0000, 0, 0]);
        record.images = vec![StoredImage::Bytes(Arc::new(png(10, 21)))];
        let error = decoded(&record, Geometry::Squash { size: 20 }, 0.0).unwrap_err();
        assert!(
            error.contains("id map has 10 x 20") && error.contains("10 x 21"),
            "{error}"
        );
    }

    #[test]
    fn wrong_masks_are_named() {
        let message = |change: &dyn Fn(&mut Record)| {
            let mut record = masked();
            change(&mut record);
            decoded(&record, Geometry::Squash { size: 4 }, 0.0).unwrap_err()
        };
        let each = |mask: StoredMask| {
            move |record: &mut Record| {
                record.masks = Masks::Each(Arc::from(vec![mask.clone(); 3]));
            }
        };
        for (found, expected) in [
            (
                message(&|it| it.mask_labels.truncate(1)),
                "mask_labels: 1 entries for 3 masks",
            ),
            (
                message(&|it| it.mask_crowd.truncate(2)),
                "mask_crowd: 2 entries for 3 masks",
            ),
            (
                message(&|it| it.phrases.truncate(1)),
                "phrase_masks: 2 entries for 1 phrases",
            ),
            (
                message(&|it| it.phrase_masks[0][0] = 3),
                "phrase_masks: mask 3",
            ),
            (
                message(&each(rle(&[200], (20, 10)))),
                "masks: mask 0 has 20 x 10",
            ),
            (
                message(&each(rle(&[199], (10, 20)))),
                "masks: mask 0 is too short",
            ),
        ] {
            assert!(
                found.starts_with("record 'a': ") || found.starts_with("masks"),
                "{found}"
            );
            assert!(found.contains(expected), "{found}");
        }
    }
}
