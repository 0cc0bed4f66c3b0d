//! Bit reader for entropy-coded data, most significant bit first.

use super::huffman::{Entry, HuffmanTable, Symbol, extend, step};

/// Minimum number of bits after a refill.
const FULL: u32 = 56;

/// Maximum number of bits per symbol, plus one for invalid codes.
const LONGEST: u32 = 17;

/// Reads bits. It returns zeros past the last byte, which [`BitReader::is_overrun`] reports.
#[derive(Clone, Copy)]
pub(super) struct BitReader<'a> {
    bytes: &'a [u8],
    /// Index of the next byte to load; it keeps counting past the end.
    position: usize,
    /// Loaded bits, top-aligned; bits below the count are loaded again later.
    buffer: u64,
    /// Bits 0 to 5: number of loaded bits. [`BitReader::take_entry`] uses the bits above to count
    /// down the remaining coefficients of a block, so that one subtraction updates both; otherwise
    /// those bits are arbitrary.
    count: u32,
}

/// Bit position of the coefficient counter.
const PLACES: u32 = 8;

impl<'a> BitReader<'a> {
    #[inline]
    pub(super) fn new(bytes: &'a [u8], state: BitPosition) -> Self {
        Self {
            bytes,
            position: state.position,
            buffer: state.buffer,
            count: state.count,
        }
    }

    #[inline]
    pub(super) fn state(&self) -> BitPosition {
        BitPosition {
            position: self.position,
            buffer: self.buffer,
            count: self.loaded(),
        }
    }

    #[inline]
    fn loaded(&self) -> u32 {
        self.count & 63
    }

    #[inline]
    pub(super) fn position(&self) -> usize {
        self.position
    }

    /// Load at least [`FULL`] bits.
    #[inline]
    pub(super) fn refill(&mut self) {
        let rest = self.bytes.get(self.position..);
        let word = match rest.and_then(<[u8]>::first_chunk::<8>) {
            Some(chunk) => u64::from_be_bytes(*chunk),
            None => self.last_word(),
        };
        self.buffer |= word >> self.loaded();
        self.position += ((63 - self.loaded()) >> 3) as usize;
        self.count |= FULL;
    }

    #[cold]
    fn last_word(&self) -> u64 {
        let mut word = [0; 8];
        let rest = self.bytes.get(self.position..).unwrap_or_default();
        for (to, from) in word.iter_mut().zip(rest) {
            *to = *from;
        }
        u64::from_be_bytes(word)
    }

    /// True if more bits were taken than were available.
    #[inline]
    pub(super) fn is_overrun(&self) -> bool {
        self.position * 8 > self.bytes.len() * 8 + self.loaded() as usize
    }

    /// Table entry for the next bits; at least 10 bits must be loaded.
    #[inline]
    pub(super) fn peek(&self, table: &HuffmanTable) -> Entry {
        table.entry(self.buffer)
    }

    /// Take a common entry and return its value.
    #[inline]
    pub(super) fn take_entry(&mut self, entry: Entry) -> i16 {
        let value = entry.value(self.buffer);
        self.buffer <<= entry.raw() & 63;
        self.count = self.count.wrapping_sub(entry.raw());
        value
    }

    /// Take a rare entry and return its value.
    #[allow(clippy::inline_always)] // Inlined to keep the bit buffer in registers.
    #[inline(always)]
    pub(super) fn take_rare(&mut self, table: &HuffmanTable, is_bad: &mut bool) -> i16 {
        self.refill();
        let symbol = table.symbol(self.buffer);
        *is_bad |= symbol.is_bad;
        self.skip(symbol.length);
        self.count = self.count.wrapping_sub(step(symbol.value) << PLACES);
        let size = u32::from(symbol.value & 15);
        let value = extend(self.take_loaded(size), size) as i16;
        self.refill();
        value
    }

    /// Take a DC difference and start counting the coefficients of its block.
    #[allow(clippy::inline_always)] // As above.
    #[inline(always)]
    pub(super) fn difference(&mut self, table: &HuffmanTable, is_bad: &mut bool) -> i16 {
        self.refill();
        let entry = self.peek(table);
        let value = if entry.is_rare() {
            self.take_rare(table, is_bad)
        } else {
            self.take_entry(entry)
        };
        self.count = self.loaded() | 63 << PLACES;
        value
    }

    /// Take a DC difference without counting.
    #[allow(clippy::inline_always)] // As above.
    #[inline(always)]
    pub(super) fn plain_difference(&mut self, table: &HuffmanTable, is_bad: &mut bool) -> i16 {
        let difference = self.difference(table, is_bad);
        self.count = self.loaded();
        difference
    }

    /// Take a common entry without counting and return its value.
    #[inline]
    pub(super) fn take_value(&mut self, entry: Entry) -> i16 {
        let value = entry.value(self.buffer);
        self.skip(entry.raw() & 63);
        value
    }

    /// Take 1 to 56 bits; the first one becomes the lowest bit.
    #[inline]
    pub(super) fn take_first(&mut self, count: u32) -> u64 {
        if self.count < count {
            self.refill();
        }
        let first = self.buffer.reverse_bits() & u64::MAX >> (64 - count);
        self.skip(count);
        first
    }

    /// Number of coefficients left in the block; negative past its end.
    #[inline]
    pub(super) fn places_left(&self) -> i8 {
        (self.count >> PLACES) as i8
    }

    #[inline]
    pub(super) fn skip(&mut self, count: u32) {
        self.buffer <<= count;
        self.count -= count;
    }

    /// Take 0 to 15 loaded bits.
    #[inline]
    fn take_loaded(&mut self, count: u32) -> u32 {
        let value = (self.buffer >> 1 >> (63 - count)) as u32;
        self.skip(count);
        value
    }

    /// Take 0 to 15 bits.
    #[inline]
    pub(super) fn take(&mut self, count: u32) -> u32 {
        if self.count < count {
            self.refill();
        }
        self.take_loaded(count)
    }

    #[inline]
    pub(super) fn symbol(&mut self, table: &HuffmanTable) -> Symbol {
        if self.count < LONGEST {
            self.refill();
        }
        let symbol = table.symbol(self.buffer);
        self.skip(symbol.length);
        symbol
    }
}

/// A position in entropy-coded data.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct BitPosition {
    pub(super) position: usize,
    pub(super) buffer: u64,
    pub(super) count: u32,
}

impl BitPosition {
    /// Number of whole bytes left out of `length`.
    pub(super) fn bytes_left(&self, length: usize) -> usize {
        (length * 8 + self.count as usize).saturating_sub(self.position * 8) / 8
    }
}
