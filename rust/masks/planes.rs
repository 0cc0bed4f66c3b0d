//! Bit planes of masks, by rows and by columns.

use std::ops::Range;

use crate::masks::sample_grid::{SampleGrid, places};
use crate::{Error, try_alloc};

/// Masks of one size, by rows: the first pixel of a row is the highest bit of its first byte.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Planes {
    /// `count * height * ceil(width / 8)` bytes.
    pub bytes: Vec<u8>,
    /// (height, width) in pixels.
    pub size: (usize, usize),
    /// Number of masks.
    pub count: usize,
}

/// One mask by columns, each padded to whole bytes.
#[derive(Debug, Default)]
pub(crate) struct ColumnPlane {
    bits: Vec<u8>,
    /// Bytes of a column.
    stride: usize,
}

/// Set a range of bits, the first one of which is the highest of the first byte.
fn set_bits(bytes: &mut [u8], range: Range<usize>) {
    if range.is_empty() {
        return;
    }
    let (first, last) = (range.start / 8, (range.end - 1) / 8);
    let from = 0xFF_u8 >> (range.start % 8);
    let to = 0xFF_u8 << (7 - (range.end - 1) % 8);
    let Some(touched) = bytes.get_mut(first..=last) else {
        return;
    };
    match touched {
        [] => {}
        [only] => *only |= from & to,
        [start, inner @ .., end] => {
            *start |= from;
            inner.fill(0xFF);
            *end |= to;
        }
    }
}

/// Exchange rows and columns of 8 x 8 bits, one row in each byte.
fn transposed(rows: [u8; 8]) -> [u8; 8] {
    let mut bits = u64::from_be_bytes(rows);
    // Blocks of 1, 2 and 4 bits beside the diagonal change places (Warren, Hacker's Delight).
    for (shift, which) in [
        (7, 0x00AA_00AA_00AA_00AA_u64),
        (14, 0x0000_CCCC_0000_CCCC),
        (28, 0x0000_0000_F0F0_F0F0),
    ] {
        let swapped = (bits ^ (bits >> shift)) & which;
        bits ^= swapped ^ (swapped << shift);
    }
    bits.to_be_bytes()
}

impl Planes {
    /// Bytes of a mask of `size` = (height, width) pixels.
    pub(crate) fn bytes_of(size: (usize, usize)) -> usize {
        size.0.saturating_mul(size.1.div_ceil(8))
    }

    pub(crate) fn new(count: usize, size: (usize, usize)) -> Result<Self, Error> {
        let what = || {
            let (height, width) = size;
            format!("{count} masks of {height} x {width} pixels; use smaller images")
        };
        let bytes = count.saturating_mul(Self::bytes_of(size));
        Ok(Self {
            bytes: try_alloc::filled(0, bytes, what)?,
            size,
            count,
        })
    }

    /// Bytes of a mask; none if there is no such mask.
    pub(crate) fn get(&self, index: usize) -> &[u8] {
        let bytes = Self::bytes_of(self.size);
        let plane = self.bytes.get(index * bytes..(index + 1) * bytes);
        plane.unwrap_or_default()
    }

    pub(crate) fn get_mut(&mut self, index: usize) -> &mut [u8] {
        let bytes = Self::bytes_of(self.size);
        let plane = self.bytes.get_mut(index * bytes..(index + 1) * bytes);
        plane.unwrap_or_default()
    }

    /// Set pixels of a row of a mask.
    pub(crate) fn set(&mut self, index: usize, row: usize, columns: Range<usize>) {
        let stride = self.size.1.div_ceil(8);
        let plane = self.get_mut(index);
        if let Some(row) = plane.get_mut(row * stride..(row + 1) * stride) {
            set_bits(row, columns);
        }
    }

    /// Sample a mask from rows of bits of an image with `width` columns.
    pub(crate) fn sample_packed(
        &mut self,
        index: usize,
        bits: &[u8],
        width: usize,
        grid: &SampleGrid,
    ) {
        let (from, to) = (width.div_ceil(8), self.size.1.div_ceil(8));
        let (height, width) = grid.size();
        let plane = self.get_mut(index);
        for (y, output) in plane.chunks_exact_mut(to.max(1)).take(height).enumerate() {
            for x in 0..width {
                let (row, column) = if grid.transposed {
                    (grid.rows.get(x), grid.columns.get(y))
                } else {
                    (grid.rows.get(y), grid.columns.get(x))
                };
                let (Some(row), Some(column)) = (row, column) else {
                    continue;
                };
                let byte = bits.get(row * from + column / 8).copied().unwrap_or(0);
                let bit = byte >> (7 - column % 8) & 1;
                if let Some(byte) = output.get_mut(x / 8) {
                    *byte |= bit << (7 - x % 8);
                }
            }
        }
    }

    /// Keep some masks, in order.
    pub(crate) fn keep(&mut self, kept: &[usize]) {
        let bytes = Self::bytes_of(self.size);
        for (to, &from) in kept.iter().enumerate() {
            if to != from {
                self.bytes
                    .copy_within(from * bytes..(from + 1) * bytes, to * bytes);
            }
        }
        self.count = kept.len();
        self.bytes.truncate(kept.len() * bytes);
    }

    /// The union of some masks for each list.
    pub(crate) fn unions(&self, lists: &[Vec<usize>]) -> Result<Self, Error> {
        let mut unions = Self::new(lists.len(), self.size)?;
        for (index, list) in lists.iter().enumerate() {
            for &mask in list {
                let own = unions.get_mut(index).iter_mut();
                own.zip(self.get(mask)).for_each(|(all, one)| *all |= one);
            }
        }
        Ok(unions)
    }
}

impl ColumnPlane {
    /// Empty the plane for the rows and columns of a grid.
    pub fn clear(&mut self, grid: &SampleGrid) {
        self.stride = grid.rows.len().div_ceil(8);
        self.bits.clear();
        self.bits.resize(self.stride * grid.columns.len(), 0);
    }

    /// Set the pixels with the numbers in a range; the numbers of the stored image go down its
    /// columns, as COCO's.
    pub fn fill(&mut self, grid: &SampleGrid, range: Range<usize>) {
        let height = grid.source.0;
        if range.is_empty() || height == 0 {
            return;
        }
        let (first, last) = (range.start / height, (range.end - 1) / height);
        let mut done = None;
        for place in places(&grid.columns, first..last + 1) {
            let Some(&column) = grid.columns.get(place) else {
                continue;
            };
            let rows = match done {
                Some((same, ref rows)) if same == column => Range::clone(rows),
                _ => {
                    let start = if column == first {
                        range.start % height
                    } else {
                        0
                    };
                    let end = if column == last {
                        range.end - column * height
                    } else {
                        height
                    };
                    places(&grid.rows, start..end)
                }
            };
            done = Some((column, rows.clone()));
            let bits = self
                .bits
                .get_mut(place * self.stride..(place + 1) * self.stride);
            set_bits(bits.unwrap_or_default(), rows);
        }
    }

    /// Write the plane to a mask of the grid's padded size.
    pub fn write(&self, plane: &mut [u8], grid: &SampleGrid) {
        let stride = grid.padded.1.div_ceil(8);
        if stride == 0 || self.stride == 0 {
            return;
        }
        if grid.transposed {
            // Columns of the stored image are rows of the output.
            for (row, column) in plane
                .chunks_exact_mut(stride)
                .zip(self.bits.chunks_exact(self.stride))
            {
                for (to, from) in row.iter_mut().zip(column) {
                    *to = *from;
                }
            }
            return;
        }
        for (byte, columns) in self.bits.chunks(8 * self.stride).enumerate() {
            for (group, top) in (0..self.stride).zip((0..).step_by(8)) {
                let mut block = [0; 8];
                for (bits, column) in block.iter_mut().zip(columns.chunks_exact(self.stride)) {
                    *bits = column.get(group).copied().unwrap_or(0);
                }
                if block == [0; 8] {
                    continue;
                }
                for (row, bits) in (top..).zip(transposed(block)) {
                    if let Some(to) = plane.get_mut(row * stride + byte) {
                        *to = bits;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_bits_are_set() {
        for start in 0..24 {
            for end in start..=24 {
                let mut bytes = [0; 3];
                set_bits(&mut bytes, start..end);
                let bits = (0..24).filter(|&bit| bytes[bit / 8] >> (7 - bit % 8) & 1 == 1);
                assert!(bits.eq(start..end), "{start}..{end}");
            }
        }
    }

    #[test]
    fn transposing_twice_changes_nothing() {
        let rows = [0b1000_0001, 0, 0xFF, 1, 2, 4, 0x55, 0xAA];
        let columns = transposed(rows);
        for (y, row) in rows.iter().enumerate() {
            for (x, column) in columns.iter().enumerate() {
                assert_eq!(row >> (7 - x) & 1, column >> (7 - y) & 1);
            }
        }
        assert_eq!(transposed(columns), rows);
    }

    #[test]
    fn unions_and_kept_masks() {
        let mut planes = Planes::new(3, (1, 9)).unwrap();
        planes.set(0, 0, 0..1);
        planes.set(1, 0, 7..9);
        planes.set(2, 0, 1..3);
        let unions = planes.unions(&[vec![0, 2], vec![], vec![1]]).unwrap();
        assert_eq!(unions.bytes, [0b1110_0000, 0, 0, 0, 1, 0x80]);
        planes.keep(&[1]);
        assert_eq!((planes.count, planes.bytes), (1, vec![1, 0x80]));
    }
}
