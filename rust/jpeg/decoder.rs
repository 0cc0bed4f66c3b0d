//! Decoding of a file, from headers and scans to rows.

use super::bitstream::Damage;
use super::block::{Block, Coefficients};
use super::frame::{Frame, Scan};
use super::huffman::{self, TableCache, TableSpec};
use super::markers::{ColorSpace, Markers, Reader, Stop, broken};
use super::mcu_rows::{McuRows, Target};
use super::multi_scan;
use super::sequential::{ScanPart, SingleScanDecode};
use super::simd::Simd;
use super::{Request, Status};
use crate::Error;
use crate::cpu_features::Instructions;

/// Buffers of a decoder, reused between images.
pub(super) struct DecoderState {
    pub(super) tables: TableCache,
    pub(super) window: Vec<u8>,
    /// Blocks of a few MCUs, in scan order.
    pub(super) chunk: Vec<Block>,
    /// All coefficients, by component, for multi-scan images.
    pub(super) coefficients: Vec<Coefficients>,
    pub(super) smooth: Vec<Block>,
    pub(super) rows: McuRows,
}

/// Destination of the rows.
pub(super) struct Output<'o> {
    space: ColorSpace,
    /// First row that is not needed (exclusive end).
    end: usize,
    target: Target<'o>,
}

impl Output<'_> {
    /// Emit the rows completed by an MCU row. Returns true once all needed rows have been emitted.
    pub(super) fn emit(&mut self, rows: &mut McuRows, mcu_row: usize) -> bool {
        rows.emit(mcu_row, self.space, self.end, &mut self.target);
        rows.is_done(self.end)
    }
}

/// An image whose decoding has started.
pub(super) enum StartedDecode<'p> {
    /// A single scan, still to be decoded.
    SingleScan(Box<SingleScanDecode<'p>>),
    /// An image that is already decoded.
    Done(Status),
}

/// Problems found so far, in file order.
#[derive(Default)]
pub(super) struct DecodeWarnings {
    reasons: Vec<String>,
}

impl DecodeWarnings {
    pub(super) fn add(&mut self, reason: impl Into<String>) {
        let reason = reason.into();
        if !self.reasons.contains(&reason) {
            self.reasons.push(reason);
        }
    }

    pub(super) fn add_damage(&mut self, damage: Damage) {
        let found = [
            (damage.is_short, "the data ends before the last block"),
            (damage.is_bad_code, "invalid Huffman code"),
            (damage.is_out_of_order, "restart markers out of order"),
            (damage.unused_bytes > 0, "extra data"),
        ];
        for (_, reason) in found.into_iter().filter(|(is_found, _)| *is_found) {
            self.add(reason);
        }
    }

    pub(super) fn status(self) -> Status {
        if self.reasons.is_empty() {
            Status::Whole
        } else {
            Status::Filled(format!("JPEG: {}", self.reasons.join(", ")))
        }
    }
}

impl DecoderState {
    pub(super) fn new(instructions: Instructions) -> Self {
        Self {
            tables: TableCache::default(),
            window: Vec::new(),
            chunk: Vec::new(),
            coefficients: Vec::new(),
            smooth: Vec::new(),
            rows: McuRows::new(Simd::new(instructions)),
        }
    }

    /// Decode an image, or start it if [`SingleScanDecode`] can decode it.
    pub(super) fn begin<'p>(
        &'p mut self,
        bytes: &'p [u8],
        request: &Request,
        target: Target<'p>,
    ) -> Result<StartedDecode<'p>, Error> {
        let mut reader = Reader { bytes, position: 0 };
        let mut markers = Markers::default();
        let frame = markers.read_frame(&mut reader)?.clone();
        let limits = &request.limits;
        limits.check_size(frame.height, frame.width)?;
        let Stop::Scan(scan) = markers.read_to_scan(&mut reader, None)? else {
            return Err(broken("no scans found"));
        };
        if !frame.is_progressive {
            set_standard_tables(&mut markers);
        }
        self.rows.reset(&frame, 8 / request.scale.divisor());
        let mut output = Output {
            space: markers.color_space(),
            end: request.stop_row.unwrap_or(usize::MAX).min(self.rows.height),
            target,
        };
        if let Target::Image(pixels) = &output.target {
            let expected = output.end * self.rows.width * 3;
            if pixels.len() != expected {
                let reason = format!("{} bytes; expected {expected}", pixels.len());
                return Err(Error::argument("pixels", reason));
            }
        }
        if !frame.is_progressive && scan.components.len() == frame.components.len() {
            let scan = SingleScanDecode::new(self, frame, &scan, markers, reader, output)?;
            Ok(StartedDecode::SingleScan(Box::new(scan)))
        } else {
            let bytes = multi_scan::coefficient_bytes(&frame).saturating_add(request.output_bytes);
            limits.check_bytes((frame.height, frame.width), bytes)?;
            let warnings = multi_scan::decode(self, &frame, scan, markers, reader, &mut output)?;
            Ok(StartedDecode::Done(warnings.status()))
        }
    }
}

/// Set the default tables, which Motion JPEG omits.
fn set_standard_tables(markers: &mut Markers) {
    let dc = [huffman::DC_LUMINANCE, huffman::DC_CHROMINANCE];
    let ac = [huffman::AC_LUMINANCE, huffman::AC_CHROMINANCE];
    for (slots, standard) in [(&mut markers.dc, dc), (&mut markers.ac, ac)] {
        for (slot, table) in slots.iter_mut().zip(standard) {
            slot.get_or_insert_with(|| TableSpec::of(table));
        }
    }
}

/// Set up the components of a sequential scan.
pub(super) fn parts(
    cache: &mut TableCache,
    frame: &Frame,
    scan: &Scan,
    markers: &Markers,
) -> Result<Vec<ScanPart>, Error> {
    frame.check_scan(scan)?;
    let mut parts = Vec::with_capacity(scan.components.len());
    for part in &scan.components {
        let Some(component) = frame.components.get(part.index) else {
            continue;
        };
        let is_alone = scan.components.len() == 1;
        parts.push(ScanPart {
            index: part.index,
            h: if is_alone { 1 } else { component.h },
            v: if is_alone { 1 } else { component.v },
            dc: cache.table(table("Huffman", &markers.dc, part.dc)?, true)?,
            ac: cache.table(table("Huffman", &markers.ac, part.ac)?, false)?,
        });
    }
    Ok(parts)
}

/// Look up a Huffman or quantization table by number.
pub(super) fn table<'t, T>(
    kind: &str,
    tables: &'t [Option<T>; 4],
    number: usize,
) -> Result<&'t T, Error> {
    let found = tables.get(number).and_then(Option::as_ref);
    found.ok_or_else(|| broken(format!("{kind} table {number} is missing")))
}

/// Latch the quantization table of each component in its first scan.
pub(super) fn latch_quantization(
    rows: &mut McuRows,
    frame: &Frame,
    scan: &Scan,
    markers: &Markers,
) -> Result<(), Error> {
    for part in &scan.components {
        let Some(component) = frame.components.get(part.index) else {
            continue;
        };
        if rows.quantization(part.index).is_none() {
            let number = component.quantization;
            let table = table("quantization", &markers.quantization, number)?;
            rows.set_quantization(part.index, table);
        }
    }
    Ok(())
}
