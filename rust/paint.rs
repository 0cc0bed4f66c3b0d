//! Pictures: from the bytes of their files to their places in a batch.
//!
//! Rows go from the decoder through the resize into the batch as they come, so that no picture of full
//! size leaves the processor's cache; only what needs a whole picture gets one (operations of
//! `RandAugment`, changes of colours, turning by EXIF, formats other than JPEG). A thread decodes two
//! JPEGs at a time, which takes less than one after the other.

use crate::Error;
use crate::image::Rgb;
use crate::instructions::Instructions;
use crate::jpeg::{self, Scale};
use crate::memory;
use crate::normalize::RowWriter;
use crate::opened::Opened;
use crate::plan::{self, Plan};
use crate::resize::{Crop, Method, ResizeScratch, RowResizer};
use crate::settings::Settings;

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

/// What is to be painted, and where.
pub struct Painting<'p> {
    /// The picture.
    pub opened: &'p Opened,
    /// What is done to it.
    pub plan: &'p Plan,
    /// Where its pixels go to.
    pub slot: &'p mut [u8],
    /// (height, width) of the slot in pixels.
    pub slot_size: (usize, usize),
}

/// What one thread keeps from picture to picture.
pub struct Painter {
    hands: [Hand; 2],
}

/// What one picture needs.
struct Hand {
    decoder: jpeg::Decoder,
    scratch: ResizeScratch,
    writer: RowWriter,
    /// Pixels of a picture that is needed whole.
    whole: Vec<u8>,
}

/// What is done with decoded rows.
enum Rows<'a> {
    /// They are resized.
    Resized(RowResizer<'a>),
    /// The crop has the size of the output, so that they are only cut out.
    Cut {
        crop: Crop,
        /// Bytes of a decoded row.
        stride: usize,
    },
}

impl<'a> Rows<'a> {
    fn new(
        scratch: &'a mut ResizeScratch,
        source: (usize, usize),
        crop: Crop,
        output: (usize, usize),
        method: Method,
    ) -> Result<Self, Error> {
        let inside = crop.top + crop.height <= source.0 && crop.left + crop.width <= source.1;
        if (crop.height, crop.width) == output && inside {
            return Ok(Self::Cut {
                crop,
                stride: source.1 * 3,
            });
        }
        RowResizer::new(scratch, source, crop, output, method).map(Self::Resized)
    }

    fn last_row_needed(&self) -> usize {
        match self {
            Self::Resized(resizer) => resizer.last_row_needed(),
            Self::Cut { crop, .. } => crop.top + crop.height - 1,
        }
    }

    fn push(
        &mut self,
        first_row: usize,
        decoded: &[u8],
        take: &mut dyn FnMut(usize, &[u8]),
    ) -> Result<(), Error> {
        match self {
            Self::Resized(resizer) => resizer.push_rows(first_row, decoded, take),
            Self::Cut { crop, stride } => {
                let columns = crop.left * 3..(crop.left + crop.width) * 3;
                for (y, row) in (first_row..).zip(decoded.chunks_exact(*stride)) {
                    if (crop.top..crop.top + crop.height).contains(&y) {
                        take(y - crop.top, row.get(columns.clone()).unwrap_or_default());
                    }
                }
                Ok(())
            }
        }
    }
}

/// A picture whose rows come from the decoder.
struct Streamed<'c> {
    decoder: &'c mut jpeg::Decoder,
    bytes: &'c [u8],
    request: jpeg::Request,
    canvas: Canvas<'c>,
}

/// A picture whose rows come in.
struct Canvas<'c> {
    rows: Rows<'c>,
    writer: &'c mut RowWriter,
    whole: &'c mut Vec<u8>,
    plan: &'c Plan,
    slot: &'c mut [u8],
    slot_size: (usize, usize),
    /// The first thing that went wrong.
    outcome: Result<(), Error>,
}

impl Canvas<'_> {
    /// Take decoded rows, from `first_row` on.
    fn push(&mut self, first_row: usize, decoded: &[u8]) {
        if self.outcome.is_err() {
            return;
        }
        let Self {
            rows,
            writer,
            whole,
            plan,
            slot,
            slot_size,
            ..
        } = self;
        let mut written = Ok(());
        let pushed = rows.push(first_row, decoded, &mut |y, row| {
            if plan.needs_whole() {
                whole.extend_from_slice(row);
            } else if written.is_ok()
                // Not assigned row by row: to read what was just stored here, in other widths, waits
                // for all stores before, and those of a row go to memory.
                && let Err(error) = writer.write_row(row, slot, *slot_size, y, plan.flip)
            {
                written = Err(error);
            }
        });
        self.outcome = written.and(pushed);
    }

    /// End the picture once all of its rows came.
    fn finish(self, status: &jpeg::Status, settings: &Settings) -> Result<Status, Error> {
        self.outcome?;
        if let jpeg::Status::Filled(reason) = status
            && !settings.accept_truncated
        {
            return Err(Error::decode(reason));
        }
        let plan = self.plan;
        if plan.needs_whole() {
            let mut picture = Rgb {
                height: plan.height,
                width: plan.width,
                pixels: std::mem::take(self.whole),
            };
            plan.change(&mut picture);
            for (y, row) in picture.pixels.chunks_exact(plan.width * 3).enumerate() {
                self.writer
                    .write_row(row, self.slot, self.slot_size, y, false)?;
            }
            *self.whole = picture.pixels;
        }
        self.writer
            .pad_below(self.slot, self.slot_size, plan.height)?;
        Ok(match status {
            jpeg::Status::Whole => Status::Ok,
            jpeg::Status::Filled(_) => Status::Truncated,
        })
    }
}

impl Hand {
    /// Make ready for a picture of `source` = (height, width) pixels, of which `crop` is taken.
    fn begin<'c>(
        &'c mut self,
        painting: Painting<'c>,
        source: (usize, usize),
        crop: Crop,
    ) -> Result<(&'c mut jpeg::Decoder, Canvas<'c>), Error> {
        let Painting {
            plan,
            slot,
            slot_size,
            ..
        } = painting;
        self.whole.clear();
        if plan.needs_whole() {
            let what = memory::of_picture(plan.height, plan.width);
            memory::reserve(&mut self.whole, plan.height * plan.width * 3, what)?;
        }
        let output = (plan.height, plan.width);
        let canvas = Canvas {
            rows: Rows::new(&mut self.scratch, source, crop, output, plan.method)?,
            writer: &mut self.writer,
            whole: &mut self.whole,
            plan,
            slot,
            slot_size,
            outcome: Ok(()),
        };
        Ok((&mut self.decoder, canvas))
    }

    /// The same for a picture whose rows come from the decoder.
    fn begin_streamed<'c>(
        &'c mut self,
        painting: Painting<'c>,
        settings: &Settings,
    ) -> Result<Streamed<'c>, Error> {
        let (plan, opened) = (painting.plan, painting.opened);
        let scale = if settings.scaled_decoding {
            plan::scale_for(plan)
        } else {
            Scale::Full
        };
        let source = (scale.apply(opened.size.0), scale.apply(opened.size.1));
        let (decoder, canvas) =
            self.begin(painting, source, plan::scaled(plan.crop, scale, source))?;
        let request = jpeg::Request {
            scale,
            stop_row: Some(canvas.rows.last_row_needed() + 1),
            max_pixels: settings.max_pixels,
        };
        Ok(Streamed {
            decoder,
            bytes: opened.bytes(),
            request,
            canvas,
        })
    }

    fn paint(&mut self, painting: Painting<'_>, settings: &Settings) -> Result<Status, Error> {
        let opened = painting.opened;
        if opened.is_streamed() {
            return self.begin_streamed(painting, settings)?.run(settings);
        }
        let (picture, status) = opened.decode(settings)?;
        let (source, crop) = ((picture.height, picture.width), painting.plan.crop);
        let (_, mut canvas) = self.begin(painting, source, crop)?;
        canvas.push(0, &picture.pixels);
        canvas.finish(&status, settings)
    }
}

impl Streamed<'_> {
    fn run(mut self, settings: &Settings) -> Result<Status, Error> {
        let mut sink = |first_row: usize, rows: &[u8]| self.canvas.push(first_row, rows);
        let status = self.decoder.decode(self.bytes, &self.request, &mut sink)?;
        self.canvas.finish(&status, settings)
    }
}

fn run_two(
    mut first: Streamed<'_>,
    mut second: Streamed<'_>,
    settings: &Settings,
) -> [Result<Status, Error>; 2] {
    let [status, other] = jpeg::decode_two(
        jpeg::Task {
            decoder: first.decoder,
            bytes: first.bytes,
            request: first.request,
            sink: &mut |first_row, rows| first.canvas.push(first_row, rows),
        },
        jpeg::Task {
            decoder: second.decoder,
            bytes: second.bytes,
            request: second.request,
            sink: &mut |first_row, rows| second.canvas.push(first_row, rows),
        },
    );
    [
        status.and_then(|status| first.canvas.finish(&status, settings)),
        other.and_then(|status| second.canvas.finish(&status, settings)),
    ]
}

impl Painter {
    /// Make the tables.
    ///
    /// # Errors
    /// [`Error::Argument`] for a normalisation that cannot be.
    pub fn new(settings: &Settings) -> Result<Self, Error> {
        let instructions = Instructions::best();
        let hand = || {
            let normalization = &settings.transform.normalization;
            let (layout, dtype) = (settings.layout, settings.dtype);
            Ok(Hand {
                decoder: jpeg::Decoder::with(instructions),
                scratch: ResizeScratch::new(instructions),
                writer: RowWriter::new(normalization, layout, dtype, instructions)?,
                whole: Vec::new(),
            })
        };
        Ok(Self {
            hands: [hand()?, hand()?],
        })
    }

    /// Decode a picture, do to it what its plan says, and write it into its slot.
    ///
    /// # Errors
    /// [`Error::Decode`] for broken bytes, also where a part is filled in and the settings do not
    /// accept that.
    pub fn paint(&mut self, painting: Painting<'_>, settings: &Settings) -> Result<Status, Error> {
        let [hand, _] = &mut self.hands;
        let opened = painting.opened;
        let painted = hand.paint(painting, settings);
        painted.map_err(|fault| opened.name_fault(fault))
    }

    /// Paint two pictures, each as [`Painter::paint`] does.
    pub fn paint_two(
        &mut self,
        paintings: [Painting<'_>; 2],
        settings: &Settings,
    ) -> [Result<Status, Error>; 2] {
        let opened = paintings.each_ref().map(|painting| painting.opened);
        if !opened.iter().all(|opened| opened.is_streamed()) {
            return paintings.map(|painting| self.paint(painting, settings));
        }
        let [first, second] = &mut self.hands;
        let [painting, other] = paintings;
        let begun = (
            first.begin_streamed(painting, settings),
            second.begin_streamed(other, settings),
        );
        let painted = match begun {
            (Ok(first), Ok(second)) => run_two(first, second, settings),
            (first, second) => [first, second].map(|begun| begun?.run(settings)),
        };
        let [first, second] = painted;
        [
            first.map_err(|fault| opened[0].name_fault(fault)),
            second.map_err(|fault| opened[1].name_fault(fault)),
        ]
    }
}
