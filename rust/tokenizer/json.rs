//! Parse a `tokenizer.json` that is a plain byte-level BPE, for the fast path.

use std::collections::HashMap;

use serde_json::Value;

use crate::Error;
use crate::tokenizer::added_tokens::{AddedToken, AddedTokens};
use crate::tokenizer::bpe::Bpe;
use crate::tokenizer::byte_level::{ByteLevel, ByteLevelConfig};

/// Model types in `tokenizers`.
const MODELS: [&str; 4] = ["BPE", "WordPiece", "WordLevel", "Unigram"];
const PAD_TOKEN: &str = "\"pad_token\"";
const MASK_TOKEN: &str = "\"mask_token\"";

/// Read the JSON written by `tokenizers` for a model with `known` tokens. `None` if the fast path
/// does not support a part of it.
pub(crate) fn read(json: &str, known: usize) -> Result<Option<ByteLevel>, Error> {
    let content: Value = serde_json::from_str(json)
        .map_err(|error| Error::Tokenizer(format!("tokenizer: {error}")))?;
    let parts = || {
        Some((
            bpe(&content["model"], known)?,
            added_tokens(&content["added_tokens"])?,
            rules(&content)?,
        ))
    };
    parts()
        .map(|(bpe, added, rules)| ByteLevel::new(bpe, added, rules))
        .transpose()
}

/// The mask token written by [`with_mask_token`], if any.
pub(crate) fn mask_token(json: &str) -> Option<String> {
    // Avoid parsing most files a second time.
    if !json.contains(MASK_TOKEN) {
        return None;
    }
    let content: Value = serde_json::from_str(json).ok()?;
    Some(content["padding"]["mask_token"].as_str()?.to_owned())
}

/// Write a mask token into the `padding` of a `tokenizer.json`, where `tokenizers` ignores it.
pub(crate) fn with_mask_token(mut json: String, mask: Option<String>) -> String {
    // Only the version and an empty truncation precede the padding, so the name does not occur
    // there.
    if let (Some(mask), Some(at)) = (mask, json.find(PAD_TOKEN)) {
        json.insert_str(at, &format!("{MASK_TOKEN}: {}, ", Value::String(mask)));
    }
    json
}

/// Explain why the crate rejects a `tokenizer.json`, or return the crate's own message.
pub(crate) fn explain(json: &str, error: &str) -> String {
    let model = match serde_json::from_str(json) {
        Ok(Value::Object(content)) => content.get("model").cloned(),
        Ok(_) => return "tokenizer: not a JSON object; expected a tokenizer.json".to_owned(),
        Err(_) => return format!("tokenizer: {error}"),
    };
    let Some(model) = model else {
        return "tokenizer: no 'model'; expected a tokenizer.json".to_owned();
    };
    let kind = &model["type"];
    // Old files do not contain the type.
    let is_old = kind.is_null() && model["vocab"].is_object();
    let is_known = kind.as_str().is_some_and(|kind| MODELS.contains(&kind));
    if !is_known && !is_old {
        let kind = if kind.is_null() {
            "'model' has no 'type'".to_owned()
        } else {
            format!("unsupported 'model' type {kind}")
        };
        return format!("tokenizer: {kind}; expected one of {}", MODELS.join(", "));
    }
    if model["vocab"].is_null() {
        return format!("tokenizer: 'model' of type {kind} has no 'vocab'");
    }
    format!("tokenizer: {error}")
}

fn id(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}

fn is_type(value: &Value, name: &str) -> bool {
    value["type"].as_str() == Some(name)
}

/// Letters of a byte-level vocabulary: printable bytes map to themselves, all others to U+0100 and
/// up (Radford et al. 2019).
pub(crate) fn byte_letters() -> HashMap<char, u8> {
    let is_printable = |byte: &u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let printed = (0..=255_u8)
        .filter(is_printable)
        .map(|byte| (char::from(byte), byte));
    let others = (0..=255_u8).filter(|byte| !is_printable(byte));
    printed.chain(('\u{100}'..).zip(others)).collect()
}

/// The BPE, if none of its options changes the result of the merges.
fn bpe(model: &Value, known: usize) -> Option<Bpe> {
    let is_off = |name: &str| match &model[name] {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_f64() == Some(0.0),
        _ => false,
    };
    let options = [
        "dropout",
        "continuing_subword_prefix",
        "end_of_word_suffix",
        "byte_fallback",
    ];
    // `unk_token` and `fuse_unk` concern letters without a token; here every byte has one.
    if !is_type(model, "BPE") || !options.into_iter().all(is_off) {
        return None;
    }
    let vocabulary = model["vocab"].as_object()?;
    // Of two tokens with the same id, only one is written.
    if vocabulary.len() != known {
        return None;
    }
    let mut ids = HashMap::with_capacity(vocabulary.len());
    for (token, value) in vocabulary {
        ids.insert(token.as_str(), id(value)?);
    }
    let letters = byte_letters();
    let mut bytes = [0; 256];
    let mut buffer = [0; 4];
    for (letter, &byte) in &letters {
        bytes[usize::from(byte)] = *ids.get(&*letter.encode_utf8(&mut buffer))?;
    }
    let mut merges = Vec::new();
    for pair in model["merges"].as_array()? {
        let (left, right) = (pair[0].as_str()?, pair[1].as_str()?);
        let whole = ids.get(format!("{left}{right}").as_str())?;
        merges.push((*ids.get(left)?, *ids.get(right)?, *whole));
    }
    let mut whole_words = HashMap::new();
    if model["ignore_merges"].as_bool()? {
        for (token, &id) in &ids {
            let word: Option<Vec<u8>> = token.chars().map(|c| letters.get(&c).copied()).collect();
            if let Some(word) = word {
                whole_words.insert(word.into_boxed_slice(), id);
            }
        }
    }
    Some(Bpe::new(&bytes, merges.into_iter(), whole_words))
}

fn added_tokens(tokens: &Value) -> Option<AddedTokens> {
    let token = |value: &Value| {
        let flag = |name: &str| value[name].as_bool();
        Some(AddedToken {
            content: value["content"].as_str()?.to_owned(),
            id: id(&value["id"])?,
            single_word: flag("single_word")?,
            lstrip: flag("lstrip")?,
            rstrip: flag("rstrip")?,
            normalized: flag("normalized")?,
        })
    };
    let tokens: Option<Vec<_>> = tokens.as_array()?.iter().map(token).collect();
    AddedTokens::new(tokens?)
}

fn rules(content: &Value) -> Option<ByteLevelConfig> {
    let splitter = &content["pre_tokenizer"];
    if !content["normalizer"].is_null() || !is_type(splitter, "ByteLevel") {
        return None;
    }
    let mut rules = ByteLevelConfig {
        use_pattern: splitter["use_regex"].as_bool()?,
        prefix_space: splitter["add_prefix_space"].as_bool()?,
        ..ByteLevelConfig::default()
    };
    match &content["post_processor"] {
        Value::Null => {}
        processor if is_type(processor, "Sequence") => {
            let mut done = false;
            for part in processor["processors"].as_array()? {
                // Once ids have been added around the text, a further step would count them.
                if done || (rules.trim.is_some() && !is_type(part, "TemplateProcessing")) {
                    return None;
                }
                process(part, &mut rules)?;
                done = !is_type(part, "ByteLevel");
            }
        }
        processor => process(processor, &mut rules)?,
    }
    Some(rules)
}

/// Add the settings of a post-processing step.
fn process(step: &Value, rules: &mut ByteLevelConfig) -> Option<()> {
    let trim = |step: &Value| {
        let keeps_first = step["add_prefix_space"].as_bool()?;
        Some(step["trim_offsets"].as_bool()?.then_some(keeps_first))
    };
    match step["type"].as_str()? {
        "ByteLevel" => rules.trim = trim(step)?,
        "RobertaProcessing" => {
            rules.trim = trim(step)?;
            rules.before.push(id(&step["cls"][1])?);
            rules.after.push(id(&step["sep"][1])?);
        }
        "TemplateProcessing" => {
            let mut is_behind = false;
            for piece in step["single"].as_array()? {
                if piece.get("Sequence").is_some() {
                    if is_behind {
                        return None;
                    }
                    is_behind = true;
                    continue;
                }
                let name = piece["SpecialToken"]["id"].as_str()?;
                let ids = step["special_tokens"][name]["ids"].as_array()?;
                let ids: Option<Vec<u32>> = ids.iter().map(id).collect();
                let side = if is_behind {
                    &mut rules.after
                } else {
                    &mut rules.before
                };
                side.extend(ids?);
            }
            if !is_behind {
                return None;
            }
        }
        _ => return None,
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use crate::tokenizer::Tokenizer;

    #[test]
    fn invalid_tokenizer_files_are_explained() {
        let message = |json: &str| {
            let read = Tokenizer::from_json(json);
            read.err().unwrap().to_string()
        };
        for (json, expected) in [
            ("", "tokenizer: EOF"),
            ("[]", "tokenizer: not a JSON object"),
            ("{}", "tokenizer: no 'model'"),
            (
                r#"{"model": {}}"#,
                "tokenizer: 'model' has no 'type'; expected one of BPE, ",
            ),
            (
                r#"{"model": {"type": "XY"}}"#,
                "tokenizer: unsupported 'model' type \"XY\"; ",
            ),
            (
                r#"{"model": {"type": "BPE"}}"#,
                "tokenizer: 'model' of type \"BPE\" has no 'vocab'",
            ),
        ] {
            let found = message(json);
            assert!(found.starts_with(expected), "{json}: {found}");
        }
    }
}
