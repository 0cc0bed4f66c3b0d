//! Character classes: letter, number, space, word character.
//!
//! The sets come from `regex-syntax`, which also compiles the pattern of `tokenizers`, so both use
//! the same version of Unicode; a test pins it to 16.0.

use regex_syntax::hir::{Class, HirKind};

use crate::Error;

/// `\p{L}`.
pub(crate) const LETTER: u8 = 1;
/// `\p{N}`.
pub(crate) const NUMBER: u8 = 2;
/// `\s`.
pub(crate) const SPACE: u8 = 4;
/// `\w`.
pub(crate) const WORD: u8 = 8;

const PATTERNS: [(&str, u8); 4] = [
    (r"\p{L}", LETTER),
    (r"\p{N}", NUMBER),
    (r"\s", SPACE),
    (r"\w", WORD),
];

/// Number of code points per block.
const BLOCK: usize = 256;

/// Classes of all code points, in deduplicated blocks.
#[derive(Clone, Debug)]
pub(crate) struct CharClasses {
    /// For each block of code points, the offset of its classes.
    places: Vec<u32>,
    /// Classes of the distinct blocks.
    kinds: Vec<u8>,
}

impl CharClasses {
    pub(crate) fn new() -> Result<Self, Error> {
        let mut flat = vec![0_u8; char::MAX as usize + 1];
        for (pattern, kind) in PATTERNS {
            for (first, last) in ranges(pattern)? {
                if let Some(range) = flat.get_mut(first..=last) {
                    for kinds in range {
                        *kinds |= kind;
                    }
                }
            }
        }
        let mut kinds: Vec<u8> = Vec::new();
        let mut places = Vec::with_capacity(flat.len() / BLOCK);
        for block in flat.chunks(BLOCK) {
            let known = kinds.chunks(BLOCK).position(|known| known == block);
            let number = known.unwrap_or_else(|| {
                kinds.extend_from_slice(block);
                kinds.len() / BLOCK - 1
            });
            places.push(u32::try_from(number * BLOCK).unwrap_or(0));
        }
        Ok(Self { places, kinds })
    }

    /// Classes of a code point as bit flags; 0 if it has none.
    #[inline]
    pub(crate) fn of(&self, code_point: u32) -> u8 {
        let place = self.places.get(code_point as usize / BLOCK);
        let offset = code_point as usize % BLOCK;
        place
            .and_then(|&place| self.kinds.get(place as usize + offset))
            .copied()
            .unwrap_or(0)
    }
}

/// Code point ranges of a set.
fn ranges(pattern: &str) -> Result<Vec<(usize, usize)>, Error> {
    let parsed = regex_syntax::parse(pattern)
        .map_err(|error| Error::Tokenizer(format!("{pattern}: {error}")))?;
    match parsed.kind() {
        HirKind::Class(Class::Unicode(class)) => Ok(class
            .iter()
            .map(|range| (range.start() as usize, range.end() as usize))
            .collect()),
        _ => Err(Error::Tokenizer(format!(
            "{pattern} is not a set of code points"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_of_unicode_16() {
        let kinds = CharClasses::new().unwrap();
        let count = |kind| {
            ('\0'..=char::MAX)
                .filter(|&c| kinds.of(c as u32) & kind != 0)
                .count()
        };
        // Other Unicode versions have different counts of letters and numbers.
        assert_eq!(count(LETTER), 141_028);
        assert_eq!(count(NUMBER), 1_911);
        assert_eq!(count(SPACE), 25);
        // A letter new in 16.0, and one new in 17.0.
        assert_eq!(kinds.of(0x1C89), LETTER | WORD);
        assert_eq!(kinds.of(0xA7CE), 0);
    }

    #[test]
    fn common_characters_have_their_classes() {
        let kinds = CharClasses::new().unwrap();
        for (character, expected) in [
            ('a', LETTER | WORD),
            ('\u{e9}', LETTER | WORD),
            ('7', NUMBER | WORD),
            ('\u{b2}', NUMBER),
            (' ', SPACE),
            ('\u{3000}', SPACE),
            ('\u{200d}', WORD),
            ('\u{301}', WORD),
            ('_', WORD),
            ('!', 0),
            ('\u{10ffff}', 0),
        ] {
            assert_eq!(kinds.of(character as u32), expected, "{character:?}");
        }
        assert_eq!(kinds.of(u32::MAX), 0);
    }
}
