//! The two passes of a resize: SIMD dispatch and portable loops.
//!
//! Four rows are processed at a time. Their pixels are deinterleaved into planes, one per channel.
//! The horizontal pass stores the four rows of each column next to each other (a quad), so the
//! bytes accumulated by the vertical pass are adjacent.

#[cfg(target_arch = "x86_64")]
mod approx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod wide;

use super::weights::{PRECISION_BITS, QUAD, Weights};
use crate::cpu_features::Instructions;
use crate::simd::{self, SimdLoop};

/// Four source rows.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    /// 12 planes: red, green and blue for each row.
    pub planes: &'a [u8],
    /// Bytes per plane, at least [`Across::plane`].
    pub plane: usize,
    /// Output columns, a multiple of [`COLUMNS`].
    pub columns: usize,
}

/// Quads that an output row depends on.
#[derive(Clone, Copy)]
pub(crate) struct Quads<'a> {
    /// Output of the horizontal pass.
    pub ring: &'a [u8],
    /// Offset in `ring` of each group of quads, which has 3 * `columns` * 4 values.
    pub starts: &'a [usize],
    pub weights: &'a [[i32; QUAD]],
    /// See [`Rows`].
    pub columns: usize,
}

/// Code shared by AVX2 and AVX-512 that depends only on the register width.
#[cfg(target_arch = "x86_64")]
macro_rules! blocks {
    ($features:literal, $zero:expr) => {
        /// Deinterleave RGB pixels, see [`super::Passes::split`]; `row` may end within the last
        /// register. Each plane has room for the pixels, rounded up to a register.
        #[target_feature(enable = $features)]
        pub(crate) fn split(row: &[u8], output: &mut [u8], planes: [usize; 3]) {
            let (whole, rest) = row.as_chunks::<{ 3 * BYTES }>();
            for (number, bytes) in whole.iter().enumerate() {
                split_part(bytes, output, planes, number * BYTES);
            }
            if !rest.is_empty() {
                let mut bytes = [0; 3 * BYTES];
                bytes[..rest.len()].copy_from_slice(rest);
                split_part(&bytes, output, planes, whole.len() * BYTES);
            }
        }

        /// Vertical pass, see [`super::Passes::down`].
        #[target_feature(enable = $features)]
        pub(crate) fn down(quads: Quads<'_>, output: &mut [u8]) {
            assert!(quads.columns.is_multiple_of(BYTES) && output.len() >= 3 * quads.columns);
            assert!(quads.starts.len() == quads.weights.len());
            let end = 3 * quads.columns * QUAD;
            assert!(
                quads
                    .starts
                    .iter()
                    .all(|start| start + end <= quads.ring.len())
            );
            match quads.starts.len() {
                1 => down_from::<1>(quads, output),
                2 => down_from::<2>(quads, output),
                3 => down_from::<3>(quads, output),
                _ => down_from::<0>(quads, output),
            }
        }

        /// Accumulate `COUNT` quads; 0 means any number.
        #[target_feature(enable = $features)]
        fn down_from<const COUNT: usize>(quads: Quads<'_>, output: &mut [u8]) {
            let (ring, columns) = (quads.ring.as_ptr(), quads.columns);
            let (starts, weights) = (quads.starts, quads.weights);
            let mut few = [spread([0; QUAD]); COUNT];
            for (parts, &weights) in few.iter_mut().zip(weights) {
                *parts = spread(weights);
            }
            let (rows, _) = output.as_chunks_mut::<{ 3 * BYTES }>();
            for (block, pixels) in rows.iter_mut().take(columns / BYTES).enumerate() {
                let mut planes = [$zero; 3];
                for (channel, plane) in planes.iter_mut().enumerate() {
                    let place = (channel * columns + block * BYTES) * QUAD;
                    let mut sums = [no_sums(); QUAD];
                    if COUNT == 0 {
                        for (&start, &weights) in starts.iter().zip(weights) {
                            // SAFETY: a register of columns of a channel is inside a quad, which is
                            // inside the ring, as checked.
                            unsafe { add_quad(&mut sums, ring.add(start + place), spread(weights)) }
                        }
                    } else {
                        for (&start, &parts) in starts.iter().zip(&few) {
                            // SAFETY: a register of columns of a channel is inside a quad, which is
                            // inside the ring, as checked.
                            unsafe { add_quad(&mut sums, ring.add(start + place), parts) }
                        }
                    }
                    *plane = values(&sums);
                }
                merge_planes(planes, pixels);
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
use blocks;

/// Columns are padded to a multiple of this.
pub(crate) const COLUMNS: usize = 64;

/// An axis downscaled by this factor or more is resized exactly.
const FAST_REDUCTION: usize = 4;

/// Weights of the horizontal pass, in the order in which they are used.
#[derive(Debug)]
pub(crate) enum Across {
    Plain(Weights),
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2Weights),
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512Weights),
    /// For strong downscaling with AVX2 and AVX-512.
    #[cfg(target_arch = "x86_64")]
    Wide(wide::WideWeights),
    /// Results within one level.
    #[cfg(target_arch = "x86_64")]
    Fast(approx::ApproxWeights),
    #[cfg(target_arch = "aarch64")]
    Neon(neon::NeonWeights),
}

impl Across {
    /// Minimum bytes per plane.
    pub(crate) fn plane(&self, columns: usize) -> usize {
        let reach = match self {
            Self::Plain(_) => 0,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(table) => table.reach,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(table) => table.reach,
            #[cfg(target_arch = "x86_64")]
            Self::Wide(table) => table.reach,
            #[cfg(target_arch = "x86_64")]
            Self::Fast(table) => table.reach,
            #[cfg(target_arch = "aarch64")]
            Self::Neon(table) => table.reach,
        };
        reach.max(columns).next_multiple_of(COLUMNS)
    }

    /// Bytes per value between the passes.
    pub(crate) fn value_bytes(&self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Fast(_) => approx::VALUE_BYTES,
            _ => 1,
        }
    }
}

/// The two passes, with an instruction set that the processor supports.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Passes(Instructions);

impl Passes {
    /// Use the given instruction set, or a lower one if the processor lacks it.
    pub(crate) fn new(instructions: Instructions) -> Self {
        Self(instructions.min(Instructions::best()))
    }

    #[cfg(target_arch = "x86_64")]
    pub(crate) fn instructions(self) -> Instructions {
        self.0
    }

    /// Build the tables of the horizontal pass, with rounded weights if `is_fast`.
    pub(crate) fn lay_out(self, weights: Weights, is_fast: bool) -> Across {
        let _ = is_fast; // Unused on some processors.
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => {
                let table = if is_fast {
                    approx::ApproxWeights::new(&weights).map(Across::Fast)
                } else {
                    avx2::Avx2Weights::new(&weights).map(Across::Avx2)
                };
                table.unwrap_or_else(|| Across::Wide(wide::WideWeights::new(&weights)))
            }
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512 => {
                let table = avx512::Avx512Weights::new(&weights).map(Across::Avx512);
                table.unwrap_or_else(|| Across::Wide(wide::WideWeights::new(&weights)))
            }
            #[cfg(target_arch = "aarch64")]
            Instructions::Neon => Across::Neon(neon::NeonWeights::new(&weights)),
            _ => Across::Plain(weights),
        }
    }

    /// True if these sizes, (input, output) pixels for each axis, can be resized within one level.
    /// With AVX-512, exact resizing is as fast, and other instruction sets have no such loops.
    pub(crate) fn are_fast(self, axes: [(usize, usize); 2]) -> bool {
        let serves =
            |(input, output): (usize, usize)| input < FAST_REDUCTION.saturating_mul(output);
        self.0 == Instructions::Avx2 && axes.into_iter().all(serves)
    }

    /// Deinterleave RGB pixels into planes with the given offsets.
    pub(crate) fn split(self, row: &[u8], output: &mut [u8], planes: [usize; 3]) {
        match self.0 {
            // SAFETY: `new` chose instructions that the processor supports.
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => unsafe { avx2::split(row, output, planes) },
            // SAFETY: `new` chose instructions that the processor supports.
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512 => unsafe { avx512::split(row, output, planes) },
            // SAFETY: `new` chose instructions that the processor supports.
            #[cfg(target_arch = "aarch64")]
            Instructions::Neon => unsafe { neon::split(row, output, planes) },
            _ => {
                let (pixels, _) = row.as_chunks::<3>();
                for (channel, start) in planes.into_iter().enumerate() {
                    for (output, pixel) in output[start..].iter_mut().zip(pixels) {
                        *output = pixel[channel];
                    }
                }
            }
        }
    }

    /// Resize four rows horizontally to 3 * `columns` * 4 values of [`Across::value_bytes`] each.
    pub(crate) fn across(self, table: &Across, rows: Rows<'_>, quads: &mut [u8]) {
        match table {
            Across::Plain(weights) => {
                let work = PlainAcross {
                    weights,
                    rows,
                    quads,
                };
                match self.0 {
                    Instructions::Scalar => work.run(),
                    _ => simd::run(work),
                }
            }
            // SAFETY: such tables are built only if the processor supports the instructions.
            #[cfg(target_arch = "x86_64")]
            Across::Avx2(table) => unsafe { avx2::across(table, rows, quads) },
            // SAFETY: such tables are built only if the processor supports the instructions.
            #[cfg(target_arch = "x86_64")]
            Across::Wide(table) => unsafe {
                wide::across(table, rows.planes, rows.plane, quads, rows.columns);
            },
            // SAFETY: such tables are built only if the processor supports the instructions.
            #[cfg(target_arch = "x86_64")]
            Across::Fast(table) => unsafe { approx::across(table, rows, quads) },
            // SAFETY: such tables are built only if the processor supports the instructions.
            #[cfg(target_arch = "x86_64")]
            Across::Avx512(table) => unsafe { avx512::across(table, rows, quads) },
            // SAFETY: such tables are built only if the processor supports the instructions.
            #[cfg(target_arch = "aarch64")]
            Across::Neon(table) => unsafe { neon::across(table, rows, quads) },
        }
    }

    /// Resize quads, which come from `table`, vertically to an output row with padding.
    pub(crate) fn down(self, table: &Across, quads: Quads<'_>, output: &mut [u8]) {
        match (table, self.0) {
            // SAFETY: such tables are built only if the processor supports the instructions.
            #[cfg(target_arch = "x86_64")]
            (Across::Fast(_), _) => unsafe { approx::down(quads, output) },
            // SAFETY: `new` chose instructions that the processor supports.
            #[cfg(target_arch = "x86_64")]
            (_, Instructions::Avx2) => unsafe { avx2::down(quads, output) },
            // SAFETY: `new` chose instructions that the processor supports.
            #[cfg(target_arch = "x86_64")]
            (_, Instructions::Avx512) => unsafe { avx512::down(quads, output) },
            // SAFETY: `new` chose instructions that the processor supports.
            #[cfg(target_arch = "aarch64")]
            (_, Instructions::Neon) => unsafe { neon::down(quads, output) },
            _ => plain_down(quads, output),
        }
    }
}

struct PlainAcross<'a> {
    weights: &'a Weights,
    rows: Rows<'a>,
    quads: &'a mut [u8],
}

impl SimdLoop for PlainAcross<'_> {
    #[inline(always)]
    #[allow(clippy::inline_always)] // Compiled for several instruction sets.
    fn run(self) {
        let (planes, plane, columns) = (self.rows.planes, self.rows.plane, self.rows.columns);
        let channels = self.quads.chunks_exact_mut(columns * QUAD).take(3);
        for (channel, quads) in channels.enumerate() {
            let (quads, _) = quads.as_chunks_mut::<QUAD>();
            for (quad, (start, values)) in quads.iter_mut().zip(self.weights.iter()) {
                for (row, value) in quad.iter_mut().enumerate() {
                    let first = (row * 3 + channel) * plane + start;
                    let taps = &planes[first..][..values.len()];
                    *value = weigh(taps.iter().zip(values));
                }
            }
        }
    }
}

fn plain_down(quads: Quads<'_>, output: &mut [u8]) {
    // A few columns at a time, quad by quad, so the sums stay in registers or in the L1 cache.
    let mut sums = [0_i32; COLUMNS];
    let (ring, starts, weights, columns) = (quads.ring, quads.starts, quads.weights, quads.columns);
    for first in (0..columns).step_by(COLUMNS) {
        for channel in 0..3 {
            sums.fill(1 << (PRECISION_BITS - 1));
            for (start, weights) in starts.iter().zip(weights) {
                let place = start + (channel * columns + first) * QUAD;
                let (quads, _) = ring[place..][..COLUMNS * QUAD].as_chunks::<QUAD>();
                for (sum, quad) in sums.iter_mut().zip(quads) {
                    for (&value, &weight) in quad.iter().zip(weights) {
                        *sum += i32::from(value) * weight;
                    }
                }
            }
            let (pixels, _) = output[3 * first..].as_chunks_mut::<3>();
            for (pixel, &sum) in pixels.iter_mut().zip(&sums) {
                pixel[channel] = rounded(sum);
            }
        }
    }
}

/// The weighted sum, rounded and clamped to [0, 255].
#[inline(always)]
#[allow(clippy::inline_always)] // Compiled for several instruction sets.
fn weigh<'a>(values: impl Iterator<Item = (&'a u8, &'a i32)>) -> u8 {
    let sum: i32 = values
        .map(|(&value, &weight)| i32::from(value) * weight)
        .sum();
    rounded(sum + (1 << (PRECISION_BITS - 1)))
}

#[inline(always)]
#[allow(
    clippy::inline_always,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss
)] // Compiled for several instruction sets; clamped.
fn rounded(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}
