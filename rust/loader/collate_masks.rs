//! Collate the masks and phrases of samples.

use crate::Error;
use crate::loader::sample::Sample;
use crate::loader::sample_masks::SampleMasks;
use crate::masks::planes::Planes;
use crate::tokenizer::SpecialTokens;
use crate::try_alloc;

/// Masks and phrases of a batch of `B` samples of H x W pixels, with `M` masks and `P` phrases of at
/// most `L` tokens.
#[derive(Debug, Default)]
pub struct MaskFields {
    /// (M, H, ceil(W / 8)): packed bits.
    pub masks: Vec<u8>,
    /// (M,).
    pub mask_labels: Vec<i64>,
    /// (B,).
    pub masks_per_image: Vec<i64>,
    /// (P, L).
    pub phrase_ids: Vec<i64>,
    /// (P, L): true for real tokens.
    pub phrase_mask: Vec<bool>,
    /// (P, H, ceil(W / 8)): packed bits.
    pub phrase_masks: Vec<u8>,
    /// (B,).
    pub phrases_per_image: Vec<i64>,
    /// L.
    pub num_tokens: usize,
    /// (H, W) in pixels.
    pub size: (usize, usize),
    /// Masks of which a crop left no pixel; they are kept.
    pub emptied: usize,
}

fn integer(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Collate the masks and phrases of samples, in order.
pub(crate) fn collate_masks(
    samples: &[(&Sample, &SampleMasks)],
    size: (usize, usize),
    tokens: &SpecialTokens,
) -> Result<MaskFields, Error> {
    let mut fields = MaskFields {
        size,
        num_tokens: samples
            .iter()
            .flat_map(|(sample, _)| sample.phrases.iter().map(Vec::len))
            .max()
            .unwrap_or(0),
        ..MaskFields::default()
    };
    let total = |count: fn(&SampleMasks) -> usize| {
        samples.iter().map(|(_, masks)| count(masks)).sum::<usize>()
    };
    let (masks, phrases) = (total(|it| it.masks.count), total(|it| it.phrases.count));
    let bytes = Planes::bytes_of(size);
    let what = || {
        format!(
            "the masks of a batch, {masks} and {phrases} of phrases; use a smaller batch_size or \
             smaller images"
        )
    };
    try_alloc::reserve(&mut fields.masks, masks.saturating_mul(bytes), what)?;
    try_alloc::reserve(
        &mut fields.phrase_masks,
        phrases.saturating_mul(bytes),
        what,
    )?;
    let texts = phrases.saturating_mul(fields.num_tokens);
    try_alloc::reserve(&mut fields.phrase_ids, texts, what)?;
    try_alloc::reserve(&mut fields.phrase_mask, texts, what)?;
    for (sample, masks) in samples {
        fields.masks.extend_from_slice(&masks.masks.bytes);
        fields.mask_labels.extend_from_slice(&masks.labels);
        fields.masks_per_image.push(integer(masks.masks.count));
        fields.phrase_masks.extend_from_slice(&masks.phrases.bytes);
        fields.phrases_per_image.push(integer(sample.phrases.len()));
        fields.emptied += masks.emptied;
        for phrase in &sample.phrases {
            let padding = fields.num_tokens - phrase.len();
            let ids = phrase.iter().map(|&id| i64::from(id));
            fields.phrase_ids.extend(ids);
            let pads = std::iter::repeat_n(i64::from(tokens.pad), padding);
            fields.phrase_ids.extend(pads);
            let real = std::iter::repeat_n(true, phrase.len());
            fields.phrase_mask.extend(real);
            let padded = std::iter::repeat_n(false, padding);
            fields.phrase_mask.extend(padded);
        }
    }
    Ok(fields)
}
