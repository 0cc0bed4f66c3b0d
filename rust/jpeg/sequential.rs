//! Baseline and extended sequential scans.
//!
//! [`Sequence`] decodes a scan in chunks of MCUs; [`SingleScanDecode`] streams the chunks of a
//! single-scan image to pixel rows.

use std::sync::Arc;

use super::bitstream::{Bitstream, Restarts};
use super::block::{Block, Coefficients};
use super::frame::{Frame, Scan};
use super::huffman::{HuffmanTable, TableCache};
use super::interleaved::{MAX_PARTS, McuBlock, McuRun, McuRunEnd};
use super::markers::{Markers, Reader, Stop, table};
use super::mcu_rows::McuRows;
use super::options::Status;
use super::simd::Simd;
use super::state::{DecodeWarnings, DecoderState, Output, latch_quantization};
use crate::Error;

/// A component of a scan.
pub(super) struct ScanPart {
    /// Index of the component in the frame.
    pub(super) index: usize,
    /// Blocks per MCU in this scan.
    pub(super) h: usize,
    pub(super) v: usize,
    pub(super) dc: Arc<HuffmanTable>,
    pub(super) ac: Arc<HuffmanTable>,
}

/// MCUs per chunk, chosen so that their coefficients fit in the L1 cache.
pub(super) const CHUNK: usize = 32;

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

/// A sequential scan, decoded in chunks of MCUs, with blocks in scan order.
pub(super) struct Sequence {
    parts: Vec<ScanPart>,
    /// Component of each block of an MCU.
    units: Vec<McuBlock>,
    predictions: [i32; MAX_PARTS],
    restarts: Restarts,
    /// Number of MCUs in the chunk, of decoded MCUs, and of MCUs up to the next restart.
    count: usize,
    done: usize,
    run_end: usize,
}

impl Sequence {
    pub(super) fn new(parts: Vec<ScanPart>, restart_interval: usize) -> Self {
        let units = parts.iter().enumerate().flat_map(|(number, part)| {
            let unit = move || McuBlock {
                part: number,
                dc: Arc::clone(&part.dc),
                ac: Arc::clone(&part.ac),
            };
            std::iter::repeat_with(unit).take(part.h * part.v)
        });
        Self {
            units: units.collect(),
            parts,
            predictions: [0; MAX_PARTS],
            restarts: Restarts::new(restart_interval),
            count: 0,
            done: 0,
            run_end: 0,
        }
    }

    /// Start a chunk with all coefficients zero.
    pub(super) fn begin(&mut self, chunk: &mut Vec<Block>, count: usize) {
        chunk.clear();
        chunk.resize(count * self.units.len(), Block::ZERO);
        (self.count, self.done, self.run_end) = (count, 0, 0);
    }

    /// Move to the next MCU with data; false at the end of the chunk. MCUs without data are
    /// unchanged.
    pub(super) fn prepare(&mut self, stream: &mut Bitstream<'_, '_>) -> bool {
        while self.done < self.count {
            if self.done == self.run_end {
                if self.restarts.is_due() {
                    stream.restart();
                    self.predictions = [0; MAX_PARTS];
                }
                let run = self.restarts.run(self.count - self.done);
                self.restarts.pass(run);
                self.run_end += run;
            }
            if !stream.is_exhausted {
                return true;
            }
            self.done = self.run_end;
        }
        false
    }

    /// The run from the current MCU to the next restart or the end of the chunk; `None` if blocks
    /// are missing.
    pub(super) fn lane<'l>(
        &'l self,
        stream: &'l mut Bitstream<'_, '_>,
        chunk: &'l mut [Block],
    ) -> Option<McuRun<'l>> {
        let blocks = self.done * self.units.len()..self.run_end * self.units.len();
        let blocks = chunk.get_mut(blocks)?;
        McuRun::new(stream, &self.units, self.predictions, blocks)
    }

    pub(super) fn settle(&mut self, stream: &mut Bitstream<'_, '_>, end: Option<&McuRunEnd>) {
        let Some(end) = end else {
            self.done = self.run_end;
            return;
        };
        stream.resume(end.state, end.is_overrun, end.is_bad);
        self.predictions = end.predictions;
        self.done += end.mcus;
    }

    pub(super) fn decode(
        &mut self,
        stream: &mut Bitstream<'_, '_>,
        chunk: &mut [Block],
        simd: Simd,
    ) {
        while self.prepare(stream) {
            let end = self.lane(stream, chunk).map(|lane| simd.run(lane).end());
            self.settle(stream, end.as_ref());
        }
    }

    /// Blocks of a component in one block row of the chunk; `row` is relative to the MCU.
    pub(super) fn row<'c>(
        &self,
        chunk: &'c [Block],
        part: usize,
        row: usize,
    ) -> impl Iterator<Item = &'c Block> + use<'c> {
        let before = self.parts.iter().take(part);
        let before: usize = before.map(|part| part.h * part.v).sum();
        let wide = self.parts.get(part).map_or(0, |part| part.h);
        let mcus = chunk.chunks_exact(self.units.len().max(1));
        let start = before + row * wide;
        mcus.flat_map(move |mcu| mcu.get(start..start + wide).unwrap_or_default())
    }

    pub(super) fn parts(&self) -> &[ScanPart] {
        &self.parts
    }

    /// Copy a chunk to the coefficients of the image, starting at MCU `first` of a row.
    pub(super) fn put(
        &self,
        chunk: &[Block],
        coefficients: &mut [Coefficients],
        mcu_row: usize,
        first: usize,
    ) {
        for (number, part) in self.parts.iter().enumerate() {
            let Some(target) = coefficients.get_mut(part.index) else {
                continue;
            };
            for row in 0..part.v {
                let start = (mcu_row * part.v + row) * target.stride + first * part.h;
                let to = target.blocks.get_mut(start..).unwrap_or_default();
                for (to, from) in to.iter_mut().zip(self.row(chunk, number, row)) {
                    *to = *from;
                }
            }
        }
    }
}

/// A single-scan image that is being decoded.
pub(super) struct SingleScanDecode<'p> {
    frame: Frame,
    markers: Markers,
    sequence: Sequence,
    stream: Bitstream<'p, 'p>,
    chunk: &'p mut Vec<Block>,
    rows: &'p mut McuRows,
    output: Output<'p>,
    /// Current MCU row, and the first MCU of the chunk.
    mcu_row: usize,
    first: usize,
    /// True once the last needed row has been emitted.
    is_done: bool,
}

impl<'p> SingleScanDecode<'p> {
    pub(super) fn new(
        state: &'p mut DecoderState,
        frame: Frame,
        scan: &Scan,
        markers: Markers,
        reader: Reader<'p>,
        output: Output<'p>,
    ) -> Result<Self, Error> {
        let parts = parts(&mut state.tables, &frame, scan, &markers)?;
        latch_quantization(&mut state.rows, &frame, scan, &markers)?;
        let mut image = Self {
            sequence: Sequence::new(parts, markers.restart_interval),
            stream: Bitstream::new(reader, &mut state.window),
            chunk: &mut state.chunk,
            rows: &mut state.rows,
            output,
            mcu_row: 0,
            first: 0,
            is_done: frame.mcus_high == 0,
            frame,
            markers,
        };
        image.begin_chunk();
        Ok(image)
    }

    fn begin_chunk(&mut self) {
        let count = CHUNK.min(self.frame.mcus_wide - self.first);
        self.sequence.begin(self.chunk, count);
    }

    /// Transform the chunk, emit completed rows, and start the next chunk.
    fn end_chunk(&mut self) {
        for (number, part) in self.sequence.parts().iter().enumerate() {
            for row in 0..part.v {
                let blocks = self.sequence.row(self.chunk, number, row);
                self.rows
                    .transform(part.index, row, self.first * part.h, blocks);
            }
        }
        self.first += CHUNK;
        if self.first >= self.frame.mcus_wide {
            let is_last_wanted = self.output.emit(self.rows, self.mcu_row);
            self.first = 0;
            self.mcu_row += 1;
            self.is_done = is_last_wanted || self.mcu_row == self.frame.mcus_high;
        }
        if !self.is_done {
            self.begin_chunk();
        }
    }

    /// Move to the next MCU with data; false at the end.
    fn prepare(&mut self) -> bool {
        while !self.is_done {
            if self.sequence.prepare(&mut self.stream) {
                return true;
            }
            self.end_chunk();
        }
        false
    }

    /// The run that starts at the next MCU with data; `None` at the end.
    fn next_lane(&mut self) -> Option<McuRun<'_>> {
        let has_data = self.prepare();
        has_data.then(|| self.sequence.lane(&mut self.stream, self.chunk))?
    }

    fn settle(&mut self, end: &McuRunEnd) {
        self.sequence.settle(&mut self.stream, Some(end));
    }

    pub(super) fn run(&mut self) {
        let simd = self.rows.simd;
        while self.prepare() {
            self.sequence.decode(&mut self.stream, self.chunk, simd);
        }
    }

    /// Finish the image and report problems.
    pub(super) fn finish(mut self) -> Status {
        let mut warnings = DecodeWarnings::default();
        if self.mcu_row < self.frame.mcus_high {
            warnings.add_damage(self.stream.damage);
            return warnings.status();
        }
        let (mut reader, marker, damage) = self.stream.finish();
        warnings.add_damage(damage);
        match self.markers.read_to_scan(&mut reader, Some(marker)) {
            Ok(Stop::End) if reader.is_past_end() => warnings.add("the end marker is missing"),
            Ok(Stop::End) => {}
            Ok(Stop::Scan(_)) => warnings.add("unexpected scan after the last one"),
            Err(error) => warnings.add(format!("after the last scan, {error}")),
        }
        warnings.status()
    }
}

/// Decode two images on one thread, interleaving their codes. When one is finished, the rest of the
/// other is decoded alone.
pub(super) fn run_two(first: &mut SingleScanDecode<'_>, second: &mut SingleScanDecode<'_>) {
    let simd = first.rows.simd;
    let mut lanes = (first.next_lane(), second.next_lane());
    // The run of one image is kept while the other moves on to its next MCUs.
    while let (Some(lane), Some(other)) = lanes {
        let (lane, other) = simd.run_two(lane, other);
        if lane.is_over() {
            let end = lane.end();
            first.settle(&end);
            lanes = (first.next_lane(), Some(other));
        } else {
            let end = other.end();
            second.settle(&end);
            lanes = (Some(lane), second.next_lane());
        }
    }
    let ends = (
        lanes.0.map(|lane| simd.run(lane).end()),
        lanes.1.map(|lane| simd.run(lane).end()),
    );
    if let Some(end) = ends.0 {
        first.settle(&end);
    }
    if let Some(end) = ends.1 {
        second.settle(&end);
    }
    first.run();
    second.run();
}
