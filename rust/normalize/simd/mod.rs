//! Convert bytes to batch values: SIMD dispatch and scalar loops.
//!
//! A value depends only on its byte and channel, so 256-entry tables, one per channel, define it.
//! AVX-512 uses table lookups, 64 bytes at a time, with one table per byte of the value. AVX2
//! computes the values instead, replacing division by a constant with multiplication by its
//! reciprocal in two parts; the result is verified against the tables for every byte.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

use super::layout::Dtype;
#[cfg(target_arch = "x86_64")]
use crate::cpu_features::Instructions;
use crate::resize::simd::Passes;

/// Pixels per segment.
pub(crate) const SEGMENT: usize = 512;
/// Readable and writable bytes before and after the pixels of a plane.
pub(crate) const MARGIN: usize = 64;
/// Bytes per plane.
pub(crate) const PLANE: usize = SEGMENT + 2 * MARGIN;

/// The encoded value of every byte; unused bytes are 0.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub(crate) struct ByteTable {
    /// All first bytes, then all second bytes, and so on.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // Only used by AVX-512.
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

/// ((value * `reciprocal` in two parts) - `mean`) * (`scale` in two parts), in float32.
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
    /// The value that the AVX2 code computes for a byte.
    pub(crate) fn value(&self, byte: u8) -> f32 {
        let byte = f32::from(byte);
        let unit = byte.mul_add(RECIPROCAL[0], byte * RECIPROCAL[1]);
        let centered = unit - self.mean;
        centered.mul_add(self.scale[0], centered * self.scale[1])
    }
}

/// Tables of the three output channels.
#[derive(Clone, Debug)]
pub(crate) struct ChannelTables {
    pub passes: Passes,
    pub dtype: Dtype,
    /// Source channel of each output channel.
    pub channels: [usize; 3],
    /// One table per output channel.
    pub tables: [ByteTable; 3],
    /// One per output channel; `None` if it does not reproduce the table.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    // Only used by AVX2 and AVX-512.
    pub arithmetic: Option<[Arithmetic; 3]>,
}

impl ChannelTables {
    /// Write up to [`SEGMENT`] pixels to three planar rows.
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
                    // SAFETY: `Passes` has instructions that the processor supports.
                    unsafe {
                        avx512::look_up(&table.parts, &planes, start, flip, self.dtype, output);
                    }
                }
                return;
            }
            (Instructions::Avx2, Some(arithmetic)) => {
                let mut mirrored = [0; 3 * SEGMENT + 2 * MARGIN];
                let row = if flip {
                    // SAFETY: `Passes` has instructions that the processor supports.
                    unsafe { avx2::reorder(row, true, false, &mut mirrored) };
                    &mirrored[..row.len()]
                } else {
                    row
                };
                split(row, &mut planes);
                let sources = outputs.into_iter().zip(starts);
                for ((output, start), &arithmetic) in sources.zip(arithmetic) {
                    let bytes = &planes[start..start + row.len() / 3];
                    // SAFETY: `Passes` has instructions that the processor supports.
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

    /// Write up to [`SEGMENT`] pixels to an interleaved row.
    pub(crate) fn write_pixels(&self, row: &[u8], flip: bool, output: &mut [u8]) {
        #[cfg(target_arch = "x86_64")]
        if let (Instructions::Avx2 | Instructions::Avx512, Some(arithmetic)) =
            (self.passes.instructions(), &self.arithmetic)
        {
            let mut reordered = [0; 3 * SEGMENT + 2 * MARGIN];
            let swap = self.channels[0] == 2;
            let row = if flip || swap {
                // SAFETY: `Passes` has instructions that the processor supports.
                unsafe { avx2::reorder(row, flip, swap, &mut reordered) };
                &reordered[..row.len()]
            } else {
                row
            };
            // SAFETY: `Passes` has instructions that the processor supports.
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

/// Prefetch bytes into the cache.
pub(crate) fn fetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: every x86-64 processor has the instruction.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}

/// View values as bytes.
pub(crate) fn bytes_of(values: &mut [f32]) -> &mut [u8] {
    let length = size_of_val(values);
    // SAFETY: every byte of a value is a valid byte, and any four bytes are a valid value.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), length) }
}
