//! State of a decoder and of an image: buffers, output and warnings.

use super::bitstream::Damage;
use super::block::{Block, Coefficients};
use super::frame::{Frame, Scan};
use super::huffman::TableCache;
use super::markers::{ColorSpace, Markers, table};
use super::mcu_rows::{McuRows, Target};
use super::options::Status;
use super::simd::Simd;
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
}

/// Destination of the rows.
pub(super) struct Output<'o> {
    pub(super) space: ColorSpace,
    /// First row that is not needed (exclusive end).
    pub(super) end: usize,
    pub(super) target: Target<'o>,
}

impl Output<'_> {
    /// Emit the rows completed by an MCU row. Returns true once all needed rows have been emitted.
    pub(super) fn emit(&mut self, rows: &mut McuRows, mcu_row: usize) -> bool {
        rows.emit(mcu_row, self.space, self.end, &mut self.target);
        rows.is_done(self.end)
    }
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
