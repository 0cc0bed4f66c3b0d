//! What a loader does with records and pictures.

use std::sync::Arc;

use crate::Error;
use crate::loader::record::Task;
use crate::normalize::layout::{Dtype, Layout};
use crate::tokenizer::Tokenizer;
use crate::transform::Transform;

/// Everything that turns records into samples.
#[derive(Clone)]
pub struct LoaderConfig {
    /// What the batches are for.
    pub task: Task,
    /// For the text.
    pub tokenizer: Arc<Tokenizer>,
    /// For the pictures and boxes.
    pub transform: Transform,
    /// Longest text in tokens, those around every text included.
    pub max_tokens: usize,
    /// Start of every random draw.
    pub seed: u64,
    /// Part of the tokens that is picked for masking.
    pub mlm_probability: f64,
    /// For each answer, the one that is right in the mirrored picture.
    pub mirrored_answers: Vec<usize>,
    /// What happens to a bad sample.
    pub on_error: OnError,
    /// Take pictures with missing or damaged parts, filled as libjpeg fills them.
    pub accept_truncated: bool,
    /// Decode JPEGs at a half, quarter or eighth of their size where that leaves pixels enough.
    pub scaled_decoding: bool,
    /// Turn pictures as EXIF says; boxes are then those of the turned picture.
    pub apply_orientation: bool,
    /// Colour that transparent pictures are laid over; without one alpha is dropped.
    pub background: Option<[u8; 3]>,
    /// What values of pictures are stored as.
    pub dtype: Dtype,
    /// Where they stand.
    pub layout: Layout,
    /// Largest picture.
    pub max_pixels: usize,
}

/// What happens to a sample that cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// It is the error of its batch.
    Raise,
    /// It is left out and told.
    Skip,
    /// Its batch waits until another record is handed in for it.
    Resample,
}

impl OnError {
    /// Find a policy by name.
    ///
    /// # Errors
    /// [`Error::Argument`] for another name.
    pub fn from_name(name: &str) -> Result<Self, Error> {
        match name {
            "raise" => Ok(Self::Raise),
            "skip" => Ok(Self::Skip),
            "resample" => Ok(Self::Resample),
            _ => Err(Error::argument(
                "on_error",
                format!("'{name}' is no policy; expected 'raise', 'skip' or 'resample'"),
            )),
        }
    }
}

impl LoaderConfig {
    /// Bytes of one picture's place of (height, width) pixels in a batch.
    #[must_use]
    pub fn slot_bytes(&self, size: (usize, usize)) -> usize {
        // A product that wraps would be less than what is written.
        let values = size.0.saturating_mul(size.1).saturating_mul(3);
        values.saturating_mul(self.dtype.bytes())
    }
}
