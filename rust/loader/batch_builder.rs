//! State of a batch under construction.
//!
//! If all images have the same output size, each record is prepared and decoded in one step.
//! Otherwise, all records are prepared first because the batch is padded to the largest image.

use std::sync::Arc;

use crate::Error;
use crate::loader::buffer_pool::{BufferPool, PooledBuffer, Slots};
use crate::loader::collate::{self, Batch, Skipped};
use crate::loader::collate_masks::collate_masks;
use crate::loader::config::{LoaderConfig, OnError};
use crate::loader::decode_into::{DecodeRequest, ImageDecoder, ImageStatus};
use crate::loader::sample::{PreparedSample, Sample};
use crate::loader::sample_masks::SampleMasks;

/// Slots for the images of a batch.
#[derive(Clone)]
pub struct ImageSlots {
    slots: Arc<Slots>,
    /// Padded image size (height, width) in pixels.
    size: (usize, usize),
}

pub enum SampleState {
    /// Queued or in progress.
    Pending,
    /// Prepared, but not yet decoded.
    Prepared(Arc<PreparedSample>),
    /// Decoded; the pixels are in the batch.
    Decoded(Arc<PreparedSample>, Box<DecodedSample>),
    Failed(Error),
}

/// What decoding a sample returns besides its pixels.
pub struct DecodedSample {
    status: ImageStatus,
    masks: SampleMasks,
}

/// Collects the samples of a batch.
pub struct BatchBuilder {
    states: Vec<SampleState>,
    /// Number of samples in [`SampleState::Pending`].
    pending: usize,
    image_slots: Option<ImageSlots>,
    skipped: Vec<Skipped>,
    /// Position of the first sample in an endless stream, if it is from one.
    first_sample: Option<u64>,
}

/// A prepared sample that is to be decoded.
pub struct PendingDecode {
    pub index: usize,
    pub prepared: Arc<PreparedSample>,
    pub image_slots: ImageSlots,
}

pub enum NextStep {
    Wait,
    Decode(Vec<PendingDecode>),
    Replace(Vec<(usize, Skipped)>),
    /// The batch is complete, or failed.
    Done(Result<Box<Batch>, Error>),
}

impl ImageSlots {
    fn new(
        count: usize,
        size: (usize, usize),
        config: &LoaderConfig,
        pool: &Arc<BufferPool>,
    ) -> Result<Self, Error> {
        let what = || {
            let shape = collate::image_shape(count, size, config);
            format!(
                "the images of a batch, {shape:?} values of {}; use a smaller batch_size, smaller \
                     images (each is padded to the largest height and width in its batch) or a \
                     smaller prefetch",
                config.dtype.name()
            )
        };
        let images = count * config.task.images();
        let slots = Slots::new(pool, images, config.slot_bytes(size), what)?;
        Ok(Self { slots, size })
    }
}

/// Decode the images of some samples, two at a time, and their masks; return the new state of each
/// sample.
pub fn decode(
    records: Vec<PendingDecode>,
    config: &LoaderConfig,
    decoder: &mut ImageDecoder,
) -> Vec<SampleState> {
    let outcomes = try_decode(&records, config, decoder);
    let records = records.into_iter().zip(outcomes);
    records
        .map(|(pending, outcome)| {
            let PendingDecode {
                prepared,
                image_slots,
                ..
            } = pending;
            let complete = outcome.and_then(|status| {
                let masks = decoder.decode_masks(&prepared, image_slots.size, config)?;
                Ok(DecodedSample { status, masks })
            });
            match complete {
                Ok(both) => SampleState::Decoded(prepared, Box::new(both)),
                Err(error) => SampleState::Failed(error.in_record(&prepared.sample.key)),
            }
        })
        .collect()
}

fn try_decode(
    records: &[PendingDecode],
    config: &LoaderConfig,
    decoder: &mut ImageDecoder,
) -> Vec<Result<ImageStatus, Error>> {
    let mut outcomes: Vec<_> = records.iter().map(|_| Ok(ImageStatus::Ok)).collect();
    let mut note = |record: usize, found: Result<ImageStatus, Error>| {
        if let Some(outcome @ Ok(_)) = outcomes.get_mut(record)
            && !matches!(found, Ok(ImageStatus::Ok))
        {
            *outcome = found;
        }
    };
    let mut images = Vec::with_capacity(records.len());
    for (record, to_decode) in records.iter().enumerate() {
        let first = to_decode.index * config.task.images();
        for (index, (probed, sampled)) in (first..).zip(&to_decode.prepared.images) {
            match to_decode.image_slots.slots.take(index) {
                Some(slot) => {
                    images.push((record, probed, sampled, slot, to_decode.image_slots.size));
                }
                None => note(
                    record,
                    Err(Error::Worker(format!("image {index} has no slot"))),
                ),
            }
        }
    }
    for some in images.chunks_mut(2) {
        let records = (some.first().map(|it| it.0), some.last().map(|it| it.0));
        let mut requests = some
            .iter_mut()
            .map(|(_, probed, sampled, slot, slot_size)| DecodeRequest {
                probed,
                sampled,
                slot,
                slot_size: *slot_size,
            });
        match (requests.next(), requests.next(), records) {
            (Some(first), Some(second), (Some(record), Some(other))) => {
                let [status, status_too] = decoder.decode_two([first, second], config);
                note(record, status);
                note(other, status_too);
            }
            (Some(only), None, (Some(record), _)) => note(record, decoder.decode(only, config)),
            _ => {}
        }
    }
    outcomes
}

impl SampleState {
    /// Drop the encoded images of a sample if it will not be decoded again (`is_final`).
    pub fn without_bytes_if(mut self, is_final: bool) -> Self {
        if is_final
            && let Self::Decoded(prepared, _) = &mut self
            && let Some(prepared) = Arc::get_mut(prepared)
        {
            prepared.images.clear();
            prepared.masks = None;
        }
        self
    }
}

impl BatchBuilder {
    pub fn new(
        count: usize,
        first_sample: Option<u64>,
        config: &LoaderConfig,
        pool: &Arc<BufferPool>,
    ) -> Self {
        Self {
            states: (0..count).map(|_| SampleState::Pending).collect(),
            pending: count,
            image_slots: (config.transform.geometry)
                .fixed_size()
                .filter(|_| count > 0)
                // If memory is short, allocation is retried once all samples are prepared, when
                // another batch may have been freed.
                .and_then(|size| ImageSlots::new(count, size, config, pool).ok()),
            skipped: Vec::new(),
            first_sample,
        }
    }

    /// The slots, if samples can be decoded before all of them are prepared.
    pub fn slots_if_fixed_size(&self, config: &LoaderConfig) -> Option<ImageSlots> {
        self.image_slots
            .clone()
            .filter(|_| config.transform.geometry.fixed_size().is_some())
    }

    /// Record the outcome of a sample. Returns true for the last pending sample; only then may the
    /// caller call [`Self::advance`], so that a finished batch is not processed twice.
    #[must_use]
    pub fn record_outcome(&mut self, index: usize, outcome: SampleState) -> bool {
        if let Some(entry) = self.states.get_mut(index) {
            *entry = outcome;
            self.pending -= 1;
        }
        self.pending == 0
    }

    pub fn reopen(&mut self, count: usize) {
        self.pending += count;
    }

    /// Determine what the batch needs next.
    pub fn advance(&mut self, config: &LoaderConfig, pool: &Arc<BufferPool>) -> NextStep {
        if self.pending > 0 {
            return NextStep::Wait;
        }
        // Which samples are skipped must not depend on free memory.
        let is_final = |error: &Error| config.on_error == OnError::Raise || error.is_memory();
        for state in &mut self.states {
            if matches!(state, SampleState::Failed(error) if is_final(error))
                && let SampleState::Failed(error) = std::mem::replace(state, SampleState::Pending)
            {
                return NextStep::Done(Err(error));
            }
        }
        if config.on_error == OnError::Resample {
            let failed = self.take_failed();
            if !failed.is_empty() {
                let reports = failed.iter().map(|(_, skipped)| skipped.clone());
                self.skipped.extend(reports);
                return NextStep::Replace(failed);
            }
        }
        match self.undecoded(config, pool) {
            Err(error) => NextStep::Done(Err(error)),
            Ok(to_decode) if to_decode.is_empty() => NextStep::Done(self.collate(config)),
            Ok(to_decode) => {
                self.pending = to_decode.len();
                NextStep::Decode(to_decode)
            }
        }
    }

    fn take_failed(&mut self) -> Vec<(usize, Skipped)> {
        let mut failed = Vec::new();
        for (index, state) in self.states.iter_mut().enumerate() {
            if let SampleState::Failed(error) = state {
                failed.push((index, skipped(error)));
                *state = SampleState::Pending;
            }
        }
        failed
    }

    /// Samples that are to be decoded; all of them if the padded size has changed.
    fn undecoded(
        &mut self,
        config: &LoaderConfig,
        pool: &Arc<BufferPool>,
    ) -> Result<Vec<PendingDecode>, Error> {
        let fixed = config.transform.geometry.fixed_size();
        let size = fixed.unwrap_or_else(|| self.padded_size(config));
        if self.image_slots.as_ref().is_none_or(|it| it.size != size) && size.0 > 0 {
            let image_slots = ImageSlots::new(self.states.len(), size, config, pool)?;
            self.image_slots = Some(image_slots);
            for state in &mut self.states {
                if let SampleState::Decoded(prepared, _) = state {
                    *state = SampleState::Prepared(Arc::clone(prepared));
                }
            }
        }
        let Some(image_slots) = &self.image_slots else {
            return Ok(Vec::new());
        };
        let mut to_decode = Vec::new();
        for (index, state) in self.states.iter_mut().enumerate() {
            if let SampleState::Prepared(prepared) = state {
                to_decode.push(PendingDecode {
                    index,
                    prepared: Arc::clone(prepared),
                    image_slots: image_slots.clone(),
                });
                *state = SampleState::Pending;
            }
        }
        Ok(to_decode)
    }

    /// Padded (height, width): the largest image, rounded up to the divisor; 0 if there are none.
    fn padded_size(&self, config: &LoaderConfig) -> (usize, usize) {
        let mut size = (0, 0);
        for state in &self.states {
            if let SampleState::Prepared(prepared) | SampleState::Decoded(prepared, _) = state {
                for (_, sampled) in &prepared.images {
                    size = (size.0.max(sampled.height), size.1.max(sampled.width));
                }
            }
        }
        let divisor = config.transform.divisor();
        (
            size.0.next_multiple_of(divisor),
            size.1.next_multiple_of(divisor),
        )
    }

    /// Collate the decoded samples; bad samples are dropped and reported in `skipped`.
    fn collate(&mut self, config: &LoaderConfig) -> Result<Box<Batch>, Error> {
        let mut samples: Vec<&Sample> = Vec::with_capacity(self.states.len());
        let mut statuses = Vec::with_capacity(self.states.len());
        let mut masks = Vec::with_capacity(self.states.len());
        let mut kept = Vec::with_capacity(self.states.len());
        for (index, state) in self.states.iter().enumerate() {
            match state {
                SampleState::Decoded(prepared, decoded) => {
                    samples.push(&prepared.sample);
                    statuses.push(decoded.status);
                    masks.push((&prepared.sample, &decoded.masks));
                    kept.push(index);
                }
                SampleState::Failed(error) => self.skipped.push(skipped(error)),
                SampleState::Pending | SampleState::Prepared(_) => {
                    return Err(Error::Worker(format!("sample {index} was not decoded")));
                }
            }
        }
        let image_slots = self.image_slots.take().filter(|_| !samples.is_empty());
        let (mut size, mut images) = ((0, 0), None);
        if let Some(image_slots) = image_slots {
            size = image_slots.size;
            let record_bytes = config.slot_bytes(size) * config.task.images();
            let block = image_slots.slots.into_block();
            let in_use = || Error::Worker("a slot of a finished batch is in use".to_owned());
            let block = block.ok_or_else(in_use)?;
            images = Some(without_gaps(block, &kept, record_bytes));
        }
        let mut batch = collate::collate(&samples, images, size, self.first_sample, config)?;
        if config.task.has_masks() {
            batch.masks = collate_masks(&masks, size, config.tokenizer.special_tokens())?;
        }
        batch.statuses = statuses;
        batch.skipped = std::mem::take(&mut self.skipped);
        Ok(Box::new(batch))
    }
}

/// Move the samples that are kept to the front.
fn without_gaps(mut block: PooledBuffer, kept: &[usize], record_bytes: usize) -> PooledBuffer {
    for (to, &from) in kept.iter().enumerate() {
        if to != from {
            let start = from * record_bytes;
            block.copy_within(start..start + record_bytes, to * record_bytes);
        }
    }
    block.truncate(kept.len() * record_bytes);
    block
}

fn skipped(error: &Error) -> Skipped {
    let (key, reason) = match error {
        Error::InRecord { key, source } => (key.clone(), source.to_string()),
        other => (String::new(), other.to_string()),
    };
    Skipped {
        key,
        status: error.status(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::config;
    use crate::loader::record::Task;

    #[test]
    fn only_the_last_pending_sample_returns_true() {
        let (config, pool) = (config(Task::ImageText), BufferPool::new(1));
        let mut builder = BatchBuilder::new(3, None, &config, &pool);
        let bad = || SampleState::Failed(Error::Worker(String::new()).in_record("a"));
        assert!(!builder.record_outcome(2, bad()));
        assert!(matches!(builder.advance(&config, &pool), NextStep::Wait));
        assert!(!builder.record_outcome(0, bad()));
        assert!(builder.record_outcome(1, bad()));
        let NextStep::Done(Err(error)) = builder.advance(&config, &pool) else {
            panic!("not done");
        };
        assert!(error.to_string().starts_with("record 'a': "));
        // A bad sample is replaced.
        builder.reopen(1);
        assert!(builder.record_outcome(1, bad()));
    }

    #[test]
    fn failed_allocations_do_not_skip_records() {
        let (mut config, pool) = (config(Task::ImageText), BufferPool::new(1));
        for policy in [OnError::Skip, OnError::Resample] {
            config.on_error = policy;
            let mut builder = BatchBuilder::new(1, None, &config, &pool);
            let error = Error::Memory {
                bytes: 1,
                what: "a test".to_owned(),
            };
            assert!(builder.record_outcome(0, SampleState::Failed(error.in_record("a"))));
            let NextStep::Done(Err(error)) = builder.advance(&config, &pool) else {
                panic!("left out");
            };
            assert!(error.is_memory());
        }
    }
}
