//! Loader configuration.

use std::sync::Arc;

use crate::decode_limits::DecodeLimits;
use crate::error::named;
use crate::loader::record::Task;
use crate::normalize::layout::{Dtype, Layout};
use crate::tokenizer::Tokenizer;
use crate::tokenizer::masking::Masker;
use crate::transform::Transform;

/// Configuration of a loader.
#[derive(Clone)]
pub struct LoaderConfig {
    /// Task that the batches are for.
    pub task: Task,
    /// Tokenizer of the texts.
    pub tokenizer: Arc<Tokenizer>,
    /// Transform applied to images and boxes.
    pub transform: Transform,
    /// Maximum text length in tokens, including special tokens.
    pub max_tokens: usize,
    /// Seed of all random numbers.
    pub seed: u64,
    /// MLM masking of texts of at most `max_tokens`, for [`Task::ImageText`].
    pub masker: Option<Arc<Masker>>,
    /// For each answer, its counterpart for the mirrored image.
    pub mirrored_answers: Vec<usize>,
    /// Policy for bad samples.
    pub on_error: OnError,
    /// Accept truncated or damaged JPEGs, filled as in libjpeg.
    pub accept_truncated: bool,
    /// Decode JPEGs at 1/2, 1/4 or 1/8 of their size if enough pixels remain.
    pub scaled_decoding: bool,
    /// Apply the EXIF orientation; boxes then refer to the rotated image.
    pub apply_orientation: bool,
    /// Background color for transparent images; without one, alpha is dropped.
    pub background: Option<[u8; 3]>,
    /// Data type of the pixels.
    pub dtype: Dtype,
    /// Memory layout of the pixels.
    pub layout: Layout,
    /// Limits of decoding one image.
    pub limits: DecodeLimits,
}

/// Policy for a bad sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// Fail the whole batch.
    Raise,
    /// Drop the sample and report it.
    Skip,
    /// Wait for a replacement record.
    Resample,
}

named!(
    OnError,
    "on_error",
    [Raise = "raise", Skip = "skip", Resample = "resample"]
);

impl LoaderConfig {
    /// Bytes of one image padded to (height, width) pixels.
    pub(crate) fn slot_bytes(&self, size: (usize, usize)) -> usize {
        // If the product wrapped around, it would be too small.
        let values = size.0.saturating_mul(size.1).saturating_mul(3);
        values.saturating_mul(self.dtype.bytes())
    }
}
