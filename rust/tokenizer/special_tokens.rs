//! Which tokens of a vocabulary are no words: what stands around a text, padding, unknown, mask.

use tokenizers::{Encoding, ModelWrapper, PostProcessor, Tokenizer as Inner};

use crate::Error;
use crate::rng::Rng;
use crate::tokenizer::roberta;

/// What padding is called, in the order in which it is looked for.
const PAD_NAMES: [&str; 7] = [
    "<pad>",
    "[PAD]",
    "<|pad|>",
    "<PAD>",
    "<|padding|>",
    "<|finetune_right_pad_id|>",
    "<\u{ff5c}\u{2581}pad\u{2581}\u{ff5c}>",
];
/// What the end of a text is called, which pads where nothing else is there to.
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
/// Stands for a text's only token where a post-processor is tried; no vocabulary has so many.
const PROBE: u32 = u32::MAX;

/// Tokens by name, where a caller knows better than the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenOverrides {
    /// The one that fills rows up.
    pub pad: Option<String>,
    /// The one that hides a word.
    pub mask: Option<String>,
}

/// What a post-processor puts around every text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Template {
    /// Ids in front.
    pub before: Vec<u32>,
    /// Ids behind.
    pub after: Vec<u32>,
    /// How many ids it adds in all.
    pub added: usize,
    /// Whether that is all it does to ids, so that a text can be cut after it was framed.
    pub is_plain: bool,
}

impl Template {
    /// Try a post-processor on a text of one token.
    fn of(inner: &Inner) -> Result<Self, Error> {
        let Some(processor) = inner.get_post_processor() else {
            return Ok(Self {
                is_plain: true,
                ..Self::default()
            });
        };
        let probe = Encoding::new(
            vec![PROBE],
            vec![0],
            vec!["a".to_owned()],
            vec![None],
            vec![(0, 1)],
            vec![0],
            vec![1],
            Vec::new(),
            std::iter::empty().collect(),
        );
        let templated = processor
            .process(probe, None, true)
            .map_err(|error| Error::Tokenizer(format!("tokenizer: {error}")))?;
        let ids = templated.get_ids();
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

/// The tokens of a vocabulary that are no words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// What stands around every text.
    pub template: Template,
    /// Fills rows up.
    pub pad: u32,
    /// Stands for what the vocabulary lacks.
    pub unknown: Option<u32>,
    /// Hides a word.
    pub mask: Option<u32>,
    /// All of them and those that the file calls special, ascending; never picked for masking.
    pub special: Vec<u32>,
    /// What may stand in place of a picked token, ascending; empty without a mask.
    pub replacements: Vec<u32>,
}

impl SpecialTokens {
    /// Find them: those named, else those of the file's `padding`, else those with known names.
    ///
    /// # Errors
    /// [`Error::Argument`] for a named token that the vocabulary lacks, and for one of both roles.
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
                Error::argument(argument, format!("'{name}' is no token of the vocabulary"))
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
                    "'{}' is the padding as well; expected two tokens",
                    token.unwrap_or_default()
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
            // As `tokenizers` pads where it is told nothing; the mask tells what is real.
            pad: pad.unwrap_or(0),
            unknown,
            mask,
            special,
            replacements: Vec::new(),
        };
        if let Some(mask) = mask {
            special_tokens.replacements = if roberta::difference(inner, &special_tokens).is_none() {
                // As published: any other token, special ones too.
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

    /// Whether a token is no word.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.special.binary_search(&id).is_ok()
    }

    /// Refuse to mask without a token that hides words.
    ///
    /// # Errors
    /// [`Error::Argument`] where a probability is above 0 and there is no such token.
    pub fn check_masking(&self, probability: f64) -> Result<(), Error> {
        if probability > 0.0 && self.mask.is_none() {
            return Err(Error::argument(
                "mlm_probability",
                format!(
                    "{probability}; expected 0 with a tokenizer that has no mask token; name its own, \
                     Tokenizer.from_file(..., mask_token=...), if it has one"
                ),
            ));
        }
        Ok(())
    }

    /// What the model sees of a token, and whether it is to tell which one it was.
    ///
    /// Of those that are picked 80 % become the mask, 10 % another token, and 10 % stay. Every token
    /// takes the same number of draws, whatever comes of them.
    #[inline]
    pub fn mask_one(&self, id: u32, probability: f64, rng: &mut Rng) -> (u32, bool) {
        let (pick, kind) = (rng.unit(), rng.unit());
        let other = rng.index(self.replacements.len());
        let Some(mask) = self.mask else {
            return (id, false);
        };
        if pick >= probability || self.is_special(id) {
            return (id, false);
        }
        let seen = if kind >= 0.9 {
            id
        } else if kind < 0.8 {
            mask
        } else {
            self.replacements.get(other).copied().unwrap_or(id)
        };
        (seen, true)
    }
}

/// What a model itself puts in place of what it does not know.
fn unknown(inner: &Inner) -> Option<u32> {
    match inner.get_model() {
        ModelWrapper::BPE(model) => inner.token_to_id(model.get_unk_token().as_deref()?),
        ModelWrapper::WordPiece(model) => inner.token_to_id(&model.unk_token),
        ModelWrapper::WordLevel(model) => inner.token_to_id(&model.unk_token),
        ModelWrapper::Unigram(model) => {
            // It keeps the number to itself, but writes it.
            let written = serde_json::to_value(model).ok()?;
            u32::try_from(written["unk_id"].as_u64()?).ok()
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::rng::Purpose;
    use crate::tokenizer::Tokenizer;

    /// A `tokenizer.json` of whole words with these ids.
    pub(crate) fn words(words: &[&str]) -> String {
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
        // What is written is read again.
        let again = Tokenizer::from_json(&tokenizer.to_json().unwrap()).unwrap();
        assert_eq!(again.special_tokens(), tokenizer.special_tokens());
        assert_eq!(again.to_json().unwrap(), tokenizer.to_json().unwrap());
        tokenizer.special_tokens().clone()
    }

    #[test]
    fn no_words_have_no_roles() {
        let found = special_tokens(&words(&[]), &TokenOverrides::default());
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
        let json = words(&["a", "[MASK]", "[UNK]", "<pad>", "b", "c"]);
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
        // The default of `tokenizers`, which no vocabulary has to have.
        assert_eq!(
            pad_and_mask(&padding(0, "[PAD]"), &TokenOverrides::default()),
            (3, Some(1))
        );
        assert_eq!(special_tokens(&json, &both).special, [0, 2, 5]);
        assert_eq!(special_tokens(&json, &both).replacements, [1, 3, 4]);
    }

    #[test]
    fn wrong_names_are_told() {
        let json = words(&["a", "[MASK]", "[UNK]", "<pad>"]);
        let message = |pad, mask| {
            let read = Tokenizer::from_json_with(&json, &named(pad, mask));
            read.err().unwrap().to_string()
        };
        let found = message(Some("x"), None);
        assert_eq!(found, "pad_token: 'x' is no token of the vocabulary");
        let found = message(None, Some("x"));
        assert_eq!(found, "mask_token: 'x' is no token of the vocabulary");
        let found = message(Some("[MASK]"), None);
        assert!(
            found.starts_with("mask_token: '[MASK]' is the padding as well"),
            "{found}"
        );
    }

    #[test]
    fn what_ends_texts_pads_where_nothing_else_does() {
        let plain = words(&["a", "</s>", "[SEP]"]);
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
        let found = special_tokens(&words(&["a", "b"]), &TokenOverrides::default());
        assert_eq!((found.pad, found.special), (0, vec![]));
    }

    #[test]
    fn special_tokens_are_neither_picked_nor_put_in() {
        let found = special_tokens(
            &words(&["a", "[MASK]", "[UNK]", "[PAD]", "b", "c"]),
            &TokenOverrides::default(),
        );
        let mut rng = Rng::new(0, 0, 0, Purpose::MaskedWords);
        let mut seen = [0; 6];
        for _ in 0..4000 {
            for id in 1..4 {
                assert_eq!(found.mask_one(id, 1.0, &mut rng), (id, false));
            }
            let (masked, asked) = found.mask_one(0, 1.0, &mut rng);
            seen[masked as usize] += 1;
            assert!(asked);
        }
        assert!(seen[1] > 3000 && seen[0] > 400, "{seen:?}");
        assert!(seen[4] > 80 && seen[5] > 80, "{seen:?}");
        assert_eq!(seen[2] + seen[3], 0);
    }

    #[test]
    fn nothing_is_masked_without_a_mask() {
        let found = special_tokens(&words(&["a", "b"]), &TokenOverrides::default());
        let mut rng = Rng::new(0, 0, 0, Purpose::MaskedWords);
        assert_eq!(found.mask_one(0, 1.0, &mut rng), (0, false));
        assert!(found.check_masking(0.0).is_ok());
        let message = found.check_masking(0.15).unwrap_err().to_string();
        assert!(
            message.starts_with("mlm_probability: 0.15; expected 0 with"),
            "{message}"
        );
    }
}
