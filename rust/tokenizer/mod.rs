//! Tokenizers for any `tokenizer.json`: text to token ids and code point offsets.
//!
//! Plain byte-level BPEs are encoded by [`crate::tokenizer::byte_level`], all others by the
//! `tokenizers` crate, which also trains, reads, writes and decodes. Both give the same results.

mod added_tokens;
pub(crate) mod batch;
mod bpe;
mod byte_level;
mod char_class;
mod encoding;
mod json;
mod limits;
pub mod masking;
mod pretokenizer;
mod prompt_cache;
mod roberta;
pub(crate) mod spans;
mod special_tokens;
mod word_cache;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokenizers::utils::padding::PaddingParams;
use tokenizers::{Model, ModelWrapper, PostProcessor, PostProcessorWrapper, Tokenizer as Inner};

use crate::error::{catch_panic, shown};
use crate::tokenizer::byte_level::ByteLevel as Fast;
pub use crate::tokenizer::encoding::Encoded;
use crate::tokenizer::limits::TextLimit;
use crate::tokenizer::prompt_cache::PromptCache;
pub(crate) use crate::tokenizer::special_tokens::{SpecialTokens, TokenOverrides};
use crate::{Error, try_alloc};

/// A tokenizer of any type supported by the `tokenizers` crate.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Inner,
    /// Without post-processor, for texts that are truncated before it runs.
    unprocessed: Option<Arc<Inner>>,
    /// Limit on texts that the crate encodes, if its time may not be linear.
    text_limit: Option<Arc<TextLimit>>,
    /// The file that it was read from, for errors.
    file: Option<Arc<PathBuf>>,
    /// Fast path, if the tokenizer is a plain byte-level BPE.
    fast: Option<Arc<Fast>>,
    vocab_size: usize,
    special_tokens: SpecialTokens,
    /// True if the special tokens can be found only through a `padding` entry.
    needs_padding_entry: bool,
    prompt_cache: Arc<PromptCache>,
}

impl Tokenizer {
    /// Read a `tokenizer.json` file, with special tokens given by the caller.
    pub(crate) fn from_file_with(path: &Path, named: &TokenOverrides) -> Result<Self, Error> {
        let json = read(path)?;
        let mut tokenizer = Self::from_json_with(&json, named)
            .map_err(|error| Error::Tokenizer(format!("{}: {error}", path.display())))?;
        tokenizer.file = Some(Arc::new(path.to_owned()));
        Ok(tokenizer)
    }

    /// Parse the contents of a `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the contents are not a tokenizer.
    pub fn from_json(json: &str) -> Result<Self, Error> {
        Self::from_json_with(json, &TokenOverrides::default())
    }

    /// Parse the contents of a `tokenizer.json`, with special tokens given by the caller.
    pub(crate) fn from_json_with(json: &str, named: &TokenOverrides) -> Result<Self, Error> {
        guarded(|| {
            // Most tokenizers need less; a failed allocation in the crate would abort the process.
            try_alloc::check(json.len().saturating_mul(16), || "a tokenizer".to_owned())?;
            let text_limit = limits::check(json).map_err(|reason| explained(json, &reason))?;
            let inner = Inner::from_bytes(json.as_bytes())
                .map_err(|error| explained(json, &error.to_string()))?;
            let added = inner
                .get_post_processor()
                .map_or(0, |it| it.added_tokens(false));
            if added > limits::MAX_TEMPLATE_TOKENS {
                let most = limits::MAX_TEMPLATE_TOKENS;
                return Err(Error::Tokenizer(format!(
                    "tokenizer: 'post_processor' adds {added} tokens to a text; expected at most {most}"
                )));
            }
            let of_file = TokenOverrides {
                pad: inner.get_padding().and_then(|padding| {
                    // A padding token that is not in the vocabulary is an unused default.
                    let known = inner.id_to_token(padding.pad_id)?;
                    (known == padding.pad_token).then_some(known)
                }),
                mask: json::mask_token(json),
            };
            let mut tokenizer = Self::of_crate(inner, named, &of_file)?;
            tokenizer.text_limit = text_limit.map(Arc::new);
            Ok(tokenizer)
        })
    }

    /// Wrap a tokenizer of the crate, with special tokens given by the caller and the file.
    pub(crate) fn of_crate(
        mut inner: Inner,
        named: &TokenOverrides,
        of_file: &TokenOverrides,
    ) -> Result<Self, Error> {
        // The loader itself truncates and pads.
        inner.with_truncation(None).map_err(tokenizer_error)?;
        inner.with_padding(None);
        let mut special_tokens = SpecialTokens::find(&inner, named, of_file)?;
        let mut needs_padding_entry = false;
        if (named, of_file) != (&TokenOverrides::default(), &TokenOverrides::default()) {
            let nothing = TokenOverrides::default();
            let alone = SpecialTokens::find(&inner, &nothing, &nothing);
            needs_padding_entry = alone.is_ok_and(|alone| {
                (alone.pad, alone.mask) != (special_tokens.pad, special_tokens.mask)
            });
        }
        special_tokens.replacements.shrink_to_fit();
        let mut unprocessed = None;
        if !special_tokens.template.is_plain {
            let mut other = inner.clone();
            other.with_post_processor(None::<PostProcessorWrapper>);
            unprocessed = Some(Arc::new(other));
        }
        let mut fast = None;
        if matches!(inner.get_model(), ModelWrapper::BPE(_)) && special_tokens.template.is_plain {
            let json = inner.to_string(false).map_err(tokenizer_error)?;
            let known = inner.get_model().get_vocab_size();
            fast = json::read(&json, known)?.map(Arc::new);
        }
        Ok(Self {
            fast,
            vocab_size: inner.get_vocab_size(true),
            inner,
            unprocessed,
            text_limit: None,
            file: None,
            special_tokens,
            needs_padding_entry,
            prompt_cache: Arc::default(),
        })
    }

    /// True if texts are encoded by the built-in byte-level BPE, not by `tokenizers`.
    #[must_use]
    pub fn is_fast(&self) -> bool {
        self.fast.is_some()
    }

    /// The special tokens.
    pub(crate) fn special_tokens(&self) -> &SpecialTokens {
        &self.special_tokens
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.inner
    }

    /// Contents of a `tokenizer.json`, with a `padding` entry if the special tokens would not be
    /// found without it.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the tokenizer cannot be serialized.
    pub fn to_json(&self) -> Result<String, Error> {
        let written = |inner: &Inner| self.guarded(|| inner.to_string(true));
        if !self.needs_padding_entry {
            return written(&self.inner);
        }
        let mut inner = self.inner.clone();
        inner.with_padding(Some(PaddingParams {
            pad_id: self.special_tokens.pad,
            pad_token: self
                .inner
                .id_to_token(self.special_tokens.pad)
                .unwrap_or_default(),
            ..PaddingParams::default()
        }));
        let json = written(&inner)?;
        let mask = self
            .special_tokens
            .mask
            .and_then(|id| inner.id_to_token(id));
        Ok(json::with_mask_token(json, mask))
    }

    /// Number of tokens, including special tokens.
    pub(crate) fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Reject a limit that cannot hold the special tokens around a text.
    pub(crate) fn check_max_tokens(&self, max_tokens: Option<usize>) -> Result<(), Error> {
        let template = &self.special_tokens.template;
        let least = template.added.max(1);
        let Some(limit) = max_tokens.filter(|&limit| limit < least) else {
            return Ok(());
        };
        let ids = template.before.iter().chain(&template.after);
        let tokens = ids.filter_map(|&id| self.inner.id_to_token(id));
        let tokens: Vec<String> = tokens.map(|token| shown(&token)).take(8).collect();
        let included = match tokens.split_last() {
            Some((only, [])) => format!(", including {only}"),
            Some((end, others)) => format!(", including {} and {end}", others.join(", ")),
            None => String::new(),
        };
        let reason = format!("{limit}; expected {least} or more{included}");
        Err(Error::argument("max_tokens", reason))
    }

    /// Decode ids to text, skipping special tokens.
    ///
    /// # Errors
    /// [`Error::Argument`] for an unknown id, [`Error::Tokenizer`] if `tokenizers` fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, Error> {
        let is_none = |id: u32| self.inner.id_to_token(id).is_none();
        if let Some(id) = ids.iter().find(|&&id| is_none(id)) {
            let reason = format!("{id}; expected less than {}", self.vocab_size);
            return Err(Error::argument("ids", reason));
        }
        self.guarded(|| self.inner.decode(ids, true))
    }

    /// Call the `tokenizers` crate; an error names the file.
    fn guarded<T>(&self, work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, Error> {
        guarded(|| work().map_err(tokenizer_error)).map_err(|error| self.named(error))
    }

    /// Add the name of the file, if known.
    fn named(&self, error: Error) -> Error {
        match &self.file {
            Some(file) => Error::Tokenizer(format!("{}: {error}", file.display())),
            None => error,
        }
    }

    /// Reject a text for which the `tokenizers` crate may take too much time.
    fn check_text(&self, text: &str) -> Result<(), Error> {
        match &self.text_limit {
            Some(limit) if u64::try_from(text.len()).unwrap_or(u64::MAX) > limit.bytes => Err(self
                .named(Error::Tokenizer(format!(
                    "tokenizer: a text of {} bytes; expected at most {}, since the time of the \
                     regular expression '{}' can grow with the square of that",
                    text.len(),
                    limit.bytes,
                    shown(&limit.pattern)
                )))),
            _ => Ok(()),
        }
    }
}

fn explained(json: &str, reason: &str) -> Error {
    Error::Tokenizer(shown(&json::explain(json, reason)))
}

/// Call the `tokenizers` crate, which panics on some malformed files.
fn guarded<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_panic(work, |why| {
        Error::Tokenizer(format!("tokenizer: the tokenizers crate panicked: {why}"))
    })
}

/// Read a text file of limited size.
pub(crate) fn read(path: &Path) -> Result<String, Error> {
    let read = || {
        // Reading a pipe without a writer would block, and reading a device might never end.
        let file = std::fs::metadata(path)?;
        if !file.is_file() && !file.is_dir() {
            return Err(std::io::Error::other("not a regular file"));
        }
        if file.len() > limits::MAX_FILE_BYTES {
            let (found, most) = (file.len(), limits::MAX_FILE_BYTES);
            let reason = format!("{found} bytes; expected at most {most}");
            return Err(std::io::Error::other(reason));
        }
        std::fs::read(path)
    };
    let bytes = read().map_err(|source| Error::file(path, source))?;
    String::from_utf8(bytes).map_err(|error| {
        let place = error.utf8_error().valid_up_to();
        Error::Tokenizer(format!("{}: invalid UTF-8 at byte {place}", path.display()))
    })
}

#[allow(clippy::needless_pass_by_value)] // Signature required by `map_err`.
pub(crate) fn tokenizer_error(error: tokenizers::Error) -> Error {
    Error::Tokenizer(format!("tokenizer: {}", shown(&error.to_string())))
}

#[cfg(test)]
mod tests {
    use super::roberta::END_ID;
    use super::*;

    fn tokenizer() -> Tokenizer {
        let texts = ["a red cup", "the red cups", "a red dog and a cup"];
        Tokenizer::train(texts.into_iter(), 300).unwrap()
    }

    #[test]
    fn a_file_at_which_the_crate_panics_is_an_error() {
        // A table of replacements that is not UTF-8.
        let json = r#"{"version": "1.0", "normalizer": {"type": "Precompiled", "precompiled_charsmap": "BAAAAAAAAAD/"}}"#;
        let error = Tokenizer::from_json(json).err().unwrap().to_string();
        assert!(error.contains("panicked"), "{error}");
    }

    #[test]
    fn text_round_trips() {
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
        let long = "a red cup ".repeat(40);
        for text in ["a red cup and a dog", &long] {
            let count = tokenizer.encode(text, None).unwrap().ids.len();
            for limit in [2, count - 1, count, count + 1] {
                let encoded = tokenizer.encode(text, Some(limit)).unwrap();
                assert_eq!(encoded.is_truncated, limit < count, "{limit} of {count}");
            }
        }
    }

    #[test]
    fn wrong_files_are_named() {
        assert!(matches!(
            Tokenizer::from_file_with(Path::new("no/such.json"), &TokenOverrides::default()),
            Err(Error::File { .. })
        ));
        assert!(tokenizer().decode(&[9999]).is_err());
    }

    #[test]
    fn a_template_that_repeats_the_text_truncates_before() {
        let json = crate::tokenizer::special_tokens::tests::word_level(&["[A]", "red", "cup"]).replace(
            "\"post_processor\": null",
            r#""post_processor": {"type": "TemplateProcessing", "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[A]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "special_tokens": {"[A]": {"id": "[A]", "ids": [0], "tokens": ["[A]"]}}}"#,
        );
        let tokenizer = Tokenizer::from_json(&json).unwrap();
        let encode = |limit| tokenizer.encode("red cup", limit).unwrap().ids;
        assert_eq!(encode(None), [1, 2, 0, 1, 2]);
        assert_eq!(encode(Some(2)), [1, 0, 1]);
        assert_eq!(encode(Some(1)), [0]);
        // Repeated, a text can have more tokens than the limit without losing one.
        let is_truncated = |limit| tokenizer.encode("red cup", limit).unwrap().is_truncated;
        assert_eq!(
            [None, Some(3), Some(2)].map(is_truncated),
            [false, false, true]
        );
        let map = tokenizer.positive_map("red cup", &[vec![(0, 2)]], Some(2));
        assert_eq!(map.unwrap(), (vec![true, false, true], 3));
        assert!(tokenizer.encode("red", Some(0)).is_err());
    }
}
