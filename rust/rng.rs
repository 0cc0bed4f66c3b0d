//! Random draws that depend on (seed, epoch, sample, purpose) only, never on threads or order.
//!
//! `SplitMix64` (Steele et al. 2014) whose start is a hash of the key, so that any sample's draws can
//! be made without those of another.

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// What a stream of draws is for: two purposes never share a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The order of an epoch.
    Order,
    /// Crop, size and flip of the picture with this number in its record.
    Picture(u8),
    /// Which words are masked.
    MaskedWords,
    /// Which record is taken in the place of a bad one, at this attempt.
    Replacement(u8),
}

impl Purpose {
    fn code(self) -> u64 {
        match self {
            Self::Order => 1,
            Self::MaskedWords => 2,
            Self::Picture(number) => 0x100 + u64::from(number),
            Self::Replacement(attempt) => 0x200 + u64::from(attempt),
        }
    }
}

/// A stream of draws.
#[derive(Clone, Debug)]
pub struct Rng {
    state: u64,
}

/// The finalizer of `SplitMix64`: every output bit depends on every input bit.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl Rng {
    /// The stream of one sample (`index`) in one epoch.
    #[must_use]
    pub fn new(seed: u64, epoch: u64, index: u64, purpose: Purpose) -> Self {
        let state = [seed, epoch, index, purpose.code()]
            .into_iter()
            .fold(GOLDEN, |state, part| {
                mix(state.wrapping_add(GOLDEN) ^ mix(part.wrapping_add(GOLDEN)))
            });
        Self { state }
    }

    /// The next 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN);
        mix(self.state)
    }

    /// A number in [0, 1).
    #[allow(clippy::cast_precision_loss)] // 53 bits are exact in a double.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A number in [low, high).
    pub fn range(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// A whole number in [0, bound), all equally likely; 0 where the bound is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 {
            return 0;
        }
        // Lemire 2019: the high half of a product, with the few biased low halves refused.
        let threshold = bound.wrapping_neg() % bound;
        loop {
            let product = u128::from(self.bits()) * u128::from(bound);
            let (high, low) = split(product);
            if low >= threshold {
                return high;
            }
        }
    }

    /// A whole number in [0, bound) for indexing.
    #[allow(clippy::cast_possible_truncation)] // Below a usize.
    pub fn index(&mut self, bound: usize) -> usize {
        self.below(bound as u64) as usize
    }
}

#[allow(clippy::cast_possible_truncation)] // The halves of 128 bits.
fn split(product: u128) -> (u64, u64) {
    ((product >> 64) as u64, product as u64)
}

/// The order of an epoch: every number below `count` once (Fisher-Yates).
#[must_use]
pub fn permutation(count: usize, seed: u64, epoch: u64) -> Vec<i64> {
    let mut rng = Rng::new(seed, epoch, 0, Purpose::Order);
    #[allow(clippy::cast_possible_wrap)] // No collection has 2^63 records.
    let mut order: Vec<i64> = (0..count as i64).collect();
    for last in (1..count).rev() {
        order.swap(last, rng.index(last + 1));
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permutation_holds_every_number_once() {
        assert!(permutation(0, 1, 2).is_empty());
        for count in [1, 2, 7, 1000] {
            let mut order = permutation(count, 3, 4);
            order.sort_unstable();
            assert!((0..).zip(&order).all(|(i, &n)| i == n));
        }
    }

    #[test]
    fn permutation_depends_on_seed_and_epoch() {
        let order = permutation(100, 0, 0);
        assert_eq!(order, permutation(100, 0, 0));
        assert_ne!(order, permutation(100, 1, 0));
        assert_ne!(order, permutation(100, 0, 1));
    }

    #[test]
    fn every_part_of_the_key_counts() {
        let first = |seed, epoch, index, purpose| Rng::new(seed, epoch, index, purpose).bits();
        let base = first(0, 0, 0, Purpose::Picture(0));
        assert_ne!(base, first(1, 0, 0, Purpose::Picture(0)));
        assert_ne!(base, first(0, 1, 0, Purpose::Picture(0)));
        assert_ne!(base, first(0, 0, 1, Purpose::Picture(0)));
        assert_ne!(base, first(0, 0, 0, Purpose::Picture(1)));
        assert_ne!(
            first(1, 0, 0, Purpose::Order),
            first(0, 1, 0, Purpose::Order)
        );
    }

    #[test]
    fn draws_are_uniform() {
        let mut counts = [0_u32; 10];
        for index in 0..20_000 {
            counts[Rng::new(5, 6, index, Purpose::MaskedWords).index(10)] += 1;
        }
        // Mean 2000, standard deviation 42.
        assert!(
            counts.iter().all(|&n| (1800..2200).contains(&n)),
            "{counts:?}"
        );
    }
}
