//! A batch in the making: which of its records are planned, painted or bad, and where they are painted.
//!
//! Where all pictures come out with one size, each record is planned and painted in one go. Otherwise
//! all are planned first, since the size of the batch is that of the largest.

use std::sync::Arc;

use crate::Error;
use crate::augment::{Geometry, Transform};
use crate::buffers::{Block, Pool, Slots};
use crate::collate::{self, Batch, Skipped};
use crate::paint::{Painter, Painting, Status};
use crate::sample::{Planned, Sample};
use crate::settings::{OnError, Settings};

/// Where the pictures of a batch are painted.
#[derive(Clone)]
pub struct Canvas {
    slots: Arc<Slots>,
    /// (height, width) in pixels of every picture's place.
    size: (usize, usize),
}

/// How far a record is.
pub enum Place {
    /// Somebody works on it, or is about to.
    Waiting,
    /// All but its pixels is known.
    Planned(Arc<Planned>),
    /// It is in the batch.
    Painted(Arc<Planned>, Status),
    /// It is bad.
    Failed(Error),
}

/// The records of a batch.
pub struct Assembly {
    places: Vec<Place>,
    /// Places that somebody works on.
    missing: usize,
    canvas: Option<Canvas>,
    skipped: Vec<Skipped>,
}

/// A record to be painted.
pub struct ToPaint {
    /// Which of the batch.
    pub place: usize,
    /// The record.
    pub planned: Arc<Planned>,
    /// Where.
    pub canvas: Canvas,
}

/// What is to be done next.
pub enum Advance {
    /// Somebody still works on a place.
    Wait,
    /// These are to be painted.
    Paint(Vec<ToPaint>),
    /// These places need other records.
    Replace(Vec<(usize, Skipped)>),
    /// The batch is ready, or cannot be made.
    Done(Result<Box<Batch>, Error>),
}

impl Canvas {
    /// Places for `count` records.
    fn new(
        count: usize,
        size: (usize, usize),
        settings: &Settings,
        pool: &Arc<Pool>,
    ) -> Result<Self, Error> {
        let what = || {
            let shape = collate::image_shape(count, size, settings);
            format!(
                "the pictures of a batch, {shape:?} values of {}; expected a smaller batch_size, \
                 smaller pictures (each takes the largest height and width of its batch) or a \
                 smaller prefetch",
                settings.dtype.name()
            )
        };
        let pictures = count * settings.task.pictures();
        let slots = Slots::new(pool, pictures, settings.slot_bytes(size), what)?;
        Ok(Self { slots, size })
    }
}

/// Paint the pictures of some records, two at a time; what became of each record.
pub fn paint(records: Vec<ToPaint>, settings: &Settings, painter: &mut Painter) -> Vec<Place> {
    let outcomes = try_paint(&records, settings, painter);
    let records = records.into_iter().zip(outcomes);
    records
        .map(|(ToPaint { planned, .. }, outcome)| match outcome {
            Ok(status) => Place::Painted(planned, status),
            Err(error) => Place::Failed(error.in_record(&planned.sample.key)),
        })
        .collect()
}

fn try_paint(
    records: &[ToPaint],
    settings: &Settings,
    painter: &mut Painter,
) -> Vec<Result<Status, Error>> {
    let mut outcomes: Vec<_> = records.iter().map(|_| Ok(Status::Ok)).collect();
    let mut note = |record: usize, found: Result<Status, Error>| {
        if let Some(outcome @ Ok(_)) = outcomes.get_mut(record)
            && !matches!(found, Ok(Status::Ok))
        {
            *outcome = found;
        }
    };
    let mut pictures = Vec::with_capacity(records.len());
    for (record, to_paint) in records.iter().enumerate() {
        let first = to_paint.place * settings.task.pictures();
        for (place, (opened, plan)) in (first..).zip(&to_paint.planned.pictures) {
            match to_paint.canvas.slots.take(place) {
                Some(slot) => pictures.push((record, opened, plan, slot, to_paint.canvas.size)),
                None => note(record, Err(Error::Worker)),
            }
        }
    }
    for some in pictures.chunks_mut(2) {
        let records = (some.first().map(|it| it.0), some.last().map(|it| it.0));
        let mut paintings = some
            .iter_mut()
            .map(|(_, opened, plan, slot, slot_size)| Painting {
                opened,
                plan,
                slot,
                slot_size: *slot_size,
            });
        match (paintings.next(), paintings.next(), records) {
            (Some(first), Some(second), (Some(record), Some(other))) => {
                let [status, status_too] = painter.paint_two([first, second], settings);
                note(record, status);
                note(other, status_too);
            }
            (Some(only), None, (Some(record), _)) => note(record, painter.paint(only, settings)),
            _ => {}
        }
    }
    outcomes
}

impl Place {
    /// Let the bytes of pictures go that will not be painted once more.
    #[must_use]
    pub fn without_bytes(mut self) -> Self {
        if let Self::Painted(planned, _) = &mut self
            && let Some(planned) = Arc::get_mut(planned)
        {
            planned.pictures.clear();
        }
        self
    }
}

impl Assembly {
    /// Begin a batch of `count` records.
    #[must_use]
    pub fn new(count: usize, settings: &Settings, pool: &Arc<Pool>) -> Self {
        Self {
            places: (0..count).map(|_| Place::Waiting).collect(),
            missing: count,
            canvas: fixed_size(&settings.transform)
                .filter(|_| count > 0)
                // Without memory it is tried again once all are planned: a batch may be given back.
                .and_then(|size| Canvas::new(count, size, settings, pool).ok()),
            skipped: Vec::new(),
        }
    }

    /// Where a record that has just been planned can be painted at once, if its size is known.
    #[must_use]
    pub fn canvas_at_once(&self, settings: &Settings) -> Option<Canvas> {
        self.canvas
            .clone()
            .filter(|_| fixed_size(&settings.transform).is_some())
    }

    /// Note what became of a place; whether it was the last one that somebody worked on. Who is told
    /// so calls [`Self::advance`], and nobody else does: a batch that is done would be begun anew.
    #[must_use]
    pub fn put(&mut self, place: usize, outcome: Place) -> bool {
        if let Some(entry) = self.places.get_mut(place) {
            *entry = outcome;
            self.missing -= 1;
        }
        self.missing == 0
    }

    /// Say that so many places are worked on once more.
    pub fn reopen(&mut self, count: usize) {
        self.missing += count;
    }

    /// Find what is to be done next.
    pub fn advance(&mut self, settings: &Settings, pool: &Arc<Pool>) -> Advance {
        if self.missing > 0 {
            return Advance::Wait;
        }
        // What is left out must not depend on how much memory there is.
        let is_final = |error: &Error| settings.on_error == OnError::Raise || error.is_memory();
        for place in &mut self.places {
            if matches!(place, Place::Failed(error) if is_final(error))
                && let Place::Failed(error) = std::mem::replace(place, Place::Waiting)
            {
                return Advance::Done(Err(error));
            }
        }
        match settings.on_error {
            OnError::Resample => {
                let failed = self.take_failed();
                if !failed.is_empty() {
                    let told = failed.iter().map(|(_, skipped)| skipped.clone());
                    self.skipped.extend(told);
                    return Advance::Replace(failed);
                }
            }
            OnError::Raise | OnError::Skip => {}
        }
        match self.unpainted(settings, pool) {
            Err(error) => Advance::Done(Err(error)),
            Ok(to_paint) if to_paint.is_empty() => Advance::Done(self.collate(settings)),
            Ok(to_paint) => {
                self.missing = to_paint.len();
                Advance::Paint(to_paint)
            }
        }
    }

    fn take_failed(&mut self) -> Vec<(usize, Skipped)> {
        let mut failed = Vec::new();
        for (index, place) in self.places.iter_mut().enumerate() {
            if let Place::Failed(error) = place {
                failed.push((index, skipped(error)));
                *place = Place::Waiting;
            }
        }
        failed
    }

    /// The records that are to be painted: all of them where the size of the batch has changed.
    fn unpainted(&mut self, settings: &Settings, pool: &Arc<Pool>) -> Result<Vec<ToPaint>, Error> {
        let size = fixed_size(&settings.transform).unwrap_or_else(|| self.padded_size(settings));
        if self.canvas.as_ref().is_none_or(|it| it.size != size) && size.0 > 0 {
            let canvas = Canvas::new(self.places.len(), size, settings, pool)?;
            self.canvas = Some(canvas);
            for place in &mut self.places {
                if let Place::Painted(planned, _) = place {
                    *place = Place::Planned(Arc::clone(planned));
                }
            }
        }
        let Some(canvas) = &self.canvas else {
            return Ok(Vec::new());
        };
        let mut to_paint = Vec::new();
        for (index, place) in self.places.iter_mut().enumerate() {
            if let Place::Planned(planned) = place {
                to_paint.push(ToPaint {
                    place: index,
                    planned: Arc::clone(planned),
                    canvas: canvas.clone(),
                });
                *place = Place::Waiting;
            }
        }
        Ok(to_paint)
    }

    /// (height, width) of the largest pictures, rounded up; 0 where there are none.
    fn padded_size(&self, settings: &Settings) -> (usize, usize) {
        let mut size = (0, 0);
        for place in &self.places {
            if let Place::Planned(planned) | Place::Painted(planned, _) = place {
                for (_, plan) in &planned.pictures {
                    size = (size.0.max(plan.height), size.1.max(plan.width));
                }
            }
        }
        let divisor = settings.transform.divisor();
        (
            size.0.next_multiple_of(divisor),
            size.1.next_multiple_of(divisor),
        )
    }

    /// Put the painted records together; the bad ones are left out and told.
    fn collate(&mut self, settings: &Settings) -> Result<Box<Batch>, Error> {
        let mut samples: Vec<&Sample> = Vec::with_capacity(self.places.len());
        let mut statuses = Vec::with_capacity(self.places.len());
        let mut kept = Vec::with_capacity(self.places.len());
        for (index, place) in self.places.iter().enumerate() {
            match place {
                Place::Painted(planned, status) => {
                    samples.push(&planned.sample);
                    statuses.push(*status);
                    kept.push(index);
                }
                Place::Failed(error) => self.skipped.push(skipped(error)),
                Place::Waiting | Place::Planned(_) => return Err(Error::Worker),
            }
        }
        let canvas = self.canvas.take().filter(|_| !samples.is_empty());
        let size = canvas.as_ref().map_or((0, 0), |canvas| canvas.size);
        let images = match canvas {
            Some(canvas) => {
                let record_bytes = settings.slot_bytes(size) * settings.task.pictures();
                let block = canvas.slots.into_block().ok_or(Error::Worker)?;
                Some(without_gaps(block, &kept, record_bytes))
            }
            None => None,
        };
        let mut batch = collate::collate(&samples, images, size, settings)?;
        batch.statuses = statuses;
        batch.skipped = std::mem::take(&mut self.skipped);
        Ok(Box::new(batch))
    }
}

/// Move the parts that are kept to the front.
fn without_gaps(mut block: Block, kept: &[usize], record_bytes: usize) -> Block {
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

/// (height, width) in pixels that every picture comes out with, if they are the same for all.
fn fixed_size(transform: &Transform) -> Option<(usize, usize)> {
    match transform.geometry {
        Geometry::Squash { size } | Geometry::RandomResizedCrop { size, .. } => Some((size, size)),
        Geometry::ShorterSide { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::settings;
    use crate::record::Task;

    #[test]
    fn only_the_last_place_says_that_it_is_the_last() {
        let (settings, pool) = (settings(Task::ImageText), Pool::new(1));
        let mut assembly = Assembly::new(3, &settings, &pool);
        let bad = || Place::Failed(Error::Worker.in_record("a"));
        assert!(!assembly.put(2, bad()));
        assert!(matches!(assembly.advance(&settings, &pool), Advance::Wait));
        assert!(!assembly.put(0, bad()));
        assert!(assembly.put(1, bad()));
        let Advance::Done(Err(error)) = assembly.advance(&settings, &pool) else {
            panic!("not done");
        };
        assert!(error.to_string().starts_with("record 'a': "));
        // Another one takes the place of a bad one.
        assembly.reopen(1);
        assert!(assembly.put(1, bad()));
    }

    #[test]
    fn memory_that_is_short_is_no_fault_of_a_record() {
        let (mut settings, pool) = (settings(Task::ImageText), Pool::new(1));
        for policy in [OnError::Skip, OnError::Resample] {
            settings.on_error = policy;
            let mut assembly = Assembly::new(1, &settings, &pool);
            let error = Error::Memory {
                bytes: 1,
                what: "a test".to_owned(),
            };
            assert!(assembly.put(0, Place::Failed(error.in_record("a"))));
            let Advance::Done(Err(error)) = assembly.advance(&settings, &pool) else {
                panic!("left out");
            };
            assert!(error.is_memory());
        }
    }
}
