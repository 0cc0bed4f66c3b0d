//! The loops of sequential entropy decoding: the blocks of some MCUs of one picture, or of two pictures
//! at a time.
//!
//! Where a code begins is known only once the one before it is read, so that one picture leaves most
//! of a core waiting. The codes of a second one fill that time.

use std::slice::IterMut;
use std::sync::Arc;

use super::bit_reader::{BitPosition, BitReader};
use super::bitstream::Bitstream;
use super::block::Block;
use super::huffman::HuffmanTable;
use super::simd::place;

/// Codes between two refills: 56 bits hold so many that are not rare.
const CODES: usize = 3;
/// The most components of a scan.
pub(super) const MAX_PARTS: usize = 4;

/// What a block of an MCU is coded by.
pub(super) struct McuBlock {
    /// Index of its component in the scan.
    pub(super) part: usize,
    pub(super) dc: Arc<HuffmanTable>,
    pub(super) ac: Arc<HuffmanTable>,
}

/// What the innermost loop works with, in registers.
struct RunRegisters<'l> {
    bits: BitReader<'l>,
    ac: &'l HuffmanTable,
    /// All zero but for what was read of it.
    block: &'l mut Block,
    is_bad: bool,
}

/// Which block comes next.
struct RunPosition<'l> {
    units: &'l [McuBlock],
    /// Index of the next block in its MCU.
    unit: usize,
    blocks: IterMut<'l, Block>,
    predictions: [i32; MAX_PARTS],
    /// How far bits may be read before an MCU begins.
    limit: usize,
    is_over: bool,
}

/// A picture's run through some MCUs.
pub(super) struct McuRun<'l> {
    hot: RunRegisters<'l>,
    cold: RunPosition<'l>,
    mcus: usize,
}

/// Where a lane ended.
pub(super) struct McuRunEnd {
    pub(super) state: BitPosition,
    pub(super) is_overrun: bool,
    pub(super) is_bad: bool,
    /// MCUs that it decoded.
    pub(super) mcus: usize,
    /// By component of the scan.
    pub(super) predictions: [i32; MAX_PARTS],
}

impl<'l> McuRun<'l> {
    /// Begin whole MCUs, whose blocks are all zero. None where there are no blocks.
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

    /// Whether there is nothing more to decode.
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

#[allow(clippy::inline_always)] // So that all of it stays in registers.
impl RunRegisters<'_> {
    /// Take the next code of a block; whether the block ended.
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

/// Tells the compiler that its caller seldom comes there, so that the registers serve the other way.
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

    /// Take the first coefficient of a block.
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

/// Go to the end of a lane.
#[allow(clippy::inline_always)] // To be compiled for several instruction sets.
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

/// Go on with two lanes until one of them ends.
///
/// They take turns code by code: what was begun of one is lost when a guess about the other fails.
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
