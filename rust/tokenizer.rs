//! Byte-level BPE as RoBERTa uses it, with the span of code points of every token.
//!
//! Texts go through [`crate::byte_level`] where the file is a byte-level BPE and nothing more, else
//! through the crate `tokenizers`, which also trains, reads, writes and decodes. Both give the same.

use std::path::Path;
use std::sync::Arc;

use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::{AddedToken, Model, ModelWrapper, Tokenizer as Inner};

use crate::Error;
use crate::byte_level::{ByteLevel as Fast, Tokens};
pub use crate::encoded::Encoded;
use crate::guard::guard;
use crate::prompts::{Prompt, Prompts};
use crate::tokenizer_json;

/// Id of `<s>`, which starts every text.
pub const START_ID: u32 = 0;
/// Id of `<pad>`.
pub const PAD_ID: u32 = 1;
/// Id of `</s>`, which ends every text.
pub const END_ID: u32 = 2;
/// Id of `<unk>`.
pub const UNKNOWN_ID: u32 = 3;

/// The special tokens of the ids 0 to 3; `<mask>` has the last id.
const SPECIALS: [&str; 4] = ["<s>", "<pad>", "</s>", "<unk>"];
const MASK: &str = "<mask>";
/// The smallest vocabulary: every byte and the special tokens.
const SMALLEST: usize = 256 + SPECIALS.len() + 1;

/// A byte-level BPE tokenizer.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Inner,
    /// The same without what `tokenizers` spends on other kinds.
    fast: Option<Arc<Fast>>,
    vocab_size: usize,
    prompts: Arc<Prompts>,
}

impl Tokenizer {
    /// Read a `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::File`] where it cannot be read, [`Error::Tokenizer`] where it is no byte-level BPE
    /// with `<s> <pad> </s> <unk>` at 0 to 3 and `<mask>` last.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        let json = read(path)?;
        Self::from_json(&json)
            .map_err(|error| Error::Tokenizer(format!("{}: {error}", path.display())))
    }

    /// Read the text of a `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`], see [`Tokenizer::from_file`].
    pub fn from_json(json: &str) -> Result<Self, Error> {
        guarded(|| {
            let inner = Inner::from_bytes(json.as_bytes()).map_err(tokenizer_error)?;
            Self::checked(inner)
        })
    }

    /// Read RoBERTa's two files, `vocab.json` and `merges.txt`.
    ///
    /// # Errors
    /// [`Error::File`] where one cannot be read, [`Error::Tokenizer`] where they do not fit.
    pub fn from_vocabulary(vocabulary: &Path, merges: &Path) -> Result<Self, Error> {
        // Both are read here first, so that a missing file is told by its name.
        read(vocabulary)?;
        read(merges)?;
        let bpe = BPE::from_file(&vocabulary.to_string_lossy(), &merges.to_string_lossy())
            .build()
            .map_err(|error| {
                Error::Tokenizer(format!(
                    "{} and {}: {error}",
                    vocabulary.display(),
                    merges.display()
                ))
            })?;
        Self::checked(assemble(bpe)?)
    }

    /// Learn a vocabulary from texts; deterministic.
    ///
    /// It is smaller than asked for where the texts have too few repeated pairs.
    ///
    /// # Errors
    /// [`Error::Argument`] where `vocab_size` cannot hold every byte and the special tokens.
    pub fn train<'a>(
        texts: impl Iterator<Item = &'a str> + Send,
        vocab_size: usize,
    ) -> Result<Self, Error> {
        if vocab_size < SMALLEST {
            return Err(Error::argument(
                "vocab_size",
                format!("{vocab_size} tokens; expected {SMALLEST} or more"),
            ));
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
        inner.train(&mut trainer, texts).map_err(tokenizer_error)?;
        let ModelWrapper::BPE(bpe) = inner.get_model().clone() else {
            return Err(Error::Tokenizer("training gave no BPE".to_owned()));
        };
        Self::checked(assemble(bpe)?)
    }

    fn checked(mut inner: Inner) -> Result<Self, Error> {
        if !matches!(inner.get_model(), ModelWrapper::BPE(_)) {
            return Err(Error::Tokenizer(
                "its model is no BPE; expected a byte-level BPE".to_owned(),
            ));
        }
        // Truncation and padding are the loader's business.
        inner.with_truncation(None).map_err(tokenizer_error)?;
        inner.with_padding(None);
        let vocab_size = inner.get_vocab_size(true);
        let expected = (0_u32..).zip(SPECIALS).map(|(id, token)| (token, id));
        let last = u32::try_from(vocab_size.saturating_sub(1)).unwrap_or(u32::MAX);
        for (token, id) in expected.chain([(MASK, last)]) {
            let found = inner.token_to_id(token);
            if found != Some(id) {
                let found = found.map_or("no id".to_owned(), |found| format!("the id {found}"));
                return Err(Error::Tokenizer(format!(
                    "{token} has {found}; expected {id} in a vocabulary of {vocab_size}"
                )));
            }
        }
        let json = inner.to_string(false).map_err(tokenizer_error)?;
        let known = inner.get_model().get_vocab_size();
        Ok(Self {
            fast: tokenizer_json::read(&json, known)?.map(Arc::new),
            inner,
            vocab_size,
            prompts: Arc::default(),
        })
    }

    /// Whether texts go through our own byte-level BPE, not through `tokenizers`.
    #[must_use]
    pub fn is_fast(&self) -> bool {
        self.fast.is_some()
    }

    /// Write a `tokenizer.json`; the file appears whole or not at all.
    ///
    /// # Errors
    /// [`Error::File`] where it cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let json = self.to_json()?;
        let mut partial = path.as_os_str().to_owned();
        partial.push(format!(".{}.partial", std::process::id()));
        let partial = Path::new(&partial);
        let failed = |source| Error::File {
            path: path.to_owned(),
            source,
        };
        std::fs::write(partial, json)
            .and_then(|()| std::fs::rename(partial, path))
            .map_err(|source| {
                // What was begun is of no use; that it cannot be removed changes nothing.
                let _ = std::fs::remove_file(partial);
                failed(source)
            })
    }

    /// The text of a `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where it cannot be written as JSON.
    pub fn to_json(&self) -> Result<String, Error> {
        self.inner.to_string(true).map_err(tokenizer_error)
    }

    /// Tokens in the vocabulary, special ones included.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Id of `<mask>`, the last one.
    #[must_use]
    pub fn mask_id(&self) -> u32 {
        u32::try_from(self.vocab_size - 1).unwrap_or(u32::MAX)
    }

    /// Split a text into tokens; at most `max_tokens`, of which the last is always `</s>`.
    ///
    /// Long texts are kept, since prompts come again.
    ///
    /// # Errors
    /// [`Error::Argument`] where `max_tokens` is below 2.
    pub fn encode(&self, text: &str, max_tokens: Option<usize>) -> Result<Encoded, Error> {
        if let Some(limit) = max_tokens {
            check_max_tokens(limit)?;
        }
        if Prompts::keeps(text) {
            return Ok(self.prompt(text)?.encoded(max_tokens));
        }
        self.encode_anew(text, max_tokens)
    }

    fn encode_anew(&self, text: &str, max_tokens: Option<usize>) -> Result<Encoded, Error> {
        if let Some(fast) = &self.fast {
            let mut tokens = Tokens::default();
            let limit = (max_tokens.unwrap_or(usize::MAX), END_ID);
            fast.encode(std::iter::once(text), limit, true, &mut tokens);
            let spans = tokens.spans.iter();
            return Ok(Encoded {
                offsets: spans
                    .map(|&(start, end)| (start as usize, end as usize))
                    .collect(),
                ids: tokens.ids,
            });
        }
        let encoding = guarded(|| {
            let encoded = self.inner.encode_char_offsets(text, true);
            encoded.map_err(tokenizer_error)
        })?;
        let mut encoded = Encoded {
            ids: encoding.get_ids().to_vec(),
            offsets: encoding.get_offsets().to_vec(),
        };
        encoded.cut(max_tokens);
        Ok(encoded)
    }

    /// The tokens of a text that is likely to come again.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where `tokenizers` gives up.
    pub fn prompt(&self, text: &str) -> Result<Arc<Prompt>, Error> {
        self.prompts
            .get_or_make(text, || self.encode_anew(text, None))
    }

    /// Append the tokens of texts, each cut to `max_tokens`; returns their counts.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub(crate) fn encode_into<'a>(
        &self,
        texts: impl Iterator<Item = &'a str>,
        max_tokens: Option<usize>,
        with_spans: bool,
        tokens: &mut Tokens,
    ) -> Result<Vec<usize>, Error> {
        if let Some(limit) = max_tokens {
            check_max_tokens(limit)?;
        }
        if let Some(fast) = &self.fast {
            let limit = (max_tokens.unwrap_or(usize::MAX), END_ID);
            return Ok(fast.encode(texts, limit, with_spans, tokens));
        }
        let number = |position: usize| u32::try_from(position).unwrap_or(u32::MAX);
        texts
            .map(|text| {
                let encoded = self.encode(text, max_tokens)?;
                tokens.ids.extend_from_slice(&encoded.ids);
                if with_spans {
                    let spans = encoded.offsets.iter();
                    tokens
                        .spans
                        .extend(spans.map(|&(start, end)| (number(start), number(end))));
                }
                Ok(encoded.ids.len())
            })
            .collect()
    }

    /// Join tokens to a text; special ones are left out.
    ///
    /// # Errors
    /// [`Error::Argument`] for an id outside the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String, Error> {
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.vocab_size) {
            return Err(Error::argument(
                "ids",
                format!("{id} is no token; expected less than {}", self.vocab_size),
            ));
        }
        guarded(|| self.inner.decode(ids, true).map_err(tokenizer_error))
    }
}

/// Work of the crate `tokenizers`, which broken files make panic.
fn guarded<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    guard(work, |why| {
        Error::Tokenizer(format!("the crate tokenizers gave up: {why}"))
    })
}

/// Refuse a limit that cannot hold `<s>` and `</s>`.
///
/// # Errors
/// [`Error::Argument`] where it is below 2.
pub fn check_max_tokens(limit: usize) -> Result<(), Error> {
    if limit < 2 {
        return Err(Error::argument(
            "max_tokens",
            format!("{limit}; expected 2 or more, <s> and </s> included"),
        ));
    }
    Ok(())
}

fn byte_level() -> ByteLevel {
    ByteLevel::new(false, true, true)
}

/// RoBERTa's parts around a BPE.
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
    // A new <mask> takes the id after the last, a known one keeps its own.
    let mut specials = SPECIALS
        .map(|token| AddedToken::from(token, true).normalized(true))
        .to_vec();
    specials.push(AddedToken::from(MASK, true).lstrip(true).normalized(true));
    inner
        .add_special_tokens(specials)
        .map_err(tokenizer_error)?;
    Ok(inner)
}

fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })
}

#[allow(clippy::needless_pass_by_value)] // The shape that `map_err` wants.
fn tokenizer_error(error: tokenizers::Error) -> Error {
    Error::Tokenizer(format!("tokenizer: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer() -> Tokenizer {
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
    fn a_file_at_which_the_crate_panics_is_an_error() {
        let json = r#"{"version": "1.0", "decoder": {"type": 1 2}}"#;
        let error = Tokenizer::from_json(json).err().unwrap().to_string();
        assert!(error.contains("gave up"), "{error}");
    }

    #[test]
    fn text_comes_back() {
        let tokenizer = tokenizer();
        for text in ["a red cup", "  two  spaces", "e\u{301} \u{1F600}\n\u{200d}"] {
            let encoded = tokenizer.encode(text, None).unwrap();
            assert_eq!(tokenizer.decode(&encoded.ids).unwrap(), text);
        }
    }

    #[test]
    fn offsets_count_code_points_without_the_space() {
        let tokenizer = tokenizer();
        let text = "\u{1F600} red";
        let encoded = tokenizer.encode(text, None).unwrap();
        // Four bytes of one character, then the word.
        assert_eq!(
            encoded.offsets,
            [(0, 0), (0, 1), (0, 1), (0, 1), (0, 1), (2, 5), (0, 0)]
        );
    }

    #[test]
    fn long_texts_keep_their_end() {
        let tokenizer = tokenizer();
        let whole = tokenizer.encode("a red cup and a dog", None).unwrap();
        let cut = tokenizer.encode("a red cup and a dog", Some(4)).unwrap();
        assert_eq!(cut.ids[..3], whole.ids[..3]);
        assert_eq!(cut.ids[3], END_ID);
        assert_eq!(cut.offsets[3], (0, 0));
        assert!(tokenizer.encode("a", Some(1)).is_err());
    }

    #[test]
    fn training_and_saving_change_nothing() {
        let first = tokenizer();
        assert_eq!(first.to_json().unwrap(), tokenizer().to_json().unwrap());
        assert_eq!(first.mask_id() as usize, first.vocab_size() - 1);
        let again = Tokenizer::from_json(&first.to_json().unwrap()).unwrap();
        assert_eq!(
            again.encode("the <mask> cup", None).unwrap(),
            first.encode("the <mask> cup", None).unwrap()
        );
    }

    #[test]
    fn other_tokenizers_are_refused() {
        assert!(Tokenizer::from_json("{}").is_err());
        let json = tokenizer().to_json().unwrap();
        let swapped = json.replace("\"<pad>\"", "\"<PAD>\"");
        let message = Tokenizer::from_json(&swapped).err().unwrap().to_string();
        assert!(message.contains("<pad>"), "{message}");
        assert!(Tokenizer::train(std::iter::empty(), 10).is_err());
        assert!(matches!(
            Tokenizer::from_file(Path::new("no/such.json")),
            Err(Error::File { .. })
        ));
        assert!(tokenizer().decode(&[9999]).is_err());
    }
}
