//! Data loader: worker threads that turn records into batches, in order.
//!
//! A [`Loader`] owns the threads. A [`Session`] is one epoch: batches of records are submitted with
//! [`Session::submit`], and [`Session::next`] returns finished batches in the same order. The queue
//! is unbounded; the caller limits the number of batches in flight.

mod batch_builder;
pub(crate) mod buffer_pool;
pub mod collate;
pub mod collate_masks;
pub mod config;
mod decode_into;
mod probed_image;
pub mod record;
pub(crate) mod sample;
pub mod sample_masks;
mod workers;

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::Error;
use crate::loader::batch_builder::BatchBuilder;
use crate::loader::buffer_pool::BufferPool;
use crate::loader::collate::{Batch, Skipped};
use crate::loader::config::LoaderConfig;
use crate::loader::decode_into::ImageDecoder;
use crate::loader::record::Record;
use crate::loader::workers::{
    BatchOutcome, Job, JobKind, QueuedBatch, SampleRef, SessionState, WorkerPool, lock,
};

/// Worker threads and their config.
pub struct Loader {
    workers: Arc<WorkerPool>,
    threads: Vec<JoinHandle<()>>,
    /// Process that owns the threads; a fork does not inherit them.
    process: u32,
}

/// One epoch.
pub struct Session {
    workers: Arc<WorkerPool>,
    state: Arc<SessionState>,
    process: u32,
}

/// Result of [`Session::next`].
#[derive(Debug)]
pub enum Next {
    /// The next batch.
    Batch(Box<Batch>),
    /// Some samples of the next batch need to be replaced with [`Session::replace`].
    Replace(Vec<(usize, Skipped)>),
    /// The wait timed out.
    NotYet,
    /// The session is finished.
    End,
}

impl Loader {
    /// Start `threads` threads (0: one per core) and keep up to `keep` free batch buffers.
    ///
    /// # Errors
    /// [`Error::Argument`] if a config value is out of range or a thread cannot be started.
    pub fn new(config: LoaderConfig, threads: usize, keep: usize) -> Result<Self, Error> {
        config.transform.check()?;
        if config.task.has_boxes() {
            config.transform.geometry.check_boxes()?;
        }
        if config.task.has_boxes() || config.task.has_masks() {
            config.transform.rand_augment.check_boxes()?;
        }
        config.tokenizer.check_max_tokens(Some(config.max_tokens))?;
        let count = if threads == 0 {
            std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
        } else {
            threads
        };
        let mut loader = Self {
            workers: Arc::new(WorkerPool {
                config,
                threads: count,
                pool: BufferPool::new(keep),
                jobs: Mutex::default(),
                changed: Condvar::new(),
            }),
            threads: Vec::with_capacity(count),
            process: std::process::id(),
        };
        for number in 0..count {
            let workers = Arc::clone(&loader.workers);
            let decoder = ImageDecoder::new(&workers.config)?;
            let thread = std::thread::Builder::new()
                .name(format!("fiber-loader-{number}"))
                .spawn(move || workers.work(decoder))
                .map_err(|error| {
                    let all = format!("could not start thread {number} of {count}: {error}");
                    Error::argument("threads", all)
                })?;
            loader.threads.push(thread);
        }
        Ok(loader)
    }

    /// Start a session.
    #[must_use]
    pub fn open(&self) -> Session {
        Session {
            workers: Arc::clone(&self.workers),
            state: Arc::new(SessionState::default()),
            process: self.process,
        }
    }

    /// Current and peak total size of the batch buffers, in bytes.
    #[must_use]
    pub fn image_bytes(&self) -> (usize, usize) {
        (self.workers.pool.bytes(), self.workers.pool.peak_bytes())
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            return;
        }
        let waiting = {
            let mut jobs = lock(&self.workers.jobs);
            jobs.stopped = true;
            (
                std::mem::take(&mut jobs.to_decode),
                std::mem::take(&mut jobs.to_prepare),
            )
        };
        drop(waiting);
        self.workers.changed.notify_all();
        for thread in self.threads.drain(..) {
            // A worker's panic was already reported with its record.
            let _ = thread.join();
        }
    }
}

impl Session {
    /// Submit the records of one batch. `first_sample` is the position of the first one in an
    /// endless stream, see [`TextPlace::in_stream`](crate::tokenizer::masking::TextPlace).
    pub fn submit(&self, records: Vec<impl Into<Arc<Record>>>, first_sample: Option<u64>) {
        let workers = &self.workers;
        let size = records.len();
        let builder = BatchBuilder::new(size, first_sample, &workers.config, &workers.pool);
        let batch = Arc::new(Mutex::new(builder));
        {
            let mut queue = lock(&self.state.queue);
            if queue.closed {
                return;
            }
            queue.slots.push_back(QueuedBatch {
                batch: Arc::clone(&batch),
                outcome: None,
            });
        }
        if records.is_empty() {
            workers.advance(&self.state, &batch);
            return;
        }
        let jobs = records.into_iter().enumerate();
        let jobs = jobs.map(|(index, record)| self.job(&batch, index, record.into()));
        lock(&workers.jobs).to_prepare.extend(jobs);
        workers.changed.notify_all();
    }

    /// Submit replacements for the samples of [`Next::Replace`].
    pub fn replace(&self, records: Vec<(usize, Arc<Record>)>) {
        let batch = match lock(&self.state.queue).slots.front() {
            Some(slot) => Arc::clone(&slot.batch),
            None => return,
        };
        lock(&batch).reopen(records.len());
        let jobs = records.into_iter();
        let jobs = jobs.map(|(index, record)| self.job(&batch, index, record));
        lock(&self.workers.jobs).to_decode.extend(jobs);
        self.workers.changed.notify_all();
    }

    fn job(&self, batch: &Arc<Mutex<BatchBuilder>>, index: usize, record: Arc<Record>) -> Job {
        Job {
            sample: SampleRef {
                session: Arc::clone(&self.state),
                batch: Arc::clone(batch),
                index,
            },
            kind: JobKind::Prepare(record),
        }
    }

    /// Signal that no more batches will be submitted.
    pub fn finish(&self) {
        lock(&self.state.queue).finished = true;
        self.state.changed.notify_all();
    }

    /// Discard all pending batches.
    pub fn close(&self) {
        if self.process != std::process::id() {
            return;
        }
        let dropped = {
            let mut queue = lock(&self.state.queue);
            queue.closed = true;
            queue.finished = true;
            std::mem::take(&mut queue.slots)
        };
        drop(dropped);
        let mut jobs = lock(&self.workers.jobs);
        let other = |job: &Job| !Arc::ptr_eq(&job.sample.session, &self.state);
        jobs.to_decode.retain(other);
        jobs.to_prepare.retain(other);
        drop(jobs);
        self.state.changed.notify_all();
    }

    /// Wait for the next batch, at most `timeout`.
    ///
    /// # Errors
    /// The first error among the records of the batch, unless bad samples are skipped or replaced;
    /// [`Error::Closed`] if no threads are left.
    pub fn next(&self, timeout: Duration) -> Result<Next, Error> {
        // Check before locking: a thread of the parent may have held the lock during the fork.
        if self.process != std::process::id() {
            return Err(Error::Closed(
                "session was opened in another process, and its worker threads do not exist here; \
                 open a session in this process",
            ));
        }
        let (mut queue, _) = self
            .state
            .changed
            .wait_timeout_while(lock(&self.state.queue), timeout, |queue| {
                match queue.slots.front() {
                    Some(slot) => slot.outcome.is_none(),
                    None => !queue.finished,
                }
            })
            .unwrap_or_else(PoisonError::into_inner);
        match queue.slots.front_mut().map(|slot| slot.outcome.take()) {
            Some(Some(BatchOutcome::Done(outcome))) => {
                queue.slots.pop_front();
                Ok(Next::Batch(outcome?))
            }
            Some(Some(BatchOutcome::Replace(states))) => Ok(Next::Replace(states)),
            None if queue.finished => Ok(Next::End),
            _ if lock(&self.workers.jobs).stopped => Err(Error::Closed(
                "the loader was closed during this session; open a new session, which starts its \
                 own threads",
            )),
            _ => Ok(Next::NotYet),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{config, png, record};
    use crate::loader::config::OnError;
    use crate::loader::record::{StoredImage, Task};
    use crate::transform::Geometry;
    use crate::transform::crop::RandomCrop;

    const LONG: Duration = Duration::from_secs(20);

    fn keys(session: &Session) -> Vec<Vec<String>> {
        let mut all = Vec::new();
        loop {
            match session.next(LONG).unwrap() {
                Next::Batch(batch) => all.push(batch.keys),
                Next::NotYet | Next::Replace(_) => panic!("no batch in time"),
                Next::End => return all,
            }
        }
    }

    #[test]
    fn no_batches_end_at_once() {
        let loader = Loader::new(config(Task::ImageText), 1, 2).unwrap();
        let session = loader.open();
        assert!(matches!(session.next(Duration::ZERO), Ok(Next::NotYet)));
        session.finish();
        assert!(matches!(session.next(LONG), Ok(Next::End)));
    }

    #[test]
    fn an_empty_batch_comes_out_empty() {
        let loader = Loader::new(config(Task::ImageText), 1, 2).unwrap();
        let session = loader.open();
        session.submit(Vec::<Record>::new(), None);
        let Ok(Next::Batch(batch)) = session.next(LONG) else {
            panic!("no batch");
        };
        assert_eq!(batch.image_shape, [0, 3, 0, 0]);
    }

    #[test]
    fn batches_come_in_order_whatever_they_cost() {
        let loader = Loader::new(config(Task::ImageText), 4, 2).unwrap();
        let session = loader.open();
        for batch in 0..20_usize {
            let side = if batch % 3 == 0 { 300 } else { 2 };
            let records = (0..3).map(|index| {
                let mut record = record(&format!("{batch}.{index}"));
                record.images = vec![StoredImage::Bytes(Arc::new(png(side, side)))];
                record
            });
            session.submit(records.collect(), None);
        }
        session.finish();
        let keys = keys(&session);
        assert_eq!(keys.len(), 20);
        for (batch, keys) in keys.iter().enumerate() {
            assert_eq!(*keys, [0, 1, 2].map(|index| format!("{batch}.{index}")));
        }
    }

    #[test]
    fn an_error_is_raised_in_its_batch_only() {
        let loader = Loader::new(config(Task::ImageText), 2, 2).unwrap();
        let session = loader.open();
        let mut bad = record("bad");
        bad.images = vec![StoredImage::Bytes(Arc::new(Vec::new()))];
        session.submit(vec![record("a")], None);
        session.submit(vec![record("b"), bad], None);
        session.submit(vec![record("c")], None);
        assert!(matches!(session.next(LONG), Ok(Next::Batch(_))));
        let error = session.next(LONG).unwrap_err();
        assert!(error.to_string().starts_with("record 'bad': "), "{error}");
        assert!(matches!(session.next(LONG), Ok(Next::Batch(_))));
    }

    #[test]
    fn bad_samples_are_skipped_and_reported() {
        let mut config = config(Task::ImageText);
        config.on_error = OnError::Skip;
        let loader = Loader::new(config, 2, 2).unwrap();
        let session = loader.open();
        let mut bad = record("bad");
        bad.images = vec![StoredImage::Path("no/such.png".into())];
        session.submit(vec![record("a"), bad, record("b")], None);
        let Ok(Next::Batch(batch)) = session.next(LONG) else {
            panic!("no batch");
        };
        assert_eq!(batch.keys, ["a", "b"]);
        assert_eq!(batch.skipped.len(), 1);
        assert!(batch.skipped[0].reason.starts_with("no/such.png: "));
    }

    #[test]
    fn a_batch_too_large_for_memory_is_an_error_of_its_own_only() {
        let mut config = config(Task::ImageText);
        config.transform.geometry = Geometry::ShorterSide {
            sizes: vec![1],
            max_size: 100_000,
            divisor: 1,
            cut: RandomCrop::off(),
        };
        // Unlike a bad record, a failed allocation is not skipped.
        config.on_error = OnError::Skip;
        let loader = Loader::new(config, 2, 2).unwrap();
        let session = loader.open();
        let with_size = |height, width| {
            let mut record = record(&format!("{height}x{width}"));
            record.images = vec![StoredImage::Bytes(Arc::new(png(height, width)))];
            record
        };
        // 144 TB in total.
        let mut records = vec![with_size(1, 1); 1200];
        (records[0], records[1]) = (with_size(1, 100_000), with_size(100_000, 1));
        session.submit(records, None);
        session.submit(vec![with_size(3, 3)], None);
        session.finish();
        let error = session.next(LONG).unwrap_err();
        assert!(error.is_memory(), "{error}");
        let message = error.to_string();
        assert!(message.contains("[1200, 3, 100000, 100000]"), "{message}");
        assert!(message.contains("use a smaller batch_size"));
        assert_eq!(keys(&session), [["3x3"]]);
    }

    #[test]
    fn closing_drops_queued_batches() {
        let loader = Loader::new(config(Task::ImageText), 1, 2).unwrap();
        let session = loader.open();
        (0..100).for_each(|_| session.submit(vec![record("a")], None));
        session.close();
        assert!(matches!(session.next(LONG), Ok(Next::End)));
        session.submit(vec![record("late")], None);
        assert!(matches!(session.next(LONG), Ok(Next::End)));
        // The same threads serve the next session.
        let session = loader.open();
        session.submit(vec![record("b")], None);
        session.finish();
        assert_eq!(keys(&session), [["b"]]);
    }

    #[test]
    fn the_config_is_checked() {
        let mut wrong = config(Task::ImageText);
        wrong.max_tokens = 1;
        assert!(matches!(
            Loader::new(wrong, 1, 2).err(),
            Some(Error::Argument {
                name: "max_tokens",
                ..
            })
        ));
    }
}
