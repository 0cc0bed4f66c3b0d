//! Special tokens: BOS/EOS template, padding, unknown and mask.

use tokenizers::{Encoding, ModelWrapper, PostProcessor, Tokenizer as Inner};

use crate::Error;
use crate::error::shown;
use crate::tokenizer::roberta;

/// Names of padding tokens, in order of preference.
const PAD_NAMES: [&str; 7] = [
    "<pad>",
    "[PAD]",
    "<|pad|>",
    "<PAD>",
    "<|padding|>",
    "<|finetune_right_pad_id|>",
    "<\u{ff5c}\u{2581}pad\u{2581}\u{ff5c}>",
];
/// Names of end-of-text tokens, used for padding if there is no padding token.
const END_NAMES: [&str; 9] = [
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "[EOS]",
    "[SEP]",
    "<|im_end|>",
    "<EOT>",
    "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
];
const UNKNOWN_NAMES: [&str; 4] = ["<unk>", "[UNK]", "<|unk|>", "<UNK>"];
const MASK_NAMES: [&str; 4] = ["<mask>", "[MASK]", "<|mask|>", "<MASK>"];
/// Placeholder id to probe a post-processor; no vocabulary is that large.
const PROBE: u32 = u32::MAX;

/// Special tokens named by the caller; they take precedence over the file's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenOverrides {
    pub pad: Option<String>,
    pub mask: Option<String>,
}

/// Special tokens that the post-processor adds to every text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Template {
    pub before: Vec<u32>,
    pub after: Vec<u32>,
    /// Total number of ids added.
    pub added: usize,
    /// True if the post-processor does nothing else to ids, so that a text can be truncated
    /// afterwards.
    pub is_plain: bool,
}

impl Template {
    /// Probe a post-processor with a one-token text.
    fn of(inner: &Inner) -> Result<Self, Error> {
        let Some(processor) = inner.get_post_processor() else {
            return Ok(Self {
                is_plain: true,
                ..Self::default()
            });
        };
        let probed = |id: u32| {
            let probe = Encoding::new(
                vec![id],
                vec![0],
                vec!["a".to_owned()],
                vec![None],
                vec![(0, 1)],
                vec![0],
                vec![1],
                Vec::new(),
                std::iter::empty().collect(),
            );
            let templated = processor.process(probe, None, true);
            templated
                .map(|found| found.get_ids().to_vec())
                .map_err(|error| Error::Tokenizer(format!("tokenizer: {error}")))
        };
        let ids = probed(PROBE)?;
        // The processor may add the id of a probe, too.
        let other_ids = probed(PROBE - 1)?;
        let mut added = ids
            .iter()
            .filter(|&&id| id != PROBE)
            .chain(other_ids.iter().filter(|&&id| id != PROBE - 1));
        if let Some(id) = added.find(|&&id| inner.id_to_token(id).is_none()) {
            return Err(Error::Tokenizer(format!(
                "tokenizer: 'post_processor' adds id {id}, which no token has"
            )));
        }
        let first = ids.iter().position(|&id| id == PROBE).unwrap_or(ids.len());
        let last = ids.iter().rposition(|&id| id == PROBE);
        let after = ids.get(last.map_or(first, |last| last + 1)..);
        let mut template = Self {
            before: ids.get(..first).unwrap_or_default().to_vec(),
            after: after.unwrap_or_default().to_vec(),
            added: processor.added_tokens(false),
            is_plain: last == Some(first),
        };
        template.is_plain &= template.before.len() + template.after.len() == template.added;
        Ok(template)
    }
}

/// Special tokens of a vocabulary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Special tokens added around every text.
    pub template: Template,
    pub pad: u32,
    pub unknown: Option<u32>,
    pub mask: Option<u32>,
    /// All special ids, including those marked special in the file, in ascending order; never
    /// masked.
    pub special: Vec<u32>,
    /// Ids for random replacement in MLM, ascending; empty if there is no mask token.
    pub replacements: Vec<u32>,
}

impl SpecialTokens {
    /// Find the special tokens: those given by the caller, else those in the file's `padding`, else
    /// tokens with known names.
    pub(crate) fn find(
        inner: &Inner,
        named: &TokenOverrides,
        of_file: &TokenOverrides,
    ) -> Result<Self, Error> {
        let known = |names: &[&str]| names.iter().find_map(|name| inner.token_to_id(name));
        let id = |argument, name: &Option<String>| {
            let Some(name) = name else { return Ok(None) };
            let found = inner.token_to_id(name);
            found.map(Some).ok_or_else(|| {
                Error::argument(
                    argument,
                    format!("'{}' is not in the vocabulary", shown(name)),
                )
            })
        };
        let in_file = |name: &Option<String>| inner.token_to_id(name.as_deref()?);
        let template = Template::of(inner)?;
        let unknown = unknown(inner).or_else(|| known(&UNKNOWN_NAMES));
        let mask = id("mask_token", &named.mask)?
            .or_else(|| in_file(&of_file.mask))
            .or_else(|| known(&MASK_NAMES));
        let pad = id("pad_token", &named.pad)?
            .or_else(|| in_file(&of_file.pad))
            .or_else(|| known(&PAD_NAMES))
            .or_else(|| template.after.last().copied())
            .or_else(|| known(&END_NAMES));
        if pad.is_some() && pad == mask {
            let token = mask.and_then(|id| inner.id_to_token(id));
            return Err(Error::argument(
                "mask_token",
                format!(
                    "'{}' is also the padding token; expected two different tokens",
                    shown(&token.unwrap_or_default())
                ),
            ));
        }
        let mut special: Vec<u32> = inner
            .get_added_tokens_decoder()
            .into_iter()
            .filter_map(|(id, token)| token.special.then_some(id))
            .chain([pad, mask, unknown].into_iter().flatten())
            .chain(template.before.iter().chain(&template.after).copied())
            .collect();
        special.sort_unstable();
        special.dedup();
        let mut special_tokens = Self {
            template,
            // The default of `tokenizers`; the text mask marks padding.
            pad: pad.unwrap_or(0),
            unknown,
            mask,
            special,
            replacements: Vec::new(),
        };
        if let Some(mask) = mask {
            special_tokens.replacements = if roberta::difference(inner, &special_tokens).is_none() {
                // As in the published code: any other token, including special tokens.
                (0..mask).collect()
            } else {
                let mut ids: Vec<u32> = inner.get_vocab(true).into_values().collect();
                ids.sort_unstable();
                ids.dedup();
                ids.retain(|&id| !special_tokens.is_special(id));
                ids
            };
        }
        Ok(special_tokens)
    }

    pub fn is_special(&self, id: u32) -> bool {
        self.special.binary_search(&id).is_ok()
    }
}

/// The unknown token of the model itself.
fn unknown(inner: &Inner) -> Option<u32> {
    match inner.get_model() {
        ModelWrapper::BPE(model) => inner.token_to_id(model.get_unk_token().as_deref()?),
        ModelWrapper::WordPiece(model) => inner.token_to_id(&model.unk_token),
        ModelWrapper::WordLevel(model) => inner.token_to_id(&model.unk_token),
        ModelWrapper::Unigram(model) => {
            // The id is private but serialized.
            let written = serde_json::to_value(model).ok()?;
            u32::try_from(written["unk_id"].as_u64()?).ok()
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::tokenizer::Tokenizer;

    /// A word-level `tokenizer.json` with these words as ids 0, 1, ...
    pub(crate) fn word_level(words: &[&str]) -> String {
        let vocabulary: Vec<String> = words
            .iter()
            .enumerate()
            .map(|(id, word)| format!("\"{word}\": {id}"))
            .collect();
        format!(
            r#"{{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
                "normalizer": null, "pre_tokenizer": {{"type": "WhitespaceSplit"}},
                "post_processor": null, "decoder": null,
                "model": {{"type": "WordLevel", "vocab": {{{}}}, "unk_token": "[UNK]"}}}}"#,
            vocabulary.join(", ")
        )
    }

    fn named(pad: Option<&str>, mask: Option<&str>) -> TokenOverrides {
        TokenOverrides {
            pad: pad.map(str::to_owned),
            mask: mask.map(str::to_owned),
        }
    }

    fn special_tokens(json: &str, named: &TokenOverrides) -> SpecialTokens {
        let tokenizer = Tokenizer::from_json_with(json, named).unwrap();
        // Round trip.
        let again = Tokenizer::from_json(&tokenizer.to_json().unwrap()).unwrap();
        assert_eq!(again.special_tokens(), tokenizer.special_tokens());
        assert_eq!(again.to_json().unwrap(), tokenizer.to_json().unwrap());
        tokenizer.special_tokens().clone()
    }

    #[test]
    fn an_empty_vocabulary_has_no_special_tokens() {
        let found = special_tokens(&word_level(&[]), &TokenOverrides::default());
        let nothing = Template {
            is_plain: true,
            ..Template::default()
        };
        assert_eq!(
            (found.template, found.pad, found.special),
            (nothing, 0, vec![])
        );
        assert_eq!((found.unknown, found.mask), (None, None));
    }

    #[test]
    fn names_come_before_the_file_and_the_file_before_known_names() {
        let json = word_level(&["a", "[MASK]", "[UNK]", "<pad>", "b", "c"]);
        let padding = |id: u32, token: &str| {
            json.replace(
                "\"padding\": null",
                &format!(
                    r#""padding": {{"strategy": "BatchLongest", "direction": "Right",
                    "pad_to_multiple_of": null, "pad_id": {id}, "pad_type_id": 0, "pad_token": "{token}"}}"#
                ),
            )
        };
        let pad_and_mask = |json: &str, named: &TokenOverrides| {
            let found = special_tokens(json, named);
            (found.pad, found.mask)
        };
        assert_eq!(
            pad_and_mask(&json, &TokenOverrides::default()),
            (3, Some(1))
        );
        let with_padding = padding(4, "b");
        assert_eq!(
            pad_and_mask(&with_padding, &TokenOverrides::default()),
            (4, Some(1))
        );
        let both = named(Some("c"), Some("a"));
        assert_eq!(pad_and_mask(&with_padding, &both), (5, Some(0)));
        // The default of `tokenizers`, which may be missing from the vocabulary.
        assert_eq!(
            pad_and_mask(&padding(0, "[PAD]"), &TokenOverrides::default()),
            (3, Some(1))
        );
        assert_eq!(special_tokens(&json, &both).special, [0, 2, 5]);
        assert_eq!(special_tokens(&json, &both).replacements, [1, 3, 4]);
    }

    #[test]
    fn ids_that_a_post_processor_adds_are_those_of_tokens() {
        let json = word_level(&["a", "[MASK]", "[UNK]", "<pad>"]);
        for id in [4, u32::MAX - 1, u32::MAX] {
            let processor = format!(
                r#""post_processor": {{"type": "BertProcessing", "sep": ["a", {id}], "cls": ["a", 0]}}"#
            );
            let json = json.replace("\"post_processor\": null", &processor);
            let error = Tokenizer::from_json(&json).err().unwrap().to_string();
            let expected = format!("'post_processor' adds id {id}, which no token has");
            assert!(error.contains(&expected), "{error}");
        }
    }

    #[test]
    fn wrong_names_are_reported() {
        let json = word_level(&["a", "[MASK]", "[UNK]", "<pad>"]);
        let message = |pad, mask| {
            let read = Tokenizer::from_json_with(&json, &named(pad, mask));
            read.err().unwrap().to_string()
        };
        let found = message(Some("x"), None);
        assert_eq!(found, "pad_token: 'x' is not in the vocabulary");
        let found = message(None, Some("x"));
        assert_eq!(found, "mask_token: 'x' is not in the vocabulary");
        let found = message(Some("[MASK]"), None);
        assert!(
            found.starts_with("mask_token: '[MASK]' is also the padding token"),
            "{found}"
        );
    }

    #[test]
    fn end_tokens_pad_if_there_is_no_padding_token() {
        let plain = word_level(&["a", "</s>", "[SEP]"]);
        assert_eq!(special_tokens(&plain, &TokenOverrides::default()).pad, 1);
        let templated = plain.replace(
            "\"post_processor\": null",
            r#""post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["a", 0]}"#,
        );
        let found = special_tokens(&templated, &TokenOverrides::default());
        assert_eq!(
            (found.pad, found.template.before, found.template.after),
            (2, vec![0], vec![2])
        );
        let found = special_tokens(&word_level(&["a", "b"]), &TokenOverrides::default());
        assert_eq!((found.pad, found.special), (0, vec![]));
    }
}
