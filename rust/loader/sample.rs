//! Prepare a record: read image headers, sample transforms, map boxes and tokenize.

use crate::Error;
use crate::boxes::BoxXyxy;
use crate::loader::config::LoaderConfig;
use crate::loader::probed_image::ProbedImage;
use crate::loader::record::{Record, Task};
use crate::loader::sample_masks::PreparedMasks;
use crate::rng::{Purpose, Rng};
use crate::tokenizer::Encoded;
use crate::tokenizer::spans::{self, CharSpan, Mirrored};
use crate::transform::params::SampledTransform;
use crate::try_alloc;

/// A sample that is complete except for its pixels.
#[derive(Clone)]
pub struct PreparedSample {
    /// Everything except the images.
    pub sample: Sample,
    /// The images and their sampled transforms.
    pub images: Vec<(ProbedImage, SampledTransform)>,
    /// The masks, for tasks that have any.
    pub masks: Option<PreparedMasks>,
}

impl PreparedSample {
    /// Total size of the encoded images in bytes.
    pub fn bytes(&self) -> usize {
        let images = self.images.iter();
        images.map(|(probed, _)| probed.bytes().len()).sum()
    }
}

/// A sample, ready to be collated.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    pub key: String,
    pub epoch: u64,
    /// Index of the record.
    pub index: u64,
    /// (height, width) of the first image after its transform.
    pub image_size: (usize, usize),
    /// (height, width) of the first stored image.
    pub original_size: (usize, usize),
    pub token_ids: Vec<u32>,
    /// True if the text has more tokens than fit.
    pub is_truncated: bool,
    pub image_id: i64,
    /// (answer index, soft score).
    pub answers: Vec<(usize, f32)>,
    pub truth: bool,
    /// Boxes in pixels of the transformed image.
    pub boxes_xyxy: Vec<BoxXyxy>,
    /// (boxes, tokens): which tokens name each box.
    pub positive_map: Vec<bool>,
    /// Boxes dropped because no token names them.
    pub truncated_boxes: usize,
    /// Boxes dropped because the crop left too little of them.
    pub cropped_boxes: usize,
    /// Tokens of each phrase.
    pub phrases: Vec<Vec<u32>>,
    /// Phrases with more tokens than fit.
    pub truncated_phrases: usize,
}

impl Sample {
    fn set_text(&mut self, encoded: Encoded) {
        self.token_ids = encoded.ids;
        self.is_truncated = encoded.is_truncated;
    }

    fn add_phrase(&mut self, encoded: Encoded) {
        self.phrases.push(encoded.ids);
        self.truncated_phrases += usize::from(encoded.is_truncated);
    }
}

/// Prepare a record: probe its images, sample their transforms, map boxes and tokenize.
pub fn prepare_sample(config: &LoaderConfig, record: &Record) -> Result<PreparedSample, Error> {
    prepare(config, record).map_err(|error| error.in_record(&record.key))
}

fn prepare(config: &LoaderConfig, record: &Record) -> Result<PreparedSample, Error> {
    check(config, record)?;
    let mut sample = Sample {
        key: record.key.clone(),
        epoch: record.epoch,
        index: record.index,
        image_id: record.image_number(),
        truth: record.truth.unwrap_or(false),
        ..Sample::default()
    };
    let mut images = Vec::with_capacity(record.images.len());
    let (mut flipped, mut masks) = (false, None);
    for (number, stored) in (0_u8..).zip(&record.images) {
        let probed = ProbedImage::new(stored, config)?;
        let size = probed.size;
        if number == 0 {
            record.check_size(size)?;
        }
        let mut rng = rng(config, record, Purpose::Image(number));
        let mut sampled = config.transform.sample(size.0, size.1, &mut rng);
        if number == 0 {
            sample.original_size = size;
            flipped = sampled.flip;
            if config.task == Task::Segmentation {
                masks = Some(PreparedMasks::new(record, &probed)?);
            }
            if config.task.has_boxes() {
                let mut moved = sampled.transform_boxes(&record.boxes_xyxy, size.0, size.1)?;
                let loses_all = !moved.is_empty() && moved.iter().all(Option::is_none);
                if let Some(whole) = sampled.uncut(size.0, size.1).filter(|_| loses_all) {
                    // Otherwise, the text might no longer describe the image.
                    sampled = whole;
                    moved = sampled.transform_boxes(&record.boxes_xyxy, size.0, size.1)?;
                }
                let kept = ground(config, record, flipped, &moved, &mut sample)?;
                if config.task.has_masks() {
                    masks = Some(PreparedMasks::of_boxes(record, &probed, &kept)?);
                }
            }
            sample.image_size = (sampled.height, sampled.width);
        }
        images.push((probed, sampled));
    }
    match config.task {
        Task::Grounding | Task::GroundingMasks => {}
        // Not mirrored, because "left" refers to the left one of the two images.
        Task::Reasoning => sample.set_text(encode(config, &record.text)?),
        Task::ImageText | Task::Question | Task::Segmentation => {
            let text = mirror_if(flipped, &record.text);
            sample.set_text(encode(config, &text.text)?);
        }
    }
    if config.task == Task::Segmentation {
        for phrase in &record.phrases {
            let phrase = mirror_if(flipped, phrase);
            sample.add_phrase(encode(config, &phrase.text)?);
        }
    }
    if let Some(answers) = &record.answers {
        let mirrored = |answer: usize| config.mirrored_answers.get(answer).filter(|_| flipped);
        let answers = answers.iter();
        sample.answers = answers
            .map(|&(answer, score)| (mirrored(answer).copied().unwrap_or(answer), score))
            .collect();
    }
    Ok(PreparedSample {
        sample,
        images,
        masks,
    })
}

fn check(config: &LoaderConfig, record: &Record) -> Result<(), Error> {
    let images = config.task.images();
    if record.images.len() != images {
        let reason = format!(
            "{} images; expected {images} for this task",
            record.images.len()
        );
        return Err(Error::field("images", reason));
    }
    match config.task {
        Task::Question if record.answers.is_none() && !config.mirrored_answers.is_empty() => Err(
            Error::field("answers", "missing; expected answers with their scores"),
        ),
        Task::Reasoning if record.truth.is_none() => {
            Err(Error::field("truth", "missing; expected True or False"))
        }
        Task::Grounding | Task::GroundingMasks
            if record.char_spans.len() != record.boxes_xyxy.len() =>
        {
            let (spans, boxes) = (record.char_spans.len(), record.boxes_xyxy.len());
            let reason = format!("{spans} entries for {boxes} boxes; expected one for each box");
            Err(Error::field("char_spans", reason))
        }
        _ => Ok(()),
    }
}

fn rng(config: &LoaderConfig, record: &Record, purpose: Purpose) -> Rng {
    Rng::new(config.seed, record.epoch, record.index, purpose)
}

fn encode(config: &LoaderConfig, text: &str) -> Result<Encoded, Error> {
    config.tokenizer.encode(text, Some(config.max_tokens))
}

/// Tokenize the text and keep the boxes that survive the crop and are named by a token; return
/// their indices.
fn ground(
    config: &LoaderConfig,
    record: &Record,
    flipped: bool,
    moved: &[Option<BoxXyxy>],
    sample: &mut Sample,
) -> Result<Vec<usize>, Error> {
    let text = mirror_if(flipped, &record.text);
    let encoded = encode(config, &text.text)?;
    try_alloc::reserve_rows(&mut sample.positive_map, moved.len(), encoded.ids.len())?;
    let mut kept = Vec::with_capacity(moved.len());
    for (index, (box_xyxy, spans)) in moved.iter().zip(&record.char_spans).enumerate() {
        let Some(box_xyxy) = box_xyxy else {
            sample.cropped_boxes += 1;
            continue;
        };
        let spans: Vec<CharSpan> = spans.iter().map(|&span| text.move_span(span)).collect();
        let row = spans::positive_row(&encoded.offsets, &spans);
        if row.contains(&true) {
            sample.boxes_xyxy.push(*box_xyxy);
            sample.positive_map.extend(row);
            kept.push(index);
        } else {
            sample.truncated_boxes += 1;
        }
    }
    sample.set_text(encoded);
    Ok(kept)
}

fn mirror_if(flipped: bool, text: &str) -> Mirrored {
    if flipped {
        spans::mirror_words(text)
    } else {
        Mirrored::unchanged(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{config, record};
    use crate::loader::decode_into::{DecodeRequest, ImageDecoder};
    use crate::transform::Geometry;
    use crate::transform::crop::RandomCrop;

    fn sample_of(config: &LoaderConfig, record: &Record) -> Sample {
        prepare_sample(config, record).unwrap().sample
    }

    /// Red channel of the image, row by row.
    fn reds(config: &LoaderConfig, record: &Record) -> Vec<f32> {
        let prepared = prepare_sample(config, record).unwrap();
        let (probed, sampled) = &prepared.images[0];
        let mut slot = vec![0; sampled.height * sampled.width * 3 * 4];
        let request = DecodeRequest {
            probed,
            sampled,
            slot: &mut slot,
            slot_size: (sampled.height, sampled.width),
        };
        ImageDecoder::new(config)
            .unwrap()
            .decode(request, config)
            .unwrap();
        let (values, _) = slot.as_chunks::<4>();
        let values = values.iter().map(|&bytes| f32::from_ne_bytes(bytes));
        values.take(sampled.height * sampled.width).collect()
    }

    #[test]
    fn empty_text_has_two_tokens() {
        let mut record = record("a");
        record.text = String::new();
        let sample = sample_of(&config(Task::ImageText), &record);
        assert_eq!(sample.token_ids, [0, 2]);
    }

    #[test]
    fn boxes_follow_their_image() {
        let sample = sample_of(&config(Task::Grounding), &record("a"));
        assert_eq!(sample.original_size, (10, 20));
        let expected: BoxXyxy = [1.0 * 0.4, 2.0 * 0.8, 5.0 * 0.4, 6.0 * 0.8];
        for (edge, expected) in sample.boxes_xyxy[0].iter().zip(expected) {
            assert!((edge - expected).abs() < 1e-12);
        }
    }

    #[test]
    fn mirroring_swaps_words_spans_and_answers() {
        let mut config = config(Task::Grounding);
        config.transform.flip_probability = 1.0;
        let sample = sample_of(&config, &record("a"));
        let tokens = &config.tokenizer;
        assert_eq!(tokens.decode(&sample.token_ids).unwrap(), "the right cup");
        let named: Vec<u32> = sample
            .token_ids
            .iter()
            .zip(&sample.positive_map)
            .filter_map(|(&id, &positive)| positive.then_some(id))
            .collect();
        assert_eq!(tokens.decode(&named).unwrap(), " right");
        assert!((sample.boxes_xyxy[0][0] - (8.0 - 5.0 * 0.4)).abs() < 1e-12);
        // Brighter to the left after mirroring.
        let reds = reds(&config, &record("a"));
        assert!(reds[0] > reds[7]);

        config.task = Task::Question;
        config.mirrored_answers = vec![1, 0];
        let mut record = record("a");
        record.answers = Some(vec![(0, 0.5)]);
        assert_eq!(sample_of(&config, &record).answers, [(1, 0.5)]);

        config.task = Task::Reasoning;
        record.truth = Some(true);
        record.images.push(record.images[0].clone());
        let sample = sample_of(&config, &record);
        assert_eq!(tokens.decode(&sample.token_ids).unwrap(), "the left cup");
    }

    #[test]
    fn a_crop_that_would_drop_every_box_is_not_applied() {
        let mut config = config(Task::Grounding);
        config.transform.geometry = Geometry::ShorterSide {
            sizes: vec![10],
            max_size: 64,
            divisor: 1,
            cut: RandomCrop {
                probability: 1.0,
                scale: (0.2, 0.3),
            },
        };
        let mut whole = 0;
        let mut record = record("a");
        for index in 0..200 {
            record.index = index;
            let sample = sample_of(&config, &record);
            assert_eq!((sample.boxes_xyxy.len(), sample.cropped_boxes), (1, 0));
            whole += usize::from(sample.image_size == (10, 20));
        }
        assert!((20..180).contains(&whole), "{whole}");
        // An image without boxes may be cropped anywhere.
        record.boxes_xyxy.clear();
        record.char_spans.clear();
        assert!(sample_of(&config, &record).boxes_xyxy.is_empty());
    }

    #[test]
    fn boxes_without_tokens_are_dropped_and_counted() {
        let mut config = config(Task::Grounding);
        config.max_tokens = 3;
        let sample = sample_of(&config, &record("a"));
        assert!(sample.token_ids.len() == 3 && sample.is_truncated);
        assert_eq!((sample.boxes_xyxy.len(), sample.truncated_boxes), (0, 1));
    }

    #[test]
    fn missing_fields_of_a_task_are_named() {
        let message = |task, record: &Record| {
            let mut config = config(task);
            config.mirrored_answers = vec![0];
            prepare_sample(&config, record).err().unwrap().to_string()
        };
        let mut record = record("a");
        assert!(message(Task::Question, &record).starts_with("record 'a': answers: "));
        assert!(message(Task::Reasoning, &record).starts_with("record 'a': images: "));
        record.char_spans.clear();
        assert!(message(Task::Grounding, &record).starts_with("record 'a': char_spans: "));
        record.images.push(record.images[0].clone());
        assert!(message(Task::Reasoning, &record).starts_with("record 'a': truth: "));
        assert!(message(Task::ImageText, &record).starts_with("record 'a': images: 2"));
    }
}
