//! Worker threads: prepare records, decode images, collate batches.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::Error;
use crate::error::{catch_panic, caught};
use crate::loader::batch_builder::{self, BatchBuilder, NextStep, PendingDecode, SampleState};
use crate::loader::buffer_pool::BufferPool;
use crate::loader::collate::{Batch, Skipped};
use crate::loader::config::LoaderConfig;
use crate::loader::decode_into::ImageDecoder;
use crate::loader::record::Record;
use crate::loader::sample::prepare_sample;

/// Maximum number of records that a thread takes at a time. Files of similar length in a group are
/// decoded in pairs; when one image of a pair ends early, the rest of the other is decoded alone.
const GROUP: usize = 8;

/// A unit of work: one record of a batch.
pub(crate) struct Job {
    pub(crate) sample: SampleRef,
    pub(crate) kind: JobKind,
}

/// A sample of a batch.
pub(crate) struct SampleRef {
    pub(crate) session: Arc<SessionState>,
    pub(crate) batch: Arc<Mutex<BatchBuilder>>,
    pub(crate) index: usize,
}

pub(crate) enum JobKind {
    /// Read and prepare the record.
    Prepare(Arc<Record>),
    /// Decode the images of a prepared sample into the batch.
    Decode(PendingDecode),
}

impl SampleRef {
    /// True if the session is closed.
    fn is_closed(&self) -> bool {
        lock(&self.session.queue).closed
    }
}

#[derive(Default)]
pub(crate) struct SessionState {
    pub(crate) queue: Mutex<Queue>,
    pub(crate) changed: Condvar,
}

/// A queued batch, with its outcome once available.
pub(crate) struct QueuedBatch {
    pub(crate) batch: Arc<Mutex<BatchBuilder>>,
    pub(crate) outcome: Option<BatchOutcome>,
}

pub(crate) enum BatchOutcome {
    Done(Result<Box<Batch>, Error>),
    Replace(Vec<(usize, Skipped)>),
}

/// Batches of a session, in order.
#[derive(Default)]
pub(crate) struct Queue {
    pub(crate) slots: VecDeque<QueuedBatch>,
    pub(crate) finished: bool,
    pub(crate) closed: bool,
}

#[derive(Default)]
pub(crate) struct Jobs {
    /// Jobs taken first because their batches are further along.
    pub(crate) to_decode: VecDeque<Job>,
    pub(crate) to_prepare: VecDeque<Job>,
    pub(crate) stopped: bool,
}

impl Jobs {
    fn pop(&mut self) -> Option<Job> {
        let urgent = self.to_decode.pop_front();
        urgent.or_else(|| self.to_prepare.pop_front())
    }

    /// Take a share of the jobs, leaving enough for the other threads.
    fn take(&mut self, threads: usize) -> Vec<Job> {
        let waiting = self.to_decode.len() + self.to_prepare.len();
        let count = (waiting / threads.max(1)).clamp(1, GROUP);
        std::iter::from_fn(|| self.pop()).take(count).collect()
    }
}

/// State shared by threads and sessions.
pub(crate) struct WorkerPool {
    pub(crate) config: LoaderConfig,
    pub(crate) threads: usize,
    pub(crate) pool: Arc<BufferPool>,
    pub(crate) jobs: Mutex<Jobs>,
    pub(crate) changed: Condvar,
}

/// The error of a panic. A batch whose worker is lost would never finish.
fn panicked(why: &str) -> Error {
    Error::Worker(format!("it panicked: {why}"))
}

/// Lock a mutex; even if it is poisoned, the state is consistent.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl WorkerPool {
    /// Run jobs until the loader stops.
    pub(crate) fn work(&self, mut decoder: ImageDecoder) {
        loop {
            let jobs = {
                let mut jobs = self
                    .changed
                    .wait_while(lock(&self.jobs), |jobs| {
                        jobs.to_decode.is_empty() && jobs.to_prepare.is_empty() && !jobs.stopped
                    })
                    .unwrap_or_else(PoisonError::into_inner);
                if jobs.stopped {
                    return;
                }
                jobs.take(self.threads)
            };
            self.run_jobs(jobs, &mut decoder);
        }
    }

    /// Prepare new records, then decode in pairs.
    fn run_jobs(&self, jobs: Vec<Job>, decoder: &mut ImageDecoder) {
        let mut ready = Vec::with_capacity(jobs.len());
        for job in jobs {
            let Job {
                sample: sample_ref,
                kind,
            } = job;
            if sample_ref.is_closed() {
                continue;
            }
            match kind {
                JobKind::Prepare(record) => match self.prepare(&record, &sample_ref) {
                    Ok(to_decode) => ready.push((sample_ref, to_decode, true)),
                    Err(outcome) => self.record_outcome(&sample_ref, outcome),
                },
                JobKind::Decode(to_decode) => ready.push((sample_ref, to_decode, false)),
            }
        }
        ready.sort_by_key(|(_, to_decode, _)| to_decode.prepared.bytes());
        let mut ready = ready.into_iter();
        loop {
            let some: Vec<_> = ready.by_ref().take(2).collect();
            if some.is_empty() {
                return;
            }
            self.decode(some, decoder);
        }
    }

    /// Decode samples and record their outcomes. A flag is true if its sample will not be decoded
    /// again.
    fn decode(&self, ready: Vec<(SampleRef, PendingDecode, bool)>, decoder: &mut ImageDecoder) {
        let (mut sample_refs, mut records) = (Vec::new(), Vec::new());
        for (sample_ref, to_decode, is_final) in ready {
            if !sample_ref.is_closed() {
                sample_refs.push((sample_ref, is_final));
                records.push(to_decode);
            }
        }
        if records.is_empty() {
            return;
        }
        let keys = records.iter().map(|it| it.prepared.sample.key.clone());
        let keys: Vec<_> = keys.collect();
        let decode = || batch_builder::decode(records, &self.config, decoder);
        let outcomes = caught(decode).unwrap_or_else(|why| {
            // The decoder's buffers may be inconsistent.
            if let Ok(new) = ImageDecoder::new(&self.config) {
                *decoder = new;
            }
            let failed = |key: &String| SampleState::Failed(panicked(&why).in_record(key));
            keys.iter().map(failed).collect()
        });
        for ((sample_ref, is_final), outcome) in sample_refs.into_iter().zip(outcomes) {
            self.record_outcome(&sample_ref, outcome.without_bytes_if(is_final));
        }
    }

    /// Prepare a record. Returns the sample's state if it cannot be decoded yet.
    fn prepare(
        &self,
        record: &Record,
        sample_ref: &SampleRef,
    ) -> Result<PendingDecode, SampleState> {
        let prepare = || prepare_sample(&self.config, record);
        let prepared = catch_panic(prepare, |why| panicked(why).in_record(&record.key))
            .map_err(SampleState::Failed)?;
        let prepared = Arc::new(prepared);
        match lock(&sample_ref.batch).slots_if_fixed_size(&self.config) {
            Some(image_slots) => Ok(PendingDecode {
                index: sample_ref.index,
                prepared,
                image_slots,
            }),
            None => Err(SampleState::Prepared(prepared)),
        }
    }

    fn record_outcome(&self, sample_ref: &SampleRef, outcome: SampleState) {
        let is_last = lock(&sample_ref.batch).record_outcome(sample_ref.index, outcome);
        if is_last {
            self.advance(&sample_ref.session, &sample_ref.batch);
        }
    }

    /// Start the next step of a batch if no sample is pending.
    pub(crate) fn advance(&self, session: &Arc<SessionState>, batch: &Arc<Mutex<BatchBuilder>>) {
        let next = caught(|| lock(batch).advance(&self.config, &self.pool));
        let outcome = match next.unwrap_or_else(|why| NextStep::Done(Err(panicked(&why)))) {
            NextStep::Wait => return,
            NextStep::Decode(states) => {
                let jobs = states.into_iter().map(|to_decode| Job {
                    sample: SampleRef {
                        session: Arc::clone(session),
                        batch: Arc::clone(batch),
                        index: to_decode.index,
                    },
                    kind: JobKind::Decode(to_decode),
                });
                lock(&self.jobs).to_decode.extend(jobs);
                self.changed.notify_all();
                return;
            }
            NextStep::Replace(states) => BatchOutcome::Replace(states),
            NextStep::Done(outcome) => BatchOutcome::Done(outcome),
        };
        let mut queue = lock(&session.queue);
        let mut slots = queue.slots.iter_mut();
        if let Some(slot) = slots.find(|slot| Arc::ptr_eq(&slot.batch, batch)) {
            slot.outcome = Some(outcome);
        }
        drop(queue);
        session.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{config, record};
    use crate::loader::record::Task;
    use crate::transform::Geometry;
    use crate::transform::crop::RandomCrop;

    #[test]
    fn a_thread_takes_its_share_and_no_more_than_eight() {
        let (config, pool) = (config(Task::ImageText), BufferPool::new(1));
        for (waiting, threads, expected) in
            [(1, 2, 1), (5, 2, 2), (5, 8, 1), (16, 2, 8), (99, 1, 8)]
        {
            let mut jobs = Jobs::default();
            for index in 0..waiting {
                jobs.to_prepare.push_back(Job {
                    sample: SampleRef {
                        session: Arc::default(),
                        batch: Arc::new(Mutex::new(BatchBuilder::new(0, None, &config, &pool))),
                        index,
                    },
                    kind: JobKind::Prepare(Arc::new(record("a"))),
                });
            }
            let states: Vec<_> = jobs
                .take(threads)
                .iter()
                .map(|job| job.sample.index)
                .collect();
            assert_eq!(
                states,
                (0..expected).collect::<Vec<_>>(),
                "{waiting} {threads}"
            );
            assert_eq!(jobs.to_prepare.len(), waiting - expected);
        }
    }

    #[test]
    fn a_panic_is_the_error_of_its_batch() {
        // `Loader::new` rejects both: with no sizes, preparing a record panics; a batch with a
        // divisor of 0, when all of its records are prepared.
        for (sizes, divisor) in [(vec![], 1), (vec![8], 0)] {
            let mut config = config(Task::ImageText);
            config.transform.geometry = Geometry::ShorterSide {
                sizes,
                max_size: 8,
                divisor,
                cut: RandomCrop::off(),
            };
            let workers = WorkerPool {
                config,
                threads: 1,
                pool: BufferPool::new(1),
                jobs: Mutex::default(),
                changed: Condvar::new(),
            };
            let builder = BatchBuilder::new(1, None, &workers.config, &workers.pool);
            let batch = Arc::new(Mutex::new(builder));
            let session = Arc::<SessionState>::default();
            lock(&session.queue).slots.push_back(QueuedBatch {
                batch: Arc::clone(&batch),
                outcome: None,
            });
            let job = Job {
                sample: SampleRef {
                    session: Arc::clone(&session),
                    batch,
                    index: 0,
                },
                kind: JobKind::Prepare(Arc::new(record("a"))),
            };
            let mut decoder = ImageDecoder::new(&workers.config).unwrap();
            workers.run_jobs(vec![job], &mut decoder);
            let outcome = lock(&session.queue).slots.pop_front().unwrap().outcome;
            let Some(BatchOutcome::Done(Err(error))) = outcome else {
                panic!("the batch would never end");
            };
            assert!(error.to_string().contains("it panicked: "), "{error}");
        }
    }
}
