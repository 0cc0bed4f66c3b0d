//! Encode texts into padded batches of ids, masks and offsets, with MLM masking in the same pass.

use crate::Error;
use crate::tokenizer::Tokenizer;
use crate::tokenizer::byte_level::Tokens;
use crate::tokenizer::masking::{IGNORED_LABEL, Masker, MaskingConfig, TextPlace};
use crate::try_alloc;

/// MLM masking of a batch of texts, the same as the loader's for records with these indices.
#[derive(Clone, Debug, Default)]
pub struct BatchMasking {
    pub config: MaskingConfig,
    pub epoch: u64,
    /// Record index of each text.
    pub indices: Vec<u64>,
}

#[derive(Clone, Debug, Default)]
pub struct BatchOptions {
    /// Maximum text length in tokens, including special tokens; longer texts are truncated.
    pub max_tokens: Option<usize>,
    /// Row length in tokens; defaults to the length of the longest text.
    pub pad_to: Option<usize>,
    /// Return character offsets.
    pub offsets: bool,
    /// MLM masking, if requested.
    pub masking: Option<BatchMasking>,
}

/// A batch in plain memory, with `B` texts and `L` tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextBatch {
    /// L.
    pub num_tokens: usize,
    /// (B, L).
    pub token_ids: Vec<i64>,
    /// (B, L): true for real tokens.
    pub text_mask: Vec<bool>,
    /// (B, L, 2) code point spans if requested; (0, 0) for special tokens and padding.
    pub offsets: Vec<i64>,
    /// (B, L) with masking.
    pub masked_ids: Vec<i64>,
    /// (B, L) with masking.
    pub mlm_labels: Vec<i64>,
}

pub fn encode<T: AsRef<str>>(
    tokenizer: &Tokenizer,
    texts: &[T],
    options: &BatchOptions,
) -> Result<TextBatch, Error> {
    let masker = match &options.masking {
        Some(masking) => Some(masker_of(tokenizer, texts.len(), masking, options)?),
        None => None,
    };
    let mut tokens = Tokens::default();
    let all = texts.iter().map(AsRef::as_ref);
    let counts = tokenizer.encode_into(all, options.max_tokens, options.offsets, &mut tokens)?;
    let longest = counts.iter().copied().max().unwrap_or(0);
    let length = options.pad_to.unwrap_or(longest);
    if length < longest {
        return Err(Error::argument(
            "pad_to",
            format!("{length}; expected at least {longest}, the length of the longest text"),
        ));
    }
    let size = texts.len().saturating_mul(length);
    let what = || {
        format!(
            "{} texts of {length} tokens; use fewer texts or a smaller pad_to",
            texts.len()
        )
    };
    let num_masked = if options.masking.is_some() { size } else { 0 };
    let mut batch = TextBatch {
        num_tokens: length,
        token_ids: try_alloc::filled(i64::from(tokenizer.special_tokens().pad), size, what)?,
        text_mask: try_alloc::filled(false, size, what)?,
        mlm_labels: try_alloc::filled(IGNORED_LABEL, num_masked, what)?,
        ..TextBatch::default()
    };
    if options.offsets {
        batch.offsets = try_alloc::filled(0, size.saturating_mul(2), what)?;
    }
    let rows = batch.token_ids.chunks_exact_mut(length.max(1));
    let masks = batch.text_mask.chunks_exact_mut(length.max(1));
    let mut ids = tokens.ids.as_slice();
    for ((row, mask), &count) in rows.zip(masks).zip(&counts) {
        let (these, rest) = ids.split_at_checked(count).unwrap_or_default();
        ids = rest;
        for ((to, real), &id) in row.iter_mut().zip(mask).zip(these) {
            *to = i64::from(id);
            *real = true;
        }
    }
    let mut spans = tokens.spans.as_slice();
    let rows = batch.offsets.chunks_exact_mut((2 * length).max(1));
    for (row, &count) in rows.zip(&counts) {
        let (these, rest) = spans.split_at_checked(count).unwrap_or_default();
        spans = rest;
        for (to, &(start, end)) in row.chunks_exact_mut(2).zip(these) {
            to.copy_from_slice(&[i64::from(start), i64::from(end)]);
        }
    }
    if let (Some(masking), Some(masker)) = (&options.masking, &masker) {
        try_alloc::reserve(&mut batch.masked_ids, size, what)?;
        batch.masked_ids.clone_from(&batch.token_ids);
        let inputs = batch.masked_ids.chunks_exact_mut(length.max(1));
        let rows = inputs.zip(batch.mlm_labels.chunks_exact_mut(length.max(1)));
        let mut ids = tokens.ids.as_slice();
        for (((inputs, labels), &count), &index) in rows.zip(&counts).zip(&masking.indices) {
            let (text, rest) = ids.split_at_checked(count).unwrap_or_default();
            ids = rest;
            let place = TextPlace {
                epoch: masking.epoch,
                index,
                in_stream: None,
            };
            masker.mask(text, place, tokenizer.special_tokens(), inputs, labels)?;
        }
    }
    Ok(batch)
}

/// Check the options of masking, and prepare it.
fn masker_of(
    tokenizer: &Tokenizer,
    texts: usize,
    masking: &BatchMasking,
    options: &BatchOptions,
) -> Result<Masker, Error> {
    let indices = masking.indices.len();
    masking.config.check()?;
    if indices != texts {
        return Err(Error::argument(
            "indices",
            format!("{indices} indices; expected one for each of {texts} texts"),
        ));
    }
    Masker::new(tokenizer, masking.config, options.max_tokens)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::fixtures::{config, record};
    use crate::loader::record::{Record, Task};
    use crate::loader::{Loader, Next};
    use crate::tokenizer::masking::MlmUnit;
    use crate::tokenizer::roberta::PAD_ID;

    #[test]
    fn no_texts_make_an_empty_batch() {
        let tokenizer = &config(Task::ImageText).tokenizer;
        let none: [&str; 0] = [];
        let mut options = BatchOptions::default();
        assert_eq!(
            encode(tokenizer, &none, &options).unwrap(),
            TextBatch::default()
        );
        options.pad_to = Some(3);
        assert_eq!(encode(tokenizer, &none, &options).unwrap().num_tokens, 3);
    }

    #[test]
    fn rows_are_padded_texts() {
        let tokenizer = &config(Task::ImageText).tokenizer;
        let texts = ["", "the left cup", "\u{e9} red dog and more of it"];
        let options = BatchOptions {
            max_tokens: Some(9),
            pad_to: Some(11),
            offsets: true,
            masking: None,
        };
        let batch = encode(tokenizer, &texts, &options).unwrap();
        assert_eq!((batch.num_tokens, batch.token_ids.len()), (11, 33));
        for (row, text) in texts.iter().enumerate() {
            let encoded = tokenizer.encode(text, Some(9)).unwrap();
            for place in 0..11 {
                let at = row * 11 + place;
                let id = encoded.ids.get(place).copied();
                let (start, end) = encoded.offsets.get(place).copied().unwrap_or_default();
                assert_eq!(batch.token_ids[at], i64::from(id.unwrap_or(PAD_ID)));
                assert_eq!(batch.text_mask[at], id.is_some());
                let found = [batch.offsets[2 * at], batch.offsets[2 * at + 1]];
                assert_eq!(found.map(|n| usize::try_from(n).unwrap()), [start, end]);
            }
        }
        let longest = encode(tokenizer, &texts, &BatchOptions::default())
            .unwrap()
            .num_tokens;
        assert_eq!(longest, tokenizer.encode(texts[2], None).unwrap().ids.len());
    }

    #[test]
    fn masking_equals_the_loaders() {
        for unit in [MlmUnit::Token, MlmUnit::Word, MlmUnit::Position] {
            let mut config = config(Task::ImageText);
            let masking = MaskingConfig {
                unit,
                probability: 0.4,
                seed: 5,
            };
            let masker = Masker::new(&config.tokenizer, masking, Some(config.max_tokens));
            config.masker = Some(Arc::new(masker.unwrap()));
            let texts = ["the left cup and the red dog", "a right cup", "<mask> the"];
            let options = BatchOptions {
                max_tokens: Some(config.max_tokens),
                masking: Some(BatchMasking {
                    config: masking,
                    epoch: 2,
                    indices: vec![7, 8, 9],
                }),
                ..BatchOptions::default()
            };
            let batch = encode(&config.tokenizer, &texts, &options).unwrap();
            let records = (7..).zip(texts).map(|(index, text)| Record {
                epoch: 2,
                index,
                text: text.to_owned(),
                ..record("a")
            });
            let loader = Loader::new(config, 1, 1).unwrap();
            let session = loader.open();
            session.submit(records.collect(), None);
            let Ok(Next::Batch(expected)) = session.next(Duration::from_secs(20)) else {
                panic!("no batch");
            };
            assert_eq!(batch.token_ids, expected.token_ids);
            assert_eq!(batch.masked_ids, expected.masked_ids, "{unit:?}");
            assert_eq!(batch.mlm_labels, expected.mlm_labels, "{unit:?}");
            let picked = batch.mlm_labels.iter().filter(|&&it| it != IGNORED_LABEL);
            assert!(picked.count() > 2, "{unit:?}");
        }
    }

    #[test]
    fn wrong_arguments_are_named() {
        let tokenizer = &config(Task::ImageText).tokenizer;
        let message = |options: BatchOptions| {
            let result = encode(tokenizer, &["a b"], &options);
            result.unwrap_err().to_string()
        };
        let wrong = |max_tokens, pad_to, masking| BatchOptions {
            max_tokens,
            pad_to,
            offsets: false,
            masking,
        };
        assert!(message(wrong(Some(1), None, None)).starts_with("max_tokens: 1"));
        assert!(message(wrong(None, Some(2), None)).starts_with("pad_to: 2; expected"));
        let length = usize::MAX / 32;
        let wide = message(wrong(None, Some(length), None));
        assert!(wide.ends_with(&format!(
            "1 texts of {length} tokens; use fewer texts or a smaller pad_to"
        )));
        let masking = |probability| BatchMasking {
            config: MaskingConfig {
                probability,
                ..MaskingConfig::default()
            },
            ..BatchMasking::default()
        };
        let none = wrong(None, None, Some(masking(0.5)));
        assert!(message(none).starts_with("indices: 0 indices; expected one for each of 1"));
        let nan = wrong(None, None, Some(masking(f64::NAN)));
        assert!(message(nan).starts_with("mlm_probability: NaN"));
    }
}
