//! Bytes of a row -> values of a batch: which instructions do it, and plain loops.
//!
//! A value depends on its byte and channel alone, so that a table of 256 entries for each channel
//! tells everything. AVX-512 looks bytes up in such tables, 64 at a time and each byte of the value by
//! itself. AVX2 has nothing of the kind and computes: division by a constant is multiplication by its
//! reciprocal in two parts, which is compared with the tables beforehand for every byte.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

use super::layout::Dtype;
#[cfg(target_arch = "x86_64")]
use crate::cpu_features::Instructions;
use crate::resize::simd::Passes;

/// Pixels that are taken at once.
pub(crate) const SEGMENT: usize = 512;
/// Bytes before and behind the pixels of a plane that may be read or written.
pub(crate) const MARGIN: usize = 64;
/// Bytes of a plane.
pub(crate) const PLANE: usize = SEGMENT + 2 * MARGIN;

/// The values of every byte, in as many bytes as they are stored in; the others are 0.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub(crate) struct ByteTable {
    /// All first bytes, all second bytes and so on.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // Only AVX-512 reads it.
    pub parts: [[u8; 256]; 4],
    whole: [[u8; 4]; 256],
}

impl ByteTable {
    pub(crate) fn new(value: impl Fn(u8) -> [u8; 4]) -> Self {
        let (mut parts, mut whole) = ([[0; 256]; 4], [[0; 4]; 256]);
        for (place, byte) in (0_u8..=255).enumerate() {
            whole[place] = value(byte);
            for (part, of_value) in parts.iter_mut().zip(whole[place]) {
                part[place] = of_value;
            }
        }
        Self { parts, whole }
    }

    fn put_all<const SIZE: usize>(&self, bytes: &[u8], values: &mut [u8]) {
        for (value, &byte) in values.as_chunks_mut::<SIZE>().0.iter_mut().zip(bytes) {
            value.copy_from_slice(&self.whole[usize::from(byte)][..SIZE]);
        }
    }
}

/// ((value * `reciprocal` in two parts) - `mean`) * (`scale` in two parts), in single precision.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Arithmetic {
    pub mean: f32,
    pub scale: [f32; 2],
}

/// 1 / 255 in two parts.
#[allow(clippy::cast_possible_truncation)] // Rounded.
pub(crate) const RECIPROCAL: [f32; 2] = {
    let high = (1.0 / 255.0) as f32;
    [high, (1.0 / 255.0 - high as f64) as f32]
};

impl Arithmetic {
    /// What AVX2 computes of a byte.
    pub(crate) fn value(&self, byte: u8) -> f32 {
        let byte = f32::from(byte);
        let unit = byte.mul_add(RECIPROCAL[0], byte * RECIPROCAL[1]);
        let centered = unit - self.mean;
        centered.mul_add(self.scale[0], centered * self.scale[1])
    }
}

/// What the values of the three written channels are.
#[derive(Clone, Debug)]
pub(crate) struct ChannelTables {
    pub passes: Passes,
    pub dtype: Dtype,
    /// For each written channel, the stored one.
    pub channels: [usize; 3],
    /// For each written channel.
    pub tables: [ByteTable; 3],
    /// For each written channel; `None` where it would not give what the tables hold.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    // Only AVX2 and AVX-512 read it.
    pub arithmetic: Option<[Arithmetic; 3]>,
}

impl ChannelTables {
    /// Write at most [`SEGMENT`] pixels to three rows of as many values.
    pub(crate) fn write_planes(&self, row: &[u8], flip: bool, outputs: [&mut [u8]; 3]) {
        let mut planes = [0; 3 * PLANE];
        let starts = self.channels.map(|channel| channel * PLANE + MARGIN);
        let split = |row: &[u8], planes: &mut [u8]| {
            let targets = [0, 1, 2].map(|channel| channel * PLANE + MARGIN);
            self.passes.split(row, planes, targets);
        };
        #[cfg(target_arch = "x86_64")]
        match (self.passes.instructions(), &self.arithmetic) {
            (Instructions::Avx512, _) => {
                split(row, &mut planes);
                let sources = outputs.into_iter().zip(starts);
                for ((output, start), table) in sources.zip(&self.tables) {
                    // SAFETY: the processor has the instructions.
                    unsafe {
                        avx512::look_up(&table.parts, &planes, start, flip, self.dtype, output);
                    }
                }
                return;
            }
            (Instructions::Avx2, Some(arithmetic)) => {
                let mut mirrored = [0; 3 * SEGMENT + 2 * MARGIN];
                let row = if flip {
                    // SAFETY: as above.
                    unsafe { avx2::reorder(row, true, false, &mut mirrored) };
                    &mirrored[..row.len()]
                } else {
                    row
                };
                split(row, &mut planes);
                let sources = outputs.into_iter().zip(starts);
                for ((output, start), &arithmetic) in sources.zip(arithmetic) {
                    let bytes = &planes[start..start + row.len() / 3];
                    // SAFETY: as above.
                    unsafe { avx2::convert(&[arithmetic; 3], bytes, self.dtype, output) };
                }
                return;
            }
            _ => {}
        }
        split(row, &mut planes);
        let sources = outputs.into_iter().zip(starts);
        for ((output, start), table) in sources.zip(&self.tables) {
            let bytes = &mut planes[start..start + row.len() / 3];
            if flip {
                bytes.reverse();
            }
            match self.dtype.bytes() {
                4 => table.put_all::<4>(bytes, output),
                2 => table.put_all::<2>(bytes, output),
                _ => output.copy_from_slice(bytes),
            }
        }
    }

    /// Write at most [`SEGMENT`] pixels to a row of three values each.
    pub(crate) fn write_pixels(&self, row: &[u8], flip: bool, output: &mut [u8]) {
        #[cfg(target_arch = "x86_64")]
        if let (Instructions::Avx2 | Instructions::Avx512, Some(arithmetic)) =
            (self.passes.instructions(), &self.arithmetic)
        {
            let mut reordered = [0; 3 * SEGMENT + 2 * MARGIN];
            let swap = self.channels[0] == 2;
            let row = if flip || swap {
                // SAFETY: the processor has the instructions.
                unsafe { avx2::reorder(row, flip, swap, &mut reordered) };
                &reordered[..row.len()]
            } else {
                row
            };
            // SAFETY: as above.
            unsafe { avx2::convert(arithmetic, row, self.dtype, output) };
            return;
        }
        match self.dtype.bytes() {
            4 => self.plain_pixels::<4>(row, flip, output),
            2 => self.plain_pixels::<2>(row, flip, output),
            _ => self.plain_pixels::<1>(row, flip, output),
        }
    }

    fn plain_pixels<const SIZE: usize>(&self, row: &[u8], flip: bool, output: &mut [u8]) {
        let (pixels, _) = row.as_chunks::<3>();
        let (values, _) = output.as_chunks_mut::<SIZE>();
        let (outputs, _) = values.as_chunks_mut::<3>();
        let write = |(output, pixel): (&mut [[u8; SIZE]; 3], &[u8; 3])| {
            for ((value, channel), table) in output.iter_mut().zip(self.channels).zip(&self.tables)
            {
                value.copy_from_slice(&table.whole[usize::from(pixel[channel])][..SIZE]);
            }
        };
        let outputs = outputs.iter_mut();
        if flip {
            outputs.zip(pixels.iter().rev()).for_each(write);
        } else {
            outputs.zip(pixels).for_each(write);
        }
    }
}

/// Begin to bring bytes into the cache.
pub(crate) fn fetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: all of these processors have it.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}

/// The bytes of values.
pub(crate) fn bytes_of(values: &mut [f32]) -> &mut [u8] {
    let length = size_of_val(values);
    // SAFETY: every byte of a value can be read and written as a byte, and every four bytes are one.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), length) }
}
