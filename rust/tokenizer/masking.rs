//! Masking of tokens or whole words for masked language modeling (MLM).
//!
//! The rule is that of BERT (Devlin et al. 2019): of the picked tokens, 80 % become the mask token,
//! 10 % a random token, and 10 % are kept.

use crate::Error;
use crate::error::{check_probability, shown};
use crate::rng::{PhiloxUniform, Purpose, Rng};
use crate::tokenizer::json::byte_letters;
use crate::tokenizer::{SpecialTokens, Tokenizer};
use crate::try_alloc;

/// Label of a token that was not picked.
pub const IGNORED_LABEL: i64 = -100;

/// Model input for a picked token.
enum Corruption {
    Mask,
    Random,
    Keep,
}

/// The 80/10/10 rule, for `uniform` in [0, 1).
#[inline]
fn corruption(uniform: f64) -> Corruption {
    if uniform >= 0.9 {
        Corruption::Keep
    } else if uniform < 0.8 {
        Corruption::Mask
    } else {
        Corruption::Random
    }
}

/// Reject a probability above 0 if there is no mask token.
pub(crate) fn check_mask_token(tokens: &SpecialTokens, probability: f64) -> Result<(), Error> {
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
pub(crate) fn mask_token(
    tokens: &SpecialTokens,
    id: u32,
    probability: f64,
    rng: &mut Rng,
) -> (u32, bool) {
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

/// MLM masking of a batch of texts, the same as the loader's for records with these indices.
#[derive(Clone, Debug, Default)]
pub struct Masking {
    pub probability: f64,
    pub seed: u64,
    pub epoch: u64,
    /// Sample index of each text.
    pub indices: Vec<u64>,
}

impl Masking {
    /// Check the parameters against the number of texts.
    pub(crate) fn check(&self, texts: usize, tokens: &SpecialTokens) -> Result<(), Error> {
        check_probability("mlm_probability", self.probability)?;
        if self.indices.len() != texts {
            return Err(Error::argument(
                "indices",
                format!(
                    "{} indices; expected one for each of {texts} texts",
                    self.indices.len()
                ),
            ));
        }
        check_mask_token(tokens, self.probability)
    }

    /// Mask the tokens of each text, `counts` of them. `inputs` and `labels` are rows padded to
    /// `length`.
    pub(crate) fn mask_rows(
        &self,
        ids: &[u32],
        counts: &[usize],
        tokens: &SpecialTokens,
        length: usize,
        inputs: &mut [i64],
        labels: &mut [i64],
    ) {
        let rows = inputs.chunks_exact_mut(length.max(1));
        let rows = rows.zip(labels.chunks_exact_mut(length.max(1)));
        let mut rest = ids;
        for (((inputs, labels), &count), &index) in rows.zip(counts).zip(&self.indices) {
            let (text, others) = rest.split_at_checked(count).unwrap_or_default();
            rest = others;
            let mut rng = Rng::new(self.seed, self.epoch, index, Purpose::MaskedWords);
            for ((input, label), &id) in inputs.iter_mut().zip(labels).zip(text) {
                let (masked, is_picked) = mask_token(tokens, id, self.probability, &mut rng);
                *input = i64::from(masked);
                if is_picked {
                    *label = i64::from(id);
                }
            }
        }
    }
}

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

/// Whole-word masking for MLM, for the byte-level BPEs of fiber's models.
///
/// A word is picked with all of its tokens, as in BERT's whole-word masking; the replacement is
/// sampled per token. A word begins at a token that starts with a space and at each boundary
/// between letters, digits and punctuation.
pub struct WholeWordMasking {
    /// For each token, the classes of its first and last byte; `None` for added tokens.
    classes: Vec<Option<(ByteClass, ByteClass)>>,
    mask: u32,
    replacements: Vec<u32>,
    probability: f64,
    seed: u64,
}

/// Key that separates these random numbers from others with the same seed.
const WHOLE_WORD_STREAM: u64 = 9;

impl WholeWordMasking {
    /// Classify all tokens of a vocabulary.
    pub fn new(tokenizer: &Tokenizer, probability: f64, seed: u64) -> Result<Self, Error> {
        check_probability("probability", probability)?;
        tokenizer.check_for_models()?;
        let tokens = tokenizer.special_tokens();
        let mask = tokens.mask.ok_or_else(|| {
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
        Ok(Self {
            classes: (0..size).map(classify).collect::<Result<_, _>>()?,
            mask,
            replacements: tokens.replacements.clone(),
            probability,
            seed,
        })
    }

    /// Assign a word index to each token of texts, which are rows of `length` ids.
    ///
    /// Tokens of the same word share an index; special tokens have -1. Indices ascend from 0 and
    /// may have gaps.
    pub fn word_numbers(&self, ids: &[i64], length: usize) -> Result<Vec<i64>, Error> {
        let mut numbers = try_alloc::with_capacity(ids.len(), || format!("{} ids", ids.len()))?;
        for row in ids.chunks(length.max(1)) {
            let mut number = -1;
            let mut before: Option<ByteClass> = None;
            for (place, &id) in row.iter().enumerate() {
                let class = self.class(id)?;
                let goes_on = place > 0
                    && class.is_some_and(|(first, _)| {
                        before == Some(first) && first != ByteClass::Space
                    });
                number += i64::from(!goes_on);
                before = class.map(|(_, last)| last);
                numbers.push(if class.is_some() { number } else { -1 });
            }
        }
        Ok(numbers)
    }

    /// Pick words and mask them; return model inputs and labels, in rows of `length` ids.
    ///
    /// `first_sample` is the sample index of the first text; random numbers depend on it and on the
    /// seed.
    pub fn mask(
        &self,
        ids: &[i64],
        length: usize,
        first_sample: u64,
    ) -> Result<(Vec<i64>, Vec<i64>), Error> {
        let numbers = self.word_numbers(ids, length)?;
        let mut inputs = ids.to_vec();
        let mut labels = vec![IGNORED_LABEL; ids.len()];
        let length = length.max(1);
        let rows = inputs
            .chunks_mut(length)
            .zip(labels.chunks_mut(length))
            .zip(numbers.chunks(length));
        for (sample, ((inputs, labels), numbers)) in (first_sample..).zip(rows) {
            let mut uniform = PhiloxUniform::new(self.seed, WHOLE_WORD_STREAM, sample);
            // Indices ascend, so the words are picked in order.
            let (mut last, mut is_picked) = (-1, false);
            let picked: Vec<bool> = numbers
                .iter()
                .map(|&number| {
                    if number > last {
                        (last, is_picked) = (number, uniform.next() < self.probability);
                    }
                    number >= 0 && is_picked
                })
                .collect();
            for ((input, label), is_picked) in inputs.iter_mut().zip(labels).zip(picked) {
                if is_picked {
                    *label = *input;
                    *input = self.corrupt(*input, &mut uniform);
                }
            }
        }
        Ok((inputs, labels))
    }

    fn corrupt(&self, id: i64, uniform: &mut PhiloxUniform) -> i64 {
        match corruption(uniform.next()) {
            Corruption::Mask => self.mask.into(),
            Corruption::Random => {
                let other = uniform.below(self.replacements.len());
                self.replacements.get(other).map_or(id, |&id| id.into())
            }
            Corruption::Keep => id,
        }
    }

    fn class(&self, id: i64) -> Result<Option<(ByteClass, ByteClass)>, Error> {
        let class = usize::try_from(id).ok().and_then(|id| self.classes.get(id));
        class.copied().ok_or_else(|| {
            let size = self.classes.len();
            Error::argument("token_ids", format!("{id}; expected 0 to {}", size - 1))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::TokenOverrides;
    use crate::tokenizer::special_tokens::tests::word_level;

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
    fn words_are_masked_whole() {
        let tokenizer = Tokenizer::train(["a red cup, isn't it"; 9].into_iter(), 265).unwrap();
        let masking = WholeWordMasking::new(&tokenizer, 0.5, 3).unwrap();
        let ids = tokenizer.encode("a red cup, isn't it", None).unwrap().ids;
        let ids: Vec<i64> = ids.into_iter().map(i64::from).collect();
        let numbers = masking.word_numbers(&ids, ids.len()).unwrap();
        assert_eq!((numbers[0], numbers.last()), (-1, Some(&-1)));
        let mut words = numbers.clone();
        words.dedup();
        // A space that was not merged with its word is a separate token.
        assert!(words.len() >= 6 + 2, "{numbers:?}");
        let mut picked = 0;
        for sample in 0..50 {
            let (inputs, labels) = masking.mask(&ids, ids.len(), sample).unwrap();
            for at in 0..ids.len() {
                assert!(labels[at] == ids[at] || labels[at] == IGNORED_LABEL);
                assert!(labels[at] != IGNORED_LABEL || inputs[at] == ids[at]);
                for other in 0..ids.len() {
                    assert!(
                        numbers[at] != numbers[other]
                            || (labels[at] == IGNORED_LABEL) == (labels[other] == IGNORED_LABEL)
                    );
                }
                picked += usize::from(labels[at] != IGNORED_LABEL);
            }
        }
        assert!(picked > 100);
        assert!(masking.mask(&[], 0, 0).unwrap().0.is_empty());
    }

    #[test]
    fn wrong_arguments_are_named() {
        let tokenizer = Tokenizer::train(["a"].into_iter(), 261).unwrap();
        let wrong = WholeWordMasking::new(&tokenizer, f64::NAN, 0)
            .err()
            .unwrap();
        assert_eq!(wrong.to_string(), "probability: NaN; expected 0 to 1");
        let masking = WholeWordMasking::new(&tokenizer, 0.5, 0).unwrap();
        for id in [-1, 261, i64::MAX] {
            let error = masking.mask(&[0, id], 2, 0).unwrap_err().to_string();
            assert_eq!(error, format!("token_ids: {id}; expected 0 to 260"));
        }
        let words = Tokenizer::from_json(&word_level(&["a", "[UNK]"])).unwrap();
        assert!(WholeWordMasking::new(&words, 0.5, 0).is_err());
    }
}
