//! Decode images into their slots of a batch.
//!
//! Rows are resized and written into the batch as they are decoded, so a full-size image never
//! leaves the CPU cache. A whole image is buffered only for `RandAugment`, color changes, EXIF
//! orientation, and formats other than JPEG; it is the image at full size if `RandAugment` comes
//! before the resize. A thread decodes two JPEGs at a time, which is faster than decoding one after
//! the other.

use crate::Error;
use crate::boxes::Crop;
use crate::cpu_features::Instructions;
use crate::image::{Decoded, Rgb};
use crate::jpeg::{self, Scale};
use crate::loader::config::LoaderConfig;
use crate::loader::probed_image::ProbedImage;
use crate::loader::sample::PreparedSample;
use crate::loader::sample_masks::SampleMasks;
use crate::masks::stored_mask::MaskScratch;
use crate::normalize::RowWriter;
use crate::resize::{Method, ResizeScratch, ResizeTarget, RowResizer};
use crate::transform::params::{self, SampledTransform};
use crate::try_alloc;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImageStatus {
    #[default]
    Ok,
    /// Truncated or damaged; filled as in libjpeg.
    Truncated,
}

impl ImageStatus {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Truncated => "truncated",
        }
    }
}

/// An image that is to be decoded, and its destination.
pub struct DecodeRequest<'p> {
    pub probed: &'p ProbedImage,
    pub sampled: &'p SampledTransform,
    pub slot: &'p mut [u8],
    /// (height, width) of the slot in pixels.
    pub slot_size: (usize, usize),
}

impl DecodeRequest<'_> {
    /// True if rows can be processed as they are decoded, without buffering the whole image.
    fn is_streamed(&self) -> bool {
        self.probed.is_streamed() && self.sampled.source_operations.is_empty()
    }
}

/// Decoder of a worker thread; it keeps its buffers between images.
pub struct ImageDecoder {
    scratch: [Scratch; 2],
    masks: MaskScratch,
}

struct Scratch {
    decoder: jpeg::Decoder,
    resize: ResizeScratch,
    writer: RowWriter,
    /// Pixels of an image that is buffered as a whole.
    whole: Vec<u8>,
}

/// Processing of decoded rows.
enum RowStage<'a> {
    Resized(RowResizer<'a>),
    /// Crop only, since the crop already has the output size.
    Cropped {
        crop: Crop,
        stride: usize,
    },
}

impl<'a> RowStage<'a> {
    fn new(
        scratch: &'a mut ResizeScratch,
        source: (usize, usize),
        crop: Crop,
        target: ResizeTarget,
        method: Method,
    ) -> Result<Self, Error> {
        let inside = crop.top + crop.height <= source.0 && crop.left + crop.width <= source.1;
        if (crop.height, crop.width) == target.whole && inside {
            let window = target.window;
            return Ok(Self::Cropped {
                crop: Crop {
                    top: crop.top + window.top,
                    left: crop.left + window.left,
                    ..window
                },
                stride: source.1 * 3,
            });
        }
        RowResizer::new(scratch, source, crop, target, method).map(Self::Resized)
    }

    fn last_row_needed(&self) -> usize {
        match self {
            Self::Resized(resizer) => resizer.last_row_needed(),
            Self::Cropped { crop, .. } => crop.top + crop.height - 1,
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
            Self::Cropped { crop, stride } => {
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

/// A JPEG that is decoded row by row.
struct StreamedDecode<'c> {
    decoder: &'c mut jpeg::Decoder,
    bytes: &'c [u8],
    request: jpeg::Request,
    sink: RowSink<'c>,
}

/// Receives rows and writes them into the slot.
struct RowSink<'c> {
    rows: RowStage<'c>,
    writer: &'c mut RowWriter,
    whole: &'c mut Vec<u8>,
    sampled: &'c SampledTransform,
    slot: &'c mut [u8],
    slot_size: (usize, usize),
    outcome: Result<(), Error>,
}

impl RowSink<'_> {
    fn push(&mut self, first_row: usize, decoded: &[u8]) {
        if self.outcome.is_err() {
            return;
        }
        let Self {
            rows,
            writer,
            whole,
            sampled,
            slot,
            slot_size,
            ..
        } = self;
        let mut written = Ok(());
        let pushed = rows.push(first_row, decoded, &mut |y, row| {
            if sampled.needs_whole() {
                whole.extend_from_slice(row);
            } else if written.is_ok()
                // Errors go to `written` rather than `self.outcome`: storing and reloading that for
                // each row would stall.
                && let Err(error) = writer.write_row(row, slot, *slot_size, y, sampled.flip)
            {
                written = Err(error);
            }
        });
        self.outcome = written.and(pushed);
    }

    fn finish(self, status: &jpeg::Status, config: &LoaderConfig) -> Result<ImageStatus, Error> {
        self.outcome?;
        if let jpeg::Status::Filled(reason) = status
            && !config.accept_truncated
        {
            return Err(Error::decode(reason));
        }
        let sampled = self.sampled;
        if sampled.needs_whole() {
            let mut image = Rgb::new(sampled.height, sampled.width, std::mem::take(self.whole));
            sampled.change(&mut image)?;
            for (y, row) in image.pixels.chunks_exact(sampled.width * 3).enumerate() {
                self.writer
                    .write_row(row, self.slot, self.slot_size, y, false)?;
            }
            *self.whole = image.pixels;
        }
        self.writer
            .pad_below(self.slot, self.slot_size, sampled.height)?;
        Ok(match status {
            jpeg::Status::Whole => ImageStatus::Ok,
            jpeg::Status::Filled(_) => ImageStatus::Truncated,
        })
    }
}

impl Scratch {
    /// Start an image of `source` = (height, width) pixels, cropped to `crop` and resized to
    /// `target`.
    fn begin<'c>(
        &'c mut self,
        request: DecodeRequest<'c>,
        source: (usize, usize),
        (crop, target): (Crop, ResizeTarget),
    ) -> Result<(&'c mut jpeg::Decoder, RowSink<'c>), Error> {
        let DecodeRequest {
            sampled,
            slot,
            slot_size,
            ..
        } = request;
        self.whole.clear();
        if sampled.needs_whole() {
            let what = try_alloc::of_image(sampled.height, sampled.width);
            try_alloc::reserve(&mut self.whole, sampled.height * sampled.width * 3, what)?;
        }
        let sink = RowSink {
            rows: RowStage::new(&mut self.resize, source, crop, target, sampled.method)?,
            writer: &mut self.writer,
            whole: &mut self.whole,
            sampled,
            slot,
            slot_size,
            outcome: Ok(()),
        };
        Ok((&mut self.decoder, sink))
    }

    /// Start an image whose rows come from the JPEG decoder.
    fn begin_streamed<'c>(
        &'c mut self,
        request: DecodeRequest<'c>,
        config: &LoaderConfig,
    ) -> Result<StreamedDecode<'c>, Error> {
        let (sampled, probed) = (request.sampled, request.probed);
        let is_scaled = config.scaled_decoding;
        let scale = if is_scaled {
            params::scale_for(sampled)
        } else {
            Scale::Full
        };
        let source = (scale.apply(probed.size.0), scale.apply(probed.size.1));
        let crop = params::scaled(sampled.crop, scale, source);
        let (decoder, sink) = self.begin(request, source, (crop, sampled.target()))?;
        let request = jpeg::Request {
            scale,
            stop_row: Some(sink.rows.last_row_needed() + 1),
            limits: config.limits,
            output_bytes: 0,
        };
        Ok(StreamedDecode {
            decoder,
            bytes: probed.bytes(),
            request,
            sink,
        })
    }

    fn decode(
        &mut self,
        request: DecodeRequest<'_>,
        config: &LoaderConfig,
    ) -> Result<ImageStatus, Error> {
        if request.is_streamed() {
            return self.begin_streamed(request, config)?.run(config);
        }
        let DecodeRequest {
            probed, sampled, ..
        } = request;
        let (image, status) = probed.decode(config)?;
        let (image, crop, target) = match image {
            Decoded::Rgb(mut image) => {
                let (copies, bytes) = (sampled.source_copies(), image.pixels.len());
                config
                    .limits
                    .check_bytes(probed.size, (1 + copies) * bytes)?;
                sampled.change_source(&mut image)?;
                (image, sampled.crop, sampled.target())
            }
            Decoded::Rgba(image) => {
                let resized = sampled.resize_with_alpha(&mut self.resize, &image)?;
                let size = (resized.height, resized.width);
                (resized, Crop::whole(size.0, size.1), size.into())
            }
        };
        let source = (image.height, image.width);
        let (_, mut sink) = self.begin(request, source, (crop, target))?;
        sink.push(0, &image.pixels);
        sink.finish(&status, config)
    }
}

impl StreamedDecode<'_> {
    fn run(mut self, config: &LoaderConfig) -> Result<ImageStatus, Error> {
        let mut sink = |first_row: usize, rows: &[u8]| self.sink.push(first_row, rows);
        let status = self.decoder.decode(self.bytes, &self.request, &mut sink)?;
        self.sink.finish(&status, config)
    }
}

fn run_two(
    mut first: StreamedDecode<'_>,
    mut second: StreamedDecode<'_>,
    config: &LoaderConfig,
) -> [Result<ImageStatus, Error>; 2] {
    let [status, other] = jpeg::decode_two(
        jpeg::DecodeTask {
            decoder: first.decoder,
            bytes: first.bytes,
            request: first.request,
            sink: &mut |first_row, rows| first.sink.push(first_row, rows),
        },
        jpeg::DecodeTask {
            decoder: second.decoder,
            bytes: second.bytes,
            request: second.request,
            sink: &mut |first_row, rows| second.sink.push(first_row, rows),
        },
    );
    [
        status.and_then(|status| first.sink.finish(&status, config)),
        other.and_then(|status| second.sink.finish(&status, config)),
    ]
}

impl ImageDecoder {
    pub fn new(config: &LoaderConfig) -> Result<Self, Error> {
        let instructions = Instructions::best();
        let scratch = || {
            let normalization = &config.transform.normalization;
            let (layout, dtype) = (config.layout, config.dtype);
            let mut writer = RowWriter::new(normalization, layout, dtype, instructions)?;
            if let Some(byte) = config.transform.geometry.padding() {
                writer = writer.padded_with(byte, normalization);
            }
            Ok(Scratch {
                decoder: jpeg::Decoder::with(instructions),
                resize: ResizeScratch::new(instructions),
                writer,
                whole: Vec::new(),
            })
        };
        Ok(Self {
            scratch: [scratch()?, scratch()?],
            masks: MaskScratch::default(),
        })
    }

    /// Decode the masks of a sample, if it has any, for slots of `size` = (height, width) pixels.
    pub fn decode_masks(
        &mut self,
        prepared: &PreparedSample,
        size: (usize, usize),
        config: &LoaderConfig,
    ) -> Result<SampleMasks, Error> {
        match (&prepared.masks, prepared.images.first()) {
            (Some(masks), Some((_, sampled))) => {
                masks.decode(sampled, size, &config.limits, &mut self.masks)
            }
            _ => Ok(SampleMasks::default()),
        }
    }

    /// Decode an image, apply its transform, and write it into its slot.
    pub fn decode(
        &mut self,
        request: DecodeRequest<'_>,
        config: &LoaderConfig,
    ) -> Result<ImageStatus, Error> {
        let [scratch, _] = &mut self.scratch;
        let probed = request.probed;
        let decoded = scratch.decode(request, config);
        decoded.map_err(|fault| probed.name_fault(fault))
    }

    /// Decode two images as [`ImageDecoder::decode`] does.
    pub fn decode_two(
        &mut self,
        requests: [DecodeRequest<'_>; 2],
        config: &LoaderConfig,
    ) -> [Result<ImageStatus, Error>; 2] {
        let probed = requests.each_ref().map(|request| request.probed);
        if !requests.iter().all(DecodeRequest::is_streamed) {
            return requests.map(|request| self.decode(request, config));
        }
        let [first, second] = &mut self.scratch;
        let [request, other] = requests;
        let begun = (
            first.begin_streamed(request, config),
            second.begin_streamed(other, config),
        );
        let decoded = match begun {
            (Ok(first), Ok(second)) => run_two(first, second, config),
            (first, second) => [first, second].map(|begun| begun?.run(config)),
        };
        let [first, second] = decoded;
        [
            first.map_err(|fault| probed[0].name_fault(fault)),
            second.map_err(|fault| probed[1].name_fault(fault)),
        ]
    }
}
