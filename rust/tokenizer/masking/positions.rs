//! Masking of a fixed number of positions per padded text, as in METER's published code.

use std::collections::HashMap;

use crate::rng::PhiloxUniform;
use crate::tokenizer::masking::config::TextPlace;
use crate::tokenizer::masking::corruption::{Corruption, corruption};
use crate::tokenizer::{SpecialTokens, Tokenizer};

/// Key that separates these random numbers from others with the same seed.
const STREAM: u64 = 251;

/// Positions of texts, padded to a length.
///
/// `round(probability * max_tokens)` positions of the text padded to `max_tokens` are drawn without
/// replacement, and those of special tokens and padding are dropped. So short texts often have no
/// masked token: with 8 of 50 positions, the number of masked tokens of a text of w word tokens is
/// hypergeometric with mean 8 w / 50. A random token may be any of the vocabulary.
///
/// Source: METER's published code, with `DataCollatorForWholeWordMask` of transformers 4.6, which
/// picks single tokens of a byte-level BPE, since it detects word pieces by BERT's `##` prefix.
#[derive(Debug)]
pub(super) struct Positions {
    /// Number of positions that are drawn.
    count: usize,
    max_tokens: usize,
    vocab_size: usize,
}

impl Positions {
    pub(super) fn new(max_tokens: usize, probability: f64, tokenizer: &Tokenizer) -> Self {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_precision_loss,
            clippy::cast_sign_loss
        )] // Between 0 and `max_tokens`.
        let count = (probability * max_tokens as f64).round_ties_even() as usize;
        Self {
            count,
            max_tokens,
            vocab_size: tokenizer.vocab_size(),
        }
    }

    /// Draw positions and mask them; see [`crate::tokenizer::masking::Masker::mask`].
    pub(super) fn mask(
        &self,
        ids: &[u32],
        place: TextPlace,
        seed: u64,
        tokens: &SpecialTokens,
        inputs: &mut [i64],
        labels: &mut [i64],
    ) {
        let Some(mask) = tokens.mask else {
            return;
        };
        let mut uniform = PhiloxUniform::of_record(seed, STREAM, place.epoch, place.index);
        // Fisher-Yates over 0..max_tokens, of which only the entries that have moved are listed.
        let mut moved: HashMap<usize, usize> = HashMap::new();
        for first in 0..self.count {
            let other = first + uniform.below(self.max_tokens - first);
            let position = moved.get(&other).copied().unwrap_or(other);
            moved.insert(other, moved.get(&first).copied().unwrap_or(first));
            // Every position uses the same random numbers, dropped or not.
            let (kind, random) = (uniform.next(), uniform.below(self.vocab_size));
            let (Some(&id), Some(input), Some(label)) = (
                ids.get(position).filter(|&&id| !tokens.is_special(id)),
                inputs.get_mut(position),
                labels.get_mut(position),
            ) else {
                continue;
            };
            *label = i64::from(id);
            *input = match corruption(kind) {
                Corruption::Mask => i64::from(mask),
                Corruption::Random => i64::try_from(random).unwrap_or(i64::from(id)),
                Corruption::Keep => i64::from(id),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::masking::tests::{config, masked};
    use crate::tokenizer::masking::{IGNORED_LABEL, Masker, MlmUnit};

    #[test]
    fn the_count_is_rounded_to_even_as_in_python() {
        let tokenizer = Tokenizer::train(["a"].into_iter(), 261).unwrap();
        let count = |probability, length| Positions::new(length, probability, &tokenizer).count;
        assert_eq!((count(0.15, 50), count(0.15, 40)), (8, 6));
        assert_eq!((count(0.5, 5), count(0.5, 7)), (2, 4));
        assert_eq!((count(0.0, 7), count(1.0, 7)), (0, 7));
    }

    #[test]
    fn all_positions_are_drawn_once_and_only_words_are_masked() {
        let tokenizer = Tokenizer::train(["a"].into_iter(), 261).unwrap();
        let masking = config(MlmUnit::Position, 1.0, 4);
        let masker = Masker::new(&tokenizer, masking, Some(9)).unwrap();
        let ids = tokenizer.encode("zz<pad>zz", None).unwrap().ids;
        let (_, labels) = masked(&masker, &tokenizer, &ids, TextPlace::default());
        let picked: Vec<bool> = labels.iter().map(|&label| label != IGNORED_LABEL).collect();
        assert_eq!(picked, [false, true, true, false, true, true, false]);
        let none = config(MlmUnit::Position, 0.0, 4);
        let masker = Masker::new(&tokenizer, none, Some(9)).unwrap();
        let (inputs, labels) = masked(&masker, &tokenizer, &ids, TextPlace::default());
        assert!(
            inputs
                .iter()
                .zip(&ids)
                .all(|(&input, &id)| input == i64::from(id))
        );
        assert!(labels.iter().all(|&label| label == IGNORED_LABEL));
    }
}
