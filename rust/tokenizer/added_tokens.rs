//! Added tokens, such as `<mask>`, which are split off before pretokenization.

use std::fmt;
use std::ops::Range;

use daachorse::{DoubleArrayAhoCorasick, DoubleArrayAhoCorasickBuilder, MatchKind};

use crate::tokenizer::char_class::{CharClasses, SPACE, WORD};

/// An added token and its matching rules.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // Fields of a tokenizer.json.
pub(crate) struct AddedToken {
    pub content: String,
    pub id: u32,
    /// Matches only if not adjacent to a word character.
    pub single_word: bool,
    /// Absorbs the whitespace before it.
    pub lstrip: bool,
    /// Absorbs the whitespace after it.
    pub rstrip: bool,
    /// Matched after all tokens without normalization.
    pub normalized: bool,
}

/// A piece of a text: an added token with its id, or the text in between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub id: Option<u32>,
    /// Byte range in the text.
    pub bytes: Range<usize>,
}

/// Tokens that are searched for together: the longest at the first place.
#[derive(Clone)]
struct TokenSet {
    tokens: Vec<AddedToken>,
    /// Gives the index of a token.
    automaton: DoubleArrayAhoCorasick<u32>,
    /// True for the first bytes of tokens.
    starts: [bool; 256],
    firsts: Vec<u8>,
}

impl fmt::Debug for TokenSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.tokens).finish()
    }
}

impl TokenSet {
    /// Prepare the search; `None` if that is impossible, as without tokens.
    fn new(tokens: Vec<AddedToken>) -> Option<Self> {
        let mut starts = [false; 256];
        for first in tokens.iter().filter_map(|it| it.content.bytes().next()) {
            starts[usize::from(first)] = true;
        }
        let firsts = (0..=255).filter(|&byte| starts[usize::from(byte)]);
        let automaton = DoubleArrayAhoCorasickBuilder::new()
            .match_kind(MatchKind::LeftmostLongest)
            .build_with_values(tokens.iter().map(|it| &it.content).zip(0..))
            .ok()?;
        Some(Self {
            automaton,
            starts,
            firsts: firsts.collect(),
            tokens,
        })
    }

    /// True if a text may contain an added token.
    #[inline]
    fn may_be_in(&self, text: &[u8]) -> bool {
        // The search for a single byte is vectorized; sets of bytes are searched byte by byte.
        match self.firsts.as_slice() {
            [first] => text.contains(first),
            _ => text.iter().any(|&byte| self.starts[usize::from(byte)]),
        }
    }

    /// Split a text into pieces that cover it in order.
    fn cut(&self, kinds: &CharClasses, text: &str, shift: usize, pieces: &mut Vec<Piece>) {
        let is = |character: Option<char>, kind| {
            character.is_some_and(|c| kinds.of(c as u32) & kind != 0)
        };
        let mut done = 0;
        for found in self.automaton.leftmost_find_iter(text) {
            let (mut start, mut stop) = (found.start(), found.end());
            let Some(token) = self.tokens.get(found.value() as usize) else {
                continue;
            };
            let before = text.get(..start).unwrap_or_default();
            let after = text.get(stop..).unwrap_or_default();
            if token.single_word
                && (is(before.chars().next_back(), WORD) || is(after.chars().next(), WORD))
            {
                continue;
            }
            if token.lstrip {
                let kept = before.trim_end_matches(|c| is(Some(c), SPACE));
                // The previous token may have absorbed this whitespace.
                start = kept.len().max(done);
            }
            if token.rstrip {
                stop += after.len() - after.trim_start_matches(|c| is(Some(c), SPACE)).len();
            }
            if done < start {
                pieces.push(Piece {
                    id: None,
                    bytes: shift + done..shift + start,
                });
            }
            // Ignore a match inside whitespace absorbed by the previous token.
            if start < stop {
                pieces.push(Piece {
                    id: Some(token.id),
                    bytes: shift + start..shift + stop,
                });
            }
            done = stop.max(start);
        }
        if done != text.len() {
            pieces.push(Piece {
                id: None,
                bytes: shift + done..shift + text.len(),
            });
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct AddedTokens {
    first: Option<TokenSet>,
    second: Option<TokenSet>,
}

impl AddedTokens {
    /// Group tokens by their matching rules; `None` if they cannot be searched for.
    pub(crate) fn new(tokens: Vec<AddedToken>) -> Option<Self> {
        let tokens = tokens.into_iter().filter(|it| !it.content.is_empty());
        let (second, first): (Vec<_>, Vec<_>) = tokens.partition(|token| token.normalized);
        let mut sets = Self {
            first: None,
            second: None,
        };
        for (set, tokens) in [(&mut sets.first, first), (&mut sets.second, second)] {
            if !tokens.is_empty() {
                *set = Some(TokenSet::new(tokens)?);
            }
        }
        Some(sets)
    }

    /// True if a text may contain an added token.
    #[inline]
    pub(crate) fn may_be_in(&self, text: &[u8]) -> bool {
        [&self.first, &self.second]
            .into_iter()
            .flatten()
            .any(|set| set.may_be_in(text))
    }

    /// Split a text into added tokens and the text in between; `pieces` is cleared first.
    pub(crate) fn cut(&self, kinds: &CharClasses, text: &str, pieces: &mut Vec<Piece>) {
        pieces.clear();
        if text.is_empty() {
            return;
        }
        match &self.first {
            Some(set) => set.cut(kinds, text, 0, pieces),
            None => pieces.push(Piece {
                id: None,
                bytes: 0..text.len(),
            }),
        }
        if let Some(set) = &self.second {
            for piece in std::mem::take(pieces) {
                match text.get(piece.bytes.clone()) {
                    Some(between) if piece.id.is_none() => {
                        set.cut(kinds, between, piece.bytes.start, pieces);
                    }
                    _ => pieces.push(piece),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(content: &str, id: u32) -> AddedToken {
        AddedToken {
            content: content.to_owned(),
            id,
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: false,
        }
    }

    fn cut(tokens: Vec<AddedToken>, text: &str) -> Vec<(Option<u32>, String)> {
        let tokens = AddedTokens::new(tokens).unwrap();
        let mut pieces = Vec::new();
        tokens.cut(&CharClasses::new().unwrap(), text, &mut pieces);
        pieces
            .into_iter()
            .map(|piece| (piece.id, text[piece.bytes].to_owned()))
            .collect()
    }

    fn found(expected: &[(Option<u32>, &str)]) -> Vec<(Option<u32>, String)> {
        expected
            .iter()
            .map(|&(id, text)| (id, text.to_owned()))
            .collect()
    }

    #[test]
    fn without_added_tokens_the_text_is_one_piece() {
        assert!(cut(vec![], "").is_empty());
        assert!(cut(vec![token("<s>", 0)], "").is_empty());
        assert_eq!(cut(vec![], "a <s>"), found(&[(None, "a <s>")]));
    }

    #[test]
    fn the_longest_token_at_the_first_match_wins() {
        let tokens = vec![token("ab", 1), token("abc", 2), token("bcd", 3)];
        assert_eq!(
            cut(tokens, "xabcdab"),
            found(&[(None, "x"), (Some(2), "abc"), (None, "d"), (Some(1), "ab")])
        );
    }

    #[test]
    fn spaces_go_with_a_token_that_strips() {
        let mut left = token("<l>", 1);
        left.lstrip = true;
        let mut right = token("<r>", 2);
        right.rstrip = true;
        assert_eq!(
            cut(vec![left, right], "a \u{3000}<l> <r>  <l>"),
            found(&[
                (None, "a"),
                (Some(1), " \u{3000}<l>"),
                (None, " "),
                (Some(2), "<r>  "),
                (Some(1), "<l>")
            ])
        );
    }

    #[test]
    fn stripped_spaces_hide_a_token_of_spaces() {
        let (mut right, mut space) = (token("<r>", 1), token("\u{3000}", 2));
        right.rstrip = true;
        space.lstrip = true;
        assert_eq!(
            cut(vec![right, space], "<r> \u{3000}x"),
            found(&[(Some(1), "<r> \u{3000}"), (None, "x")])
        );
    }

    #[test]
    fn single_word_tokens_match_whole_words_only() {
        let mut word = token("cat", 1);
        word.single_word = true;
        assert_eq!(
            cut(vec![word], "cat cats \u{e9}cat-cat"),
            found(&[
                (Some(1), "cat"),
                (None, " cats \u{e9}cat-"),
                (Some(1), "cat")
            ])
        );
    }

    #[test]
    fn normalized_tokens_come_second() {
        let mut second = token("<a><b>", 1);
        second.normalized = true;
        assert_eq!(
            cut(vec![second.clone(), token("<b>", 2)], "<a><b>"),
            found(&[(None, "<a>"), (Some(2), "<b>")])
        );
        assert_eq!(
            cut(vec![second], "x<a><b>"),
            found(&[(None, "x"), (Some(1), "<a><b>")])
        );
    }
}
