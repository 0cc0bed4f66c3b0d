//! What the threads of a loader do: plan records, paint pictures, put batches together.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::Error;
use crate::assembly::{self, Advance, Assembly, Place, ToPaint};
use crate::buffers::Pool;
use crate::collate::{Batch, Skipped};
use crate::paint::Painter;
use crate::record::Record;
use crate::settings::Settings;

/// The most records that a thread takes at a time. Of so many, those with files of about one length are
/// painted together: where one of two pictures ends early, the rest of the other one is decoded alone.
const GROUP: usize = 8;

/// What a worker does next, for one record of a batch.
pub(crate) struct Job {
    pub(crate) session: Arc<SessionState>,
    pub(crate) batch: Arc<Mutex<Assembly>>,
    pub(crate) place: usize,
    pub(crate) step: Step,
}

pub(crate) enum Step {
    /// Read it and draw what happens to it; boxed, as it is the larger.
    Plan(Box<Record>),
    /// Decode its pictures into the batch.
    Paint(ToPaint),
}

/// A place of a batch.
struct Address {
    session: Arc<SessionState>,
    batch: Arc<Mutex<Assembly>>,
    place: usize,
}

impl Address {
    /// Whether nobody waits for it any more.
    fn is_closed(&self) -> bool {
        lock(&self.session.queue).closed
    }
}

#[derive(Default)]
pub(crate) struct SessionState {
    pub(crate) queue: Mutex<Queue>,
    pub(crate) changed: Condvar,
}

/// A place in the queue: the batch in the making and, once there is something to tell, what it is.
pub(crate) struct Slot {
    pub(crate) batch: Arc<Mutex<Assembly>>,
    pub(crate) outcome: Option<Outcome>,
}

pub(crate) enum Outcome {
    Done(Result<Box<Batch>, Error>),
    Replace(Vec<(usize, Skipped)>),
}

/// Batches of one session, in order.
#[derive(Default)]
pub(crate) struct Queue {
    pub(crate) slots: VecDeque<Slot>,
    pub(crate) finished: bool,
    pub(crate) closed: bool,
}

#[derive(Default)]
pub(crate) struct Jobs {
    /// First of all: they are of batches that are further.
    pub(crate) to_paint: VecDeque<Job>,
    pub(crate) to_plan: VecDeque<Job>,
    pub(crate) stopped: bool,
}

impl Jobs {
    fn pop(&mut self) -> Option<Job> {
        let urgent = self.to_paint.pop_front();
        urgent.or_else(|| self.to_plan.pop_front())
    }

    /// Some jobs, as many as leave enough to do for the others.
    fn take(&mut self, threads: usize) -> Vec<Job> {
        let waiting = self.to_paint.len() + self.to_plan.len();
        let count = (waiting / threads.max(1)).clamp(1, GROUP);
        std::iter::from_fn(|| self.pop()).take(count).collect()
    }
}

/// What threads and sessions share.
pub(crate) struct Crew {
    pub(crate) settings: Settings,
    /// How many threads there are.
    pub(crate) threads: usize,
    pub(crate) pool: Arc<Pool>,
    pub(crate) jobs: Mutex<Jobs>,
    pub(crate) changed: Condvar,
}

/// Take a lock; a thread that panicked while holding it left nothing half-done that matters here.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Crew {
    /// Take jobs until the loader goes away.
    pub(crate) fn work(&self, mut painter: Painter) {
        loop {
            let jobs = {
                let mut jobs = self
                    .changed
                    .wait_while(lock(&self.jobs), |jobs| {
                        jobs.to_paint.is_empty() && jobs.to_plan.is_empty() && !jobs.stopped
                    })
                    .unwrap_or_else(PoisonError::into_inner);
                if jobs.stopped {
                    return;
                }
                jobs.take(self.threads)
            };
            self.perform(jobs, &mut painter);
        }
    }

    /// Plan what is to be planned, then paint by twos.
    fn perform(&self, jobs: Vec<Job>, painter: &mut Painter) {
        let mut ready = Vec::with_capacity(jobs.len());
        for job in jobs {
            let Job {
                session,
                batch,
                place,
                step,
            } = job;
            let address = Address {
                session,
                batch,
                place,
            };
            if address.is_closed() {
                continue;
            }
            match step {
                Step::Plan(record) => match self.plan(&record, &address) {
                    Ok(to_paint) => ready.push((address, to_paint, true)),
                    Err(outcome) => self.put(&address, outcome),
                },
                Step::Paint(to_paint) => ready.push((address, to_paint, false)),
            }
        }
        ready.sort_by_key(|(_, to_paint, _)| to_paint.planned.bytes());
        let mut ready = ready.into_iter();
        loop {
            let some: Vec<_> = ready.by_ref().take(2).collect();
            if some.is_empty() {
                return;
            }
            self.paint(some, painter);
        }
    }

    /// Paint records, and note what became of them; with each, whether it is never painted again.
    fn paint(&self, ready: Vec<(Address, ToPaint, bool)>, painter: &mut Painter) {
        let (mut addresses, mut records) = (Vec::new(), Vec::new());
        for (address, to_paint, is_final) in ready {
            if !address.is_closed() {
                addresses.push((address, is_final));
                records.push(to_paint);
            }
        }
        if records.is_empty() {
            return;
        }
        let keys: Vec<_> = records
            .iter()
            .map(|it| it.planned.sample.key.clone())
            .collect();
        // A batch whose worker is gone would be waited for without end.
        let paint = || assembly::paint(records, &self.settings, painter);
        let outcomes = catch_unwind(AssertUnwindSafe(paint)).unwrap_or_else(|_| {
            // What it keeps may be half-done.
            if let Ok(anew) = Painter::new(&self.settings) {
                *painter = anew;
            }
            let failed = |key: &String| Place::Failed(Error::Worker.in_record(key));
            keys.iter().map(failed).collect()
        });
        for ((address, is_final), outcome) in addresses.into_iter().zip(outcomes) {
            let outcome = if is_final {
                outcome.without_bytes()
            } else {
                outcome
            };
            self.put(&address, outcome);
        }
    }

    /// Plan a record; what it is where it cannot be painted yet.
    fn plan(&self, record: &Record, address: &Address) -> Result<ToPaint, Place> {
        let planned = catch_unwind(AssertUnwindSafe(|| self.settings.plan(record)))
            .unwrap_or_else(|_| Err(Error::Worker.in_record(&record.key)))
            .map_err(Place::Failed)?;
        let planned = Arc::new(planned);
        match lock(&address.batch).canvas_at_once(&self.settings) {
            Some(canvas) => Ok(ToPaint {
                place: address.place,
                planned,
                canvas,
            }),
            None => Err(Place::Planned(planned)),
        }
    }

    fn put(&self, address: &Address, outcome: Place) {
        let is_last = lock(&address.batch).put(address.place, outcome);
        if is_last {
            self.advance(&address.session, &address.batch);
        }
    }

    /// Do what a batch needs next, if nobody works on it.
    pub(crate) fn advance(&self, session: &Arc<SessionState>, batch: &Arc<Mutex<Assembly>>) {
        let outcome = match lock(batch).advance(&self.settings, &self.pool) {
            Advance::Wait => return,
            Advance::Paint(places) => {
                let jobs = places.into_iter().map(|to_paint| Job {
                    session: Arc::clone(session),
                    batch: Arc::clone(batch),
                    place: to_paint.place,
                    step: Step::Paint(to_paint),
                });
                lock(&self.jobs).to_paint.extend(jobs);
                self.changed.notify_all();
                return;
            }
            Advance::Replace(places) => Outcome::Replace(places),
            Advance::Done(outcome) => Outcome::Done(outcome),
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
    use crate::fixtures::{record, settings};
    use crate::record::Task;

    #[test]
    fn a_thread_takes_its_share_and_no_more_than_eight() {
        let (settings, pool) = (settings(Task::ImageText), Pool::new(1));
        for (waiting, threads, expected) in
            [(1, 2, 1), (5, 2, 2), (5, 8, 1), (16, 2, 8), (99, 1, 8)]
        {
            let mut jobs = Jobs::default();
            for place in 0..waiting {
                jobs.to_plan.push_back(Job {
                    session: Arc::default(),
                    batch: Arc::new(Mutex::new(Assembly::new(0, &settings, &pool))),
                    place,
                    step: Step::Plan(Box::new(record("a"))),
                });
            }
            let places: Vec<_> = jobs.take(threads).iter().map(|job| job.place).collect();
            assert_eq!(
                places,
                (0..expected).collect::<Vec<_>>(),
                "{waiting} {threads}"
            );
            assert_eq!(jobs.to_plan.len(), waiting - expected);
        }
    }
}
