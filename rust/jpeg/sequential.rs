//! Baseline and extended sequential scans: their coefficients, and the runs of MCUs between restarts.

use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

use super::huffman::Table;
use super::lanes::{Lane, LaneEnd, MAX_PARTS, Unit};
use super::simd_face::Simd;
use super::stream::Stream;
use crate::{Error, memory};

/// The coefficients of a block, in natural order, as they stand in the file.
///
/// Aligned so that no register is loaded from two lines of the cache.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Block([i16; 64]);

impl Block {
    pub(super) const ZERO: Self = Self([0; 64]);
}

impl Deref for Block {
    type Target = [i16; 64];

    #[inline]
    fn deref(&self) -> &[i16; 64] {
        &self.0
    }
}

impl DerefMut for Block {
    #[inline]
    fn deref_mut(&mut self) -> &mut [i16; 64] {
        &mut self.0
    }
}

/// Blocks of a component that are kept from picture to picture: 64 MiB.
const KEPT_BLOCKS: usize = 1 << 19;

fn of_coefficients() -> String {
    let what = "the coefficients of a JPEG, all of which are kept";
    format!("{what}; expected a smaller picture, or fewer threads")
}

/// Coefficients of a component, all of them or those of some MCUs.
#[derive(Default)]
pub(super) struct Coefficients {
    pub(super) blocks: Vec<Block>,
    /// Of each block, a bit for each place of the zigzag order whose coefficient of AC is not zero. Only
    /// scans that read a picture bit by bit need it.
    non_zero: Vec<u64>,
    /// Blocks from one row of blocks to the next.
    pub(super) stride: usize,
}

impl Coefficients {
    /// Make room for some blocks, all zero.
    ///
    /// # Errors
    /// [`Error::Memory`] where there is no memory for them.
    pub(super) fn reset(
        &mut self,
        wide: usize,
        high: usize,
        is_progressive: bool,
    ) -> Result<(), Error> {
        self.non_zero.clear();
        if is_progressive {
            memory::reserve(&mut self.non_zero, wide * high, of_coefficients)?;
            self.non_zero.resize(wide * high, 0);
        }
        self.blocks.clear();
        memory::reserve(&mut self.blocks, wide * high, of_coefficients)?;
        self.blocks.resize(wide * high, Block::ZERO);
        self.stride = wide;
        Ok(())
    }

    /// Give back memory, except for what most pictures need.
    pub(super) fn release(&mut self) {
        self.blocks.clear();
        self.blocks.shrink_to(KEPT_BLOCKS);
        self.non_zero.clear();
        self.non_zero.shrink_to(KEPT_BLOCKS);
    }

    /// Some blocks of a row of a progressive picture, and what of them is not zero.
    #[inline]
    pub(super) fn row_mut(
        &mut self,
        row: usize,
        columns: Range<usize>,
    ) -> Option<(&mut [Block], &mut [u64])> {
        let start = row * self.stride;
        let range = start + columns.start..start + columns.end;
        let blocks = self.blocks.get_mut(range.clone())?;
        Some((blocks, self.non_zero.get_mut(range)?))
    }

    /// Some blocks of a row.
    pub(super) fn row(&self, row: usize, count: usize) -> &[Block] {
        let start = row * self.stride;
        self.blocks.get(start..start + count).unwrap_or_default()
    }
}

/// A component of a scan.
pub(super) struct Part {
    /// Which of the frame it is.
    pub(super) index: usize,
    /// Blocks of an MCU of this scan.
    pub(super) h: usize,
    pub(super) v: usize,
    pub(super) dc: Arc<Table>,
    pub(super) ac: Arc<Table>,
}

/// Restart interval and what is left of it, in MCUs; an interval of zero never ends.
#[derive(Clone, Copy)]
pub(super) struct Restarts {
    interval: usize,
    left: usize,
}

impl Restarts {
    pub(super) fn new(interval: usize) -> Self {
        Self {
            interval,
            left: interval,
        }
    }

    /// Whether a restart marker comes before the next MCU; begins the next interval if so.
    pub(super) fn is_due(&mut self) -> bool {
        let is_due = self.interval > 0 && self.left == 0;
        if is_due {
            self.left = self.interval;
        }
        is_due
    }

    /// How many of some MCUs lie before the next restart.
    pub(super) fn run(&self, count: usize) -> usize {
        if self.interval == 0 {
            count
        } else {
            count.min(self.left)
        }
    }

    pub(super) fn pass(&mut self, count: usize) {
        if self.interval > 0 {
            self.left -= count;
        }
    }
}

/// MCUs that are decoded before they go on, so that their coefficients stay in the first cache.
pub(super) const CHUNK: usize = 32;

/// A sequential scan, a chunk of MCUs at a time. Their blocks stand in the order of the file.
pub(super) struct Sequence {
    parts: Vec<Part>,
    /// The component of each block of an MCU.
    units: Vec<Unit>,
    predictions: [i32; MAX_PARTS],
    restarts: Restarts,
    /// MCUs of the chunk, those that are passed, and those up to the next restart.
    count: usize,
    done: usize,
    run_end: usize,
}

impl Sequence {
    pub(super) fn new(parts: Vec<Part>, restart_interval: usize) -> Self {
        let units = parts.iter().enumerate().flat_map(|(number, part)| {
            let unit = move || Unit {
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

    /// Begin a chunk, all of whose coefficients are zero.
    pub(super) fn begin(&mut self, chunk: &mut Vec<Block>, count: usize) {
        chunk.clear();
        chunk.resize(count * self.units.len(), Block::ZERO);
        (self.count, self.done, self.run_end) = (count, 0, 0);
    }

    /// Go to the next MCU that there are data for; false at the end of the chunk. MCUs without data stay
    /// as they are.
    pub(super) fn prepare(&mut self, stream: &mut Stream<'_, '_>) -> bool {
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

    /// The lane from there to the next restart or the end of the chunk; none of blocks that are missing.
    pub(super) fn lane<'l>(
        &'l self,
        stream: &'l mut Stream<'_, '_>,
        chunk: &'l mut [Block],
    ) -> Option<Lane<'l>> {
        let blocks = self.done * self.units.len()..self.run_end * self.units.len();
        Lane::new(
            stream,
            &self.units,
            self.predictions,
            chunk.get_mut(blocks)?,
        )
    }

    /// Go on from where the lane ended.
    pub(super) fn settle(&mut self, stream: &mut Stream<'_, '_>, end: Option<&LaneEnd>) {
        let Some(end) = end else {
            self.done = self.run_end;
            return;
        };
        stream.resume(end.state, end.is_overrun, end.is_bad);
        self.predictions = end.predictions;
        self.done += end.mcus;
    }

    /// Decode what is left of a chunk.
    pub(super) fn decode(&mut self, stream: &mut Stream<'_, '_>, chunk: &mut [Block], simd: Simd) {
        while self.prepare(stream) {
            let end = self.lane(stream, chunk).map(|lane| simd.run(lane).end());
            self.settle(stream, end.as_ref());
        }
    }

    /// One component's blocks of a chunk in a row of blocks, `row` within the MCU, by index of the part.
    pub(super) fn row<'c>(
        &self,
        chunk: &'c [Block],
        part: usize,
        row: usize,
    ) -> impl Iterator<Item = &'c Block> + use<'c> {
        let before: usize = self
            .parts
            .iter()
            .take(part)
            .map(|part| part.h * part.v)
            .sum();
        let wide = self.parts.get(part).map_or(0, |part| part.h);
        let mcus = chunk.chunks_exact(self.units.len().max(1));
        let start = before + row * wide;
        mcus.flat_map(move |mcu| mcu.get(start..start + wide).unwrap_or_default())
    }

    pub(super) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Copy a chunk to the coefficients of the picture, from MCU `first` of a row on.
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
