//! Byte pair encoding: the bytes of a word to token ids, by merges in rank order.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasher, Hasher, RandomState};

/// Maximum length in bytes of a word whose best merge is found by linear search.
const LONGEST_SCAN: usize = 48;
/// Rank of a pair that has no merge.
const NEVER: u32 = u32::MAX;

/// A token of a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub id: u32,
    /// End of the token's bytes, relative to the start of the word.
    pub end: u32,
}

/// Hasher for keys that are pairs of ids; only supports integers.
pub(crate) struct PairHasher(u64);

/// Makes hashers that start with a random number, so that nobody can choose pairs that collide.
#[derive(Clone, Debug)]
pub(crate) struct PairHashing(u64);

impl PairHashing {
    fn new() -> Self {
        Self(RandomState::new().hash_one(0))
    }
}

impl BuildHasher for PairHashing {
    type Hasher = PairHasher;

    fn build_hasher(&self) -> PairHasher {
        PairHasher(self.0)
    }
}

impl Hasher for PairHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        let mixed = (self.0 ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 = mixed ^ (mixed >> 32);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

type Merges = HashMap<u64, (u32, u32), PairHashing>;

#[derive(Clone, Debug)]
pub(crate) struct Bpe {
    /// Token id of each byte.
    bytes: [u32; 256],
    /// Rank and merged id of each pair of ids.
    merges: Merges,
    /// Words that are tokens regardless of the merges (`ignore_merges`).
    whole_words: HashMap<Box<[u8]>, u32>,
}

/// Buffers, reused between words.
#[derive(Clone, Debug, Default)]
pub(crate) struct MergeScratch {
    ranks: Vec<u32>,
    links: Vec<Link>,
    heap: BinaryHeap<Reverse<(u32, usize, u32)>>,
}

/// A token in the linked list of a long word; `gone` if it was merged into its left neighbor.
#[derive(Clone, Copy, Debug)]
struct Link {
    id: u32,
    end: u32,
    previous: usize,
    next: usize,
    gone: bool,
}

fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

impl Bpe {
    /// Build from the ids of the bytes, `(left, right, merged)` ids in rank order, and words that
    /// must not be split.
    pub(crate) fn new(
        bytes: &[u32; 256],
        merges: impl Iterator<Item = (u32, u32, u32)>,
        whole_words: HashMap<Box<[u8]>, u32>,
    ) -> Self {
        let mut ranks = Merges::with_hasher(PairHashing::new());
        ranks.extend(
            (0..)
                .zip(merges)
                .map(|(rank, (left, right, merged))| (pair(left, right), (rank, merged))),
        );
        Self {
            bytes: *bytes,
            merges: ranks,
            whole_words,
        }
    }

    fn merge(&self, left: u32, right: u32) -> (u32, u32) {
        let found = self.merges.get(&pair(left, right));
        found.copied().unwrap_or((NEVER, 0))
    }

    /// Tokenize a word; `tokens` is cleared first.
    pub(crate) fn split(&self, word: &[u8], scratch: &mut MergeScratch, tokens: &mut Vec<Token>) {
        tokens.clear();
        if !self.whole_words.is_empty()
            && let Some(&id) = self.whole_words.get(word)
        {
            let end = u32::try_from(word.len()).unwrap_or(u32::MAX);
            tokens.push(Token { id, end });
            return;
        }
        tokens.extend((1..).zip(word).map(|(end, &byte)| Token {
            id: self.bytes[usize::from(byte)],
            end,
        }));
        if word.len() <= LONGEST_SCAN {
            self.scan(&mut scratch.ranks, tokens);
        } else {
            self.queue(scratch, tokens);
        }
    }

    fn rank(&self, tokens: &[Token], at: usize) -> u32 {
        match tokens.get(at..at + 2) {
            Some([left, right]) => self.merge(left.id, right.id).0,
            _ => NEVER,
        }
    }

    /// Apply the lowest-ranked merge until none is left.
    fn scan(&self, ranks: &mut Vec<u32>, tokens: &mut Vec<Token>) {
        ranks.clear();
        ranks.extend((0..tokens.len()).map(|at| self.rank(tokens, at)));
        loop {
            let (mut best, mut lowest) = (0, NEVER);
            for (at, &rank) in ranks.iter().enumerate() {
                if rank < lowest {
                    (best, lowest) = (at, rank);
                }
            }
            let Some(&[left, right]) = tokens.get(best..best + 2).and_then(<[_]>::first_chunk)
            else {
                return;
            };
            if lowest == NEVER {
                return;
            }
            tokens[best] = Token {
                id: self.merge(left.id, right.id).1,
                end: right.end,
            };
            tokens.remove(best + 1);
            ranks.remove(best + 1);
            ranks[best] = self.rank(tokens, best);
            if best > 0 {
                ranks[best - 1] = self.rank(tokens, best - 1);
            }
        }
    }

    /// Do the same in O(n log n), for long words.
    fn queue(&self, scratch: &mut MergeScratch, tokens: &mut Vec<Token>) {
        let MergeScratch { links, heap, .. } = scratch;
        links.clear();
        links.extend(tokens.iter().enumerate().map(|(at, token)| Link {
            id: token.id,
            end: token.end,
            previous: at.wrapping_sub(1),
            next: at + 1,
            gone: false,
        }));
        heap.clear();
        for at in 0..links.len() {
            self.enqueue(links, heap, at);
        }
        while let Some(Reverse((rank, at, left_id))) = heap.pop() {
            let Some(&left) = links.get(at) else { continue };
            let Some(&right) = links.get(left.next) else {
                continue;
            };
            // Skip an entry if one of its two tokens has changed since it was queued.
            let (rank_now, merged) = self.merge(left.id, right.id);
            if left.gone || left.id != left_id || rank_now != rank {
                continue;
            }
            links[left.next].gone = true;
            links[at] = Link {
                id: merged,
                end: right.end,
                next: right.next,
                ..left
            };
            if let Some(after) = links.get_mut(right.next) {
                after.previous = at;
            }
            self.enqueue(links, heap, at);
            self.enqueue(links, heap, left.previous);
        }
        tokens.clear();
        tokens.extend(links.iter().filter(|link| !link.gone).map(|link| Token {
            id: link.id,
            end: link.end,
        }));
    }

    fn enqueue(
        &self,
        links: &[Link],
        heap: &mut BinaryHeap<Reverse<(u32, usize, u32)>>,
        at: usize,
    ) {
        let Some(left) = links.get(at) else { return };
        let Some(right) = links.get(left.next) else {
            return;
        };
        let (rank, _) = self.merge(left.id, right.id);
        if rank != NEVER {
            heap.push(Reverse((rank, at, left.id)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each byte is its own id; each merge adds the next id.
    fn bpe(merges: &[(u32, u32)]) -> Bpe {
        let mut bytes = [0; 256];
        for (id, byte) in (0..).zip(&mut bytes) {
            *byte = id;
        }
        let merges = (256..).zip(merges).map(|(id, &(a, b))| (a, b, id));
        Bpe::new(&bytes, merges, HashMap::new())
    }

    fn split(bpe: &Bpe, word: &[u8]) -> Vec<Token> {
        let mut tokens = Vec::new();
        bpe.split(word, &mut MergeScratch::default(), &mut tokens);
        tokens
    }

    #[test]
    fn lower_ranks_merge_first_and_from_the_left() {
        let (a, b, c) = (u32::from(b'a'), u32::from(b'b'), u32::from(b'c'));
        let bpe = bpe(&[(b, c), (a, b), (a, a), (257, c)]);
        let ids = |word: &[u8]| split(&bpe, word).iter().map(|t| t.id).collect::<Vec<_>>();
        assert!(ids(b"").is_empty());
        assert_eq!(ids(b"abc"), [a, 256]);
        assert_eq!(ids(b"aab"), [a, 257]);
        assert_eq!(ids(b"aaa"), [258, a]);
    }

    #[test]
    fn long_and_short_words_are_split_alike() {
        let merges: Vec<_> = (0..4_u32)
            .flat_map(|left| (0..4).map(move |right| (97 + left, 97 + (right * 7 + left) % 4)))
            .chain((0..40).map(|n| (256 + n % 13, 256 + (n * 5) % 16)))
            .collect();
        let bpe = bpe(&merges);
        let mut rng = crate::rng::Rng::new(0, 0, 0, crate::rng::Purpose::Order);
        for length in 1..200 {
            let word: Vec<u8> = (0..length).map(|_| b"abcd"[rng.index(4)]).collect();
            let (mut scratch, mut scanned) = (MergeScratch::default(), Vec::new());
            scanned.extend((1..).zip(&word).map(|(end, &byte)| Token {
                id: u32::from(byte),
                end,
            }));
            let mut queued = scanned.clone();
            bpe.scan(&mut scratch.ranks, &mut scanned);
            bpe.queue(&mut scratch, &mut queued);
            assert_eq!(scanned, queued);
            assert!(scanned.len() < word.len() || length < 4);
        }
    }
}
