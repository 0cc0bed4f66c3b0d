//! One picture: from the bytes of its file to its place in a batch.
//!
//! Rows go from the decoder through the resize into the batch as they come, so that no picture of full
//! size leaves the processor's cache; only what needs a whole picture gets one (operations of
//! `RandAugment`, changes of colours, turning by EXIF, formats other than JPEG).

use crate::Error;
use crate::image::{self, Format, Rgb};
use crate::instructions::Instructions;
use crate::jpeg::{self, Scale};
use crate::memory;
use crate::normalize::RowWriter;
use crate::plan::Plan;
use crate::record::{SharedBytes, StoredImage};
use crate::resize::{Crop, Filter, ResizeScratch, RowResizer};
use crate::settings::Settings;
use crate::turn;

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
    format: Format,
    /// How it is turned before anything else, as EXIF counts; 1 is not at all.
    orientation: u8,
    /// (height, width) in pixels, after it is turned.
    pub size: (usize, usize),
}

/// What one thread keeps from picture to picture.
pub struct Painter {
    decoder: jpeg::Decoder,
    scratch: ResizeScratch,
    writer: RowWriter,
    /// Pixels of a picture that is needed whole.
    whole: Vec<u8>,
}

impl Opened {
    /// Read the picture's bytes and their header.
    ///
    /// # Errors
    /// [`Error::File`] where a file cannot be read, [`Error::Decode`] for a broken header, and
    /// [`Error::TooManyPixels`] above the limit.
    pub fn new(stored: &StoredImage, settings: &Settings) -> Result<Self, Error> {
        let bytes = stored.read()?;
        Self::of_bytes(stored, bytes, settings).map_err(|fault| stored.name_fault(fault))
    }

    fn of_bytes(
        stored: &StoredImage,
        bytes: SharedBytes,
        settings: &Settings,
    ) -> Result<Self, Error> {
        let content = (*bytes).as_ref();
        let format = Format::of(content)?;
        let (mut size, turned) = if format == Format::Jpeg {
            let header = jpeg::read_header(content)?;
            ((header.height, header.width), header.orientation)
        } else {
            let (height, width, _) = image::probe(content)?;
            ((height, width), 1)
        };
        let orientation = if settings.apply_orientation {
            turned
        } else {
            1
        };
        image::check_size(size.0, size.1, settings.max_pixels)?;
        if turn::swaps_sides(orientation) {
            size = (size.1, size.0);
        }
        Ok(Self {
            stored: stored.clone(),
            bytes,
            format,
            orientation,
            size,
        })
    }

    /// Decode the picture, cut and resize it as the plan says: the rows go to `take` from the top.
    fn resize(
        &self,
        plan: &Plan,
        settings: &Settings,
        decoder: &mut jpeg::Decoder,
        scratch: &mut ResizeScratch,
        take: &mut dyn FnMut(usize, &[u8]),
    ) -> Result<jpeg::Status, Error> {
        let output = (plan.height, plan.width);
        let bytes = (*self.bytes).as_ref();
        if self.format == Format::Jpeg && self.orientation == 1 {
            let scale = if settings.scaled_decoding {
                scale_for(plan)
            } else {
                Scale::Full
            };
            let source = (scale.apply(self.size.0), scale.apply(self.size.1));
            let crop = scaled(plan.crop, scale, source);
            let mut rows = Rows::new(scratch, source, crop, output, plan.filter)?;
            let request = jpeg::Request {
                scale,
                stop_row: Some(rows.last_row_needed() + 1),
                max_pixels: settings.max_pixels,
            };
            let mut pushed = Ok(());
            let status = decoder.decode(bytes, &request, &mut |first_row, decoded| {
                if pushed.is_ok() {
                    pushed = rows.push(first_row, decoded, take);
                }
            })?;
            return pushed.map(|()| status);
        }
        let (picture, status) = if self.format == Format::Jpeg {
            let request = jpeg::Request {
                scale: Scale::Full,
                stop_row: None,
                max_pixels: settings.max_pixels,
            };
            let (picture, status) = image::decode_jpeg(bytes, &request)?;
            (turn::turn(picture, self.orientation)?, status)
        } else {
            let picture = image::decode(bytes, settings.max_pixels)?;
            (picture, jpeg::Status::Whole)
        };
        let source = (picture.height, picture.width);
        let mut rows = Rows::new(scratch, source, plan.crop, output, plan.filter)?;
        rows.push(0, &picture.pixels, take)?;
        Ok(status)
    }
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
        filter: Filter,
    ) -> Result<Self, Error> {
        let inside = crop.top + crop.height <= source.0 && crop.left + crop.width <= source.1;
        if (crop.height, crop.width) == output && inside {
            return Ok(Self::Cut {
                crop,
                stride: source.1 * 3,
            });
        }
        RowResizer::new(scratch, source, crop, output, filter).map(Self::Resized)
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

impl Painter {
    /// Make the tables.
    ///
    /// # Errors
    /// [`Error::Argument`] for a normalisation that cannot be.
    pub fn new(settings: &Settings) -> Result<Self, Error> {
        let instructions = Instructions::best();
        Ok(Self {
            decoder: jpeg::Decoder::with(instructions),
            scratch: ResizeScratch::new(instructions),
            writer: RowWriter::new(
                &settings.transform.normalization,
                settings.layout,
                settings.dtype,
                instructions,
            )?,
            whole: Vec::new(),
        })
    }

    /// Decode a picture, do to it what `plan` says, and write it into `slot`, which has `slot_size` =
    /// (height, width) pixels.
    ///
    /// # Errors
    /// [`Error::Decode`] for broken bytes, also where a part is filled in and the settings do not
    /// accept that.
    pub fn paint(
        &mut self,
        opened: &Opened,
        plan: &Plan,
        settings: &Settings,
        slot: &mut [u8],
        slot_size: (usize, usize),
    ) -> Result<Status, Error> {
        self.try_paint(opened, plan, settings, slot, slot_size)
            .map_err(|fault| opened.stored.name_fault(fault))
    }

    fn try_paint(
        &mut self,
        opened: &Opened,
        plan: &Plan,
        settings: &Settings,
        slot: &mut [u8],
        slot_size: (usize, usize),
    ) -> Result<Status, Error> {
        let Self {
            decoder,
            scratch,
            writer,
            whole,
        } = self;
        let mut written = Ok(());
        whole.clear();
        let is_direct = !plan.needs_whole();
        if !is_direct {
            let what = memory::of_picture(plan.height, plan.width);
            memory::reserve(whole, plan.height * plan.width * 3, what)?;
        }
        let status = opened.resize(plan, settings, decoder, scratch, &mut |y, row| {
            if !is_direct {
                whole.extend_from_slice(row);
            } else if written.is_ok() {
                written = writer.write_row(row, slot, slot_size, y, plan.flip);
            }
        })?;
        written?;
        if let jpeg::Status::Filled(reason) = &status
            && !settings.accept_truncated
        {
            return Err(Error::decode(reason));
        }
        if !is_direct {
            let mut picture = Rgb {
                height: plan.height,
                width: plan.width,
                pixels: std::mem::take(whole),
            };
            plan.change(&mut picture);
            for (y, row) in picture.pixels.chunks_exact(plan.width * 3).enumerate() {
                writer.write_row(row, slot, slot_size, y, false)?;
            }
            *whole = picture.pixels;
        }
        writer.pad_below(slot, slot_size, plan.height)?;
        Ok(match status {
            jpeg::Status::Whole => Status::Ok,
            jpeg::Status::Filled(_) => Status::Truncated,
        })
    }
}

/// The smallest scale of which the crop still has the pixels of the output.
fn scale_for(plan: &Plan) -> Scale {
    let fits = |scale: &Scale| {
        plan.crop.height >= scale.divisor() * plan.height
            && plan.crop.width >= scale.divisor() * plan.width
    };
    [Scale::Eighth, Scale::Quarter, Scale::Half]
        .into_iter()
        .find(fits)
        .unwrap_or_default()
}

/// The crop in pixels of the scaled picture, its edges rounded to the nearest.
fn scaled(crop: Crop, scale: Scale, source: (usize, usize)) -> Crop {
    let divisor = scale.divisor();
    let edge = |edge: usize, size: usize| ((edge + divisor / 2) / divisor).min(size);
    let span = |start: usize, length: usize, size: usize| {
        let first = edge(start, size - 1);
        let end = edge(start + length, size).max(first + 1);
        (first, end - first)
    };
    let (top, height) = span(crop.top, crop.height, source.0);
    let (left, width) = span(crop.left, crop.width, source.1);
    Crop {
        top,
        left,
        height,
        width,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Task;
    use crate::sample::tests::settings;

    #[test]
    fn a_crop_keeps_its_place_in_a_scaled_picture() {
        let crop = Crop {
            top: 16,
            left: 33,
            height: 64,
            width: 100,
        };
        let expected = Crop {
            top: 4,
            left: 8,
            height: 16,
            width: 25,
        };
        assert_eq!(scaled(crop, Scale::Quarter, (25, 50)), expected);
        assert_eq!(scaled(crop, Scale::Full, (100, 200)), crop);
        // The last column of an odd picture, and less than a pixel of the scaled one.
        let crop = Crop {
            top: 0,
            left: 16,
            height: 1,
            width: 1,
        };
        let expected = Crop {
            top: 0,
            left: 2,
            height: 1,
            width: 1,
        };
        assert_eq!(scaled(crop, Scale::Eighth, (1, 3)), expected);
    }

    #[test]
    fn the_scale_leaves_the_pixels_that_are_needed() {
        let mut plan = settings(Task::ImageText).transform.plan(
            64,
            64,
            &mut crate::random::Draws::new(0, 0, 0, crate::random::Purpose::Picture(0)),
        );
        for (side, scale) in [
            (15, Scale::Full),
            (16, Scale::Half),
            (63, Scale::Quarter),
            (64, Scale::Eighth),
        ] {
            plan.crop = Crop::whole(side, 64);
            assert_eq!((plan.height, scale_for(&plan)), (8, scale));
        }
    }
}
