//! Entropy decoding of progressive scans, and what is known of the coefficients after them.

use std::ops::Range;
use std::sync::Arc;

use super::bits::Bits;
use super::frame::Scan;
use super::huffman::{Table, extend};
use super::markers::broken;
use super::sequential::{Block, Coefficients, Restarts};
use super::simd_face::Simd;
use super::stream::Stream;
use super::tables::NATURAL_ORDER;
use crate::Error;

/// A component of a progressive scan.
pub(super) struct Part {
    pub(super) index: usize,
    pub(super) h: usize,
    pub(super) v: usize,
    /// Of DC or of AC, as the scan has it; a refinement of DC has none.
    pub(super) table: Option<Arc<Table>>,
    pub(super) prediction: i32,
}

/// How well each coefficient of a component is known: -1 not at all, else the bits still missing.
#[derive(Clone, Copy)]
pub(super) struct Known {
    pub(super) now: [i32; 64],
    /// Before the last scan that held it; only of the first ten.
    pub(super) before: [i32; 64],
}

impl Default for Known {
    fn default() -> Self {
        Self {
            now: [-1; 64],
            before: [0; 64],
        }
    }
}

impl Known {
    /// Note a scan. `is_first` for the first one of the picture.
    pub(super) fn note(&mut self, scan: &Scan, is_first: bool) {
        for at in scan.start.min(1)..=scan.end.max(9) {
            if let (Some(before), Some(now)) = (self.before.get_mut(at), self.now.get(at)) {
                *before = if is_first { 0 } else { *now };
            }
        }
        for now in self.now.iter_mut().take(scan.end + 1).skip(scan.start) {
            *now = scan.low as i32;
        }
    }
}

/// Refuse a scan that no progressive picture can have.
pub(super) fn check(scan: &Scan) -> Result<(), Error> {
    let is_band_right = if scan.start == 0 {
        scan.end == 0
    } else {
        scan.start <= scan.end && scan.end < 64 && scan.components.len() == 1
    };
    let is_refinement_right = scan.high == 0 || scan.low + 1 == scan.high;
    if is_band_right && is_refinement_right && scan.low <= 13 {
        return Ok(());
    }
    Err(broken(format!(
        "a progressive scan of coefficients {} to {}, bits {} to {}, {} components",
        scan.start,
        scan.end,
        scan.high,
        scan.low,
        scan.components.len()
    )))
}

/// Decoding of one scan.
pub(super) struct Pass<'s> {
    pub(super) scan: &'s Scan,
    pub(super) parts: Vec<Part>,
    pub(super) restarts: Restarts,
    /// Blocks that an end of band still covers.
    pub(super) end_of_band: u32,
}

impl Pass<'_> {
    /// Decode a row of MCUs. Returns whether any of it had data.
    ///
    /// # Errors
    /// [`Error::Decode`] where DC differences leave the range of 32 bits, as in libjpeg-turbo.
    pub(super) fn row(
        &mut self,
        stream: &mut Stream<'_, '_>,
        coefficients: &mut [Coefficients],
        row: usize,
        count: usize,
        simd: Simd,
    ) -> Result<bool, Error> {
        let mut had_data = false;
        let mut done = 0;
        while done < count {
            if self.restarts.is_due() {
                stream.restart();
                self.end_of_band = 0;
                for part in &mut self.parts {
                    part.prediction = 0;
                }
            }
            let run = self.restarts.run(count - done);
            let end = done + run;
            while done < end && !stream.is_exhausted {
                had_data = true;
                done += simd.progressive_run(self, stream, coefficients, row, done..end)?;
            }
            done = end;
            self.restarts.pass(run);
        }
        Ok(had_data)
    }

    /// Decode MCUs until the data made ready end; returns how many.
    #[allow(clippy::inline_always)] // To be compiled for several instruction sets.
    #[inline(always)]
    pub(super) fn run(
        &mut self,
        stream: &mut Stream<'_, '_>,
        coefficients: &mut [Coefficients],
        row: usize,
        columns: Range<usize>,
    ) -> Result<usize, Error> {
        let (mut bits, limit) = stream.bits();
        let mut is_bad = false;
        let mut done = 0;
        while done < columns.len() && bits.position() <= limit && !bits.is_overrun() {
            let column = columns.start + done;
            for part in &mut self.parts {
                let Some(target) = coefficients.get_mut(part.index) else {
                    continue;
                };
                for y in 0..part.v {
                    let start = (row * part.v + y) * target.stride + column * part.h;
                    let blocks = target
                        .blocks
                        .get_mut(start..start + part.h)
                        .unwrap_or_default();
                    for block in blocks {
                        match (&part.table, self.scan.start, self.scan.high) {
                            (Some(table), 0, 0) => {
                                let low = self.scan.low;
                                first_dc(
                                    &mut bits,
                                    table,
                                    &mut part.prediction,
                                    low,
                                    block,
                                    &mut is_bad,
                                )?;
                            }
                            (None, ..) => block[0] |= (bits.take(1) as i16) << self.scan.low,
                            (Some(table), _, 0) => {
                                first_ac(
                                    &mut bits,
                                    table,
                                    self.scan,
                                    &mut self.end_of_band,
                                    block,
                                    &mut is_bad,
                                );
                            }
                            (Some(table), ..) => {
                                refine_ac(
                                    &mut bits,
                                    table,
                                    self.scan,
                                    &mut self.end_of_band,
                                    block,
                                    &mut is_bad,
                                );
                            }
                        }
                    }
                }
            }
            done += 1;
        }
        let (state, is_overrun) = (bits.state(), bits.is_overrun());
        stream.resume(state, is_overrun, is_bad);
        Ok(done)
    }
}

#[allow(clippy::inline_always)] // The state of the bits stays in registers.
#[inline(always)]
fn first_dc(
    bits: &mut Bits<'_>,
    table: &Table,
    prediction: &mut i32,
    low: u32,
    block: &mut Block,
    is_bad: &mut bool,
) -> Result<(), Error> {
    let symbol = bits.symbol(table);
    *is_bad |= symbol.is_bad;
    let size = u32::from(symbol.value & 15);
    let difference = extend(bits.take(size), size);
    *prediction = prediction
        .checked_add(difference)
        .ok_or_else(|| broken("a DC coefficient out of range"))?;
    block[0] = prediction.wrapping_shl(low) as i16;
    Ok(())
}

#[allow(clippy::inline_always)] // The state of the bits stays in registers.
#[inline(always)]
fn first_ac(
    bits: &mut Bits<'_>,
    table: &Table,
    scan: &Scan,
    end_of_band: &mut u32,
    block: &mut Block,
    is_bad: &mut bool,
) {
    if *end_of_band > 0 {
        *end_of_band -= 1;
        return;
    }
    let mut at = scan.start;
    while at <= scan.end {
        let symbol = bits.symbol(table);
        *is_bad |= symbol.is_bad;
        let (run, size) = (u32::from(symbol.value >> 4), u32::from(symbol.value & 15));
        if size > 0 {
            at += run as usize;
            let value = extend(bits.take(size), size).wrapping_shl(scan.low);
            block[natural(at)] = value as i16;
        } else if run == 15 {
            at += 15;
        } else {
            *end_of_band = (1 << run) + bits.take(run) - 1;
            return;
        }
        at += 1;
    }
}

#[allow(clippy::inline_always)] // The state of the bits stays in registers.
#[inline(always)]
fn refine_ac(
    bits: &mut Bits<'_>,
    table: &Table,
    scan: &Scan,
    end_of_band: &mut u32,
    block: &mut Block,
    is_bad: &mut bool,
) {
    let bit = 1_i16.wrapping_shl(scan.low);
    let mut at = scan.start;
    if *end_of_band == 0 {
        while at <= scan.end {
            let symbol = bits.symbol(table);
            let (mut run, size) = (u32::from(symbol.value >> 4), symbol.value & 15);
            *is_bad |= symbol.is_bad || size > 1;
            let value = match size {
                0 if run < 15 => {
                    *end_of_band = (1 << run) + bits.take(run);
                    break;
                }
                0 => 0,
                _ if bits.take(1) == 1 => bit,
                _ => -bit,
            };
            // Pass over coefficients that are known already, and over `run` that are zero still.
            while at <= scan.end {
                let coefficient = &mut block[natural(at)];
                if *coefficient != 0 {
                    refine(bits, coefficient, bit);
                } else if run == 0 {
                    break;
                } else {
                    run -= 1;
                }
                at += 1;
            }
            if value != 0 {
                block[natural(at)] = value;
            }
            at += 1;
        }
    }
    if *end_of_band > 0 {
        for at in at..=scan.end {
            let coefficient = &mut block[natural(at)];
            if *coefficient != 0 {
                refine(bits, coefficient, bit);
            }
        }
        *end_of_band -= 1;
    }
}

/// Take a further bit of a coefficient.
#[inline]
fn refine(bits: &mut Bits<'_>, coefficient: &mut i16, bit: i16) {
    if bits.take(1) == 1 && *coefficient & bit == 0 {
        let change = if *coefficient >= 0 { bit } else { -bit };
        *coefficient = coefficient.wrapping_add(change);
    }
}

#[inline]
fn natural(at: usize) -> usize {
    usize::from(NATURAL_ORDER[at & 255]) & 63
}
