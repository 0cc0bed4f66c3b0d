//! Threads that turn records into batches, in order and with bounded memory.
//!
//! A [`Loader`] owns the threads. A [`Session`] is one pass over data: batches of records go in by
//! [`Session::submit`], finished batches come out of [`Session::next`] in the same order. How many
//! may wait is the submitter's business: every batch that was submitted and not yet taken is held.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::Error;
use crate::collate::{self, Batch};
use crate::record::{Record, Task};
use crate::sample::{Sample, Settings};

/// What a worker does next: one record of a batch.
struct Job {
    session: Arc<SessionState>,
    batch: Arc<Pending>,
    place: usize,
    record: Record,
}

/// A batch in the making.
struct Pending {
    samples: Mutex<Unfinished>,
}

struct Unfinished {
    samples: Vec<Option<Result<Sample, Error>>>,
    missing: usize,
}

#[derive(Default)]
struct SessionState {
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// A place in the queue: the batch in the making and, once done, what came of it.
struct Slot {
    pending: Arc<Pending>,
    outcome: Option<Result<Batch, Error>>,
}

/// Batches of one session, in order.
#[derive(Default)]
struct Queue {
    slots: VecDeque<Slot>,
    finished: bool,
    closed: bool,
}

#[derive(Default)]
struct Jobs {
    waiting: VecDeque<Job>,
    stopped: bool,
}

#[derive(Default)]
struct Pool {
    jobs: Mutex<Jobs>,
    changed: Condvar,
}

/// Threads with the settings that they work by.
pub struct Loader {
    settings: Arc<Settings>,
    pool: Arc<Pool>,
    threads: Vec<JoinHandle<()>>,
    /// The process in which the threads live: a fork has none of them.
    process: u32,
}

/// One pass over data.
pub struct Session {
    settings: Arc<Settings>,
    pool: Arc<Pool>,
    state: Arc<SessionState>,
    process: u32,
}

/// What [`Session::next`] found.
#[derive(Debug)]
pub enum Next {
    /// The next batch.
    Batch(Box<Batch>),
    /// Nothing within the time given.
    NotYet,
    /// There will be no more.
    End,
}

/// Take a lock; a thread that panicked while holding it left nothing half-done that matters here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Loader {
    /// Start `threads` threads; 0 means one for each core.
    ///
    /// # Errors
    /// [`Error::Argument`] for settings outside their ranges or where threads cannot be started.
    pub fn new(settings: Settings, threads: usize) -> Result<Self, Error> {
        settings.transform.check()?;
        if settings.task == Task::Grounding {
            settings.transform.rand_augment.check_boxes()?;
        }
        crate::tokenizer::check_max_tokens(settings.max_tokens)?;
        if !(0.0..=1.0).contains(&settings.mlm_probability) {
            return Err(Error::argument(
                "mlm_probability",
                format!("{} is not between 0 and 1", settings.mlm_probability),
            ));
        }
        let count = if threads == 0 {
            std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
        } else {
            threads
        };
        let mut loader = Self {
            settings: Arc::new(settings),
            pool: Arc::new(Pool::default()),
            threads: Vec::with_capacity(count),
            process: std::process::id(),
        };
        for number in 0..count {
            let (pool, settings) = (Arc::clone(&loader.pool), Arc::clone(&loader.settings));
            let thread = std::thread::Builder::new()
                .name(format!("fiber-loader-{number}"))
                .spawn(move || work(&pool, &settings))
                .map_err(|error| Error::argument("threads", format!("cannot start: {error}")))?;
            loader.threads.push(thread);
        }
        Ok(loader)
    }

    /// Begin a pass.
    #[must_use]
    pub fn open(&self) -> Session {
        Session {
            settings: Arc::clone(&self.settings),
            pool: Arc::clone(&self.pool),
            state: Arc::new(SessionState::default()),
            process: self.process,
        }
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            return;
        }
        let waiting = {
            let mut jobs = lock(&self.pool.jobs);
            jobs.stopped = true;
            std::mem::take(&mut jobs.waiting)
        };
        drop(waiting);
        self.pool.changed.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has nothing left to say.
            let _ = thread.join();
        }
    }
}

impl Session {
    /// Hand in the records of one batch.
    pub fn submit(&self, records: Vec<Record>) {
        let missing = records.len();
        let pending = Arc::new(Pending {
            samples: Mutex::new(Unfinished {
                samples: (0..missing).map(|_| None).collect(),
                missing,
            }),
        });
        {
            let mut queue = lock(&self.state.queue);
            if queue.closed {
                return;
            }
            queue.slots.push_back(Slot {
                pending: Arc::clone(&pending),
                outcome: (missing == 0).then(|| Ok(collate::collate(&[], &self.settings))),
            });
        }
        let jobs = records.into_iter().enumerate().map(|(place, record)| Job {
            session: Arc::clone(&self.state),
            batch: Arc::clone(&pending),
            place,
            record,
        });
        lock(&self.pool.jobs).waiting.extend(jobs);
        self.pool.changed.notify_all();
        self.state.changed.notify_all();
    }

    /// Say that no more batches will be handed in.
    pub fn finish(&self) {
        lock(&self.state.queue).finished = true;
        self.state.changed.notify_all();
    }

    /// Give up what is waiting.
    pub fn close(&self) {
        let dropped = {
            let mut queue = lock(&self.state.queue);
            queue.closed = true;
            queue.finished = true;
            std::mem::take(&mut queue.slots)
        };
        drop(dropped);
        lock(&self.pool.jobs)
            .waiting
            .retain(|job| !Arc::ptr_eq(&job.session, &self.state));
        self.state.changed.notify_all();
    }

    /// Wait for the next batch, at most `timeout`.
    ///
    /// # Errors
    /// The first fault of the batch's records, unless bad samples are left out.
    pub fn next(&self, timeout: Duration) -> Result<Next, Error> {
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
            Some(Some(outcome)) => {
                queue.slots.pop_front();
                Ok(Next::Batch(Box::new(outcome?)))
            }
            None if queue.finished => Ok(Next::End),
            _ => Ok(Next::NotYet),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.process == std::process::id() {
            self.close();
        }
    }
}

/// Take jobs until the loader goes away.
fn work(pool: &Pool, settings: &Settings) {
    loop {
        let job = {
            let mut jobs = pool
                .changed
                .wait_while(lock(&pool.jobs), |jobs| {
                    jobs.waiting.is_empty() && !jobs.stopped
                })
                .unwrap_or_else(PoisonError::into_inner);
            if jobs.stopped {
                return;
            }
            jobs.waiting.pop_front()
        };
        if let Some(job) = job {
            perform(&job, settings);
        }
    }
}

fn perform(job: &Job, settings: &Settings) {
    if lock(&job.session.queue).closed {
        return;
    }
    // A batch whose worker is gone would be waited for without end.
    let sample = catch_unwind(AssertUnwindSafe(|| settings.prepare(&job.record)))
        .unwrap_or_else(|_| Err(Error::Worker.in_record(&job.record.key)));
    let complete = {
        let mut unfinished = lock(&job.batch.samples);
        if let Some(slot) = unfinished.samples.get_mut(job.place) {
            *slot = Some(sample);
        }
        unfinished.missing -= 1;
        (unfinished.missing == 0).then(|| std::mem::take(&mut unfinished.samples))
    };
    if let Some(samples) = complete {
        let outcome = assemble(samples.into_iter().flatten().collect(), settings);
        let mut queue = lock(&job.session.queue);
        let mut slots = queue.slots.iter_mut();
        if let Some(slot) = slots.find(|slot| Arc::ptr_eq(&slot.pending, &job.batch)) {
            slot.outcome = Some(outcome);
        }
        drop(queue);
        job.session.changed.notify_all();
    }
}

/// Collate, with bad samples left out and told, or with the first of them as the error.
fn assemble(results: Vec<Result<Sample, Error>>, settings: &Settings) -> Result<Batch, Error> {
    let mut samples = Vec::with_capacity(results.len());
    let mut skipped = Vec::new();
    for result in results {
        match result {
            Ok(sample) => samples.push(sample),
            Err(Error::InRecord { key, source }) if settings.skip_errors => {
                skipped.push((key, source.to_string()));
            }
            Err(error) => return Err(error),
        }
    }
    let mut batch = collate::collate(&samples, settings);
    batch.skipped = skipped;
    Ok(batch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::StoredImage;
    use crate::sample::tests::{png, record, settings};

    const LONG: Duration = Duration::from_secs(20);

    fn keys(session: &Session) -> Vec<Vec<String>> {
        let mut all = Vec::new();
        loop {
            match session.next(LONG).unwrap() {
                Next::Batch(batch) => all.push(batch.keys),
                Next::NotYet => panic!("no batch in time"),
                Next::End => return all,
            }
        }
    }

    #[test]
    fn no_batches_end_at_once() {
        let loader = Loader::new(settings(Task::ImageText), 1).unwrap();
        let session = loader.open();
        assert!(matches!(session.next(Duration::ZERO), Ok(Next::NotYet)));
        session.finish();
        assert!(matches!(session.next(LONG), Ok(Next::End)));
    }

    #[test]
    fn an_empty_batch_comes_out_empty() {
        let loader = Loader::new(settings(Task::ImageText), 1).unwrap();
        let session = loader.open();
        session.submit(Vec::new());
        let Ok(Next::Batch(batch)) = session.next(LONG) else {
            panic!("no batch");
        };
        assert_eq!(batch.image_shape, [0, 3, 0, 0]);
    }

    #[test]
    fn batches_come_in_order_whatever_they_cost() {
        let loader = Loader::new(settings(Task::ImageText), 4).unwrap();
        let session = loader.open();
        for batch in 0..20_usize {
            let side = if batch % 3 == 0 { 300 } else { 2 };
            let records = (0..3).map(|place| {
                let mut record = record(&format!("{batch}.{place}"));
                record.images = vec![StoredImage::Bytes(png(side, side))];
                record
            });
            session.submit(records.collect());
        }
        session.finish();
        let keys = keys(&session);
        assert_eq!(keys.len(), 20);
        for (batch, keys) in keys.iter().enumerate() {
            assert_eq!(*keys, [0, 1, 2].map(|place| format!("{batch}.{place}")));
        }
    }

    #[test]
    fn a_fault_comes_in_its_batch_only() {
        let loader = Loader::new(settings(Task::ImageText), 2).unwrap();
        let session = loader.open();
        let mut bad = record("bad");
        bad.images = vec![StoredImage::Bytes(Vec::new())];
        session.submit(vec![record("a")]);
        session.submit(vec![record("b"), bad]);
        session.submit(vec![record("c")]);
        assert!(matches!(session.next(LONG), Ok(Next::Batch(_))));
        let error = session.next(LONG).unwrap_err();
        assert!(error.to_string().starts_with("record 'bad': "), "{error}");
        assert!(matches!(session.next(LONG), Ok(Next::Batch(_))));
    }

    #[test]
    fn bad_samples_are_left_out_and_told() {
        let mut settings = settings(Task::ImageText);
        settings.skip_errors = true;
        let loader = Loader::new(settings, 2).unwrap();
        let session = loader.open();
        let mut bad = record("bad");
        bad.images = vec![StoredImage::Path("no/such.png".into())];
        session.submit(vec![record("a"), bad, record("b")]);
        let Ok(Next::Batch(batch)) = session.next(LONG) else {
            panic!("no batch");
        };
        assert_eq!(batch.keys, ["a", "b"]);
        assert_eq!(batch.skipped.len(), 1);
        assert!(batch.skipped[0].1.starts_with("no/such.png: "));
    }

    #[test]
    fn closing_gives_up_what_waits() {
        let loader = Loader::new(settings(Task::ImageText), 1).unwrap();
        let session = loader.open();
        (0..100).for_each(|_| session.submit(vec![record("a")]));
        session.close();
        assert!(matches!(session.next(LONG), Ok(Next::End)));
        session.submit(vec![record("late")]);
        assert!(matches!(session.next(LONG), Ok(Next::End)));
        // The threads serve the next session.
        let session = loader.open();
        session.submit(vec![record("b")]);
        session.finish();
        assert_eq!(keys(&session), [["b"]]);
    }

    #[test]
    fn settings_are_checked() {
        let mut wrong = settings(Task::ImageText);
        wrong.max_tokens = 1;
        assert!(matches!(
            Loader::new(wrong, 1).err(),
            Some(Error::Argument {
                name: "max_tokens",
                ..
            })
        ));
        let mut wrong = settings(Task::ImageText);
        wrong.mlm_probability = f64::NAN;
        assert!(Loader::new(wrong, 1).is_err());
    }
}
