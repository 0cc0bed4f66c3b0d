//! Pictures whose one scan holds everything: a few MCUs at a time go from their codes to rows of pixels.

use super::Status;
use super::frame::{Frame, Scan};
use super::lanes::{Lane, LaneEnd};
use super::markers::{Markers, Reader, Stop};
use super::rows::Rows;
use super::scans::{self, Arena, Findings, Output};
use super::sequential::{Block, CHUNK, Sequence};
use super::stream::Stream;
use crate::Error;

/// A picture on its way.
pub(super) struct Streamed<'p> {
    frame: Frame,
    markers: Markers,
    sequence: Sequence,
    stream: Stream<'p, 'p>,
    chunk: &'p mut Vec<Block>,
    rows: &'p mut Rows,
    output: Output<'p>,
    /// The row of MCUs, and the first MCU of the chunk.
    mcu_row: usize,
    first: usize,
    /// Whether all rows that are wanted are handed on.
    is_done: bool,
}

impl<'p> Streamed<'p> {
    /// Begin behind the header of the scan.
    pub(super) fn new(
        arena: &'p mut Arena,
        frame: Frame,
        scan: &Scan,
        markers: Markers,
        reader: Reader<'p>,
        output: Output<'p>,
    ) -> Result<Self, Error> {
        let parts = scans::parts(&mut arena.tables, &frame, scan, &markers)?;
        scans::latch_quantisation(&mut arena.rows, &frame, scan, &markers)?;
        let mut picture = Self {
            sequence: Sequence::new(parts, markers.restart_interval),
            stream: Stream::new(reader, &mut arena.window),
            chunk: &mut arena.chunk,
            rows: &mut arena.rows,
            output,
            mcu_row: 0,
            first: 0,
            is_done: frame.mcus_high == 0,
            frame,
            markers,
        };
        picture.begin_chunk();
        Ok(picture)
    }

    fn begin_chunk(&mut self) {
        let count = CHUNK.min(self.frame.mcus_wide - self.first);
        self.sequence.begin(self.chunk, count);
    }

    /// Transform a chunk, hand on the rows that are complete, and begin the next one.
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

    /// Go to the next MCU that there are data for; false where nothing is left to decode.
    fn prepare(&mut self) -> bool {
        while !self.is_done {
            if self.sequence.prepare(&mut self.stream) {
                return true;
            }
            self.end_chunk();
        }
        false
    }

    /// The lane from the next MCU that there are data for; none where nothing is left to decode.
    fn next_lane(&mut self) -> Option<Lane<'_>> {
        if self.prepare() {
            self.sequence.lane(&mut self.stream, self.chunk)
        } else {
            None
        }
    }

    /// Go on from where a lane ended.
    fn settle(&mut self, end: &LaneEnd) {
        self.sequence.settle(&mut self.stream, Some(end));
    }

    /// Decode what is left.
    pub(super) fn run(&mut self) {
        let simd = self.rows.simd;
        while self.prepare() {
            self.sequence.decode(&mut self.stream, self.chunk, simd);
        }
    }

    /// Tell what was found wrong.
    pub(super) fn finish(mut self) -> Status {
        let mut findings = Findings::default();
        if self.mcu_row < self.frame.mcus_high {
            findings.add_damage(self.stream.damage);
            return findings.status();
        }
        let (mut reader, marker, damage) = self.stream.finish();
        findings.add_damage(damage);
        match self.markers.read_to_scan(&mut reader, Some(marker)) {
            Ok(Stop::End) if reader.is_past_end() => findings.add("the end marker is missing"),
            Ok(Stop::End) => {}
            Ok(Stop::Scan(_)) => findings.add("a scan behind the last one"),
            Err(error) => findings.add(format!("behind the last scan, {error}")),
        }
        findings.status()
    }
}

/// Decode two pictures on one thread, with the codes of both in one loop. What one of them has left when
/// the other one is done is decoded alone.
pub(super) fn run_two(first: &mut Streamed<'_>, second: &mut Streamed<'_>) {
    let simd = first.rows.simd;
    let mut lanes = (first.next_lane(), second.next_lane());
    // The lane of one picture stays where it is while the other one passes to its next MCUs.
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
