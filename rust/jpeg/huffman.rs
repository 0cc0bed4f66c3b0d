//! Huffman decoding tables, cached between images.

use std::sync::Arc;

use super::errors::broken;
use crate::Error;

/// Number of index bits of the fast tables: two 4 KiB tables fit in the L1 cache.
pub(super) const FAST_BITS: u32 = 10;
/// Maximum bits per entry: one refill holds three AC codes, or one DC code and two AC codes.
const MOST_BITS: u32 = 18;
const MOST_DC_BITS: u32 = 20;
/// Maximum code length.
const MAX_LENGTH: usize = 16;
/// Step for an end of block; it leads past the end of any block.
const END_OF_BLOCK: u32 = 128;

/// A Huffman table as stored in the file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct TableSpec {
    /// Number of codes of each length, from 1 bit.
    pub(super) counts: [u8; MAX_LENGTH],
    pub(super) values: [u8; 256],
}

impl Default for TableSpec {
    fn default() -> Self {
        Self {
            counts: [0; MAX_LENGTH],
            values: [0; 256],
        }
    }
}

impl TableSpec {
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

/// Meaning of the next bits: a code, followed by the bits of an AC coefficient or DC difference.
/// Bits 0 to 5: total number of bits; 8 to 15: step in zigzag order; 16 to 31: offset that is added
/// to the taken bits to get the value. Code and sign, which determine the offset, are part of the
/// index; modulo 2^16, the sum does not depend on the bits above.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry(u32);

impl Entry {
    /// Marks a code that is longer than the index or is followed by too many bits.
    const RARE: Self = Self(1 << 6);

    fn new(code: u32, length: u32, size: u32, step: u32, is_negative: bool) -> Self {
        let least = if is_negative { 1 - (1 << size) } else { 0 };
        let added = least - ((code << size) as i32);
        Self((length + size) | step << 8 | u32::from(added as u16) << 16)
    }

    #[inline]
    pub(super) fn is_rare(self) -> bool {
        self.0 & Self::RARE.0 != 0
    }

    #[inline]
    pub(super) fn step(self) -> usize {
        (self.0 >> 8 & 0xFF) as usize
    }

    /// True for an end of block or, in progressive scans, an end of band.
    #[inline]
    pub(super) fn is_end(self) -> bool {
        self.0 & END_OF_BLOCK << 8 != 0
    }

    /// Number of bits to take, the step above it, and arbitrary bits above that.
    #[inline]
    pub(super) fn raw(self) -> u32 {
        self.0
    }

    #[inline]
    pub(super) fn value(self, bits: u64) -> i16 {
        let taken = bits >> (self.0.wrapping_neg() & 63);
        (taken as u16).wrapping_add((self.0 >> 16) as u16) as i16
    }
}

pub(super) struct HuffmanTable {
    /// Entries indexed by the next [`FAST_BITS`] bits.
    fast: [Entry; 1 << FAST_BITS],
    /// `length << 8 | symbol`, indexed by the same bits; 0 for longer codes.
    pub(super) symbols: [u16; 1 << FAST_BITS],
    /// First 16 bits of the first code longer than that.
    first_long: u32,
    /// The same for longer codes, indexed by the first 16 bits minus `first_long`.
    long: Vec<u16>,
}

pub(super) struct Symbol {
    pub(super) value: u8,
    pub(super) length: u32,
    /// True if the bits are not a code.
    pub(super) is_bad: bool,
}

impl HuffmanTable {
    pub(super) fn new(spec: &TableSpec, is_dc: bool) -> Result<Self, Error> {
        let count = spec.symbols();
        if is_dc && spec.values.iter().take(count).any(|&value| value > 15) {
            return Err(broken("DC Huffman table has symbols above 15"));
        }
        let mut table = Self {
            fast: [Entry::RARE; 1 << FAST_BITS],
            symbols: [0; 1 << FAST_BITS],
            first_long: 0,
            long: Vec::new(),
        };
        let mut symbols = spec.values.iter();
        let mut code = 0_u32;
        for (length, &codes) in (1_u32..).zip(&spec.counts) {
            // The standard reserves the code of all ones.
            if codes > 0 && code + u32::from(codes) >= 1 << length {
                return Err(broken("Huffman table has too many codes"));
            }
            for &symbol in symbols.by_ref().take(codes.into()) {
                if length <= FAST_BITS {
                    table.enter(code, length, symbol, is_dc);
                } else {
                    let end = table.long.len() + (1 << (MAX_LENGTH as u32 - length));
                    table.long.resize(end, found(length, symbol));
                }
                code += 1;
            }
            if length == FAST_BITS {
                table.first_long = code << (MAX_LENGTH as u32 - length);
            }
            code <<= 1;
        }
        Ok(table)
    }

    /// Fill in the fast-table entries of a code.
    fn enter(&mut self, code: u32, length: u32, symbol: u8, is_dc: bool) {
        let free = FAST_BITS - length;
        let (size, step, most) = if is_dc {
            (u32::from(symbol), 0, MOST_DC_BITS)
        } else {
            (u32::from(symbol & 15), step(symbol), MOST_BITS)
        };
        let fits = length + size <= most && (size == 0 || free > 0);
        let first = (code as usize) << free;
        for (rest, at) in (first..first + (1 << free)).enumerate() {
            self.symbols[at] = found(length, symbol);
            if fits {
                // Values whose first bit is 0 are negative (figure F.12).
                let is_negative = size > 0 && rest >> (free - 1) == 0;
                self.fast[at] = Entry::new(code, length, size, step, is_negative);
            }
        }
    }

    /// Entry for the top bits of `bits`.
    #[inline]
    pub(super) fn entry(&self, bits: u64) -> Entry {
        self.fast[(bits >> (64 - FAST_BITS)) as usize]
    }

    /// Symbol of the code at the top of `bits`.
    #[inline]
    pub(super) fn symbol(&self, bits: u64) -> Symbol {
        let mut found = self.symbols[(bits >> (64 - FAST_BITS)) as usize];
        if found == 0 {
            let top = (bits >> (64 - MAX_LENGTH)) as u32;
            // Bits past the last code are invalid; libjpeg-turbo decodes them to this.
            let at = top.wrapping_sub(self.first_long) as usize;
            found = self.long.get(at).copied().unwrap_or(NO_CODE);
        }
        Symbol {
            value: found as u8,
            length: u32::from(found >> 8),
            is_bad: found == NO_CODE,
        }
    }
}

/// Result for an invalid code: symbol 0, 17 bits.
const NO_CODE: u16 = 17 << 8;

fn found(length: u32, symbol: u8) -> u16 {
    (length as u16) << 8 | u16::from(symbol)
}

/// Step of an AC symbol in zigzag order.
pub(super) fn step(symbol: u8) -> u32 {
    match (symbol >> 4, symbol & 15) {
        (15, 0) => 16,
        (_, 0) => END_OF_BLOCK,
        (run, _) => u32::from(run) + 1,
    }
}

/// Signed value of `size` bits: negative if the first bit is 0 (figure F.12).
#[inline]
pub(super) fn extend(bits: u32, size: u32) -> i32 {
    let is_negative = (bits << 1 >> size) & 1 ^ 1;
    bits as i32 - ((is_negative << size) as i32 - is_negative as i32)
}

/// Tables of previous images; most images share the same few tables.
#[derive(Default)]
pub(super) struct TableCache {
    tables: Vec<(TableSpec, bool, Arc<HuffmanTable>)>,
    next: usize,
}

impl TableCache {
    const SIZE: usize = 16;

    /// Look up or build a table.
    pub(super) fn table(
        &mut self,
        spec: &TableSpec,
        is_dc: bool,
    ) -> Result<Arc<HuffmanTable>, Error> {
        let mut known = self.tables.iter();
        let known = known.find(|(other, kind, _)| *kind == is_dc && other == spec);
        if let Some((_, _, table)) = known {
            return Ok(Arc::clone(table));
        }
        let table = Arc::new(HuffmanTable::new(spec, is_dc)?);
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

/// Default tables (K.3 to K.6 in the standard): code counts by length, and symbols.
pub(super) const DC_LUMINANCE: ([u8; 16], &[u8]) = (
    [0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0],
    &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
);
pub(super) const DC_CHROMINANCE: ([u8; 16], &[u8]) = (
    [0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0],
    &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
);
pub(super) const AC_LUMINANCE: ([u8; 16], &[u8]) = (
    [0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 0x7D],
    &[
        0x01, 0x02, 0x03, 0x00, 0x04, 0x11, 0x05, 0x12, 0x21, 0x31, 0x41, 0x06, 0x13, 0x51, 0x61,
        0x07, 0x22, 0x71, 0x14, 0x32, 0x81, 0x91, 0xA1, 0x08, 0x23, 0x42, 0xB1, 0xC1, 0x15, 0x52,
        0xD1, 0xF0, 0x24, 0x33, 0x62, 0x72, 0x82, 0x09, 0x0A, 0x16, 0x17, 0x18, 0x19, 0x1A, 0x25,
        0x26, 0x27, 0x28, 0x29, 0x2A, 0x34, 0x35, 0x36, 0x37, 0x38, 0x39, 0x3A, 0x43, 0x44, 0x45,
        0x46, 0x47, 0x48, 0x49, 0x4A, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59, 0x5A, 0x63, 0x64,
        0x65, 0x66, 0x67, 0x68, 0x69, 0x6A, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7A, 0x83,
        0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99,
        0x9A, 0xA2, 0xA3, 0xA4, 0xA5, 0xA6, 0xA7, 0xA8, 0xA9, 0xAA, 0xB2, 0xB3, 0xB4, 0xB5, 0xB6,
        0xB7, 0xB8, 0xB9, 0xBA, 0xC2, 0xC3, 0xC4, 0xC5, 0xC6, 0xC7, 0xC8, 0xC9, 0xCA, 0xD2, 0xD3,
        0xD4, 0xD5, 0xD6, 0xD7, 0xD8, 0xD9, 0xDA, 0xE1, 0xE2, 0xE3, 0xE4, 0xE5, 0xE6, 0xE7, 0xE8,
        0xE9, 0xEA, 0xF1, 0xF2, 0xF3, 0xF4, 0xF5, 0xF6, 0xF7, 0xF8, 0xF9, 0xFA,
    ],
);
pub(super) const AC_CHROMINANCE: ([u8; 16], &[u8]) = (
    [0, 2, 1, 2, 4, 4, 3, 4, 7, 5, 4, 4, 0, 1, 2, 0x77],
    &[
        0x00, 0x01, 0x02, 0x03, 0x11, 0x04, 0x05, 0x21, 0x31, 0x06, 0x12, 0x41, 0x51, 0x07, 0x61,
        0x71, 0x13, 0x22, 0x32, 0x81, 0x08, 0x14, 0x42, 0x91, 0xA1, 0xB1, 0xC1, 0x09, 0x23, 0x33,
        0x52, 0xF0, 0x15, 0x62, 0x72, 0xD1, 0x0A, 0x16, 0x24, 0x34, 0xE1, 0x25, 0xF1, 0x17, 0x18,
        0x19, 0x1A, 0x26, 0x27, 0x28, 0x29, 0x2A, 0x35, 0x36, 0x37, 0x38, 0x39, 0x3A, 0x43, 0x44,
        0x45, 0x46, 0x47, 0x48, 0x49, 0x4A, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59, 0x5A, 0x63,
        0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6A, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7A,
        0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97,
        0x98, 0x99, 0x9A, 0xA2, 0xA3, 0xA4, 0xA5, 0xA6, 0xA7, 0xA8, 0xA9, 0xAA, 0xB2, 0xB3, 0xB4,
        0xB5, 0xB6, 0xB7, 0xB8, 0xB9, 0xBA, 0xC2, 0xC3, 0xC4, 0xC5, 0xC6, 0xC7, 0xC8, 0xC9, 0xCA,
        0xD2, 0xD3, 0xD4, 0xD5, 0xD6, 0xD7, 0xD8, 0xD9, 0xDA, 0xE2, 0xE3, 0xE4, 0xE5, 0xE6, 0xE7,
        0xE8, 0xE9, 0xEA, 0xF2, 0xF3, 0xF4, 0xF5, 0xF6, 0xF7, 0xF8, 0xF9, 0xFA,
    ],
);

#[cfg(test)]
mod tests {
    use super::*;

    /// Compare entries against codes and bits for all 22-bit prefixes.
    fn check_entries(spec: &TableSpec, is_dc: bool) -> usize {
        let table = HuffmanTable::new(spec, is_dc).unwrap();
        let mut common = 0;
        for top in 0_u64..1 << 22 {
            // The bits that follow must not matter.
            let bits = top << 42 | (top.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 22);
            let entry = table.entry(bits);
            if entry.is_rare() {
                continue;
            }
            common += 1;
            let symbol = table.symbol(bits);
            let size = u32::from(symbol.value & 15);
            let taken = (bits << symbol.length >> 1 >> (63 - size)) as u32;
            assert_eq!(entry.raw() & 63, symbol.length + size, "{top:022b}");
            let step = if is_dc { 0 } else { step(symbol.value) };
            assert_eq!(entry.raw() >> 8 & 255, step, "{top:022b}");
            assert_eq!(
                i32::from(entry.value(bits)),
                extend(taken, size),
                "{top:022b}"
            );
        }
        common
    }

    #[test]
    fn entries_agree_with_codes_and_bits() {
        for (table, is_dc) in [
            (AC_LUMINANCE, false),
            (AC_CHROMINANCE, false),
            (DC_LUMINANCE, true),
            (DC_CHROMINANCE, true),
        ] {
            let common = check_entries(&TableSpec::of(table), is_dc);
            assert!(common > (1 << 22) / 10 * 9, "{common}");
        }
        // Short codes followed by many bits, and a code of a single bit.
        let sizes: Vec<u8> = (0..=15).chain([0xF0, 0x1A, 0x2F]).collect();
        let mut counts = [0; MAX_LENGTH];
        (counts[0], counts[5], counts[9], counts[15]) = (1, 9, 4, 5);
        check_entries(&TableSpec::of((counts, &sizes)), false);
        check_entries(
            &TableSpec::of((counts, &[9, 10, 11, 0, 1, 2, 3, 4, 15, 14, 13, 12, 8, 7])),
            true,
        );
    }

    #[test]
    fn symbols_are_found_by_codes_of_every_length() {
        // One code of each length: 0, 10, 110, etc.
        let symbols: Vec<u8> = (0..16).map(|at| 0x10 + at).collect();
        let table = HuffmanTable::new(&TableSpec::of(([1; MAX_LENGTH], &symbols)), false).unwrap();
        for (length, &expected) in (1_u32..).zip(&symbols) {
            let bits = !0 << (65 - length) & (!0 << 48);
            let bits = if length == 1 { 0 } else { bits };
            let symbol = table.symbol(bits);
            assert_eq!(
                (symbol.value, symbol.length, symbol.is_bad),
                (expected, length, false)
            );
        }
        let none = table.symbol(!0);
        assert_eq!((none.value, none.length, none.is_bad), (0, 17, true));
    }

    #[test]
    fn too_many_codes_are_rejected() {
        for (length, count) in [(1, 2), (1, 255), (2, 4), (10, 255), (16, 255)] {
            let mut counts = [0; MAX_LENGTH];
            (counts[0], counts[length - 1]) = (1, count);
            let is_refused = HuffmanTable::new(&TableSpec::of((counts, &[])), false).is_err();
            assert_eq!(is_refused, length < 10, "{length} {count}");
        }
    }
}
