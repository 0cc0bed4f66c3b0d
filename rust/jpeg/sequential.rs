//! Entropy decoding of baseline and extended sequential scans.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use super::bits::Bits;
use super::huffman::Table;
use super::simd_face::{Simd, place};
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
    /// Blocks from one row of blocks to the next.
    pub(super) stride: usize,
}

impl Coefficients {
    /// Make room for some blocks, all zero.
    ///
    /// # Errors
    /// [`Error::Memory`] where there is no memory for them.
    pub(super) fn reset(&mut self, wide: usize, high: usize) -> Result<(), Error> {
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
    }

    /// Some blocks of a row.
    pub(super) fn row(&self, row: usize, count: usize) -> &[Block] {
        let start = row * self.stride;
        self.blocks.get(start..start + count).unwrap_or_default()
    }
}

/// A component of a scan.
pub(super) struct Part {
    /// Which of the coefficients it fills.
    pub(super) index: usize,
    /// Blocks of an MCU of this scan.
    pub(super) h: usize,
    pub(super) v: usize,
    pub(super) dc: Arc<Table>,
    pub(super) ac: Arc<Table>,
    pub(super) prediction: i32,
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

/// Where MCUs go to.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// The row of MCUs.
    pub(super) row: usize,
    /// First MCU in the row.
    pub(super) first: usize,
    pub(super) count: usize,
}

impl Place {
    /// A whole row of MCUs.
    pub(super) fn row(row: usize, count: usize) -> Self {
        Self {
            row,
            first: 0,
            count,
        }
    }
}

/// Decode some MCUs of a row. Those without data stay as they are.
pub(super) fn decode(
    stream: &mut Stream<'_, '_>,
    parts: &mut [Part],
    coefficients: &mut [Coefficients],
    restarts: &mut Restarts,
    place: Place,
    simd: Simd,
) {
    let mut done = 0;
    while done < place.count {
        if restarts.is_due() {
            stream.restart();
            for part in &mut *parts {
                part.prediction = 0;
            }
        }
        let run = restarts.run(place.count - done);
        let end = done + run;
        while done < end && !stream.is_exhausted {
            let place = Place {
                first: place.first + done,
                count: end - done,
                ..place
            };
            done += simd.decode_run(stream, parts, coefficients, place);
        }
        done = end;
        restarts.pass(run);
    }
}

/// Decode MCUs until the data made ready end; returns how many.
#[allow(clippy::inline_always)] // To be compiled for several instruction sets.
#[inline(always)]
pub(super) fn decode_run(
    stream: &mut Stream<'_, '_>,
    parts: &mut [Part],
    coefficients: &mut [Coefficients],
    place: Place,
) -> usize {
    let (mut bits, limit) = stream.bits();
    let mut is_bad = false;
    let mut done = 0;
    while done < place.count && bits.position() <= limit && !bits.is_overrun() {
        let column = place.first + done;
        for part in &mut *parts {
            let Some(target) = coefficients.get_mut(part.index) else {
                continue;
            };
            let (dc, ac) = (&*part.dc, &*part.ac);
            for y in 0..part.v {
                let start = (place.row * part.v + y) * target.stride + column * part.h;
                let blocks = target
                    .blocks
                    .get_mut(start..start + part.h)
                    .unwrap_or_default();
                for block in blocks {
                    decode_block(&mut bits, dc, ac, &mut part.prediction, block, &mut is_bad);
                }
            }
        }
        done += 1;
    }
    let (state, is_overrun) = (bits.state(), bits.is_overrun());
    stream.resume(state, is_overrun, is_bad);
    done
}

/// Decode a block into `block`, which is all zero.
#[allow(clippy::inline_always)] // The state of the bits stays in registers.
#[inline(always)]
fn decode_block(
    bits: &mut Bits<'_>,
    dc: &Table,
    ac: &Table,
    prediction: &mut i32,
    block: &mut Block,
    is_bad: &mut bool,
) {
    let difference = bits.difference(dc, is_bad);
    *prediction = prediction.wrapping_add(difference.into());
    block[0] = *prediction as i16;
    let mut at = 0;
    loop {
        bits.refill();
        // 56 bits hold five entries that are not split.
        for _ in 0..5 {
            let entry = bits.peek(ac);
            if entry.is_split() {
                let (entry, value) = bits.finish(entry, ac);
                *is_bad |= entry.is_bad();
                at += entry.step();
                place(block, at, value);
                if at >= 63 {
                    return;
                }
                break;
            }
            bits.skip(entry.bits());
            at += entry.step();
            place(block, at, entry.value());
            if at >= 63 {
                return;
            }
        }
    }
}
