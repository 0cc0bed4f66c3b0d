//! Hand-written matcher of GPT-2's pattern: finds the end of the next word.
//!
//! `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+` (Radford et al.
//! 2019). Every character belongs to one of its four classes, so that words are contiguous.

use crate::tokenizer::char_class::{CharClasses, LETTER, NUMBER, SPACE};

/// Number of zero bytes after a text, so that its last word can be loaded at once.
pub(crate) const PADDING: usize = 16;
/// Length of the longest word that is loaded at once.
pub(crate) const SHORT_WORD: usize = 15;

const HIGH_BITS: u128 = u128::from_ne_bytes([0x80; 16]);

/// A word: its end and, if it is short, its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word {
    pub end: usize,
    /// The bytes, lowest first, and the length on top; 0 if longer than [`SHORT_WORD`].
    pub key: u128,
}

impl Word {
    /// The word from `start` to `end`, which is at most the start of the padding.
    #[inline]
    pub(crate) fn new(padded: &[u8], start: usize, end: usize) -> Self {
        let key = match padded.get(start..).and_then(<[u8]>::first_chunk::<16>) {
            Some(&chunk) if end - start <= SHORT_WORD => {
                key(u128::from_le_bytes(chunk), end - start)
            }
            _ => 0,
        };
        Self { end, key }
    }
}

#[inline]
fn key(bytes: u128, length: usize) -> u128 {
    (bytes & ((1 << (8 * length)) - 1)) | ((length as u128) << 120)
}

/// Mark every byte that is not an ASCII letter.
#[inline]
fn no_letters(bytes: u128) -> u128 {
    const fn repeat(byte: u8) -> u128 {
        u128::from_ne_bytes([byte; 16])
    }
    // Upper and lower case differ in one bit. Sums of seven bits do not carry into the next byte.
    let low = (bytes | repeat(0x20)) & !HIGH_BITS;
    let from_a = low + repeat(0x80 - b'a');
    let beyond_z = low + repeat(0x7F - b'z');
    !(from_a & !beyond_z & !bytes) & HIGH_BITS
}

/// Find the word at `start`.
///
/// `padded` is UTF-8 followed by [`PADDING`] zero bytes; `start` is the first byte of a character.
#[inline]
pub(crate) fn next_word(kinds: &CharClasses, padded: &[u8], start: usize) -> Word {
    if let Some(&chunk) = padded.get(start..).and_then(<[u8]>::first_chunk::<16>) {
        let bytes = u128::from_le_bytes(chunk);
        let spaces = usize::from(chunk[0] == b' ');
        let marks = no_letters(bytes) & !(0x80 * spaces as u128);
        let length = (marks.trailing_zeros() / 8) as usize;
        // A non-ASCII letter may continue the word.
        if let Some(&next) = chunk.get(length)
            && length > spaces
            && next < 0x80
        {
            return Word {
                end: start + length,
                key: key(bytes, length),
            };
        }
    }
    Word::new(padded, start, end_of_word(kinds, padded, start))
}

/// Code point of a character and its length in bytes.
#[inline]
fn character(bytes: &[u8], at: usize) -> (u32, usize) {
    let byte = |offset: usize| u32::from(bytes.get(at + offset).copied().unwrap_or(0));
    let tail = |offset: usize| byte(offset) & 0x3F;
    match byte(0) {
        first @ 0..0x80 => (first, 1),
        first @ 0x80..0xE0 => ((first & 0x1F) << 6 | tail(1), 2),
        first @ 0xE0..0xF0 => ((first & 0x0F) << 12 | tail(1) << 6 | tail(2), 3),
        first => (
            (first & 0x07) << 18 | tail(1) << 12 | tail(2) << 6 | tail(3),
            4,
        ),
    }
}

fn end_of_word(kinds: &CharClasses, padded: &[u8], start: usize) -> usize {
    const GROUPS: u8 = LETTER | NUMBER | SPACE;
    let end = padded.len() - PADDING;
    let group = |at: usize| {
        let (code_point, length) = character(padded, at);
        (kinds.of(code_point) & GROUPS, at + length)
    };
    let run = |mut at: usize, wanted: u8| {
        while at < end {
            let (found, next) = group(at);
            if found != wanted {
                break;
            }
            at = next;
        }
        at
    };
    let first = padded.get(start).copied().unwrap_or(0);
    if first == b'\'' {
        let length = contraction(padded, start);
        if length > 0 {
            return start + length;
        }
    }
    let (kind, next) = group(start);
    if kind != SPACE {
        return run(start, kind);
    }
    if first == b' ' && next < end && group(next).0 != SPACE {
        return run(next, group(next).0);
    }
    let after = run(start, SPACE);
    if after == end {
        return after;
    }
    // The last space belongs to the next word or is itself a word.
    let (mut last, mut at) = (start, start);
    while at < after {
        last = at;
        at = group(at).1;
    }
    if last > start { last } else { after }
}

/// Length of the contraction at an apostrophe; 0 if there is none.
fn contraction(padded: &[u8], at: usize) -> usize {
    match padded.get(at + 1..at + 3) {
        Some([b's' | b't' | b'm' | b'd', _]) => 2,
        Some(b"re" | b"ve" | b"ll") => 3,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        let kinds = CharClasses::new().unwrap();
        let padded = [text.as_bytes(), &[0; PADDING]].concat();
        let (mut found, mut start) = (Vec::new(), 0);
        while start < text.len() {
            let word = next_word(&kinds, &padded, start);
            assert_eq!(word, Word::new(&padded, start, word.end));
            found.push(text[start..word.end].to_owned());
            start = word.end;
        }
        found
    }

    #[test]
    fn words_end_where_the_pattern_says() {
        assert!(words("").is_empty());
        for (text, expected) in [
            ("a", &["a"][..]),
            ("a cat's hat", &["a", " cat", "'s", " hat"]),
            ("'stuff 'll '", &["'s", "tuff", " '", "ll", " '"]),
            ("we're'REx", &["we", "'re", "'", "REx"]),
            ("x  y\n\nz ", &["x", " ", " y", "\n", "\n", "z", " "]),
            ("  ", &["  "]),
            ("a1 22!? ", &["a", "1", " 22", "!?", " "]),
            (
                "na\u{ef}ve \u{e9}t\u{e9}",
                &["na\u{ef}ve", " \u{e9}t\u{e9}"],
            ),
            ("e\u{301}a", &["e", "\u{301}", "a"]),
            ("\u{3000}\u{a0}x", &["\u{3000}", "\u{a0}", "x"]),
            (
                "sixteen letters antidisestablishment",
                &["sixteen", " letters", " antidisestablishment"],
            ),
            ("fifteenlettersxx", &["fifteenlettersxx"]),
            ("\0\0", &["\0\0"]),
        ] {
            assert_eq!(words(text), expected, "{text:?}");
        }
    }

    #[test]
    fn letters_differ_from_adjacent_bytes() {
        for byte in 0..=255_u8 {
            let marks = no_letters(u128::from_ne_bytes([byte; 16]));
            let expected = if byte.is_ascii_alphabetic() {
                0
            } else {
                HIGH_BITS
            };
            assert_eq!(marks, expected, "{byte}");
        }
    }
}
