//! What the threads of a loader do: plan records, paint pictures, put batches together.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::Error;
use crate::assembly::{Advance, Assembly, Canvas, Place, ToPaint};
use crate::buffers::Pool;
use crate::collate::{Batch, Skipped};
use crate::paint::Painter;
use crate::record::Record;
use crate::sample::Planned;
use crate::settings::Settings;

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
    Paint(Arc<Planned>, Canvas),
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

/// What threads and sessions share.
pub(crate) struct Crew {
    pub(crate) settings: Settings,
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
            let job = {
                let mut jobs = self
                    .changed
                    .wait_while(lock(&self.jobs), |jobs| {
                        jobs.to_paint.is_empty() && jobs.to_plan.is_empty() && !jobs.stopped
                    })
                    .unwrap_or_else(PoisonError::into_inner);
                if jobs.stopped {
                    return;
                }
                let urgent = jobs.to_paint.pop_front();
                urgent.or_else(|| jobs.to_plan.pop_front())
            };
            if let Some(job) = job {
                self.perform(job, &mut painter);
            }
        }
    }

    fn perform(&self, job: Job, painter: &mut Painter) {
        let (session, batch, place) = (job.session, job.batch, job.place);
        if lock(&session.queue).closed {
            return;
        }
        let key = match &job.step {
            Step::Plan(record) => record.key.clone(),
            Step::Paint(planned, _) => planned.sample.key.clone(),
        };
        // A batch whose worker is gone would be waited for without end.
        let outcome = catch_unwind(AssertUnwindSafe(|| match job.step {
            Step::Plan(record) => match self.settings.plan(&record) {
                Err(error) => Place::Failed(error),
                Ok(planned) => {
                    let planned = Arc::new(planned);
                    let canvas = lock(&batch).canvas_at_once(&self.settings);
                    match canvas {
                        Some(canvas) => canvas
                            .paint(place, planned, &self.settings, painter)
                            .without_bytes(),
                        None => Place::Planned(planned),
                    }
                }
            },
            Step::Paint(planned, canvas) => canvas.paint(place, planned, &self.settings, painter),
        }))
        .unwrap_or_else(|_| {
            // What it keeps may be half-done.
            if let Ok(anew) = Painter::new(&self.settings) {
                *painter = anew;
            }
            Place::Failed(Error::Worker.in_record(&key))
        });
        let is_last = lock(&batch).put(place, outcome);
        if is_last {
            self.advance(&session, &batch);
        }
    }

    /// Do what a batch needs next, if nobody works on it.
    pub(crate) fn advance(&self, session: &Arc<SessionState>, batch: &Arc<Mutex<Assembly>>) {
        let outcome = match lock(batch).advance(&self.settings, &self.pool) {
            Advance::Wait => return,
            Advance::Paint(places) => {
                let jobs = places.into_iter().map(|to_paint| {
                    let ToPaint {
                        place,
                        planned,
                        canvas,
                    } = to_paint;
                    Job {
                        session: Arc::clone(session),
                        batch: Arc::clone(batch),
                        place,
                        step: Step::Paint(planned, canvas),
                    }
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
