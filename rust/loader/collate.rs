//! Collate samples into a batch with decoded images, padded texts and ragged boxes.

use crate::Error;
use crate::loader::buffer_pool::PooledBuffer;
use crate::loader::config::LoaderConfig;
use crate::loader::decode_into::ImageStatus;
use crate::loader::record::Task;
use crate::loader::sample::Sample;
use crate::normalize::layout::Layout;
use crate::tokenizer::masking::IGNORED_LABEL;
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
    /// Bad samples that were dropped.
    pub skipped: Vec<Skipped>,
    /// Boxes dropped because no token names them.
    pub truncated_boxes: usize,
    /// Boxes dropped because the crop left too little of them.
    pub cropped_boxes: usize,
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
pub(crate) fn collate(
    samples: &[&Sample],
    images: Option<PooledBuffer>,
    size: (usize, usize),
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
    for sample in samples {
        batch.keys.push(sample.key.clone());
        let pair = |(height, width)| [integer(height), integer(width)];
        batch.image_sizes.extend(pair(sample.image_size));
        batch.original_sizes.extend(pair(sample.original_size));
        collate_text(sample, config.tokenizer.special_tokens().pad, &mut batch);
        match config.task {
            Task::ImageText => batch.image_ids.push(sample.image_id),
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
            Task::Grounding => collate_boxes(sample, &mut batch),
        }
        batch.truncated_boxes += sample.truncated_boxes;
        batch.cropped_boxes += sample.cropped_boxes;
    }
    Ok(batch)
}

impl Batch {
    /// Reserve memory for all arrays with a row per text or box.
    fn reserve(&mut self, samples: &[&Sample], config: &LoaderConfig) -> Result<(), Error> {
        let (size, tokens) = (samples.len(), self.num_tokens);
        let boxes = samples.iter().map(|it| it.boxes_xyxy.len()).sum::<usize>();
        let answers = config.mirrored_answers.len();
        let is_masked = samples.iter().any(|it| !it.masked_ids.is_empty());
        let (texts, masked) = (size * tokens, if is_masked { size * tokens } else { 0 });
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

fn collate_text(sample: &Sample, pad_id: u32, batch: &mut Batch) {
    let padding = batch.num_tokens - sample.token_ids.len();
    let pad = |ids: &[u32], output: &mut Vec<i64>| {
        output.extend(ids.iter().map(|&id| i64::from(id)));
        output.extend(std::iter::repeat_n(i64::from(pad_id), padding));
    };
    pad(&sample.token_ids, &mut batch.token_ids);
    let mask = (0..batch.num_tokens).map(|position| position < sample.token_ids.len());
    batch.text_mask.extend(mask);
    if !sample.masked_ids.is_empty() {
        pad(&sample.masked_ids, &mut batch.masked_ids);
        let labels = sample.mlm_labels.iter();
        let labels = labels.map(|label| label.map_or(IGNORED_LABEL, i64::from));
        let padded = labels.chain(std::iter::repeat_n(IGNORED_LABEL, padding));
        batch.mlm_labels.extend(padded);
    }
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
    use super::*;
    use crate::fixtures::config;
    use crate::loader::buffer_pool::BufferPool;

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
        let batch = collate(&samples, block, (4, 8), &config(Task::Grounding)).unwrap();
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
    fn no_samples_make_an_empty_batch() {
        let batch = collate(&[], None, (0, 0), &config(Task::Reasoning)).unwrap();
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
        let batch = collate(&[&first, &second], None, (1, 1), &config).unwrap();
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
        let error = collate(&samples, None, (1, 1), &config).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("2097152 records with 0 tokens, 16777216 answers"));
        assert!(message.ends_with("use a smaller batch_size"));
    }
}
