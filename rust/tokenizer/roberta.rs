//! RoBERTa-style byte-level BPEs for fiber's models.

use std::path::Path;

use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::{AddedToken, ModelWrapper, Tokenizer as Inner};

use crate::Error;
use crate::tokenizer::special_tokens::{SpecialTokens, TokenOverrides};
use crate::tokenizer::{Tokenizer, guarded, limits, read, tokenizer_error};

/// Id of `<s>` (BOS).
pub const START_ID: u32 = 0;
/// Id of `<pad>`.
pub const PAD_ID: u32 = 1;
/// Id of `</s>` (EOS).
pub const END_ID: u32 = 2;

/// Special tokens with ids 0 to 3; `<mask>` is the last id.
const SPECIALS: [&str; 4] = ["<s>", "<pad>", "</s>", "<unk>"];
const MASK: &str = "<mask>";
/// Size of the smallest possible vocabulary: all bytes and the special tokens.
const SMALLEST: usize = 256 + SPECIALS.len() + 1;

impl Tokenizer {
    /// Read RoBERTa's `vocab.json` and `merges.txt`.
    ///
    /// `<mask>` absorbs the spaces before it, as in the published `tokenizer.json`.
    pub(crate) fn from_vocabulary(vocabulary: &Path, merges: &Path) -> Result<Self, Error> {
        // Read the files here first, so that the error names a missing file.
        read(vocabulary)?;
        read(merges)?;
        let build = || {
            let files = BPE::from_file(&vocabulary.to_string_lossy(), &merges.to_string_lossy());
            let bpe = files.build().map_err(tokenizer_error)?;
            let ids = bpe.get_vocab();
            limits::check_ids(ids.len(), ids.into_values().map(u64::from).max())
                .map_err(|reason| Error::Tokenizer(format!("tokenizer: {reason}")))?;
            Self::like_roberta(bpe)
        };
        guarded(build).map_err(|error| {
            let (vocabulary, merges) = (vocabulary.display(), merges.display());
            Error::Tokenizer(format!("{vocabulary} and {merges}: {error}"))
        })
    }

    /// Train a RoBERTa-style tokenizer; the result is deterministic.
    ///
    /// The vocabulary is smaller than requested if the texts have too few repeated pairs.
    ///
    /// # Errors
    /// [`Error::Argument`] if `vocab_size` cannot hold all bytes and the special tokens.
    pub fn train<'a>(
        texts: impl Iterator<Item = &'a str> + Send,
        vocab_size: usize,
    ) -> Result<Self, Error> {
        if vocab_size < SMALLEST {
            let reason = format!("{vocab_size} tokens; expected {SMALLEST} or more");
            return Err(Error::argument("vocab_size", reason));
        }
        let mut trainer: TrainerWrapper = BpeTrainer::builder()
            .show_progress(false)
            .vocab_size(vocab_size - 1)
            .min_frequency(2)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .special_tokens(SPECIALS.map(|token| AddedToken::from(token, true)).to_vec())
            .build()
            .into();
        let mut inner = Inner::new(BPE::default());
        inner.with_pre_tokenizer(Some(byte_level()));
        guarded(|| match inner.train(&mut trainer, texts) {
            Ok(_) => Ok(()),
            Err(error) => Err(tokenizer_error(error)),
        })?;
        let ModelWrapper::BPE(bpe) = inner.get_model().clone() else {
            return Err(Error::Tokenizer("training did not return a BPE".to_owned()));
        };
        Self::like_roberta(bpe)
    }

    /// Check that fiber's models can use the vocabulary: the special tokens must have RoBERTa's
    /// ids.
    pub(crate) fn check_for_models(&self) -> Result<(), Error> {
        difference(self.inner(), self.special_tokens()).map_or(Ok(()), |why| {
            let reason = format!("fiber's models expect a RoBERTa-style tokenizer: {why}");
            Err(Error::Tokenizer(reason))
        })
    }

    fn like_roberta(bpe: BPE) -> Result<Self, Error> {
        let none = TokenOverrides::default();
        let tokenizer = Self::of_crate(assemble(bpe)?, &none, &none)?;
        tokenizer.check_for_models()?;
        Ok(tokenizer)
    }
}

/// Describe the first difference between a vocabulary and RoBERTa's, if any.
pub(crate) fn difference(inner: &Inner, special_tokens: &SpecialTokens) -> Option<String> {
    if !matches!(inner.get_model(), ModelWrapper::BPE(_)) {
        return Some("the model is not a BPE; expected a byte-level BPE".to_owned());
    }
    let size = inner.get_vocab_size(true);
    let last = u32::try_from(size.saturating_sub(1)).unwrap_or(u32::MAX);
    let expected = (0_u32..).zip(SPECIALS).map(|(id, token)| (token, id));
    for (token, id) in expected.chain([(MASK, last)]) {
        let found = inner.token_to_id(token);
        if found != Some(id) {
            let found = found.map_or("no id".to_owned(), |found| format!("id {found}"));
            return Some(format!(
                "{token} has {found}; expected {id} in a vocabulary of {size}"
            ));
        }
    }
    // A model has a row of its table for each token.
    if let Some(id) = (0..=last).find(|&id| inner.id_to_token(id).is_none()) {
        return Some(format!(
            "no token has id {id}; expected ids 0 to {last} in a vocabulary of {size}"
        ));
    }
    if (special_tokens.pad, special_tokens.mask) != (PAD_ID, Some(last)) {
        let mask = special_tokens
            .mask
            .map_or("none".to_owned(), |id| id.to_string());
        return Some(format!(
            "the padding id is {} and the mask id is {mask}; expected {PAD_ID} and {last}",
            special_tokens.pad
        ));
    }
    let template = &special_tokens.template;
    let (before, after) = (&template.before, &template.after);
    if *before != [START_ID] || *after != [END_ID] || !template.is_plain {
        return Some(format!(
            "texts start with ids {before:?} and end with {after:?}; expected [{START_ID}] \
                 and [{END_ID}]"
        ));
    }
    None
}

fn byte_level() -> ByteLevel {
    ByteLevel::new(false, true, true)
}

/// Add RoBERTa's pre- and post-processing to a BPE.
fn assemble(bpe: BPE) -> Result<Inner, Error> {
    let mut inner = Inner::new(bpe);
    inner
        .with_pre_tokenizer(Some(byte_level()))
        .with_decoder(Some(ByteLevelDecoder::new(false, true, true)))
        .with_post_processor(Some(
            RobertaProcessing::new(
                (SPECIALS[2].to_owned(), END_ID),
                (SPECIALS[0].to_owned(), START_ID),
            )
            .trim_offsets(true)
            .add_prefix_space(false),
        ));
    // A new <mask> token gets the next id; an existing one keeps its id.
    let mut specials = SPECIALS
        .map(|token| AddedToken::from(token, true).normalized(true))
        .to_vec();
    specials.push(AddedToken::from(MASK, true).lstrip(true).normalized(true));
    inner
        .add_special_tokens(specials)
        .map_err(tokenizer_error)?;
    Ok(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trained() -> Tokenizer {
        let texts = ["a red cup", "the red cups", "a red dog and a cup"];
        Tokenizer::train(texts.into_iter(), 300).unwrap()
    }

    #[test]
    fn no_texts_leave_the_bytes() {
        let tokenizer = Tokenizer::train(std::iter::empty(), 300).unwrap();
        assert_eq!(tokenizer.vocab_size(), SMALLEST);
        let encoded = tokenizer.encode("", None).unwrap();
        assert_eq!(encoded.ids, [START_ID, END_ID]);
        assert_eq!(encoded.offsets, [(0, 0), (0, 0)]);
        assert_eq!(tokenizer.decode(&[]).unwrap(), "");
    }

    #[test]
    fn training_and_saving_change_nothing() {
        let first = trained();
        let json = first.to_json().unwrap();
        assert_eq!(json, trained().to_json().unwrap());
        let special_tokens = first.special_tokens();
        assert_eq!(
            special_tokens.mask.unwrap() as usize,
            first.vocab_size() - 1
        );
        assert_eq!(
            special_tokens.special,
            [0, 1, 2, 3, special_tokens.mask.unwrap()]
        );
        assert_eq!(special_tokens.replacements.len(), first.vocab_size() - 1);
        let again = Tokenizer::from_json(&json).unwrap();
        assert_eq!(
            again.encode("the <mask> cup", None).unwrap(),
            first.encode("the <mask> cup", None).unwrap()
        );
    }

    #[test]
    fn models_reject_other_tokenizers() {
        let json = trained().to_json().unwrap();
        let message = |json: &str| {
            let tokenizer = Tokenizer::from_json(json).unwrap();
            tokenizer
                .check_for_models()
                .err()
                .map(|error| error.to_string())
        };
        assert_eq!(message(&json), None);
        let swapped = json.replace("\"<pad>\"", "\"<PAD>\"");
        let found = message(&swapped).unwrap();
        assert!(
            found.contains("-style tokenizer: <pad> has no id; expected 1 in"),
            "{found}"
        );
        let swapped = json.replace("\"<mask>\"", "\"[MASK]\"");
        let found = message(&swapped).unwrap();
        assert!(
            found.contains("-style tokenizer: <mask> has no id; expected "),
            "{found}"
        );
        let mut content: serde_json::Value = serde_json::from_str(&json).unwrap();
        content["post_processor"] = serde_json::Value::Null;
        let found = message(&content.to_string()).unwrap();
        assert!(
            found.contains("-style tokenizer: texts start with ids [] and end with"),
            "{found}"
        );
        let named = TokenOverrides {
            pad: Some("<unk>".to_owned()),
            mask: None,
        };
        let other = Tokenizer::from_json_with(&json, &named).unwrap();
        let found = other.check_for_models().unwrap_err().to_string();
        assert!(
            found.contains("tokenizer: the padding id is 3 and the mask "),
            "{found}"
        );
        let words =
            Tokenizer::from_json(&crate::tokenizer::special_tokens::tests::word_level(&["a"]))
                .unwrap();
        let found = words.check_for_models().unwrap_err().to_string();
        assert!(
            found.contains("tokenizer: the model is not a BPE"),
            "{found}"
        );
        assert!(Tokenizer::train(std::iter::empty(), 10).is_err());
    }
}
