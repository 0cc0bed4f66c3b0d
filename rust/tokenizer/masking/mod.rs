//! Masking of tokens, whole words or positions for masked language modeling (MLM).
//!
//! The rule is that of BERT (Devlin et al. 2019): of the picked tokens, 80 % become the mask token,
//! 10 % a random token, and 10 % are kept.

mod config;
mod corruption;
mod positions;
mod whole_words;

use crate::Error;
use crate::rng::{Purpose, Rng};
pub use crate::tokenizer::masking::config::{MaskingConfig, MlmUnit, TextPlace};
use crate::tokenizer::masking::corruption::{Corruption, corruption};
use crate::tokenizer::masking::positions::Positions;
use crate::tokenizer::masking::whole_words::Words;
use crate::tokenizer::{SpecialTokens, Tokenizer};

/// Label of a token that was not picked.
pub const IGNORED_LABEL: i64 = -100;

/// Masks the texts of a tokenizer.
#[derive(Debug)]
pub struct Masker {
    config: MaskingConfig,
    picker: Picker,
}

/// What the units other than single tokens need.
#[derive(Debug)]
enum Picker {
    Tokens,
    Words(Words),
    Positions(Positions),
}

impl Masker {
    /// Prepare masking of texts of at most `max_tokens` tokens.
    ///
    /// # Errors
    /// [`Error::Argument`] if the probability is not in [0, 1] or is positive without a mask token,
    /// or if `max_tokens` is missing for positions; [`Error::Tokenizer`] if fiber's models cannot
    /// use the vocabulary, for words.
    pub fn new(
        tokenizer: &Tokenizer,
        config: MaskingConfig,
        max_tokens: Option<usize>,
    ) -> Result<Self, Error> {
        config.check()?;
        check_mask_token(tokenizer.special_tokens(), config.probability)?;
        let picker = match config.unit {
            MlmUnit::Token => Picker::Tokens,
            MlmUnit::Word => Picker::Words(Words::new(tokenizer)?),
            MlmUnit::Position => {
                let expected = "None; expected a length for mlm_unit 'position'";
                let length =
                    max_tokens.ok_or_else(|| Error::argument("max_tokens", expected.to_owned()))?;
                Picker::Positions(Positions::new(length, config.probability, tokenizer))
            }
        };
        Ok(Self { config, picker })
    }

    /// Mask a text. `inputs` start with its ids and `labels` with [`IGNORED_LABEL`]; those of the
    /// picked tokens are replaced. Special tokens are never picked.
    pub(crate) fn mask(
        &self,
        ids: &[u32],
        place: TextPlace,
        tokens: &SpecialTokens,
        inputs: &mut [i64],
        labels: &mut [i64],
    ) -> Result<(), Error> {
        match &self.picker {
            Picker::Tokens => {
                let MaskingConfig {
                    seed, probability, ..
                } = self.config;
                let mut rng = Rng::new(seed, place.epoch, place.index, Purpose::MaskedWords);
                for ((input, label), &id) in inputs.iter_mut().zip(labels).zip(ids) {
                    let (masked, is_picked) = mask_token(tokens, id, probability, &mut rng);
                    *input = i64::from(masked);
                    if is_picked {
                        *label = i64::from(id);
                    }
                }
                Ok(())
            }
            Picker::Words(words) => words.mask(ids, place, &self.config, tokens, inputs, labels),
            Picker::Positions(positions) => {
                positions.mask(ids, place, self.config.seed, tokens, inputs, labels);
                Ok(())
            }
        }
    }
}

/// Reject a probability above 0 if there is no mask token.
fn check_mask_token(tokens: &SpecialTokens, probability: f64) -> Result<(), Error> {
    if probability > 0.0 && tokens.mask.is_none() {
        return Err(Error::argument(
            "mlm_probability",
            format!(
                "{probability}; expected 0 with a tokenizer that has no known mask token; if it has \
                 one, name it: Tokenizer.from_file(..., mask_token=...)"
            ),
        ));
    }
    Ok(())
}

/// Mask a token. Returns the model's input, and whether the token was picked.
///
/// Special tokens are never picked. Every token consumes the same random numbers, picked or not.
#[inline]
fn mask_token(tokens: &SpecialTokens, id: u32, probability: f64, rng: &mut Rng) -> (u32, bool) {
    let (pick, kind) = (rng.unit(), rng.unit());
    let other = rng.index(tokens.replacements.len());
    let Some(mask) = tokens.mask else {
        return (id, false);
    };
    if pick >= probability || tokens.is_special(id) {
        return (id, false);
    }
    let input = match corruption(kind) {
        Corruption::Mask => mask,
        Corruption::Random => tokens.replacements.get(other).copied().unwrap_or(id),
        Corruption::Keep => id,
    };
    (input, true)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_precision_loss)] // Small numbers.

    use super::*;
    use crate::tokenizer::TokenOverrides;
    use crate::tokenizer::special_tokens::tests::word_level;

    /// Inputs and labels of a text.
    pub(super) fn masked(
        masker: &Masker,
        tokenizer: &Tokenizer,
        ids: &[u32],
        place: TextPlace,
    ) -> (Vec<i64>, Vec<i64>) {
        let mut inputs: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
        let mut labels = vec![IGNORED_LABEL; ids.len()];
        let tokens = tokenizer.special_tokens();
        masker
            .mask(ids, place, tokens, &mut inputs, &mut labels)
            .unwrap();
        (inputs, labels)
    }

    pub(super) fn config(unit: MlmUnit, probability: f64, seed: u64) -> MaskingConfig {
        MaskingConfig {
            unit,
            probability,
            seed,
        }
    }

    fn special_tokens(words: &[&str]) -> SpecialTokens {
        let json = word_level(words);
        let tokenizer = Tokenizer::from_json_with(&json, &TokenOverrides::default()).unwrap();
        tokenizer.special_tokens().clone()
    }

    #[test]
    fn special_tokens_are_neither_picked_nor_put_in() {
        let found = special_tokens(&["a", "[MASK]", "[UNK]", "[PAD]", "b", "c"]);
        let mut rng = Rng::new(0, 0, 0, Purpose::MaskedWords);
        let mut seen = [0; 6];
        for _ in 0..4000 {
            for id in 1..4 {
                assert_eq!(mask_token(&found, id, 1.0, &mut rng), (id, false));
            }
            let (masked, is_picked) = mask_token(&found, 0, 1.0, &mut rng);
            seen[masked as usize] += 1;
            assert!(is_picked);
        }
        assert!(seen[1] > 3000 && seen[0] > 400, "{seen:?}");
        assert!(seen[4] > 80 && seen[5] > 80, "{seen:?}");
        assert_eq!(seen[2] + seen[3], 0);
    }

    #[test]
    fn nothing_is_masked_without_a_mask_token() {
        let found = special_tokens(&["a", "b"]);
        let mut rng = Rng::new(0, 0, 0, Purpose::MaskedWords);
        assert_eq!(mask_token(&found, 0, 1.0, &mut rng), (0, false));
        assert!(check_mask_token(&found, 0.0).is_ok());
        let message = check_mask_token(&found, 0.15).unwrap_err().to_string();
        assert!(
            message.starts_with("mlm_probability: 0.15; expected 0 with"),
            "{message}"
        );
    }

    #[test]
    fn tokens_are_masked_in_their_proportions() {
        let texts = ["the left cup", "the right cup", "a red dog", "the red dog"];
        let tokenizer = Tokenizer::train(texts.into_iter(), 280).unwrap();
        let masker = Masker::new(&tokenizer, config(MlmUnit::Token, 0.15, 0), None).unwrap();
        let text = "the left cup ".repeat(300);
        let ids = tokenizer.encode(&text, Some(1000)).unwrap().ids;
        let mask_id = i64::from(tokenizer.special_tokens().mask.unwrap());
        let (mut words, mut picked, mut hidden, mut same) = (0, 0, 0, 0);
        for index in 0..20 {
            let place = TextPlace {
                index,
                ..TextPlace::default()
            };
            let (inputs, labels) = masked(&masker, &tokenizer, &ids, place);
            words += ids.len() - 2;
            for ((&id, &input), &label) in ids.iter().zip(&inputs).zip(&labels) {
                let id = i64::from(id);
                if label == IGNORED_LABEL {
                    assert_eq!(input, id);
                } else {
                    assert_eq!(label, id);
                    picked += 1;
                    hidden += usize::from(input == mask_id);
                    same += usize::from(input == id);
                }
            }
            assert_eq!(labels[0], IGNORED_LABEL);
            assert_eq!(labels.last(), Some(&IGNORED_LABEL));
        }
        // Four standard deviations around 15 %, 80 % and a little over 10 %.
        let near = |count: usize, of: usize, rate: f64| {
            let (count, of) = (count as f64, of as f64);
            (count - of * rate).abs() < 4.0 * (of * rate * (1.0 - rate)).sqrt()
        };
        assert!(near(picked, words, 0.15), "{picked} of {words}");
        assert!(near(hidden, picked, 0.8), "{hidden} of {picked}");
        assert!(near(same, picked, 0.1 + 0.1 / 280.0), "{same} of {picked}");
    }

    #[test]
    fn wrong_options_are_named() {
        let tokenizer = Tokenizer::train(["a"].into_iter(), 261).unwrap();
        let message = |tokenizer: &Tokenizer, config| {
            let error = Masker::new(tokenizer, config, None).unwrap_err();
            error.to_string()
        };
        for unit in [MlmUnit::Token, MlmUnit::Word, MlmUnit::Position] {
            let wrong = message(&tokenizer, config(unit, f64::NAN, 0));
            assert_eq!(wrong, "mlm_probability: NaN; expected 0 to 1");
        }
        let wrong = message(&tokenizer, config(MlmUnit::Position, 0.5, 0));
        assert!(wrong.starts_with("max_tokens: None; expected"), "{wrong}");
        let words = Tokenizer::from_json(&word_level(&["a", "[UNK]"])).unwrap();
        let wrong = message(&words, config(MlmUnit::Token, 0.5, 0));
        assert!(wrong.starts_with("mlm_probability: 0.5; expected 0"));
        assert!(Masker::new(&words, config(MlmUnit::Word, 0.0, 0), None).is_err());
        assert!(MlmUnit::from_name("letter").is_err());
    }
}
