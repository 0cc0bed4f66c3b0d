//! Bounded cache of words and their tokens.

use std::collections::HashMap;

use crate::tokenizer::bpe::Token;

/// Number of short words, in sets of two; each takes 64 bytes.
const SETS: usize = 4096;
/// Maximum number of tokens of a short word.
const SHORT_TOKENS: usize = 8;
/// Maximum number of long words; beyond that, the cache of long words is cleared.
const LONG_WORDS: usize = 1024;
/// Maximum length of a cached word in bytes.
const LONGEST: usize = 128;

/// A short word; one cache line.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(crate) struct WordSlot {
    /// See [`crate::tokenizer::pretokenizer::Word::key`]; 0 if the slot is empty.
    key: u128,
    ids: [u32; SHORT_TOKENS],
    /// End of each token within the word.
    ends: [u8; SHORT_TOKENS],
    count: u8,
}

const EMPTY: WordSlot = WordSlot {
    key: 0,
    ids: [0; SHORT_TOKENS],
    ends: [0; SHORT_TOKENS],
    count: 0,
};

/// Cache of tokens by word.
#[derive(Clone, Debug)]
pub(crate) struct WordCache {
    short: Vec<[WordSlot; 2]>,
    long: HashMap<Box<[u8]>, Box<[Token]>>,
}

impl Default for WordCache {
    fn default() -> Self {
        Self {
            short: vec![[EMPTY; 2]; SETS],
            long: HashMap::new(),
        }
    }
}

/// The set that a key belongs to.
#[allow(clippy::cast_possible_truncation)] // Halves of 128 bits, and an index below the number of sets.
#[inline]
fn set(key: u128) -> usize {
    let low = (key as u64) ^ 0x9E37_79B9_7F4A_7C15;
    let high = ((key >> 64) as u64) ^ 0xBF58_476D_1CE4_E5B9;
    let product = u128::from(low) * u128::from(high);
    (((product >> 64) ^ product) as u64 >> 20) as usize % SETS
}

impl WordSlot {
    /// The id of a word with a single token.
    #[inline]
    pub(crate) fn only_id(&self) -> Option<u32> {
        (self.count == 1).then_some(self.ids[0])
    }

    /// Ids, and the end of each token within the word.
    pub(crate) fn tokens(&self) -> impl Iterator<Item = (u32, usize)> {
        let ids = self.ids.iter().take(usize::from(self.count));
        ids.zip(&self.ends)
            .map(|(&id, &end)| (id, usize::from(end)))
    }
}

impl WordCache {
    /// Tokens of a short word.
    #[inline]
    pub(crate) fn short(&self, key: u128) -> Option<&WordSlot> {
        let slots = self.short.get(set(key))?;
        // The key of an empty slot belongs to no short word.
        slots.iter().find(|slot| slot.key == key && key != 0)
    }

    /// Tokens of a word that is long or has many tokens.
    pub(crate) fn long(&self, word: &[u8]) -> Option<&[Token]> {
        self.long.get(word).map(AsRef::as_ref)
    }

    /// Insert a word, evicting another if full.
    pub(crate) fn keep(&mut self, key: u128, word: &[u8], tokens: &[Token]) {
        if key != 0 && tokens.len() <= SHORT_TOKENS {
            let mut slot = EMPTY;
            slot.key = key;
            slot.count = u8::try_from(tokens.len()).unwrap_or(0);
            for ((id, end), token) in slot.ids.iter_mut().zip(&mut slot.ends).zip(tokens) {
                *id = token.id;
                *end = u8::try_from(token.end).unwrap_or(u8::MAX);
            }
            if let Some(slots) = self.short.get_mut(set(key)) {
                *slots = [slot, slots[0]];
            }
        } else if word.len() <= LONGEST {
            if self.long.len() >= LONG_WORDS {
                self.long.clear();
            }
            self.long.insert(word.into(), tokens.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::pretokenizer::{PADDING, Word};

    fn key(word: &[u8]) -> u128 {
        Word::new(&[word, &[0; PADDING]].concat(), 0, word.len()).key
    }

    fn tokens(count: u32) -> Vec<Token> {
        (0..count)
            .map(|n| Token {
                id: n * 7,
                end: n + 1,
            })
            .collect()
    }

    #[test]
    fn a_new_cache_is_empty() {
        let cache = WordCache::default();
        assert!(cache.short(key(b"a")).is_none() && cache.long(b"a").is_none());
        assert!(cache.short(0).is_none());
    }

    #[test]
    fn cached_words_are_found() {
        let mut cache = WordCache::default();
        cache.keep(key(b" cat"), b" cat", &tokens(3));
        let found = cache.short(key(b" cat")).unwrap();
        assert!(found.tokens().eq([(0, 1), (7, 2), (14, 3)]));
        assert_eq!(found.only_id(), None);
        cache.keep(key(b"a"), b"a", &tokens(1));
        assert_eq!(cache.short(key(b"a")).unwrap().only_id(), Some(0));
        assert!(cache.short(key(b" ca")).is_none());
        // The length is part of the key, so trailing zero bytes matter.
        assert!(cache.short(key(b" cat\0")).is_none());
        cache.keep(0, b"antidisestablishment", &tokens(4));
        assert_eq!(cache.long(b"antidisestablishment"), Some(&tokens(4)[..]));
        cache.keep(key(b"123456789"), b"123456789", &tokens(9));
        assert!(cache.short(key(b"123456789")).is_none());
        assert_eq!(cache.long(b"123456789"), Some(&tokens(9)[..]));
    }

    #[test]
    fn the_cache_is_bounded() {
        let mut cache = WordCache::default();
        for number in 0..40_000_u32 {
            let word = format!("{number:05}");
            cache.keep(
                key(word.as_bytes()),
                word.as_bytes(),
                &tokens(1 + number % 8),
            );
            let found = cache.short(key(word.as_bytes()));
            assert_eq!(
                found.map(|slot| slot.tokens().count()),
                Some(1 + number as usize % 8)
            );
            cache.keep(0, format!("{number:020}").as_bytes(), &tokens(1));
            cache.keep(0, &[b'x'; LONGEST + 1], &tokens(1));
            assert!(cache.long.len() <= LONG_WORDS);
        }
        assert!(cache.long(&[b'x'; LONGEST + 1]).is_none());
        assert_eq!(cache.short.len(), SETS);
    }
}
