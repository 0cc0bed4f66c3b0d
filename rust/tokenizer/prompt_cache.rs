//! Cache of encoded long texts, such as the class prompts of a detector.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::Error;
use crate::tokenizer::Encoded;
use crate::tokenizer::spans::CharSpan;
use crate::try_alloc;

/// Minimum text length in bytes; encoding a shorter text is as fast as looking it up.
const SHORTEST_BYTES: usize = 256;
/// Maximum text length in bytes.
const LONGEST_BYTES: usize = 1 << 16;
/// Maximum total bytes of cached text; the least recently used texts are evicted first.
const MAX_BYTES: usize = 1 << 20;

/// An encoded text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncodedPrompt {
    encoded: Encoded,
    /// Number of special tokens at the end.
    after: usize,
    /// Start of each token in code points.
    starts: Vec<u32>,
    ends: Vec<u32>,
}

impl EncodedPrompt {
    /// Wrap an encoded text whose last `after` tokens are special tokens.
    pub fn new(encoded: Encoded, after: usize) -> Self {
        let number = |position: usize| u32::try_from(position).unwrap_or(u32::MAX);
        let offsets = &encoded.offsets;
        Self {
            starts: offsets.iter().map(|&(start, _)| number(start)).collect(),
            ends: offsets.iter().map(|&(_, end)| number(end)).collect(),
            encoded,
            after,
        }
    }

    /// The tokens, truncated to `max_tokens` while keeping the special tokens at the end.
    pub fn encoded(&self, max_tokens: Option<usize>) -> Encoded {
        let mut encoded = self.encoded.clone();
        encoded.cut(max_tokens, self.after);
        encoded
    }

    /// Map the spans of boxes to tokens: (boxes, tokens) flags by row, and the row length.
    ///
    /// Like [`crate::tokenizer::spans::positive_row`], for a text truncated to `max_tokens`.
    #[allow(clippy::needless_bitwise_bool)] // Without short-circuiting, the loop is vectorized.
    pub fn positive_map(
        &self,
        boxes: &[Vec<CharSpan>],
        max_tokens: Option<usize>,
    ) -> Result<(Vec<bool>, usize), Error> {
        let count = self.starts.len();
        let length = max_tokens.map_or(count, |limit| limit.min(count));
        // Special tokens have empty spans.
        let words = if length < count {
            length.saturating_sub(self.after)
        } else {
            length
        };
        let starts = self.starts.get(..words).unwrap_or_default();
        let ends = self.ends.get(..words).unwrap_or_default();
        let number = |position: usize| u32::try_from(position).unwrap_or(u32::MAX);
        let mut rows = Vec::new();
        try_alloc::reserve_rows(&mut rows, boxes.len(), length)?;
        if length == 0 {
            return Ok((rows, 0));
        }
        rows.resize(boxes.len() * length, false);
        for (row, spans) in rows.chunks_exact_mut(length).zip(boxes) {
            for &(start, end) in spans {
                let (start, end) = (number(start), number(end));
                for ((positive, &token_start), &token_end) in row.iter_mut().zip(starts).zip(ends) {
                    *positive |=
                        (token_start < token_end) & (token_start < end) & (start < token_end);
                }
            }
        }
        Ok((rows, length))
    }
}

/// LRU cache of encoded texts, limited to [`MAX_BYTES`].
#[derive(Debug, Default)]
pub(crate) struct PromptCache {
    kept: Mutex<CacheState>,
}

#[derive(Debug, Default)]
struct CacheState {
    /// Encoded texts, each with the time of its last use.
    by_text: HashMap<Arc<str>, (Arc<EncodedPrompt>, u64)>,
    bytes: usize,
    clock: u64,
}

impl PromptCache {
    /// True if texts of this length are cached.
    pub(crate) fn keeps(text: &str) -> bool {
        (SHORTEST_BYTES..=LONGEST_BYTES).contains(&text.len())
    }

    /// Look up a text, or encode and insert it.
    pub(crate) fn get_or_make(
        &self,
        text: &str,
        encode: impl FnOnce() -> Result<EncodedPrompt, Error>,
    ) -> Result<Arc<EncodedPrompt>, Error> {
        if !Self::keeps(text) {
            return Ok(Arc::new(encode()?));
        }
        if let Some(found) = self.lock().find(text) {
            return Ok(found);
        }
        // Other threads may encode in the meantime; of identical texts, the last one is kept.
        let made = Arc::new(encode()?);
        self.lock().keep(text, &made);
        Ok(made)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, CacheState> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CacheState {
    fn find(&mut self, text: &str) -> Option<Arc<EncodedPrompt>> {
        let (found, used) = self.by_text.get_mut(text)?;
        self.clock += 1;
        *used = self.clock;
        Some(Arc::clone(found))
    }

    fn keep(&mut self, text: &str, prompt: &Arc<EncodedPrompt>) {
        self.clock += 1;
        let entry = (Arc::clone(prompt), self.clock);
        if self.by_text.insert(text.into(), entry).is_none() {
            self.bytes += text.len();
        }
        while self.bytes > MAX_BYTES {
            let oldest = self.by_text.iter().min_by_key(|(_, (_, used))| *used);
            let Some(text) = oldest.map(|(text, _)| Arc::clone(text)) else {
                return;
            };
            self.by_text.remove(&text);
            self.bytes -= text.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::spans;

    fn encoded(ids: &[u32]) -> Encoded {
        Encoded {
            ids: ids.to_vec(),
            offsets: (0..ids.len()).map(|n| (3 * n, 3 * n + 2)).collect(),
            is_truncated: false,
        }
    }

    fn prompt(ids: &[u32]) -> EncodedPrompt {
        EncodedPrompt::new(encoded(ids), 1)
    }

    #[test]
    fn an_empty_text_has_no_positive_tokens() {
        let prompt = EncodedPrompt::new(Encoded::default(), 1);
        assert_eq!(
            prompt.positive_map(&[vec![(0, 1)]], None).unwrap(),
            (vec![], 0)
        );
        assert_eq!(prompt.encoded(Some(2)), Encoded::default());
    }

    #[test]
    fn positive_maps_equal_those_of_the_spans() {
        let prompt = EncodedPrompt::new(encoded(&[0, 5, 6, 7, 8, 2]), 1);
        let boxes = [vec![(4, 7), (12, 13)], vec![], vec![(2, 3), (5, 6)]];
        for limit in [None, Some(2), Some(4), Some(6), Some(9)] {
            let (rows, length) = prompt.positive_map(&boxes, limit).unwrap();
            let offsets = prompt.encoded(limit).offsets;
            assert_eq!(length, offsets.len());
            for (row, spans) in rows.chunks(length).zip(&boxes) {
                assert_eq!(row, spans::positive_row(&offsets, spans));
            }
        }
    }

    #[test]
    fn a_text_is_encoded_once_until_evicted() {
        let prompt_cache = PromptCache::default();
        let text = |number: usize| format!("{number:09}{}", "x".repeat(LONGEST_BYTES - 9));
        let made = std::cell::Cell::new(0);
        let get = |number: usize| {
            let encode = || {
                made.set(made.get() + 1);
                Ok(prompt(&[0, u32::try_from(number).unwrap(), 2]))
            };
            prompt_cache
                .get_or_make(&text(number), encode)
                .unwrap()
                .encoded
                .ids[1] as usize
        };
        let most = MAX_BYTES / LONGEST_BYTES;
        assert_eq!((get(0), get(0), made.get()), (0, 0, 1));
        for number in 1..=most {
            assert_eq!(get(number), number);
            assert_eq!(get(0), 0);
        }
        // The first text was used again and again, so the second is the oldest.
        assert_eq!(made.get(), most + 1);
        get(2);
        assert_eq!(made.get(), most + 1);
        get(1);
        assert_eq!(made.get(), most + 2);
        assert!(prompt_cache.lock().bytes <= MAX_BYTES);
    }

    #[test]
    fn short_texts_are_not_kept() {
        let prompt_cache = PromptCache::default();
        prompt_cache
            .get_or_make("short", || Ok(prompt(&[0, 2])))
            .unwrap();
        assert!(prompt_cache.lock().by_text.is_empty());
        assert!(
            prompt_cache
                .get_or_make("short", || Err(Error::Worker(String::new())))
                .is_err()
        );
    }
}
