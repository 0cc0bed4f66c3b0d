//! Limits on a `tokenizer.json`, checked before the `tokenizers` crate reads it.
//!
//! The crate normalizes the added tokens when it loads a file, so a few kilobytes could take any
//! amount of time and memory, and a failed allocation in the crate aborts the process.

mod added_tokens;

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::Value;

use crate::error::shown;

/// Maximum size of a tokenizer file in bytes; the largest published ones have about 35 MB.
pub(crate) const MAX_FILE_BYTES: u64 = 64 << 20;
/// Maximum number of tokens that a post-processor adds to a text.
pub(crate) const MAX_TEMPLATE_TOKENS: usize = 1024;

/// Maximum number of JSON values in a part other than the model and the added tokens.
const MAX_VALUES: usize = 10_000;
const MAX_DEPTH: usize = 16;
/// Maximum length in bytes of a string in such a part.
const MAX_STRING_BYTES: usize = 1024;
/// Maximum length in bytes of a token. The crate's tries recurse once per byte.
const MAX_TOKEN_BYTES: usize = 4096;
/// Maximum number of ids without a token: the crate lists them when it writes a vocabulary.
const MAX_UNUSED_IDS: usize = 1 << 20;
/// Maximum length in characters of a word that a `WordPiece` splits, in cubic time.
const MAX_WORD_CHARS: u64 = 256;
/// Maximum length in bytes of a token of a Unigram, which is looked for at every byte of a text.
const MAX_UNIGRAM_TOKEN: usize = 512;
/// Maximum mean length in bytes of the tokens of a Unigram, if they have more than so many bytes.
const MAX_UNIGRAM_MEAN: usize = 24;
const MAX_UNIGRAM_BYTES: usize = 64 << 10;
/// Maximum number of steps of a normalizer, pre-tokenizer or decoder.
const MAX_STEPS: usize = 64;
/// Maximum number of regular expressions in a file.
const MAX_PATTERNS: usize = 16;
/// Maximum product of the repetition counts in a regular expression, as in `\p{N}{1,3}`.
const MAX_REPETITIONS: u64 = 256;
/// Maximum number of bytes that one byte of text can become.
const MAX_GROWTH: u64 = 4096;

/// Name of the field with the replacements of a `SentencePiece` normalizer, in base64.
const CHARSMAP: &str = "precompiled_charsmap";
const MAX_CHARSMAP_BYTES: usize = 8 << 20;

/// Regular expressions of published tokenizers, which take linear time: GPT-2's, GPT-4's and Llama
/// 3's, Qwen's, CLIP's two, and those of normalizers.
const LINEAR_PATTERNS: [&str; 8] = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    concat!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    concat!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    r"\s+",
    r" {2,}",
    r"\p{N}{1,3}",
];
/// Maximum length in bytes of a text in which other ones are searched for, after normalization:
/// some take time that grows with its square.
const MAX_SEARCHED_BYTES: u64 = 32 << 10;

/// The length of texts of a tokenizer with a regular expression that may not take linear time.
#[derive(Clone, Debug)]
pub(crate) struct TextLimit {
    /// Maximum length in bytes.
    pub bytes: u64,
    /// The regular expression.
    pub pattern: String,
}

/// The regular expressions in some parts.
#[derive(Default)]
struct Patterns {
    count: usize,
    /// The first that is not in [`LINEAR_PATTERNS`].
    other: Option<String>,
}

/// Check a `tokenizer.json`; an error gives the part, the value and the limit. Return the limit on
/// texts, if any.
pub(crate) fn check(json: &str) -> Result<Option<TextLimit>, String> {
    let Parts(parts) = serde_json::from_str(json).map_err(|error| error.to_string())?;
    let part = |wanted: &str| {
        let found = parts.iter().find(|(name, _)| name == wanted);
        found.map_or(&Value::Null, |(_, value)| value)
    };
    for (name, value) in &parts {
        match name.as_str() {
            "model" | "added_tokens" => check_size(name, value, usize::MAX, MAX_TOKEN_BYTES)?,
            _ => check_size(name, value, MAX_VALUES, MAX_STRING_BYTES)?,
        }
    }
    check_model(part("model"))?;
    let (mut patterns, mut of_decoder) = (Patterns::default(), Patterns::default());
    steps("decoder", part("decoder"), &mut of_decoder)?;
    let splitter = steps("pre_tokenizer", part("pre_tokenizer"), &mut patterns)?;
    let normalizer = steps("normalizer", part("normalizer"), &mut patterns)?;
    let count = patterns.count + of_decoder.count;
    if count > MAX_PATTERNS {
        return Err(format!(
            "{count} regular expressions; expected at most {MAX_PATTERNS}"
        ));
    }
    added_tokens::check(part("added_tokens"), part("normalizer"), &normalizer)?;
    let growth = normalizer.factor.saturating_mul(splitter.factor).max(1);
    Ok(patterns.other.map(|pattern| TextLimit {
        bytes: MAX_SEARCHED_BYTES / growth,
        pattern,
    }))
}

/// The fields of a file, each of which may occur only once.
struct Parts(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Parts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Parts;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parts, A::Error> {
                let mut parts: Vec<(String, Value)> = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if parts.len() == MAX_STEPS || parts.iter().any(|(other, _)| *other == name) {
                        let name = shown(&name);
                        return Err(A::Error::custom(format!("duplicate or extra '{name}'")));
                    }
                    parts.push((name, map.next_value()?));
                }
                Ok(Parts(parts))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// Check the number of values in a part, their depth and the length of strings.
fn check_size(name: &str, part: &Value, most: usize, longest: usize) -> Result<(), String> {
    fn visit(
        value: &Value,
        depth: usize,
        left: &mut usize,
        text: &impl Fn(&str, &str) -> Result<(), String>,
        key: &str,
    ) -> Result<(), String> {
        if depth > MAX_DEPTH {
            return Err(format!("nested deeper than {MAX_DEPTH} levels"));
        }
        *left = left
            .checked_sub(1)
            .ok_or_else(|| format!("more than {MAX_VALUES} values"))?;
        match value {
            Value::String(string) => text(key, string)?,
            Value::Array(items) => {
                for item in items {
                    visit(item, depth + 1, left, text, "")?;
                }
            }
            Value::Object(fields) => {
                for (key, value) in fields {
                    text("", key)?;
                    visit(value, depth + 1, left, text, key)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
    let check_text = |key: &str, text: &str| {
        let limit = if key == CHARSMAP {
            MAX_CHARSMAP_BYTES
        } else {
            longest
        };
        if text.len() > limit {
            return Err(format!(
                "a string of {} bytes; expected at most {limit}",
                text.len()
            ));
        }
        Ok(())
    };
    let mut left = most;
    visit(part, 0, &mut left, &check_text, "")
        .map_err(|reason| format!("'{}' has {reason}", shown(name)))
}

/// Check what the time and memory of a model grow with.
fn check_model(model: &Value) -> Result<(), String> {
    if let Some(vocabulary) = model["vocab"].as_object() {
        let ids = vocabulary.values().filter_map(Value::as_u64);
        check_ids(vocabulary.len(), ids.max())?;
    }
    if let Some(most) = model["max_input_chars_per_word"].as_u64()
        && most > MAX_WORD_CHARS
    {
        return Err(format!(
            "'model' has max_input_chars_per_word {most}; expected at most {MAX_WORD_CHARS}"
        ));
    }
    check_unigram(model)
}

/// Check the largest id of a vocabulary.
pub(crate) fn check_ids(tokens: usize, largest: Option<u64>) -> Result<(), String> {
    let most = to_u64(tokens.saturating_add(MAX_UNUSED_IDS));
    largest.filter(|&id| id > most).map_or(Ok(()), |id| {
        Err(format!(
            "'model' has id {id} in a vocabulary of {tokens} tokens; expected at most {most}"
        ))
    })
}

/// Check the lengths of the tokens of a Unigram, whose trie takes 270 bytes per byte of a token.
fn check_unigram(model: &Value) -> Result<(), String> {
    let tokens = model["vocab"].as_array().map_or(&[][..], Vec::as_slice);
    let lengths = tokens
        .iter()
        .map(|token| token[0].as_str().map_or(0, str::len));
    let longest = lengths.clone().max().unwrap_or(0);
    if longest > MAX_UNIGRAM_TOKEN {
        return Err(format!(
            "'model' has a token of {longest} bytes; expected at most {MAX_UNIGRAM_TOKEN}"
        ));
    }
    let bytes: usize = lengths.sum();
    if bytes > MAX_UNIGRAM_BYTES && bytes / tokens.len().max(1) >= MAX_UNIGRAM_MEAN {
        return Err(format!(
            "'model' has {} tokens of {bytes} bytes in all; expected at most {MAX_UNIGRAM_MEAN} \
             bytes per token",
            tokens.len()
        ));
    }
    Ok(())
}

/// What a chain of steps can do to a text: n bytes become at most `factor * n + constant`.
#[derive(Clone, Copy, Debug)]
struct Growth {
    factor: u64,
    constant: u64,
    steps: usize,
    lookarounds: usize,
}

impl Growth {
    fn bytes(&self, length: usize) -> u64 {
        self.factor
            .saturating_mul(to_u64(length))
            .saturating_add(self.constant)
    }

    fn times(&mut self, factor: u64) {
        self.factor = self.factor.saturating_mul(factor);
        self.constant = self.constant.saturating_mul(factor);
    }

    fn plus(&mut self, constant: usize) {
        self.constant = self.constant.saturating_add(to_u64(constant));
    }
}

fn to_u64(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// Bound the growth of a normalizer, pre-tokenizer or decoder, and count its regular expressions.
fn steps(name: &str, part: &Value, patterns: &mut Patterns) -> Result<Growth, String> {
    let mut growth = Growth {
        factor: 1,
        constant: 0,
        steps: 0,
        lookarounds: 0,
    };
    if !part.is_null() {
        add_step(part, &mut growth, patterns).map_err(|reason| format!("'{name}' has {reason}"))?;
    }
    if growth.factor > MAX_GROWTH || growth.constant > MAX_GROWTH {
        return Err(format!(
            "'{name}' can turn one byte into {} bytes; expected at most {MAX_GROWTH}",
            growth.bytes(1)
        ));
    }
    Ok(growth)
}

/// Add a step to the growth. The crate also accepts steps without a type, so every field counts.
fn add_step(step: &Value, growth: &mut Growth, patterns: &mut Patterns) -> Result<(), String> {
    if !step.is_object() {
        return Err("a step that is not an object".to_owned());
    }
    growth.steps += 1;
    if growth.steps > MAX_STEPS {
        return Err(format!("more than {MAX_STEPS} steps"));
    }
    growth.times(match step["type"].as_str() {
        // Of Unicode's normalization forms, the largest expansion in UTF-8 (Unicode annex 15).
        Some("NFKC" | "NFKD") => 11,
        Some("NFC" | "NFD") => 3,
        Some("Lowercase" | "ByteLevel") => 2,
        Some("Metaspace") => 4,
        Some(
            "Sequence" | "Replace" | "Prepend" | "Precompiled" | "Strip" | "StripAccents" | "Nmt"
            | "BertPreTokenizer" | "CharDelimiterSplit" | "Digits" | "FixedLength" | "Punctuation"
            | "Split" | "UnicodeScripts" | "Whitespace" | "WhitespaceSplit" | "BPEDecoder"
            | "ByteFallback" | "CTC" | "Fuse" | "WordPiece",
        ) => 1,
        // "BertNormalizer": spaces around a character, NFD and lower case.
        _ => 12,
    });
    if step["type"] == "FixedLength" && step["length"] == 0 {
        return Err("a FixedLength of 0; expected 1 or more".to_owned());
    }
    let pattern = &step["pattern"];
    let expression = pattern["Regex"].as_str();
    if let Some(expression) = expression {
        patterns.count += 1;
        if patterns.other.is_none() && !LINEAR_PATTERNS.contains(&expression) {
            patterns.other = Some(expression.to_owned());
        }
        check_pattern(expression)?;
        growth.lookarounds += usize::from(regex_syntax::parse(expression).is_err());
    }
    if let Some(content) = step["content"].as_str()
        && !pattern.is_null()
    {
        let matched = pattern["String"].as_str().map_or(0, str::len);
        if matched > 0 {
            growth.times(to_u64(content.len().div_ceil(matched).max(1)));
        } else {
            // It may match between any two bytes.
            growth.times(to_u64(content.len()).saturating_add(1));
            growth.plus(content.len());
        }
    }
    if let Some(prefix) = step["prepend"].as_str() {
        growth.plus(prefix.len());
    }
    if let Some(map) = step[CHARSMAP].as_str() {
        growth.times(longest_replacement(map)?);
    }
    for list in ["normalizers", "pretokenizers", "decoders"] {
        for inner in step[list].as_array().into_iter().flatten() {
            add_step(inner, growth, patterns)?;
        }
    }
    Ok(())
}

/// Bound the repetition counts of a regular expression, which is compiled once per repetition.
fn check_pattern(expression: &str) -> Result<(), String> {
    let mut product: u64 = 1;
    for piece in expression.split('{').skip(1) {
        let counts = piece.split('}').next().unwrap_or_default();
        let largest = counts
            .split(',')
            .map(|count| match count.trim() {
                "" => 1,
                digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                    digits.parse().unwrap_or(u64::MAX)
                }
                // A class such as \p{L}.
                _ => 1,
            })
            .max();
        product = product.saturating_mul(largest.unwrap_or(1).max(1));
    }
    if product > MAX_REPETITIONS {
        return Err(format!(
            "a regular expression with {product} repetitions; expected at most {MAX_REPETITIONS}"
        ));
    }
    Ok(())
}

/// The longest text that a `SentencePiece` normalizer inserts for a character.
fn longest_replacement(map: &str) -> Result<u64, String> {
    let invalid = || format!("an invalid {CHARSMAP}");
    let bytes = base64::decode(map).map_err(|_| invalid())?;
    let (size, rest) = bytes.split_first_chunk::<4>().ok_or_else(invalid)?;
    let size = usize::try_from(u32::from_le_bytes(*size)).map_err(|_| invalid())?;
    // The crate reads the first unit of the trie of any text.
    if size < 4 {
        return Err(invalid());
    }
    let texts = rest.get(size / 4 * 4..).ok_or_else(invalid)?;
    let longest = texts.split(|&byte| byte == 0).map(<[u8]>::len).max();
    Ok(to_u64(longest.unwrap_or(0).max(1)))
}
