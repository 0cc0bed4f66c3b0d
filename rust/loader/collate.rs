//! Collate samples into a batch with decoded images, padded texts and ragged boxes.

use crate::Error;
use crate::loader::buffer_pool::PooledBuffer;
use crate::loader::collate_masks::MaskFields;
use crate::loader::config::LoaderConfig;
use crate::loader::decode_into::ImageStatus;
use crate::loader::record::Task;
use crate::loader::sample::Sample;
use crate::normalize::layout::Layout;
use crate::tokenizer::SpecialTokens;
use crate::tokenizer::masking::{IGNORED_LABEL, TextPlace};
use crate::try_alloc;

/// A batch in plain memory, with `B` samples, `L` tokens and `G` boxes.
#[derive(Debug, Default)]
pub struct Batch {
    /// Keys of the records.
    pub keys: Vec<String>,
    /// Status of each record's images.
    pub statuses: Vec<ImageStatus>,
    /// Pixels of shape `image_shape` in the config's `dtype`; `None` if there are no samples.
    pub images: Option<PooledBuffer>,
    /// (B, 3, H, W), or (B, 2, 3, H, W) for records with two images; channels are last in the HWC
    /// layout.
    pub image_shape: Vec<usize>,
    /// (B, 2): (height, width) without padding.
    pub image_sizes: Vec<i64>,
    /// (B, 2): (height, width) of the stored image.
    pub original_sizes: Vec<i64>,
    /// L.
    pub num_tokens: usize,
    /// (B, L).
    pub token_ids: Vec<i64>,
    /// (B, L): true for real tokens.
    pub text_mask: Vec<bool>,
    /// (B,).
    pub image_ids: Vec<i64>,
    /// (B, L) for MLM.
    pub masked_ids: Vec<i64>,
    /// (B, L) for MLM.
    pub mlm_labels: Vec<i64>,
    /// (B, answers) soft scores.
    pub targets: Vec<f32>,
    /// (B,): 1 if the statement is true.
    pub truths: Vec<i64>,
    /// (G, 4).
    pub boxes_xyxy: Vec<f32>,
    /// (B,).
    pub boxes_per_image: Vec<i64>,
    /// (G, L).
    pub positive_map: Vec<bool>,
    /// For segmentation.
    pub masks: MaskFields,
    /// Bad samples that were dropped.
    pub skipped: Vec<Skipped>,
    /// Boxes dropped because no token names them.
    pub truncated_boxes: usize,
    /// Boxes dropped because the crop left too little of them.
    pub cropped_boxes: usize,
    /// Texts of more than `max_tokens` tokens.
    pub truncated_texts: usize,
    /// Texts without a token that is not special.
    pub wordless_texts: usize,
}

/// A bad sample that was dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Key of the record.
    pub key: String,
    /// Status of the sample; see [`crate::Error::status`].
    pub status: &'static str,
    /// The error.
    pub reason: String,
}

/// Collate samples in order; `images` holds their pixels, padded to `size` = (height, width).
/// Texts are masked here because their number in a stream, from `first_sample`, is that of their
/// row.
pub(crate) fn collate(
    samples: &[&Sample],
    images: Option<PooledBuffer>,
    size: (usize, usize),
    first_sample: Option<u64>,
    config: &LoaderConfig,
) -> Result<Batch, Error> {
    let lengths = samples.iter().map(|sample| sample.token_ids.len());
    let mut batch = Batch {
        images,
        image_shape: image_shape(samples.len(), size, config),
        num_tokens: lengths.max().unwrap_or(0),
        ..Batch::default()
    };
    batch.reserve(samples, config)?;
    let special_tokens = config.tokenizer.special_tokens();
    for (row, sample) in (0..).zip(samples) {
        batch.keys.push(sample.key.clone());
        let pair = |(height, width)| [integer(height), integer(width)];
        batch.image_sizes.extend(pair(sample.image_size));
        batch.original_sizes.extend(pair(sample.original_size));
        batch.add_text(sample, special_tokens);
        match config.task {
            Task::ImageText => {
                batch.image_ids.push(sample.image_id);
                batch.mask(sample, first_sample.map(|first: u64| first + row), config)?;
            }
            Task::Question => {
                let targets = &mut batch.targets;
                let start = targets.len();
                targets.resize(start + config.mirrored_answers.len(), 0.0);
                for &(answer, score) in &sample.answers {
                    if let Some(target) = targets.get_mut(start + answer) {
                        *target = score;
                    }
                }
            }
            Task::Reasoning => batch.truths.push(i64::from(sample.truth)),
            Task::Grounding | Task::GroundingMasks => collate_boxes(sample, &mut batch),
            // See `collate_masks`.
            Task::Segmentation => {}
        }
        batch.truncated_boxes += sample.truncated_boxes;
        batch.cropped_boxes += sample.cropped_boxes;
        batch.truncated_texts += sample.truncated_phrases;
    }
    Ok(batch)
}

impl Batch {
    /// Reserve memory for all arrays with a row per text or box.
    fn reserve(&mut self, samples: &[&Sample], config: &LoaderConfig) -> Result<(), Error> {
        let (size, tokens) = (samples.len(), self.num_tokens);
        let boxes = samples.iter().map(|it| it.boxes_xyxy.len()).sum::<usize>();
        let answers = config.mirrored_answers.len();
        let texts = size * tokens;
        let masked = if config.task == Task::ImageText {
            texts
        } else {
            0
        };
        let what = || {
            format!(
                "a batch of {size} records with {tokens} tokens, {answers} answers and {boxes} boxes \
                 in total; use a smaller batch_size"
            )
        };
        try_alloc::reserve(&mut self.token_ids, texts, what)?;
        try_alloc::reserve(&mut self.text_mask, texts, what)?;
        try_alloc::reserve(&mut self.masked_ids, masked, what)?;
        try_alloc::reserve(&mut self.mlm_labels, masked, what)?;
        try_alloc::reserve(&mut self.targets, size * answers, what)?;
        try_alloc::reserve(&mut self.boxes_xyxy, 4 * boxes, what)?;
        try_alloc::reserve(&mut self.positive_map, boxes * tokens, what)
    }

    /// Append a text, padded to the longest one.
    fn add_text(&mut self, sample: &Sample, tokens: &SpecialTokens) {
        let ids = sample.token_ids.iter();
        let padding = self.num_tokens - ids.len();
        self.token_ids.extend(ids.clone().map(|&id| i64::from(id)));
        self.token_ids
            .extend(std::iter::repeat_n(i64::from(tokens.pad), padding));
        self.text_mask.extend(ids.clone().map(|_| true));
        self.text_mask.extend(std::iter::repeat_n(false, padding));
        self.truncated_texts += usize::from(sample.is_truncated);
        self.wordless_texts += usize::from(ids.clone().all(|&id| tokens.is_special(id)));
    }

    /// Append the inputs and labels for MLM of the last text.
    fn mask(
        &mut self,
        sample: &Sample,
        in_stream: Option<u64>,
        config: &LoaderConfig,
    ) -> Result<(), Error> {
        let start = self.masked_ids.len();
        self.masked_ids
            .extend_from_slice(self.token_ids.get(start..).unwrap_or_default());
        self.mlm_labels.resize(self.masked_ids.len(), IGNORED_LABEL);
        let (Some(masker), Some(inputs), Some(labels)) = (
            &config.masker,
            self.masked_ids.get_mut(start..),
            self.mlm_labels.get_mut(start..),
        ) else {
            return Ok(());
        };
        let place = TextPlace {
            epoch: sample.epoch,
            index: sample.index,
            in_stream,
        };
        let tokens = config.tokenizer.special_tokens();
        let outcome = masker.mask(&sample.token_ids, place, tokens, inputs, labels);
        outcome.map_err(|error| error.in_record(&sample.key))
    }
}

/// (B, 3, H, W) or another layout; see [`Batch::image_shape`].
pub(crate) fn image_shape(count: usize, size: (usize, usize), config: &LoaderConfig) -> Vec<usize> {
    let mut shape = vec![count];
    if config.task.images() > 1 {
        shape.push(config.task.images());
    }
    shape.extend(match config.layout {
        Layout::Chw => [3, size.0, size.1],
        Layout::Hwc => [size.0, size.1, 3],
    });
    shape
}

fn collate_boxes(sample: &Sample, batch: &mut Batch) {
    #[allow(clippy::cast_possible_truncation)] // Batches are float32.
    let values = sample.boxes_xyxy.iter().flatten().map(|&edge| edge as f32);
    batch.boxes_xyxy.extend(values);
    batch.boxes_per_image.push(integer(sample.boxes_xyxy.len()));
    let rows = sample
        .positive_map
        .chunks_exact(sample.token_ids.len().max(1));
    for row in rows {
        let padding = std::iter::repeat_n(&false, batch.num_tokens - row.len());
        batch.positive_map.extend(row.iter().chain(padding));
    }
}

fn integer(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::fixtures::config;
    use crate::loader::buffer_pool::BufferPool;
    use crate::tokenizer::masking::{Masker, MaskingConfig, MlmUnit};

    fn sample(height: usize, width: usize, tokens: usize, boxes: usize) -> Sample {
        Sample {
            key: format!("{height}x{width}"),
            image_size: (height, width),
            original_size: (2 * height, width),
            token_ids: vec![5; tokens],
            boxes_xyxy: vec![[0.0, 1.0, 2.0, 3.0]; boxes],
            positive_map: vec![true; tokens * boxes],
            ..Sample::default()
        }
    }

    #[test]
    fn everything_is_padded_to_the_largest() {
        let samples = [sample(3, 5, 2, 1), sample(1, 1, 4, 2)];
        let block = BufferPool::new(0).take(2 * 3 * 4 * 8 * 4, String::new).ok();
        let samples: Vec<&Sample> = samples.iter().collect();
        let batch = collate(&samples, block, (4, 8), None, &config(Task::Grounding)).unwrap();
        assert_eq!(batch.image_shape, [2, 3, 4, 8]);
        assert_eq!(batch.image_sizes, [3, 5, 1, 1]);
        assert_eq!(batch.original_sizes, [6, 5, 2, 1]);
        assert_eq!(batch.num_tokens, 4);
        assert_eq!(batch.token_ids, [5, 5, 1, 1, 5, 5, 5, 5]);
        assert_eq!(
            batch.text_mask,
            [true, true, false, false, true, true, true, true]
        );
        assert_eq!(batch.boxes_per_image, [1, 2]);
        assert_eq!(batch.positive_map.len(), 3 * 4);
        assert_eq!(batch.positive_map[..4], [true, true, false, false]);
    }

    #[test]
    fn texts_are_counted_and_masked_by_their_row() {
        let mut config = config(Task::ImageText);
        let masking = MaskingConfig {
            unit: MlmUnit::Word,
            probability: 0.5,
            seed: 3,
        };
        let masker = Arc::new(Masker::new(&config.tokenizer, masking, None).unwrap());
        config.masker = Some(Arc::clone(&masker));
        let words: Vec<u32> = (10..22).collect();
        let samples: Vec<Sample> = [&words[..], &[0, 2], &words[..4]]
            .into_iter()
            .map(|ids| Sample {
                token_ids: ids.to_vec(),
                is_truncated: ids.len() > 4,
                ..Sample::default()
            })
            .collect();
        let samples: Vec<&Sample> = samples.iter().collect();
        let batch = collate(&samples, None, (0, 0), Some(7), &config).unwrap();
        assert_eq!((batch.truncated_texts, batch.wordless_texts), (1, 1));
        let (mut inputs, mut labels) = (batch.token_ids.clone(), vec![IGNORED_LABEL; 36]);
        for (row, sample) in (0..).zip(&samples) {
            let place = TextPlace {
                in_stream: Some(7 + row),
                ..TextPlace::default()
            };
            let start = 12 * usize::try_from(row).unwrap();
            let row = start..start + 12;
            let (inputs, labels) = (&mut inputs[row.clone()], &mut labels[row]);
            let tokens = config.tokenizer.special_tokens();
            masker
                .mask(&sample.token_ids, place, tokens, inputs, labels)
                .unwrap();
        }
        assert_eq!((batch.masked_ids, batch.mlm_labels), (inputs, labels));
    }

    #[test]
    fn no_samples_make_an_empty_batch() {
        let batch = collate(&[], None, (0, 0), None, &config(Task::Reasoning)).unwrap();
        assert_eq!(batch.image_shape, [0, 2, 3, 0, 0]);
        assert!(batch.images.is_none() && batch.keys.is_empty());
    }

    #[test]
    fn scores_are_at_their_answers() {
        let mut config = config(Task::Question);
        config.mirrored_answers = vec![0, 1, 2];
        let mut first = sample(1, 1, 2, 0);
        first.answers = vec![(2, 0.5), (0, 1.0)];
        let second = sample(1, 1, 2, 0);
        let batch = collate(&[&first, &second], None, (1, 1), None, &config).unwrap();
        let expected: [f32; 6] = [1.0, 0.0, 0.5, 0.0, 0.0, 0.0];
        assert!(
            batch
                .targets
                .iter()
                .zip(expected)
                .all(|(a, b)| a.total_cmp(&b).is_eq())
        );
    }
    #[test]
    fn too_many_answers_for_memory_are_an_error() {
        let mut config = config(Task::Question);
        // 128 TB in total.
        config.mirrored_answers = vec![0; 1 << 24];
        let one = sample(1, 1, 0, 0);
        let samples = vec![&one; 1 << 21];
        let error = collate(&samples, None, (1, 1), None, &config).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("2097152 records with 0 tokens, 16777216 answers"));
        assert!(message.ends_with("use a smaller batch_size"));
    }
}
