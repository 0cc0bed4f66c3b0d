//! Limits on added tokens, which the crate normalizes when it loads a file.

use std::time::{Duration, Instant};

use serde_json::Value;
use tokenizers::{NormalizedString, Normalizer, NormalizerWrapper};

use super::Growth;
use crate::error::shown;

/// Maximum number of patterns with lookaround or backreferences in a normalizer, and of bytes that
/// they are matched against per added token, since their time can be exponential.
const MAX_LOOKAROUNDS: usize = 2;
const MAX_LOOKAROUND_BYTES: u64 = 64;
const MAX_ADDED_TOKENS: usize = 100_000;
/// Maximum length in bytes of an added token after normalization, and of all of them.
const MAX_NORMALIZED_BYTES: u64 = 64 << 10;
const MAX_ADDED_BYTES: usize = 2 << 20;
/// Time limit for normalizing the added tokens.
const MAX_TIME: Duration = Duration::from_secs(2);

/// Check what the crate looks for in a text to find an added token. It would find nothing
/// everywhere, without end, and each of a run of spaces with the whole run.
fn check_searched(token: &Value, searched: &str) -> Result<(), String> {
    let content = content_of(token);
    let strips = token["lstrip"] == true || token["rstrip"] == true;
    let fault = if searched.is_empty() && !content.is_empty() {
        "is normalized to nothing"
    } else if strips && !searched.is_empty() && searched.chars().all(char::is_whitespace) {
        "is of spaces and takes those beside it; expected no lstrip or rstrip"
    } else {
        return Ok(());
    };
    Err(format!("the added token {} {fault}", start_of(content)))
}

fn content_of(token: &Value) -> &str {
    token["content"].as_str().unwrap_or_default()
}

/// The start of a token, in quotes and without control characters.
fn start_of(content: &str) -> String {
    let start: String = content.chars().take(40).collect();
    format!("'{}'", shown(&start))
}

/// Check the added tokens, and normalize them as the crate will.
pub(super) fn check(tokens: &Value, normalizer: &Value, growth: &Growth) -> Result<(), String> {
    let tokens = tokens.as_array().map_or(&[][..], Vec::as_slice);
    if tokens.len() > MAX_ADDED_TOKENS {
        return Err(format!(
            "{} added tokens; expected at most {MAX_ADDED_TOKENS}",
            tokens.len()
        ));
    }
    let total = |bytes: usize| {
        if bytes > MAX_ADDED_BYTES {
            return Err(format!(
                "the added tokens have {bytes} bytes or more; expected at most {MAX_ADDED_BYTES}"
            ));
        }
        Ok(())
    };
    total(tokens.iter().map(|token| content_of(token).len()).sum())?;
    for token in tokens {
        check_searched(token, content_of(token))?;
    }
    let is_normalized = |token: &&Value| token["normalized"] == true;
    if normalizer.is_null() || !tokens.iter().any(|token| is_normalized(&token)) {
        return Ok(());
    }
    let limit = if growth.lookarounds > 0 {
        MAX_LOOKAROUND_BYTES
    } else {
        MAX_NORMALIZED_BYTES
    };
    if growth.lookarounds > MAX_LOOKAROUNDS {
        return Err(format!(
            "'normalizer' has {} patterns with lookaround; expected at most {MAX_LOOKAROUNDS}",
            growth.lookarounds
        ));
    }
    // The crate itself explains an invalid normalizer.
    let Ok(normalizer) = serde_json::from_value::<NormalizerWrapper>(normalizer.clone()) else {
        return Ok(());
    };
    let start = Instant::now();
    let mut bytes = 0;
    for token in tokens.iter().filter(is_normalized) {
        let content = content_of(token);
        let most = growth.bytes(content.len());
        if most > limit {
            let name = start_of(content);
            return Err(format!(
                "the normalizer can turn the added token {name} into {most} bytes; \
                 expected at most {limit}"
            ));
        }
        let mut text = NormalizedString::from(content);
        if normalizer.normalize(&mut text).is_err() {
            return Ok(());
        }
        bytes += text.get().len();
        total(bytes)?;
        check_searched(token, text.get())?;
        if start.elapsed() > MAX_TIME {
            let most = MAX_TIME.as_secs();
            return Err(format!(
                "normalizing the added tokens takes more than {most} s"
            ));
        }
    }
    Ok(())
}
