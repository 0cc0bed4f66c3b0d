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
use crate::record::{Record, Sample, Settings};

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

/// Batches of one session; `None` where one is in the making.
#[derive(Default)]
struct Queue {
    batches: VecDeque<(Arc<Pending>, Option<Result<Batch, Error>>)>,
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
}

/// One pass over data.
pub struct Session {
    pool: Arc<Pool>,
    state: Arc<SessionState>,
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
            pool: Arc::clone(&self.pool),
            state: Arc::new(SessionState::default()),
        }
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
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
            let done = (missing == 0).then(|| Ok(Batch::default()));
            queue.batches.push_back((Arc::clone(&pending), done));
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
            std::mem::take(&mut queue.batches)
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
        let queue = lock(&self.state.queue);
        let (mut queue, _) = self
            .state
            .changed
            .wait_timeout_while(queue, timeout, |queue| {
                !matches!(queue.batches.front(), Some((_, Some(_))))
                    && !(queue.finished && queue.batches.is_empty())
            })
            .unwrap_or_else(PoisonError::into_inner);
        match queue.batches.pop_front() {
            Some((_, Some(batch))) => Ok(Next::Batch(Box::new(batch?))),
            Some(unfinished) => {
                queue.batches.push_front(unfinished);
                Ok(Next::NotYet)
            }
            None if queue.finished => Ok(Next::End),
            None => Ok(Next::NotYet),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.close();
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
    // A decoder that panics on broken bytes must not take the batch, or the process, with it.
    let sample = catch_unwind(AssertUnwindSafe(|| settings.prepare(&job.record)))
        .unwrap_or_else(|_| Err(Error::decode("the decoder failed").in_record(&job.record.key)));
    let complete = {
        let mut unfinished = lock(&job.batch.samples);
        if let Some(slot) = unfinished.samples.get_mut(job.place) {
            *slot = Some(sample);
        }
        unfinished.missing -= 1;
        (unfinished.missing == 0).then(|| std::mem::take(&mut unfinished.samples))
    };
    if let Some(samples) = complete {
        let batch = assemble(samples.into_iter().flatten().collect(), settings);
        let mut queue = lock(&job.session.queue);
        let slot = queue
            .batches
            .iter_mut()
            .find(|(pending, _)| Arc::ptr_eq(pending, &job.batch));
        if let Some((_, slot)) = slot {
            *slot = Some(batch);
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
