//! Inner loops of sequential entropy decoding, for one image or two interleaved images.
//!
//! The position of a code is known only after the previous code was decoded, so a single image
//! leaves most of a core idle. Decoding a second image at the same time uses the idle cycles.

use std::slice::IterMut;
use std::sync::Arc;

use super::bit_reader::{BitPosition, BitReader};
use super::bitstream::Bitstream;
use super::block::Block;
use super::huffman::HuffmanTable;
use super::simd::place::place;

/// Codes per refill: 56 bits hold this many common codes.
const CODES: usize = 3;
/// Maximum number of components of a scan.
pub(super) const MAX_PARTS: usize = 4;

/// A block of an MCU, with its component and tables.
pub(super) struct McuBlock {
    /// Index of the block's component in the scan.
    pub(super) part: usize,
    pub(super) dc: Arc<HuffmanTable>,
    pub(super) ac: Arc<HuffmanTable>,
}

/// State of the inner loop, in registers.
struct RunRegisters<'l> {
    bits: BitReader<'l>,
    ac: &'l HuffmanTable,
    /// Coefficients decoded so far; the others are zero.
    block: &'l mut Block,
    is_bad: bool,
}

struct RunPosition<'l> {
    units: &'l [McuBlock],
    /// Index of the next block in the MCU.
    unit: usize,
    blocks: IterMut<'l, Block>,
    predictions: [i32; MAX_PARTS],
    /// An MCU may start only before this position.
    limit: usize,
    is_over: bool,
}

/// Decoding state of a run of MCUs of one image.
pub(super) struct McuRun<'l> {
    hot: RunRegisters<'l>,
    cold: RunPosition<'l>,
    mcus: usize,
}

pub(super) struct McuRunEnd {
    pub(super) state: BitPosition,
    pub(super) is_overrun: bool,
    pub(super) is_bad: bool,
    pub(super) mcus: usize,
    pub(super) predictions: [i32; MAX_PARTS],
}

impl<'l> McuRun<'l> {
    /// Start a run of whole MCUs, whose blocks must be zero. `None` if there are no blocks.
    pub(super) fn new(
        stream: &'l mut Bitstream<'_, '_>,
        units: &'l [McuBlock],
        predictions: [i32; MAX_PARTS],
        blocks: &'l mut [Block],
    ) -> Option<Self> {
        let (bits, limit) = stream.bits();
        let mcus = blocks.len() / units.len().max(1);
        let mut blocks = blocks.iter_mut();
        let mut hot = RunRegisters {
            bits,
            ac: &units.first()?.ac,
            block: blocks.next()?,
            is_bad: false,
        };
        let mut cold = RunPosition {
            units,
            unit: 0,
            blocks,
            predictions,
            limit,
            is_over: false,
        };
        cold.begin_block(&mut hot);
        Some(Self { hot, cold, mcus })
    }

    pub(super) fn is_over(&self) -> bool {
        self.cold.is_over
    }

    pub(super) fn end(self) -> McuRunEnd {
        let left = self.cold.blocks.len() / self.cold.units.len().max(1);
        McuRunEnd {
            state: self.hot.bits.state(),
            is_overrun: self.hot.bits.is_overrun(),
            is_bad: self.hot.is_bad,
            mcus: self.mcus - left,
            predictions: self.cold.predictions,
        }
    }
}

#[allow(clippy::inline_always)] // To keep everything in registers.
impl RunRegisters<'_> {
    /// Decode the next code of a block. Returns true if the block ended.
    #[inline(always)]
    fn take_code(&mut self) -> bool {
        let entry = self.bits.peek(self.ac);
        let value = if entry.is_rare() {
            seldom();
            self.bits.take_rare(self.ac, &mut self.is_bad)
        } else {
            self.bits.take_entry(entry)
        };
        let left = self.bits.places_left();
        place(self.block, left, value);
        left <= 0
    }
}

/// Marks a cold path for the register allocator.
#[cold]
#[inline]
fn seldom() {}

#[allow(clippy::inline_always)] // As above.
impl<'l> RunPosition<'l> {
    #[inline(always)]
    fn next_block(&mut self, hot: &mut RunRegisters<'l>) -> bool {
        seldom();
        if self.unit == self.units.len() {
            self.unit = 0;
            if hot.bits.position() > self.limit || hot.bits.is_overrun() {
                self.is_over = true;
                return false;
            }
        }
        let Some(block) = self.blocks.next() else {
            self.is_over = true;
            return false;
        };
        hot.block = block;
        self.begin_block(hot);
        true
    }

    /// Decode the DC coefficient of a block.
    #[inline(always)]
    fn begin_block(&mut self, hot: &mut RunRegisters<'l>) {
        if let Some(unit) = self.units.get(self.unit)
            && let Some(prediction) = self.predictions.get_mut(unit.part)
        {
            let difference = hot.bits.difference(&unit.dc, &mut hot.is_bad);
            *prediction = prediction.wrapping_add(difference.into());
            hot.block[0] = *prediction as i16;
            hot.ac = &unit.ac;
        }
        self.unit += 1;
    }
}

/// Decode to the end of the run.
#[allow(clippy::inline_always)] // Compiled for several instruction sets.
#[inline(always)]
pub(super) fn run(lane: McuRun<'_>) -> McuRun<'_> {
    let McuRun {
        mut hot,
        mut cold,
        mcus,
    } = lane;
    'lane: loop {
        hot.bits.refill();
        for _ in 0..CODES {
            if hot.take_code() && !cold.next_block(&mut hot) {
                break 'lane;
            }
        }
    }
    McuRun { hot, cold, mcus }
}

/// Decode two runs until one of them ends.
///
/// They alternate code by code, so one proceeds while the branches of the other are resolved.
#[allow(clippy::inline_always)] // As above.
#[inline(always)]
pub(super) fn run_two<'a, 'b>(first: McuRun<'a>, second: McuRun<'b>) -> (McuRun<'a>, McuRun<'b>) {
    let (mut hot, mut cold) = (first.hot, first.cold);
    let (mut hot_too, mut cold_too) = (second.hot, second.cold);
    'lanes: loop {
        hot.bits.refill();
        hot_too.bits.refill();
        for _ in 0..CODES {
            if hot.take_code() && !cold.next_block(&mut hot) {
                break 'lanes;
            }
            if hot_too.take_code() && !cold_too.next_block(&mut hot_too) {
                break 'lanes;
            }
        }
    }
    let first = McuRun {
        hot,
        cold,
        mcus: first.mcus,
    };
    let second = McuRun {
        hot: hot_too,
        cold: cold_too,
        mcus: second.mcus,
    };
    (first, second)
}
