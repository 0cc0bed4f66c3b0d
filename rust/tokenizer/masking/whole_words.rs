//! Whole-word masking, for the byte-level BPEs of fiber's models.

use crate::Error;
use crate::error::shown;
use crate::rng::PhiloxUniform;
use crate::tokenizer::json::byte_letters;
use crate::tokenizer::masking::config::{MaskingConfig, TextPlace};
use crate::tokenizer::masking::corruption::{Corruption, corruption};
use crate::tokenizer::{SpecialTokens, Tokenizer};

/// Key that separates these random numbers from others with the same seed.
const STREAM: u64 = 9;

/// Class of a byte; a word is a run of bytes of the same class other than `Space`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ByteClass {
    Space,
    Letter,
    Digit,
    Mark,
}

impl ByteClass {
    fn of(byte: u8) -> Self {
        match byte {
            // Bytes of non-ASCII characters and apostrophes inside a word count as letters.
            128.. | b'\'' | b'a'..=b'z' | b'A'..=b'Z' => Self::Letter,
            b'0'..=b'9' => Self::Digit,
            0..=32 => Self::Space,
            _ => Self::Mark,
        }
    }
}

/// Classes of the first and last byte of a token; `None` for added tokens.
type Ends = Option<(ByteClass, ByteClass)>;

/// The words of texts.
///
/// A word is picked with all of its tokens, as in BERT's whole-word masking; the replacement is
/// sampled per token. A word begins at a token that starts with a space and at each boundary
/// between letters, digits and punctuation.
#[derive(Debug)]
pub(super) struct Words {
    /// By token.
    ends: Vec<Ends>,
    mask: u32,
}

impl Words {
    /// Classify all tokens of a vocabulary.
    pub(super) fn new(tokenizer: &Tokenizer) -> Result<Self, Error> {
        tokenizer.check_for_models()?;
        let mask = tokenizer.special_tokens().mask.ok_or_else(|| {
            Error::Tokenizer("tokenizer: no mask token; expected <mask>".to_owned())
        })?;
        let letters = byte_letters();
        let added = tokenizer.inner().get_added_tokens_decoder();
        let size = u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX);
        let classify = |id: u32| {
            if added.contains_key(&id) {
                return Ok(None);
            }
            // An id without a token does not occur in texts.
            let Some(token) = tokenizer.inner().id_to_token(id) else {
                return Ok(Some((ByteClass::Space, ByteClass::Space)));
            };
            let class = |letter: Option<char>| Some(ByteClass::of(*letters.get(&letter?)?));
            let mut ends = token.chars();
            let first = class(ends.next());
            let last = class(token.chars().next_back());
            first.zip(last).map(Some).ok_or_else(|| {
                Error::Tokenizer(format!(
                    "tokenizer: token '{}' (id {id}) is not from a byte-level BPE",
                    shown(&token)
                ))
            })
        };
        let ends = (0..size).map(classify).collect::<Result<_, _>>()?;
        Ok(Self { ends, mask })
    }

    /// Pick words and mask them; see [`crate::tokenizer::masking::Masker::mask`].
    pub(super) fn mask(
        &self,
        ids: &[u32],
        place: TextPlace,
        config: &MaskingConfig,
        tokens: &SpecialTokens,
        inputs: &mut [i64],
        labels: &mut [i64],
    ) -> Result<(), Error> {
        let mut uniform = match place.in_stream {
            Some(sample) => PhiloxUniform::new(config.seed, STREAM, sample),
            None => PhiloxUniform::of_record(config.seed, STREAM, place.epoch, place.index),
        };
        // All words are picked before the first token is replaced.
        let mut is_picked = false;
        let mut before: Ends = None;
        for (&id, label) in ids.iter().zip(labels.iter_mut()) {
            let ends = self.ends(id)?;
            if let Some((first, _)) = ends {
                let goes_on = first != ByteClass::Space && before.is_some_and(|it| it.1 == first);
                if !goes_on {
                    is_picked = uniform.next() < config.probability;
                }
                if is_picked {
                    *label = i64::from(id);
                }
            }
            before = ends;
        }
        for ((input, label), &id) in inputs.iter_mut().zip(labels).zip(ids) {
            if *label == i64::from(id) {
                *input = match corruption(uniform.next()) {
                    Corruption::Mask => i64::from(self.mask),
                    Corruption::Random => {
                        let other = uniform.below(tokens.replacements.len());
                        i64::from(tokens.replacements.get(other).copied().unwrap_or(id))
                    }
                    Corruption::Keep => i64::from(id),
                };
            }
        }
        Ok(())
    }

    fn ends(&self, id: u32) -> Result<Ends, Error> {
        let found = usize::try_from(id).ok().and_then(|id| self.ends.get(id));
        found.copied().ok_or_else(|| {
            let most = self.ends.len().saturating_sub(1);
            Error::argument("token_ids", format!("{id}; expected 0 to {most}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::masking::tests::{config, masked};
    use crate::tokenizer::masking::{IGNORED_LABEL, Masker, MlmUnit};

    const TEXT: &str = "a red cup, isn't it";

    fn place(in_stream: u64) -> TextPlace {
        TextPlace {
            in_stream: Some(in_stream),
            ..TextPlace::default()
        }
    }

    #[test]
    fn words_are_masked_whole() {
        let tokenizer = Tokenizer::train([TEXT; 9].into_iter(), 265).unwrap();
        let masker = Masker::new(&tokenizer, config(MlmUnit::Word, 0.5, 3), None).unwrap();
        let ids = tokenizer.encode(TEXT, None).unwrap().ids;
        let rows: Vec<Vec<bool>> = (0..60)
            .map(|sample| {
                let (inputs, labels) = masked(&masker, &tokenizer, &ids, place(sample));
                for ((&input, &label), &id) in inputs.iter().zip(&labels).zip(&ids) {
                    assert!(label == i64::from(id) || label == IGNORED_LABEL);
                    assert!(label != IGNORED_LABEL || input == i64::from(id));
                }
                labels.iter().map(|&label| label != IGNORED_LABEL).collect()
            })
            .collect();
        // Tokens of a word are picked together in all rows; of different words, not in all.
        let together = |one: usize, other: usize| rows.iter().all(|row| row[one] == row[other]);
        let mut words = vec![String::new()];
        for at in 1..ids.len() - 1 {
            if at > 1 && !together(at - 1, at) {
                words.push(String::new());
            }
            let token = tokenizer.decode(&ids[at..=at]).unwrap();
            words.last_mut().unwrap().push_str(&token);
        }
        words.retain(|word| word != " ");
        let words: Vec<&str> = words.iter().map(|word| word.trim()).collect();
        assert_eq!(words, ["a", "red", "cup", ",", "isn't", "it"]);
        assert!(rows.iter().all(|row| !row[0] && !row[ids.len() - 1]));
        assert_eq!(masked(&masker, &tokenizer, &[], place(0)), (vec![], vec![]));
    }

    #[test]
    fn without_a_stream_words_depend_on_the_record() {
        let tokenizer = Tokenizer::train([TEXT; 9].into_iter(), 265).unwrap();
        let masker = Masker::new(&tokenizer, config(MlmUnit::Word, 0.5, 3), None).unwrap();
        let ids = tokenizer.encode(TEXT, None).unwrap().ids;
        let of_record = |epoch, index| {
            let place = TextPlace {
                epoch,
                index,
                in_stream: None,
            };
            masked(&masker, &tokenizer, &ids, place)
        };
        assert_eq!(of_record(0, 5), masked(&masker, &tokenizer, &ids, place(5)));
        assert_eq!(
            of_record(2, 5),
            masked(&masker, &tokenizer, &ids, place((2 << 32) + 5))
        );
        assert_ne!(of_record(0, 5), of_record(1, 5));
    }

    #[test]
    fn ids_outside_the_vocabulary_are_named() {
        let tokenizer = Tokenizer::train(["a"].into_iter(), 261).unwrap();
        let masker = Masker::new(&tokenizer, config(MlmUnit::Word, 0.5, 0), None).unwrap();
        let tokens = tokenizer.special_tokens();
        for id in [261, u32::MAX] {
            let (mut inputs, mut labels) = ([0, 0], [IGNORED_LABEL; 2]);
            let wrong = masker.mask(&[0, id], place(0), tokens, &mut inputs, &mut labels);
            let message = wrong.unwrap_err().to_string();
            assert_eq!(message, format!("token_ids: {id}; expected 0 to 260"));
        }
    }
}
