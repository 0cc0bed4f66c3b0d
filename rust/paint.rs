//! One picture: from the bytes of its file to its place in a batch.

use crate::Error;
use crate::augment::Plan;
use crate::image;
use crate::normalize;
use crate::record::{SharedBytes, StoredImage};
use crate::sample::Settings;

/// What became of a picture that is in its batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Status {
    /// All of it was there.
    #[default]
    Ok,
    /// A part was missing or damaged, and filled as libjpeg does.
    Truncated,
}

impl Status {
    /// Name in lower case.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Truncated => "truncated",
        }
    }
}

/// A picture whose size is known and whose pixels are not decoded yet.
#[derive(Clone)]
pub struct Opened {
    stored: StoredImage,
    bytes: SharedBytes,
    /// (height, width) in pixels of the stored picture.
    pub size: (usize, usize),
}

/// (height, width) in pixels of the places of a batch.
pub type SlotSize = (usize, usize);

/// What one thread keeps from picture to picture.
#[derive(Default)]
pub struct Painter {}

impl Opened {
    /// Read the picture's bytes and their header.
    ///
    /// # Errors
    /// [`Error::File`] where a file cannot be read, [`Error::Decode`] for a broken header, and
    /// [`Error::TooManyPixels`] above `max_pixels`.
    pub fn new(stored: &StoredImage, max_pixels: usize) -> Result<Self, Error> {
        let bytes = stored.read()?;
        let (height, width, _) =
            image::probe((*bytes).as_ref()).map_err(|fault| stored.name_fault(fault))?;
        image::check_size(height, width, max_pixels).map_err(|fault| stored.name_fault(fault))?;
        Ok(Self {
            stored: stored.clone(),
            bytes,
            size: (height, width),
        })
    }
}

impl Painter {
    /// Decode a picture, do to it what `plan` says, and write it into `slot`.
    ///
    /// # Errors
    /// [`Error::Decode`] for broken bytes.
    pub fn paint(
        &mut self,
        opened: &Opened,
        plan: &Plan,
        settings: &Settings,
        slot: &mut [u8],
        slot_size: SlotSize,
    ) -> Result<Status, Error> {
        let bytes = (*opened.bytes).as_ref();
        let picture = image::decode(bytes, image::MAX_PIXELS)
            .map_err(|fault| opened.stored.name_fault(fault))?;
        let resized = plan.apply(&picture)?;
        let (values, _) = normalize::write(&[&resized], &settings.transform.normalization, 1);
        slot.fill(0);
        let planes = slot.chunks_exact_mut(slot_size.0 * slot_size.1 * 4);
        for (plane, values) in planes.zip(values.chunks_exact(plan.height * plan.width)) {
            let rows = plane.chunks_exact_mut(slot_size.1 * 4);
            for (row, values) in rows.zip(values.chunks_exact(plan.width)) {
                for (place, value) in row.chunks_exact_mut(4).zip(values) {
                    place.copy_from_slice(&value.to_ne_bytes());
                }
            }
        }
        Ok(Status::Ok)
    }
}
