//! JPEG decoder, bit-exact with libjpeg-turbo's defaults: accurate integer inverse DCT ("islow"),
//! smooth ("fancy") upsampling and color conversion; CMYK and YCCK become RGB as in Pillow's
//! `convert("RGB")`.
//!
//! Supports baseline, extended sequential and progressive Huffman coding with 8 bits per sample.
//! Missing or damaged data is filled with the same pixels as in libjpeg-turbo and reported by
//! [`Status`]. One exception: where damage turns data into FF FF 00, libjpeg-turbo keeps the
//! coefficients of a first attempt in one MCU. Arithmetic coding, 12-bit samples, and lossless and
//! hierarchical files are [`Error::Unsupported`].

// Codes, coefficients and samples are truncated to their bit widths as in the standard and in
// libjpeg-turbo; results depend on every wraparound and clamp.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss
)]

mod bit_reader;
mod bitstream;
mod block;
mod block_smoothing;
mod decoder;
mod errors;
mod frame;
mod huffman;
mod interleaved;
mod markers;
mod mcu_rows;
mod multi_scan;
mod options;
mod pixels;
mod progressive;
mod sequential;
mod simd;
mod state;

use crate::Error;
use crate::cpu_features::Instructions;
use decoder::StartedDecode;
use markers::{Markers, Reader};
use mcu_rows::Target;
pub use options::{Header, Request, Scale, Status};
use state::DecoderState;

/// Read the header of a file.
///
/// # Errors
/// [`Error::Decode`] if the header is corrupt, [`Error::Unsupported`] if the JPEG is unsupported.
pub fn read_header(bytes: &[u8]) -> Result<Header, Error> {
    let mut markers = Markers::default();
    let mut reader = Reader { bytes, position: 0 };
    let frame = markers.read_frame(&mut reader)?;
    let (height, width) = (frame.height, frame.width);
    let (is_progressive, components) = (frame.is_progressive, frame.components.len());
    Ok(Header {
        height,
        width,
        orientation: markers.orientation.unwrap_or(1),
        is_progressive,
        components,
    })
}

/// A JPEG decoder. It keeps its buffers between images; use one per thread.
pub struct Decoder {
    state: DecoderState,
}

impl Decoder {
    /// Create a decoder with the best instruction set. Buffers are allocated later.
    #[must_use]
    pub fn new() -> Self {
        Self::with(Instructions::best())
    }

    /// Create a decoder with the given instruction set. All sets give the same pixels.
    #[must_use]
    pub fn with(instructions: Instructions) -> Self {
        Self {
            state: DecoderState::new(instructions),
        }
    }

    /// Decode an image.
    ///
    /// `sink` is called with the index of a row and complete rows from there on (`n * width * 3`
    /// bytes of RGB); the calls cover all rows, or those before `stop_row`, in order.
    ///
    /// # Errors
    /// [`Error::Unsupported`]; [`Error::Decode`] if the data is not a JPEG or too corrupt for
    /// libjpeg-turbo, possibly after emitting some rows; [`Error::TooManyPixels`] or
    /// [`Error::TooManyBytes`] if the size in the header or the memory exceeds its limit.
    pub fn decode(
        &mut self,
        bytes: &[u8],
        request: &Request,
        sink: &mut dyn FnMut(usize, &[u8]),
    ) -> Result<Status, Error> {
        self.state
            .begin(bytes, request, Target::Sink(sink))
            .map(finish)
    }

    /// Decode an image into `pixels`, which holds all rows or those before `stop_row`.
    ///
    /// # Errors
    /// See [`Decoder::decode`]; [`Error::Argument`] if `pixels` has the wrong length.
    pub fn decode_into(
        &mut self,
        bytes: &[u8],
        request: &Request,
        pixels: &mut [u8],
    ) -> Result<Status, Error> {
        self.state
            .begin(bytes, request, Target::Image(pixels))
            .map(finish)
    }
}

/// One of two images for [`decode_two`].
pub struct DecodeTask<'t> {
    /// Decoder of the image.
    pub decoder: &'t mut Decoder,
    /// Contents of the file.
    pub bytes: &'t [u8],
    /// Decoding options.
    pub request: Request,
    /// Receives rows, as in [`Decoder::decode`].
    pub sink: &'t mut dyn FnMut(usize, &[u8]),
}

/// Decode two images on this thread, each as [`Decoder::decode`] does. This is faster than decoding
/// them one after the other if both are sequential.
pub fn decode_two<'t>(first: DecodeTask<'t>, second: DecodeTask<'t>) -> [Result<Status, Error>; 2] {
    let mut both = [first, second].map(|task| {
        let target = Target::Sink(task.sink);
        task.decoder.state.begin(task.bytes, &task.request, target)
    });
    if let [
        Ok(StartedDecode::SingleScan(first)),
        Ok(StartedDecode::SingleScan(second)),
    ] = &mut both
    {
        sequential::run_two(first, second);
    }
    both.map(|begun| begun.map(finish))
}

fn finish(begun: StartedDecode<'_>) -> Status {
    match begun {
        StartedDecode::Done(status) => status,
        StartedDecode::SingleScan(mut image) => {
            image.run();
            image.finish()
        }
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}
