//! Options of masking, and what its random numbers depend on.

use crate::Error;
use crate::error::{check_probability, named};

/// What is picked for MLM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MlmUnit {
    /// Each token with the same probability.
    #[default]
    Token,
    /// Each word with the same probability, with all of its tokens.
    Word,
    /// A fixed number of positions of the padded text.
    Position,
}

named!(
    MlmUnit,
    "mlm_unit",
    [Token = "token", Word = "word", Position = "position"]
);

/// Options of masking.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MaskingConfig {
    /// What is picked.
    pub unit: MlmUnit,
    /// Fraction of the units that is picked.
    pub probability: f64,
    /// Seed of the random numbers.
    pub seed: u64,
}

impl MaskingConfig {
    /// Check the probability.
    pub(crate) fn check(&self) -> Result<(), Error> {
        check_probability("mlm_probability", self.probability)
    }
}

/// What the random numbers of a text depend on, besides the seed.
#[derive(Clone, Copy, Debug, Default)]
pub struct TextPlace {
    /// Epoch.
    pub epoch: u64,
    /// Index of the record.
    pub index: u64,
    /// Position of the text in an endless stream, if it is from one. Words are then picked by it,
    /// in place of the epoch and the index.
    pub in_stream: Option<u64>,
}
