//! Entropy-coded data of a scan. Byte stuffing is removed and markers end segments; missing,
//! duplicate or misplaced restart markers are handled as in libjpeg-turbo.

use super::bit_reader::{BitPosition, BitReader};
use super::markers::{END_OF_IMAGE, Reader};

/// Number of file bytes unstuffed at a time; they fit in the L2 cache.
const WINDOW: usize = 1 << 15;
/// Upper bound for an MCU, even if damaged: 10 blocks of 64 symbols of 31 bits.
const MARGIN: usize = 4096;

/// Damage found in a scan's data; the affected pixels are filled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Damage {
    /// A segment ended before its last MCU.
    pub(super) is_short: bool,
    /// Some bits are not a Huffman code.
    pub(super) is_bad_code: bool,
    /// A restart marker was not the one expected.
    pub(super) is_out_of_order: bool,
    /// Number of bytes that belong to no MCU, not counting zeros at the end of a scan.
    pub(super) unused_bytes: usize,
}

/// Entropy-coded data of a scan.
pub(super) struct Bitstream<'a, 'w> {
    reader: Reader<'a>,
    window: &'w mut Vec<u8>,
    state: BitPosition,
    /// The marker that ended the segment and is still to be consumed.
    marker: Option<u8>,
    expected_restart: u8,
    /// True if the segment has no more data; its remaining MCUs are unchanged.
    pub(super) is_exhausted: bool,
    pub(super) damage: Damage,
}

impl<'a, 'w> Bitstream<'a, 'w> {
    /// Start a scan at the reader's position.
    pub(super) fn new(reader: Reader<'a>, window: &'w mut Vec<u8>) -> Self {
        window.clear();
        Self {
            reader,
            window,
            state: BitPosition::default(),
            marker: None,
            expected_restart: 0,
            is_exhausted: false,
            damage: Damage::default(),
        }
    }

    /// The bit reader, and the position before which a whole MCU is available.
    #[inline]
    pub(super) fn bits(&mut self) -> (BitReader<'_>, usize) {
        if self.marker.is_none() && self.state.position + MARGIN > self.window.len() {
            self.fill();
        }
        let limit = match self.marker {
            Some(_) => usize::MAX,
            None => self.window.len().saturating_sub(MARGIN),
        };
        (BitReader::new(self.window, self.state), limit)
    }

    /// Resume at the reader's position.
    #[inline]
    pub(super) fn resume(&mut self, state: BitPosition, is_overrun: bool, is_bad_code: bool) {
        self.state = state;
        self.is_exhausted |= is_overrun;
        self.damage.is_short |= is_overrun;
        self.damage.is_bad_code |= is_bad_code;
    }

    /// Unstuff more bytes, up to the next marker.
    #[cold]
    fn fill(&mut self) {
        let used = self.state.position.min(self.window.len());
        self.window.drain(..used);
        self.state.position -= used;
        while self.marker.is_none() && self.window.len() < WINDOW {
            let start = self.reader.position;
            let rest = self.reader.bytes.get(start..).unwrap_or_default();
            let chunk = rest.get(..WINDOW).unwrap_or(rest);
            let run = find_stuffed(chunk);
            let plain = chunk.get(..run).unwrap_or_default();
            self.window.extend_from_slice(plain);
            self.reader.position += run;
            if run < chunk.len() || rest.len() == run {
                self.pass_stuffed();
            }
        }
    }

    /// At an FF byte or the end: unstuff a byte or note the marker.
    fn pass_stuffed(&mut self) {
        let rest = self.reader.bytes.get(self.reader.position..);
        let rest = rest.unwrap_or_default();
        let fill = rest.iter().take_while(|&&byte| byte == 0xFF).count();
        match rest.get(fill) {
            Some(0) => {
                self.window.push(0xFF);
                self.reader.position += fill + 1;
            }
            Some(&marker) => {
                self.marker = Some(marker);
                self.reader.position += fill + 1;
            }
            None => {
                self.marker = Some(END_OF_IMAGE);
                self.reader.position = self.reader.bytes.len() + 2;
            }
        }
    }

    /// Skip the rest of the segment and return its marker.
    fn end_segment(&mut self) -> u8 {
        let left = self.state.bytes_left(self.window.len());
        let at = self.window.len().saturating_sub(left);
        self.damage.unused_bytes += self.window.get(at..).map_or(0, used_length);
        self.window.clear();
        self.state = BitPosition::default();
        loop {
            if let Some(marker) = self.marker {
                return marker;
            }
            self.fill();
            self.damage.unused_bytes += used_length(self.window);
            self.window.clear();
        }
    }

    /// Move to the segment after the expected restart marker, or recover like libjpeg-turbo.
    pub(super) fn restart(&mut self) {
        let expected = self.expected_restart;
        self.expected_restart = (expected + 1) & 7;
        let mut marker = self.end_segment();
        if marker != 0xD0 + expected && marker != END_OF_IMAGE {
            self.damage.is_out_of_order = true;
        }
        loop {
            let ahead = marker.wrapping_sub(0xD0 + expected) & 7;
            match marker {
                0xD0..=0xD7 if ahead == 1 || ahead == 2 => break,
                // Skip an earlier or invalid marker and look for the next one.
                0xD0..=0xD7 if ahead == 6 || ahead == 7 => {}
                0xD0..=0xD7 => {
                    self.marker = None;
                    self.is_exhausted = false;
                    return;
                }
                0xC0..=0xFF => break,
                _ => {}
            }
            marker = self.reader.next_marker();
            self.marker = Some(marker);
        }
        // The marker belongs to a later segment, so this one is empty.
    }

    /// End the scan; return the reader after the next marker, and that marker.
    pub(super) fn finish(mut self) -> (Reader<'a>, u8, Damage) {
        let marker = self.end_segment();
        (self.reader, marker, self.damage)
    }
}

/// Length without trailing zeros, which some encoders add as padding.
fn used_length(bytes: &[u8]) -> usize {
    let last = bytes.iter().rposition(|&byte| byte != 0);
    last.map_or(0, |last| last + 1)
}

/// Index of the first FF byte, or the length if there is none.
fn find_stuffed(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::MAX / 255;
    let mut chunks = bytes.chunks_exact(8);
    let mut at = 0;
    for chunk in &mut chunks {
        let word = !u64::from_le_bytes(chunk.try_into().unwrap_or([0; 8]));
        // Subtracting from a zero byte borrows.
        let found = word.wrapping_sub(ONES) & !word & (ONES << 7);
        if found != 0 {
            return at + (found.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    let rest = chunks.remainder().iter();
    at + rest.take_while(|&&byte| byte != 0xFF).count()
}

/// Restart interval and what is left of it, in MCUs; zero means no restarts.
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

    /// If a restart marker precedes the next MCU, start the next interval and return true.
    pub(super) fn is_due(&mut self) -> bool {
        let is_due = self.interval > 0 && self.left == 0;
        if is_due {
            self.left = self.interval;
        }
        is_due
    }

    /// How many of `count` MCUs come before the next restart.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(bytes: &[u8]) -> (Vec<u8>, u8) {
        let mut window = Vec::new();
        let mut stream = Bitstream::new(Reader { bytes, position: 0 }, &mut window);
        stream.fill();
        let marker = stream.end_segment();
        let mut data = Vec::new();
        let mut again = Bitstream::new(Reader { bytes, position: 0 }, &mut data);
        again.fill();
        (again.window.clone(), marker)
    }

    #[test]
    fn stuffing_is_removed_and_markers_end_a_segment() {
        assert_eq!(segment(&[]), (vec![], 0xD9));
        assert_eq!(segment(&[1, 0xFF]), (vec![1], 0xD9));
        assert_eq!(
            segment(&[1, 0xFF, 0, 2, 0xFF, 0xD3, 9]),
            (vec![1, 0xFF, 2], 0xD3)
        );
        assert_eq!(
            segment(&[0xFF, 0xFF, 0, 0xFF, 0xFF, 0xD0]),
            (vec![0xFF], 0xD0)
        );
        for length in 0..40 {
            let mut bytes = vec![7; length];
            bytes.extend([0xFF, 0xD9]);
            assert_eq!(segment(&bytes), (vec![7; length], 0xD9));
        }
    }
}
