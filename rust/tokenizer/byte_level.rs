//! Fast path for a `tokenizer.json` that is a plain byte-level BPE: text to ids and offsets.
//!
//! The output matches `encode_char_offsets` of the `tokenizers` crate: added tokens are split off,
//! GPT-2's pattern splits the rest into words, the bytes of each word are merged, and spaces are
//! trimmed from the offsets.

use std::sync::{Mutex, PoisonError};

use crate::Error;
use crate::tokenizer::added_tokens::{AddedTokens, Piece};
use crate::tokenizer::bpe::{self, Bpe, Token};
use crate::tokenizer::char_class::CharClasses;
use crate::tokenizer::pretokenizer::{self, PADDING, Word};
use crate::tokenizer::word_cache::WordCache;

/// Maximum number of workspaces kept; additional threads allocate their own.
const MAX_WORKSPACES: usize = 64;
/// Maximum length in bytes of a text whose workspace is kept; longer texts are rare.
const LONGEST_KEPT: usize = 1 << 20;

/// Token ids of one or more texts, and optionally half-open code point spans.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tokens {
    pub ids: Vec<u32>,
    /// (start, end) of each token; empty unless requested.
    pub spans: Vec<(u32, u32)>,
    /// Number of texts that were truncated.
    pub truncated_texts: usize,
}

/// The settings in a `tokenizer.json` other than the merges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ByteLevelConfig {
    /// Split by GPT-2's pattern; otherwise, each text between added tokens is one word.
    pub use_pattern: bool,
    /// Prepend a space to each text between added tokens unless it starts with one.
    pub prefix_space: bool,
    /// If `Some`, trim spaces from the offsets; true if the first token keeps one.
    pub trim: Option<bool>,
    pub before: Vec<u32>,
    pub after: Vec<u32>,
}

/// A byte-level BPE tokenizer.
#[derive(Debug)]
pub(crate) struct ByteLevel {
    bpe: Bpe,
    added: AddedTokens,
    kinds: CharClasses,
    rules: ByteLevelConfig,
    workspaces: Mutex<Vec<Workspace>>,
}

/// Buffers of a thread, reused between texts.
#[derive(Debug, Default)]
struct Workspace {
    cache: WordCache,
    scratch: bpe::MergeScratch,
    word: Vec<Token>,
    /// A text between added tokens, followed by padding.
    padded: Vec<u8>,
    pieces: Vec<Piece>,
    /// Code point index of each byte of a non-ASCII text.
    code_points: Vec<u32>,
}

/// Byte positions of a piece within its text.
struct ByteRange<'a> {
    /// Number of bytes of the text before the piece.
    start: usize,
    /// Number of prepended bytes that are not in the text.
    prefix: usize,
    /// Code point index of each byte; empty for ASCII texts.
    code_points: &'a [u32],
}

impl ByteRange<'_> {
    /// Code point index of a byte of the piece.
    #[inline]
    fn code_point(&self, byte: usize) -> u32 {
        let byte = self.start + byte.saturating_sub(self.prefix);
        let known = self.code_points.get(byte).copied();
        known.unwrap_or(u32::try_from(byte).unwrap_or(u32::MAX))
    }
}

impl ByteLevel {
    pub(crate) fn new(bpe: Bpe, added: AddedTokens, rules: ByteLevelConfig) -> Result<Self, Error> {
        Ok(Self {
            bpe,
            added,
            kinds: CharClasses::new()?,
            rules,
            workspaces: Mutex::default(),
        })
    }

    /// Append the tokens of each text, with the ids before and after it; return their counts.
    ///
    /// A text with more than `max_tokens` tokens is truncated; the ids around it are always kept.
    pub(crate) fn encode<'a>(
        &self,
        texts: impl Iterator<Item = &'a str>,
        max_tokens: usize,
        with_spans: bool,
        tokens: &mut Tokens,
    ) -> Vec<usize> {
        let mut workspace = self.lock().pop().unwrap_or_default();
        let counts = texts
            .map(|text| {
                let start = tokens.ids.len();
                let limit = start
                    .saturating_add(max_tokens)
                    .saturating_sub(self.rules.after.len());
                if with_spans {
                    self.encode_one::<true>(text, limit, &mut workspace, tokens);
                } else {
                    self.encode_one::<false>(text, limit, &mut workspace, tokens);
                }
                tokens.ids.len() - start
            })
            .collect();
        let mut kept = self.lock();
        if kept.len() < MAX_WORKSPACES && workspace.padded.capacity() <= LONGEST_KEPT {
            kept.push(workspace);
        }
        counts
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Workspace>> {
        self.workspaces
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Append the tokens of a text, truncated where all texts together reach `limit` tokens.
    fn encode_one<const SPANS: bool>(
        &self,
        text: &str,
        limit: usize,
        workspace: &mut Workspace,
        tokens: &mut Tokens,
    ) {
        let push_special = |ids: &[u32], tokens: &mut Tokens| {
            tokens.ids.extend_from_slice(ids);
            if SPANS {
                tokens.spans.extend(ids.iter().map(|_| (0, 0)));
            }
        };
        push_special(&self.rules.before, tokens);
        let mut code_points = std::mem::take(&mut workspace.code_points);
        code_points.clear();
        if SPANS && !text.is_ascii() {
            let mut number = u32::MAX;
            code_points.extend(text.bytes().map(|byte| {
                number = number.wrapping_add(u32::from(byte & 0xC0 != 0x80));
                number
            }));
        }
        if self.added.may_be_in(text.as_bytes()) {
            self.encode_pieces::<SPANS>(text, limit, &code_points, workspace, tokens);
        } else if !text.is_empty() {
            self.encode_piece::<SPANS>(text, 0, limit, &code_points, workspace, tokens);
        }
        workspace.code_points = code_points;
        tokens.truncated_texts += usize::from(tokens.ids.len() > limit);
        tokens.ids.truncate(limit);
        tokens.spans.truncate(limit);
        push_special(&self.rules.after, tokens);
    }

    fn encode_pieces<const SPANS: bool>(
        &self,
        text: &str,
        limit: usize,
        code_points: &[u32],
        workspace: &mut Workspace,
        tokens: &mut Tokens,
    ) {
        let mut pieces = std::mem::take(&mut workspace.pieces);
        self.added.cut(&self.kinds, text, &mut pieces);
        let first = tokens.ids.len();
        for piece in &pieces {
            if tokens.ids.len() > limit {
                break;
            }
            let between = text.get(piece.bytes.clone()).unwrap_or_default();
            let Some(id) = piece.id else {
                let start = piece.bytes.start;
                self.encode_piece::<SPANS>(between, start, limit, code_points, workspace, tokens);
                continue;
            };
            if SPANS {
                let place = ByteRange {
                    start: piece.bytes.start,
                    prefix: 0,
                    code_points,
                };
                let (start, last) = (place.code_point(0), place.code_point(between.len() - 1));
                // The letter that represents a space in a vocabulary counts as a space.
                let is_space = |c: &char| *c == '\u{120}' || c.is_whitespace();
                let leading = between.chars().take_while(is_space).count();
                let trailing = between.chars().rev().take_while(is_space).count();
                let is_first = tokens.ids.len() == first;
                let span = self.trim((start, last + 1), (leading, trailing), is_first);
                tokens.spans.push(span);
            }
            tokens.ids.push(id);
        }
        workspace.pieces = pieces;
    }

    /// Trim spaces from a span.
    #[inline]
    fn trim(
        &self,
        (mut start, mut end): (u32, u32),
        (leading, trailing): (usize, usize),
        is_first: bool,
    ) -> (u32, u32) {
        let Some(keeps_first) = self.rules.trim else {
            return (start, end);
        };
        let count = |spaces: usize| u32::try_from(spaces).unwrap_or(u32::MAX);
        // At the very beginning, one space may be the prepended space.
        if !(keeps_first && leading == 1 && (is_first || start == 0)) {
            start = start.saturating_add(count(leading)).min(end);
        }
        if end >= count(trailing) {
            end = (end - count(trailing)).max(start);
        }
        (start, end)
    }

    /// Append the tokens of a piece that starts at the given byte of the whole text.
    fn encode_piece<const SPANS: bool>(
        &self,
        piece: &str,
        start: usize,
        limit: usize,
        code_points: &[u32],
        workspace: &mut Workspace,
        tokens: &mut Tokens,
    ) {
        let prefix = usize::from(self.rules.prefix_space && !piece.starts_with(' '));
        let Workspace {
            cache,
            scratch,
            word: found,
            padded,
            ..
        } = workspace;
        padded.clear();
        padded.extend_from_slice(&b" "[..prefix]);
        padded.extend_from_slice(piece.as_bytes());
        let end = padded.len();
        padded.extend_from_slice(&[0; PADDING]);
        let place = ByteRange {
            start,
            prefix,
            code_points,
        };
        // Position of the first span of the text, if it is in this piece.
        let first = if start == 0 {
            tokens.spans.len()
        } else {
            usize::MAX
        };
        let mut at = 0;
        while at < end && tokens.ids.len() <= limit {
            let word = if self.rules.use_pattern {
                pretokenizer::next_word(&self.kinds, padded, at)
            } else {
                Word::new(padded, at, end)
            };
            let span = |from: usize, to: usize, tokens: &Tokens| {
                self.span(padded, &place, from, to, first == tokens.spans.len())
            };
            if let Some(slot) = cache.short(word.key) {
                if let Some(id) = slot.only_id() {
                    tokens.ids.push(id);
                    if SPANS {
                        tokens.spans.push(span(at, word.end, tokens));
                    }
                } else {
                    let mut from = at;
                    for (id, end) in slot.tokens() {
                        tokens.ids.push(id);
                        if SPANS {
                            tokens.spans.push(span(from, at + end, tokens));
                        }
                        from = at + end;
                    }
                }
            } else {
                let bytes = padded.get(at..word.end).unwrap_or_default();
                let known = cache.long(bytes);
                if known.is_none() {
                    self.bpe.split(bytes, scratch, found);
                }
                let split = known.unwrap_or(found);
                let mut from = at;
                for token in split {
                    let to = at + token.end as usize;
                    tokens.ids.push(token.id);
                    if SPANS {
                        tokens.spans.push(span(from, to, tokens));
                    }
                    from = to;
                }
                if known.is_none() {
                    cache.keep(word.key, bytes, found);
                }
            }
            at = word.end;
        }
    }

    /// Code point span of a byte range in a piece.
    #[inline]
    fn span(
        &self,
        padded: &[u8],
        place: &ByteRange<'_>,
        from: usize,
        to: usize,
        is_first: bool,
    ) -> (u32, u32) {
        let span = (
            place.code_point(from),
            place.code_point(to.saturating_sub(1)) + 1,
        );
        let bytes = padded.get(from..to).unwrap_or_default();
        if bytes.first() != Some(&b' ') && bytes.last() != Some(&b' ') {
            return span;
        }
        let is_space = |byte: &&u8| **byte == b' ';
        let leading = bytes.iter().take_while(is_space).count();
        let trailing = bytes.iter().rev().take_while(is_space).count();
        self.trim(span, (leading, trailing), is_first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::Tokenizer;
    use crate::tokenizer::json;

    fn byte_level() -> ByteLevel {
        let texts = ["a red cup", "the red cups"];
        let tokenizer = Tokenizer::train(texts.into_iter(), 270).unwrap();
        let json = tokenizer.to_json().unwrap();
        // <mask> is not part of the model.
        let read = json::read(&json, tokenizer.vocab_size() - 1);
        read.unwrap().unwrap()
    }

    fn encode(level: &ByteLevel, texts: &[&str], limit: usize) -> (Tokens, Vec<usize>) {
        let mut tokens = Tokens::default();
        let texts = texts.iter().copied();
        let counts = level.encode(texts, limit, true, &mut tokens);
        (tokens, counts)
    }

    #[test]
    fn texts_are_appended() {
        let level = byte_level();
        assert_eq!(encode(&level, &[], 9), (Tokens::default(), vec![]));
        let texts = ["", " red", "a red cup and more"];
        let (all, counts) = encode(&level, &texts, 4);
        assert_eq!(counts[0], 2);
        assert_eq!(counts[2], 4);
        let mut start = 0;
        for (text, &count) in texts.iter().zip(&counts) {
            let (alone, _) = encode(&level, &[text], 4);
            assert_eq!(all.ids[start..start + count], alone.ids);
            assert_eq!(all.spans[start..start + count], alone.spans);
            start += count;
        }
        // A truncated text ends like a complete text; special tokens have empty spans.
        assert_eq!(
            (all.ids.last(), all.spans.last()),
            (Some(&2), Some(&(0, 0)))
        );
    }

    #[test]
    fn the_workspace_of_a_huge_text_is_not_kept() {
        let level = byte_level();
        encode(&level, &["a red cup"], 9);
        assert_eq!(level.lock().len(), 1);
        let huge = "red ".repeat(LONGEST_KEPT / 2);
        let (tokens, _) = encode(&level, &[&huge], 9);
        assert_eq!(tokens.ids.len(), 9);
        assert!(level.lock().is_empty());
    }
}
