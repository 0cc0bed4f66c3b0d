//! JPEG files -> rows of RGB pixels, bit for bit as libjpeg-turbo decodes them by default: its accurate
//! integer inverse DCT ("islow"), its smooth ("fancy") upsampling and its conversion of colours; CMYK
//! and YCCK become RGB as in Pillow's `convert("RGB")`.
//!
//! Baseline, extended sequential and progressive Huffman coding of 8 bits a sample. Where data are
//! missing or damaged, the same pixels come out that libjpeg-turbo fills in, and [`Status`] says so. One
//! case is left out: where damage makes FF FF 00 of the data, libjpeg-turbo keeps in one MCU what a first
//! attempt left there.
//! Arithmetic coding, 12 bits, lossless and hierarchical files are [`Error::Unsupported`].

// Codes, coefficients and samples are cut to their bits all along, as the standard and libjpeg-turbo
// have it; every wrap and every limit is part of the result.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss
)]

mod bit_reader;
mod bitstream;
mod block;
mod block_smoothing;
mod color;
mod decoder;
mod frame;
mod huffman;
mod idct;
mod interleaved;
mod markers;
mod mcu_rows;
mod multi_scan;
mod progressive;
mod sequential;
mod simd;
mod upsample;

use crate::Error;
use crate::cpu_features::Instructions;
use decoder::{DecoderState, StartedDecode};
use markers::{Markers, Reader};
use mcu_rows::Target;

/// The most scans of a picture. Honest progressive files have about ten; libjpeg-turbo sets no limit
/// and its fuzzers stop at this one.
pub const MAX_SCANS: usize = 500;

/// Size of the pixels that come out, as a part of the size in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scale {
    /// As in the file.
    #[default]
    Full,
    /// Half the height and width, rounded up.
    Half,
    /// A quarter of each.
    Quarter,
    /// An eighth of each.
    Eighth,
}

impl Scale {
    /// By how much height and width are divided.
    #[must_use]
    pub fn divisor(self) -> usize {
        match self {
            Self::Full => 1,
            Self::Half => 2,
            Self::Quarter => 4,
            Self::Eighth => 8,
        }
    }

    /// The size that comes out, in pixels.
    #[must_use]
    pub fn apply(self, size: usize) -> usize {
        size.div_ceil(self.divisor())
    }
}

/// What a file says before its pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// How EXIF says that the picture is to be turned, 1 (not at all) to 8; 1 where it says nothing.
    pub orientation: u8,
    /// Whether the file is progressive.
    pub is_progressive: bool,
    /// Components: 1 for grey, 3 for colour, 4 for inks.
    pub components: usize,
}

/// Whether all pixels came from the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// They did.
    Whole,
    /// Some are filled in, for this reason, as libjpeg-turbo fills them in.
    Filled(String),
}

/// What is wanted of a picture.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Size of the pixels.
    pub scale: Scale,
    /// The first row that is not needed, in pixels that come out; decoding ends there.
    pub stop_row: Option<usize>,
    /// The most pixels that the file may have, whatever comes out.
    pub max_pixels: usize,
}

/// Read what a file says before its pixels.
///
/// # Errors
/// [`Error::Decode`] for a broken header, [`Error::Unsupported`] for that of another kind.
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

/// A decoder. Its memory is kept from picture to picture: use one for each thread.
pub struct Decoder {
    state: DecoderState,
}

impl Decoder {
    /// Make a decoder that uses the widest instructions. It holds no memory yet.
    #[must_use]
    pub fn new() -> Self {
        Self::with(Instructions::best())
    }

    /// Make a decoder that uses these instructions. All of them give the same pixels.
    #[must_use]
    pub fn with(instructions: Instructions) -> Self {
        Self {
            state: DecoderState::new(instructions),
        }
    }

    /// Decode a picture.
    ///
    /// `sink` gets the index of a row and complete rows from there on, `n * width * 3` bytes, red
    /// first; the calls go from the top to the bottom, or to `stop_row`, without a gap.
    ///
    /// # Errors
    /// [`Error::Unsupported`]; [`Error::Decode`] for what is no JPEG, or too broken for libjpeg-turbo, too; rows
    /// may have been handed on before. [`Error::TooManyPixels`] above the limit, told from the header.
    pub fn decode(
        &mut self,
        bytes: &[u8],
        request: &Request,
        sink: &mut dyn FnMut(usize, &[u8]),
    ) -> Result<Status, Error> {
        decode_all(&mut self.state, bytes, request, Target::Sink(sink))
    }

    /// Decode a picture into `pixels`, which has room for all of its rows or for those up to `stop_row`.
    ///
    /// # Errors
    /// As [`Decoder::decode`]; [`Error::Argument`] for `pixels` of another length.
    pub fn decode_into(
        &mut self,
        bytes: &[u8],
        request: &Request,
        pixels: &mut [u8],
    ) -> Result<Status, Error> {
        decode_all(&mut self.state, bytes, request, Target::Picture(pixels))
    }
}

/// One of two pictures for [`decode_two`].
pub struct DecodeTask<'t> {
    /// What decodes it.
    pub decoder: &'t mut Decoder,
    /// The file.
    pub bytes: &'t [u8],
    /// What is wanted of it.
    pub request: Request,
    /// As in [`Decoder::decode`].
    pub sink: &'t mut dyn FnMut(usize, &[u8]),
}

/// Decode two pictures at a time on this thread, each as [`Decoder::decode`] does: faster than one after
/// the other where both are sequential.
pub fn decode_two<'t>(first: DecodeTask<'t>, second: DecodeTask<'t>) -> [Result<Status, Error>; 2] {
    let mut both = [first, second].map(|task| {
        let target = Target::Sink(task.sink);
        task.decoder.state.begin(task.bytes, &task.request, target)
    });
    if let [
        Ok(StartedDecode::SingleScanDecode(first)),
        Ok(StartedDecode::SingleScanDecode(second)),
    ] = &mut both
    {
        sequential::run_two(first, second);
    }
    both.map(|begun| begun.map(finish))
}

fn decode_all<'p>(
    state: &'p mut DecoderState,
    bytes: &'p [u8],
    request: &Request,
    target: Target<'p>,
) -> Result<Status, Error> {
    state.begin(bytes, request, target).map(finish)
}

fn finish(begun: StartedDecode<'_>) -> Status {
    match begun {
        StartedDecode::Done(status) => status,
        StartedDecode::SingleScanDecode(mut picture) => {
            picture.run();
            picture.finish()
        }
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}
