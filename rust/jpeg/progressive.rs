//! Entropy decoding of progressive scans, and the precision of the coefficients after them.

use std::ops::Range;
use std::sync::Arc;

use super::bit_reader::BitReader;
use super::bitstream::{Bitstream, Restarts};
use super::block::NATURAL_ORDER;
use super::block::{Block, Coefficients};
use super::errors::broken;
use super::frame::Scan;
use super::huffman::{HuffmanTable, extend};
use crate::Error;

/// A component of a progressive scan.
pub(super) struct ScanBand {
    pub(super) index: usize,
    pub(super) h: usize,
    pub(super) v: usize,
    /// DC or AC table, depending on the scan; `None` for DC refinement.
    pub(super) table: Option<Arc<HuffmanTable>>,
    pub(super) prediction: i32,
}

/// Precision of each coefficient of a component: the number of missing bits, or -1 if unknown.
#[derive(Clone, Copy)]
pub(super) struct KnownBits {
    pub(super) now: [i32; 64],
    /// Precision before the last scan that contained the coefficient; for the first ten only.
    pub(super) before: [i32; 64],
}

impl Default for KnownBits {
    fn default() -> Self {
        Self {
            now: [-1; 64],
            before: [0; 64],
        }
    }
}

impl KnownBits {
    /// Record a scan; `is_first` marks the first one of the image. Returns true if it is a valid
    /// successor: DC first, and each bit only once.
    pub(super) fn note(&mut self, scan: &Scan, is_first: bool) -> bool {
        let mut goes_on = scan.start == 0 || self.now.first() != Some(&-1);
        for at in scan.start.min(1)..=scan.end.max(9) {
            if let (Some(before), Some(now)) = (self.before.get_mut(at), self.now.get(at)) {
                *before = if is_first { 0 } else { *now };
            }
        }
        for now in self.now.iter_mut().take(scan.end + 1).skip(scan.start) {
            goes_on &= (*now).max(0) == scan.high as i32;
            *now = scan.low as i32;
        }
        goes_on
    }
}

/// Reject a scan that cannot occur in a progressive image.
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
        "invalid progressive scan: coefficients {} to {}, bits {} to {}, {} components",
        scan.start,
        scan.end,
        scan.high,
        scan.low,
        scan.components.len()
    )))
}

/// Decoding of one scan.
pub(super) struct ScanPass<'s> {
    pub(super) scan: &'s Scan,
    pub(super) parts: Vec<ScanBand>,
    pub(super) restarts: Restarts,
    /// Number of blocks that an end of band still covers.
    pub(super) end_of_band: u32,
}

impl ScanPass<'_> {
    /// Decode MCUs until the available data ends; return their number. `spread` is [`spread`] or an
    /// equivalent.
    #[allow(clippy::inline_always)] // Compiled for several instruction sets.
    #[inline(always)]
    pub(super) fn run(
        &mut self,
        stream: &mut Bitstream<'_, '_>,
        coefficients: &mut [Coefficients],
        row: usize,
        columns: Range<usize>,
        spread: impl Fn(u64, u64) -> u64,
    ) -> Result<usize, Error> {
        let (mut bits, limit) = stream.bits();
        let mut is_bad = false;
        let done = if self.scan.start == 0 {
            self.run_dc(&mut bits, limit, coefficients, row, columns, &mut is_bad)?
        } else {
            // An AC scan has a single component.
            let index = self.parts.first().map_or(0, |part| part.index);
            let count = columns.len();
            let blocks = coefficients
                .get_mut(index)
                .and_then(|target| target.row_mut(row, columns));
            blocks.map_or(count, |blocks| {
                self.run_ac(&mut bits, limit, blocks, spread, &mut is_bad)
            })
        };
        let (state, is_overrun) = (bits.state(), bits.is_overrun());
        stream.resume(state, is_overrun, is_bad);
        Ok(done)
    }

    #[allow(clippy::inline_always)] // To keep the bit buffer in registers.
    #[inline(always)]
    fn run_dc(
        &mut self,
        bits: &mut BitReader<'_>,
        limit: usize,
        coefficients: &mut [Coefficients],
        row: usize,
        columns: Range<usize>,
        is_bad: &mut bool,
    ) -> Result<usize, Error> {
        let low = self.scan.low;
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
                        let Some(table) = &part.table else {
                            block[0] |= (bits.take(1) as i16) << low;
                            continue;
                        };
                        part.prediction = part
                            .prediction
                            .checked_add(bits.plain_difference(table, is_bad).into())
                            .ok_or_else(|| broken("DC coefficient out of range"))?;
                        block[0] = part.prediction.wrapping_shl(low) as i16;
                    }
                }
            }
            done += 1;
        }
        Ok(done)
    }

    #[allow(clippy::inline_always)] // As above.
    #[inline(always)]
    fn run_ac(
        &mut self,
        bits: &mut BitReader<'_>,
        limit: usize,
        (blocks, non_zero): (&mut [Block], &mut [u64]),
        spread: impl Fn(u64, u64) -> u64,
        is_bad: &mut bool,
    ) -> usize {
        let Some(table) = self.parts.first().and_then(|part| part.table.as_deref()) else {
            return blocks.len();
        };
        let mut band = Band {
            scan: self.scan,
            places: places_from(self.scan.start) & !places_from(self.scan.end + 1),
            table,
            spread,
            end_of_band: self.end_of_band,
            is_bad: false,
        };
        let mut done = 0;
        while let (Some(block), Some(non_zero)) = (blocks.get_mut(done), non_zero.get_mut(done))
            && bits.position() <= limit
            && !bits.is_overrun()
        {
            if self.scan.high > 0 {
                band.refine(bits, block, non_zero);
            } else if band.end_of_band == 0 {
                band.read(bits, block, non_zero);
            } else {
                // Blocks without data are unchanged.
                let count = (blocks.len() - done).min(band.end_of_band as usize);
                band.end_of_band -= count as u32;
                done += count;
                continue;
            }
            done += 1;
        }
        self.end_of_band = band.end_of_band;
        *is_bad |= band.is_bad;
        done
    }
}

/// The coefficients of an AC scan.
#[allow(clippy::struct_field_names)] // Name in the standard.
struct Band<'b, S> {
    scan: &'b Scan,
    /// A bit for each zigzag index of the coefficients.
    places: u64,
    table: &'b HuffmanTable,
    spread: S,
    /// Number of blocks that an end of band still covers.
    end_of_band: u32,
    is_bad: bool,
}

#[allow(clippy::inline_always)] // To keep the bit buffer in registers.
impl<S: Fn(u64, u64) -> u64> Band<'_, S> {
    /// First AC scan: decode the upper bits of a block's coefficients.
    #[inline(always)]
    fn read(&mut self, bits: &mut BitReader<'_>, block: &mut Block, non_zero: &mut u64) {
        let mut at = self.scan.start;
        while at <= self.scan.end {
            bits.refill();
            let entry = bits.peek(self.table);
            let value = if entry.is_rare() || entry.is_end() {
                let symbol = bits.symbol(self.table);
                self.is_bad |= symbol.is_bad;
                let (run, size) = (u32::from(symbol.value >> 4), u32::from(symbol.value & 15));
                if size == 0 && run < 15 {
                    self.end_of_band = (1 << run) + bits.take(run) - 1;
                    return;
                }
                at += run as usize;
                extend(bits.take(size), size) as i16
            } else {
                at += entry.step() - 1;
                bits.take_value(entry)
            };
            if value != 0 {
                let value = value.wrapping_shl(self.scan.low);
                block[natural(at)] = value;
                let place = 1 << at.min(63);
                *non_zero = *non_zero & !place | if value == 0 { 0 } else { place };
            }
            at += 1;
        }
    }

    /// AC refinement: decode one more bit of nonzero coefficients, and coefficients that become
    /// nonzero.
    #[inline(always)]
    fn refine(&mut self, bits: &mut BitReader<'_>, block: &mut Block, non_zero: &mut u64) {
        let known = *non_zero & self.places;
        let bit = 1_i16.wrapping_shl(self.scan.low);
        let mut at = self.scan.start;
        if self.end_of_band == 0 {
            while at <= self.scan.end {
                bits.refill();
                let symbol = bits.symbol(self.table);
                let (run, size) = (u32::from(symbol.value >> 4), symbol.value & 15);
                self.is_bad |= symbol.is_bad || size > 1;
                let value = match size {
                    0 if run < 15 => {
                        self.end_of_band = (1 << run) + bits.take(run);
                        break;
                    }
                    0 => 0,
                    _ => (bits.take(1) as i16 * 2 - 1) * bit,
                };
                // Skip nonzero coefficients and `run` zero coefficients.
                let zeros = places_from(at) & self.places & !known;
                let next = (self.spread)(1 << run, zeros).trailing_zeros() as usize;
                let next = next.min(self.scan.end + 1);
                let passed = known & places_from(at) & !places_from(next);
                self.refine_known(bits, block, passed, bit);
                if value != 0 {
                    block[natural(next)] = value;
                    *non_zero |= 1 << next.min(63);
                }
                at = next + 1;
            }
        }
        if self.end_of_band > 0 {
            self.refine_known(bits, block, known & places_from(at), bit);
            self.end_of_band -= 1;
        }
    }

    /// Refine the coefficients at some positions by one bit.
    #[inline(always)]
    fn refine_known(&self, bits: &mut BitReader<'_>, block: &mut Block, mut places: u64, bit: i16) {
        while places != 0 {
            let count = places.count_ones().min(MOST_REFINED);
            let taken = bits.take_first(count);
            let mut ones = (self.spread)(taken, places);
            while ones != 0 {
                let coefficient = &mut block[natural(ones.trailing_zeros() as usize)];
                ones &= ones - 1;
                let is_negative = *coefficient >> 15;
                let change = (bit ^ is_negative).wrapping_sub(is_negative);
                // Damaged files may set a bit that is already set.
                let is_new = -i16::from(*coefficient & bit == 0);
                *coefficient = coefficient.wrapping_add(change & is_new);
            }
            places &= !(self.spread)(u64::MAX >> (64 - count), places);
        }
    }
}

/// Number of bits available after a refill.
const MOST_REFINED: u32 = 56;

/// Deposit the low bits at the positions of a mask, like PDEP.
pub(super) fn spread(mut bits: u64, mut places: u64) -> u64 {
    let mut out = 0;
    while places != 0 && bits != 0 {
        let lowest = places & places.wrapping_neg();
        out |= lowest & (bits & 1).wrapping_neg();
        bits >>= 1;
        places ^= lowest;
    }
    out
}

/// Mask of all bits from a position up.
#[inline]
fn places_from(at: usize) -> u64 {
    u64::MAX.checked_shl(at as u32).unwrap_or(0)
}

#[inline]
fn natural(at: usize) -> usize {
    usize::from(NATURAL_ORDER[at & 255]) & 63
}
