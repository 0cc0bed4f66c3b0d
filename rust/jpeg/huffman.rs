//! Huffman tables made ready for decoding, kept from picture to picture.

use std::sync::Arc;

use super::markers::broken;
use crate::Error;

/// Bits by which the fast tables are indexed: two tables of 4 KiB stay in the first cache.
pub(super) const FAST_BITS: u32 = 10;
/// The longest code.
const MAX_LENGTH: usize = 16;
/// The step of an end of block: past any place of a block.
const END_OF_BLOCK: u32 = 128;
/// The step of bits that are no code, which end a block, too.
const BAD_CODE: u32 = 192;

/// A table as it stands in the file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Spec {
    /// Codes by length, from 1 bit.
    pub(super) counts: [u8; MAX_LENGTH],
    pub(super) values: [u8; 256],
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            counts: [0; MAX_LENGTH],
            values: [0; 256],
        }
    }
}

impl Spec {
    pub(super) fn of((counts, symbols): ([u8; MAX_LENGTH], &[u8])) -> Self {
        let mut values = [0; 256];
        for (value, &symbol) in values.iter_mut().zip(symbols) {
            *value = symbol;
        }
        Self { counts, values }
    }

    pub(super) fn symbols(&self) -> usize {
        self.counts.iter().map(|&count| usize::from(count)).sum()
    }
}

/// What the next bits mean: a symbol, and the coefficient where it fits.
///
/// Bits 0 to 5: how many bits to take; 8 to 15: how far to go on in the zigzag order; 16 to 31: the
/// coefficient, or the number of its bits where [`Entry::IS_SPLIT`] is set and they are yet to be taken.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry(u32);

impl Entry {
    const IS_SPLIT: u32 = 1 << 6;
    /// A code that is longer than the table's index.
    pub(super) const LONG: Self = Self(Self::IS_SPLIT);

    fn whole(bits: u32, step: u32, value: i32) -> Self {
        Self(bits | step << 8 | u32::from(value as u16) << 16)
    }

    fn split(bits: u32, step: u32, size: u32) -> Self {
        Self(bits | Self::IS_SPLIT | step << 8 | size << 16)
    }

    #[inline]
    pub(super) fn is_split(self) -> bool {
        self.0 & Self::IS_SPLIT != 0
    }

    #[inline]
    pub(super) fn bits(self) -> u32 {
        self.0 & 63
    }

    #[inline]
    pub(super) fn step(self) -> u32 {
        self.0 >> 8 & 0xFF
    }

    /// The coefficient, of an entry that is not split.
    #[inline]
    pub(super) fn value(self) -> i16 {
        (self.0 >> 16) as u16 as i16
    }

    /// Bits of the coefficient, of an entry that is split.
    #[inline]
    pub(super) fn size(self) -> u32 {
        self.0 >> 16
    }

    /// Whether the bits are no code at all.
    #[inline]
    pub(super) fn is_bad(self) -> bool {
        self.step() >= BAD_CODE
    }
}

/// What the next bits mean in a table of DC: a code, and how many bits of a difference come behind it.
///
/// Byte 0: how many bits to take; 2: 63 less the bits of the difference; 3: the bits of the code. Zero
/// where the code is longer than [`FAST_BITS`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct DcEntry(u32);

impl DcEntry {
    const LONG: Self = Self(0);

    fn new(length: u32, size: u32) -> Self {
        Self((length + size) | ((63 - size) << 16) | (length << 24))
    }

    #[inline]
    pub(super) fn is_long(self) -> bool {
        self == Self::LONG
    }

    #[inline]
    pub(super) fn bits(self) -> u32 {
        self.0 & 63
    }

    /// The difference, from the bits at whose top the code stands.
    ///
    /// Without a branch: how many bits it has is not to be foreseen.
    #[inline]
    pub(super) fn value(self, bits: u64) -> i16 {
        let behind = bits << (self.0 >> 24 & 63);
        let unused = self.0 >> 16 & 63;
        // All ones where the upper bit is clear, which stands for a negative number (figure F.12).
        let negative = !((behind as i64 >> 63) as u64);
        let magnitude = behind >> 1 >> unused;
        magnitude.wrapping_sub(negative >> 1 >> unused) as i16
    }
}

/// A table to decode with.
pub(super) struct Table {
    /// By the next [`FAST_BITS`] bits: a [`DcEntry`] or an [`Entry`].
    fast: [u32; 1 << FAST_BITS],
    /// By the same bits: length << 8 | symbol; zero where the code is longer.
    pub(super) symbols: [u16; 1 << FAST_BITS],
    /// The largest code of each length, -1 where there is none; index 17 ends every search.
    max_code: [i32; MAX_LENGTH + 2],
    /// Added to a code of that length, the index of its symbol.
    offset: [i32; MAX_LENGTH + 2],
    values: [u8; 256],
}

/// A symbol, and how many bits it took.
pub(super) struct Symbol {
    pub(super) value: u8,
    pub(super) length: u32,
    /// Whether the bits are no code at all.
    pub(super) is_bad: bool,
}

impl Table {
    /// Build a table.
    ///
    /// # Errors
    /// [`Error::Decode`] for counts that make no prefix code, and for symbols of a DC table above 15.
    pub(super) fn new(spec: &Spec, is_dc: bool) -> Result<Self, Error> {
        let count = spec.symbols();
        if is_dc && spec.values.iter().take(count).any(|&value| value > 15) {
            return Err(broken("a Huffman table of DC with symbols above 15"));
        }
        let mut table = Self {
            fast: [if is_dc {
                DcEntry::LONG.0
            } else {
                Entry::LONG.0
            }; 1 << FAST_BITS],
            symbols: [0; 1 << FAST_BITS],
            max_code: [-1; MAX_LENGTH + 2],
            offset: [0; MAX_LENGTH + 2],
            values: spec.values,
        };
        table.max_code[MAX_LENGTH + 1] = i32::MAX;
        let (mut code, mut index) = (0_i32, 0_i32);
        for (length, &codes) in (1_u32..).zip(&spec.counts) {
            let (at, codes) = (length as usize, i32::from(codes));
            if codes > 0 {
                table.offset[at] = index - code;
                for symbol in spec.values.iter().skip(index as usize).take(codes as usize) {
                    table.enter(code, length, *symbol, is_dc);
                    code += 1;
                }
                table.max_code[at] = code - 1;
                index += codes;
                // All ones are no code.
                if code >= 1 << length {
                    return Err(broken("a Huffman table with more codes than fit"));
                }
            }
            code <<= 1;
        }
        Ok(table)
    }

    /// Fill in the fast entries of one code.
    fn enter(&mut self, code: i32, length: u32, symbol: u8, is_dc: bool) {
        let Some(free) = FAST_BITS.checked_sub(length) else {
            return;
        };
        let first = (code as usize) << free;
        let size = u32::from(symbol & 15);
        for (rest, at) in (first..first + (1 << free)).enumerate() {
            let Some(short) = self.symbols.get_mut(at) else {
                return;
            };
            *short = (length as u16) << 8 | u16::from(symbol);
            if let Some(entry) = self.fast.get_mut(at) {
                *entry = match free.checked_sub(size) {
                    _ if is_dc => DcEntry::new(length, size).0,
                    Some(unused) => {
                        let value = extend((rest as u32) >> unused, size);
                        Entry::whole(length + size, step(symbol), value).0
                    }
                    None => Entry::split(length, step(symbol), size).0,
                };
            }
        }
    }

    /// Entry of the code of AC at the top of `bits`.
    #[inline]
    pub(super) fn entry(&self, bits: u64) -> Entry {
        Entry(self.fast[(bits >> (64 - FAST_BITS)) as usize])
    }

    /// Entry of the code of DC at the top of `bits`.
    #[inline]
    pub(super) fn dc_entry(&self, bits: u64) -> DcEntry {
        DcEntry(self.fast[(bits >> (64 - FAST_BITS)) as usize])
    }

    /// Find the symbol whose code stands at the top of `bits`.
    #[inline]
    pub(super) fn symbol(&self, bits: u64) -> Symbol {
        let short = self.symbols[(bits >> (64 - FAST_BITS)) as usize];
        if short != 0 {
            return Symbol {
                value: short as u8,
                length: u32::from(short >> 8),
                is_bad: false,
            };
        }
        self.long_symbol(bits)
    }

    /// The entry of a code of DC that is longer than the index, and whether it is no code at all.
    #[cold]
    pub(super) fn long_difference(&self, bits: u64) -> (DcEntry, bool) {
        let symbol = self.long_symbol(bits);
        let size = u32::from(symbol.value & 15);
        (DcEntry::new(symbol.length, size), symbol.is_bad)
    }

    /// The entry of a code of AC that is longer than the index. It is split.
    #[cold]
    pub(super) fn long_entry(&self, bits: u64) -> Entry {
        let symbol = self.long_symbol(bits);
        let step = if symbol.is_bad {
            BAD_CODE
        } else {
            step(symbol.value)
        };
        Entry::split(symbol.length, step, u32::from(symbol.value & 15))
    }

    fn long_symbol(&self, bits: u64) -> Symbol {
        for length in FAST_BITS + 1..=MAX_LENGTH as u32 {
            let code = (bits >> (64 - length)) as i32;
            let at = length as usize;
            if code <= self.max_code[at] {
                return Symbol {
                    value: self.values[(code + self.offset[at]) as usize & 255],
                    length,
                    is_bad: false,
                };
            }
        }
        // What libjpeg-turbo makes of bits that are no code.
        Symbol {
            value: 0,
            length: MAX_LENGTH as u32 + 1,
            is_bad: true,
        }
    }
}

/// How far a symbol of AC goes on in the zigzag order.
fn step(symbol: u8) -> u32 {
    match (symbol >> 4, symbol & 15) {
        (15, 0) => 16,
        (_, 0) => END_OF_BLOCK,
        (run, _) => u32::from(run) + 1,
    }
}

/// The number that `size` bits stand for: those with the upper bit clear are negative (figure F.12).
#[inline]
pub(super) fn extend(bits: u32, size: u32) -> i32 {
    let is_negative = (bits << 1 >> size) & 1 ^ 1;
    bits as i32 - ((is_negative << size) as i32 - is_negative as i32)
}

/// Tables of the pictures before. Nearly all pictures share those of the standard.
#[derive(Default)]
pub(super) struct Cache {
    tables: Vec<(Spec, bool, Arc<Table>)>,
    next: usize,
}

impl Cache {
    const SIZE: usize = 16;

    /// Find or build a table.
    ///
    /// # Errors
    /// As [`Table::new`].
    pub(super) fn table(&mut self, spec: &Spec, is_dc: bool) -> Result<Arc<Table>, Error> {
        let known = self
            .tables
            .iter()
            .find(|(other, kind, _)| *kind == is_dc && other == spec);
        if let Some((_, _, table)) = known {
            return Ok(Arc::clone(table));
        }
        let table = Arc::new(Table::new(spec, is_dc)?);
        let entry = (*spec, is_dc, Arc::clone(&table));
        if self.tables.len() < Self::SIZE {
            self.tables.push(entry);
        } else if let Some(slot) = self.tables.get_mut(self.next) {
            *slot = entry;
            self.next = (self.next + 1) % Self::SIZE;
        }
        Ok(table)
    }
}
