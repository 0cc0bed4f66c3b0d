//! The two passes of a resize: SIMD dispatch and portable loops.
//!
//! Four rows are processed at a time. Their pixels are deinterleaved into planes, one per channel;
//! the horizontal pass stores the four rows of every column adjacently (a quad), so that the
//! vertical pass finds the bytes that it accumulates next to each other.

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

/// Assert that the quads are inside the ring, one weight per row, and that `output` has room.
#[cfg(target_arch = "x86_64")]
#[inline]
fn check_quads(
    ring: &[u8],
    starts: &[usize],
    weights: &[[i32; QUAD]],
    columns: usize,
    output: &[u8],
) {
    assert!(output.len() >= 3 * columns);
    assert!(starts.len() == weights.len());
    let end = 3 * columns * QUAD;
    assert!(starts.iter().all(|start| start + end <= ring.len()));
}

/// Columns are padded to a multiple of this.
pub(crate) const COLUMNS: usize = 64;

/// Weights of the horizontal pass, in the order of their use.
#[derive(Debug)]
pub(crate) enum Across {
    Plain(Weights),
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2Weights),
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512Weights),
    /// Used with AVX2 and AVX-512 for strong downscaling.
    #[cfg(target_arch = "x86_64")]
    Wide(wide::WideWeights),
    /// Within one level.
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
            Self::Avx2(table) => table.reach(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(table) => table.reach(),
            #[cfg(target_arch = "x86_64")]
            Self::Wide(table) => table.reach(),
            #[cfg(target_arch = "x86_64")]
            Self::Fast(table) => table.reach(),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(table) => table.reach(),
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

/// The passes, with an instruction set that the processor supports.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Passes(Instructions);

impl Passes {
    /// Instruction sets that the processor lacks are not used.
    pub(crate) fn new(instructions: Instructions) -> Self {
        Self(instructions.min(Instructions::best()))
    }

    /// The instruction set.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn instructions(self) -> Instructions {
        self.0
    }

    /// Build the tables of the horizontal pass; with rounded weights if `is_fast`.
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
            Instructions::Avx512 => avx512::Avx512Weights::new(&weights).map_or_else(
                || Across::Wide(wide::WideWeights::new(&weights)),
                Across::Avx512,
            ),
            #[cfg(target_arch = "aarch64")]
            Instructions::Neon => Across::Neon(neon::NeonWeights::new(&weights)),
            _ => Across::Plain(weights),
        }
    }

    /// True if these sizes, (input, output) in pixels per axis, may be resized within one level.
    /// AVX-512 is as fast exactly, and other processors have no such loops.
    pub(crate) fn are_fast(self, axes: [(usize, usize); 2]) -> bool {
        #[cfg(target_arch = "x86_64")]
        if self.0 == Instructions::Avx2 {
            return axes
                .into_iter()
                .all(|(input, output)| approx::serves(input, output));
        }
        let _ = axes;
        false
    }

    /// Deinterleave RGB pixels into planes with the given offsets.
    pub(crate) fn split(self, row: &[u8], output: &mut [u8], planes: [usize; 3]) {
        match self.0 {
            // SAFETY: the processor supports the instructions.
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => unsafe { avx2::split(row, output, planes) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512 => unsafe { avx512::split(row, output, planes) },
            // SAFETY: as above.
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

    /// Resize four rows horizontally.
    ///
    /// `planes` are 12 planes of `plane` bytes: row by row, red, green and blue. `quads` are three
    /// times `columns` * 4 values of [`Across::value_bytes`], in the layout of the table's vertical
    /// pass; `columns` is a multiple of [`COLUMNS`].
    /// pass.
    pub(crate) fn across(
        self,
        table: &Across,
        planes: &[u8],
        plane: usize,
        quads: &mut [u8],
        columns: usize,
    ) {
        match table {
            Across::Plain(weights) => {
                let work = PlainAcross {
                    weights,
                    planes,
                    plane,
                    quads,
                    columns,
                };
                match self.0 {
                    Instructions::Scalar => work.run(),
                    _ => simd::run(work),
                }
            }
            // SAFETY: such tables are built only if the processor supports the instructions.
            #[cfg(target_arch = "x86_64")]
            Across::Avx2(table) => unsafe { avx2::across(table, planes, plane, quads, columns) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Across::Wide(table) => unsafe { wide::across(table, planes, plane, quads, columns) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Across::Fast(table) => unsafe { approx::across(table, planes, plane, quads, columns) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Across::Avx512(table) => unsafe {
                avx512::across(table, planes, plane, quads, columns);
            },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Across::Neon(table) => unsafe { neon::across(table, planes, plane, quads, columns) },
        }
    }

    /// Resize vertically: `columns` padded pixels of an output row.
    ///
    /// `table` produced the quads; `starts` are their offsets in `ring`, each of three times
    /// `columns` * 4 values.
    pub(crate) fn down(
        self,
        table: &Across,
        ring: &[u8],
        starts: &[usize],
        weights: &[[i32; QUAD]],
        columns: usize,
        output: &mut [u8],
    ) {
        #[cfg(target_arch = "x86_64")]
        if matches!(table, Across::Fast(_)) {
            // SAFETY: such tables are built only if the processor supports the instructions.
            unsafe { approx::down(ring, starts, weights, columns, output) };
            return;
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = table;
        match self.0 {
            // SAFETY: the processor supports the instructions.
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => unsafe { avx2::down(ring, starts, weights, columns, output) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512 => unsafe {
                avx512::down(ring, starts, weights, columns, output);
            },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Instructions::Neon => unsafe { neon::down(ring, starts, weights, columns, output) },
            _ => plain_down(ring, starts, weights, columns, output),
        }
    }
}

struct PlainAcross<'a> {
    weights: &'a Weights,
    planes: &'a [u8],
    plane: usize,
    quads: &'a mut [u8],
    columns: usize,
}

impl SimdLoop for PlainAcross<'_> {
    #[inline(always)]
    #[allow(clippy::inline_always)] // Compiled for several instruction sets.
    fn run(self) {
        let channels = self.quads.chunks_exact_mut(self.columns * QUAD).take(3);
        for (channel, quads) in channels.enumerate() {
            let (quads, _) = quads.as_chunks_mut::<QUAD>();
            for (quad, (start, values)) in quads.iter_mut().zip(self.weights.iter()) {
                for (row, value) in quad.iter_mut().enumerate() {
                    let first = (row * 3 + channel) * self.plane + start;
                    let taps = &self.planes[first..][..values.len()];
                    *value = weigh(taps.iter().zip(values));
                }
            }
        }
    }
}

fn plain_down(
    ring: &[u8],
    starts: &[usize],
    weights: &[[i32; QUAD]],
    columns: usize,
    output: &mut [u8],
) {
    // A few columns at a time, quad by quad: the sums stay in registers or in the L1 cache.
    let mut sums = [0_i32; COLUMNS];
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
