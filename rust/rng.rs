//! Counter-based random numbers that depend only on (seed, epoch, sample, purpose), not on threads
//! or order.
//!
//! `SplitMix64` (Steele et al. 2014) is seeded with a hash of the key, so the numbers of a sample
//! do not depend on other samples.

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// Purpose of a stream; each purpose has its own stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Shuffling an epoch.
    Order,
    /// Sampling the transform of the image with this index in the record.
    Image(u8),
    /// MLM masking.
    MaskedWords,
    /// Choosing a replacement for a bad record, with the number of the attempt.
    Replacement(u8),
}

impl Purpose {
    fn code(self) -> u64 {
        match self {
            Self::Order => 1,
            Self::MaskedWords => 2,
            Self::Image(number) => 0x100 + u64::from(number),
            Self::Replacement(attempt) => 0x200 + u64::from(attempt),
        }
    }
}

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub struct Rng {
    state: u64,
}

/// Finalizer of `SplitMix64`: every output bit depends on every input bit.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl Rng {
    /// The stream of sample `index` in an epoch.
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

    /// Uniform float in [0, 1).
    #[allow(clippy::cast_precision_loss)] // Doubles represent 53 bits exactly.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Uniform float in [low, high).
    pub fn range(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Uniform integer in [0, bound); 0 if `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 {
            return 0;
        }
        // Lemire 2019: take the high half of the product, and reject biased low halves.
        let threshold = bound.wrapping_neg() % bound;
        loop {
            let product = u128::from(self.bits()) * u128::from(bound);
            let (high, low) = split(product);
            if low >= threshold {
                return high;
            }
        }
    }

    /// Uniform index in [0, bound).
    #[allow(clippy::cast_possible_truncation)] // The result fits in a usize.
    pub fn index(&mut self, bound: usize) -> usize {
        self.below(bound as u64) as usize
    }
}

#[allow(clippy::cast_possible_truncation)] // Halves of a 128-bit product.
fn split(product: u128) -> (u64, u64) {
    ((product >> 64) as u64, product as u64)
}

/// Philox 4x64-10 (Salmon et al. 2011) with the same output as NumPy's `Philox(key=...)`.
#[derive(Clone, Debug)]
struct Philox {
    key: [u64; 2],
    counter: u64,
}

impl Philox {
    /// The next four outputs.
    fn block(&mut self) -> [u64; 4] {
        // NumPy increments the counter before generating.
        self.counter = self.counter.wrapping_add(1);
        let mut x = [self.counter, 0, 0, 0];
        let mut key = self.key;
        for _ in 0..10 {
            let (high0, low0) = split(u128::from(x[0]) * 0xD2E7_470E_E14C_6C93);
            let (high1, low1) = split(u128::from(x[2]) * 0xCA5A_8263_9512_1157);
            x = [high1 ^ x[1] ^ key[0], low1, high0 ^ x[3] ^ key[1], low0];
            key[0] = key[0].wrapping_add(0x9E37_79B9_7F4A_7C15);
            key[1] = key[1].wrapping_add(0xBB67_AE85_84CA_A73B);
        }
        x
    }
}

/// Uniform floats for (seed, stream, index), the same as from `fiber.data.rng.Rng` in Python.
#[derive(Clone, Debug)]
pub(crate) struct PhiloxUniform {
    philox: Philox,
    /// Numbers that are still to be returned, in reverse order.
    block: Vec<f64>,
}

impl PhiloxUniform {
    /// Numbers per block; they are returned from the end of a block.
    const BLOCK: usize = 64;
    /// Number of epochs before the numbers of [`Self::of_record`] repeat.
    const EPOCHS: u64 = 1 << 16;

    /// The stream of a sample (`index` below 2^48); streams with different names are independent.
    #[must_use]
    pub fn new(seed: u64, stream: u64, index: u64) -> Self {
        let philox = Philox {
            key: [stream << 48 | index, seed],
            counter: 0,
        };
        Self {
            philox,
            block: Vec::with_capacity(Self::BLOCK),
        }
    }

    /// The stream of a record (`index` below 2^32) in an epoch; epochs repeat after 2^16.
    #[must_use]
    pub fn of_record(seed: u64, stream: u64, epoch: u64, index: u64) -> Self {
        let number = ((epoch % Self::EPOCHS) << 32).wrapping_add(index);
        Self::new(seed, stream, number)
    }

    /// Uniform float in [0, 1).
    #[allow(clippy::should_implement_trait)] // The stream never ends.
    pub fn next(&mut self) -> f64 {
        #[allow(clippy::cast_precision_loss)] // Doubles represent 53 bits exactly.
        if self.block.is_empty() {
            for _ in 0..Self::BLOCK / 4 {
                let raw = self.philox.block();
                let units = raw.map(|bits| (bits >> 11) as f64 / (1_u64 << 53) as f64);
                self.block.extend(units);
            }
        }
        self.block.pop().unwrap_or_default()
    }

    /// Integer in [0, bound), truncated as in Python.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss
    )] // Vocabularies are far below 2^53.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() * bound as f64) as usize
    }
}

/// Shuffled order of an epoch: a permutation of 0..count (Fisher-Yates).
pub(crate) fn permutation(count: usize, seed: u64, epoch: u64) -> Vec<i64> {
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
    fn philox_is_numpys() {
        // `Rng(7, 3, 41).random()` in Python, and the last raw value of the first 64.
        let mut uniform = PhiloxUniform::new(7, 3, 41);
        assert!((uniform.next() - 0.804_295_464_527_483_7).abs() < f64::EPSILON / 4.0);
    }

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
        let base = first(0, 0, 0, Purpose::Image(0));
        assert_ne!(base, first(1, 0, 0, Purpose::Image(0)));
        assert_ne!(base, first(0, 1, 0, Purpose::Image(0)));
        assert_ne!(base, first(0, 0, 1, Purpose::Image(0)));
        assert_ne!(base, first(0, 0, 0, Purpose::Image(1)));
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
