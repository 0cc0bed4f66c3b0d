//! Blocks of DCT coefficients, the coefficients of a component, and the zigzag order.

use std::ops::{Deref, DerefMut, Range};

use crate::{Error, try_alloc};

/// Zigzag order: position of a coefficient in its block, by its index in the scan (figure A.6).
///
/// Longer than 64 entries because damaged data may run past the end of a block; in libjpeg-turbo,
/// this overwrites the last coefficient.
pub(super) const NATURAL_ORDER: [u8; 256] = natural_order();

const fn natural_order() -> [u8; 256] {
    let mut order = [63; 256];
    let (mut row, mut column) = (0_u8, 0_u8);
    let mut at = 0;
    while at < 64 {
        order[at] = row * 8 + column;
        let is_rising = (row + column) % 2 == 0;
        if is_rising && column == 7 {
            row += 1;
        } else if is_rising && row == 0 {
            column += 1;
        } else if is_rising {
            row -= 1;
            column += 1;
        } else if row == 7 {
            column += 1;
        } else if column == 0 {
            row += 1;
        } else {
            row += 1;
            column -= 1;
        }
        at += 1;
    }
    order
}

/// The same, indexed by the number of remaining coefficients as a signed byte.
pub(super) const NATURAL_ORDER_FROM_END: [u8; 256] = {
    let mut order = [0; 256];
    let mut at = 0;
    while at < 256 {
        order[(63 + 256 - at) % 256] = NATURAL_ORDER[at];
        at += 1;
    }
    order
};

/// Quantized DCT coefficients of a block, in natural order.
///
/// Aligned so that no register load crosses a cache line.
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

/// Maximum number of blocks per component kept between images: 64 MiB.
const KEPT_BLOCKS: usize = 1 << 19;

fn of_coefficients() -> String {
    let what = "the coefficients of a multi-scan JPEG";
    format!("{what}; use a smaller image or fewer threads")
}

/// Coefficients of a component, for all or some MCUs.
#[derive(Default)]
pub(super) struct Coefficients {
    pub(super) blocks: Vec<Block>,
    /// For each block, a bit for each zigzag index with a nonzero AC coefficient; only for
    /// progressive images.
    non_zero: Vec<u64>,
    /// Number of blocks per block row.
    pub(super) stride: usize,
}

impl Coefficients {
    /// Memory per block.
    pub(super) fn bytes_per_block(is_progressive: bool) -> usize {
        size_of::<Block>() + if is_progressive { size_of::<u64>() } else { 0 }
    }

    /// Allocate zeroed blocks.
    pub(super) fn reset(
        &mut self,
        wide: usize,
        high: usize,
        is_progressive: bool,
    ) -> Result<(), Error> {
        self.non_zero.clear();
        if is_progressive {
            try_alloc::reserve(&mut self.non_zero, wide * high, of_coefficients)?;
            self.non_zero.resize(wide * high, 0);
        }
        self.blocks.clear();
        try_alloc::reserve(&mut self.blocks, wide * high, of_coefficients)?;
        self.blocks.resize(wide * high, Block::ZERO);
        self.stride = wide;
        Ok(())
    }

    pub(super) fn release(&mut self) {
        self.blocks.clear();
        self.blocks.shrink_to(KEPT_BLOCKS);
        self.non_zero.clear();
        self.non_zero.shrink_to(KEPT_BLOCKS);
    }

    /// Some blocks in a row of a progressive image, with their nonzero bits.
    #[inline]
    pub(super) fn row_mut(
        &mut self,
        row: usize,
        columns: Range<usize>,
    ) -> Option<(&mut [Block], &mut [u64])> {
        let start = row * self.stride;
        let range = start + columns.start..start + columns.end;
        let blocks = self.blocks.get_mut(range.clone())?;
        Some((blocks, self.non_zero.get_mut(range)?))
    }

    pub(super) fn row(&self, row: usize, count: usize) -> &[Block] {
        let start = row * self.stride;
        self.blocks.get(start..start + count).unwrap_or_default()
    }
}
