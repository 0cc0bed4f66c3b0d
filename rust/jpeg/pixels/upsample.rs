//! Chroma upsampling of rows to the width of the image.

use std::ops::Range;

/// Upsampling method of a component, chosen as in libjpeg-turbo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::jpeg) enum Upsampling {
    /// No upsampling; the component is not subsampled.
    None,
    /// Box filter: every sample is repeated `h` times horizontally and `v` times vertically.
    Repeat { h: usize, v: usize },
    /// h2v1 triangle filter: 3/4 of the nearer sample, 1/4 of the farther.
    Wide,
    /// h1v2 triangle filter.
    High,
    /// h2v2 triangle filter.
    Both,
}

impl Upsampling {
    /// Choose the method for a component that is subsampled by `h` and `v`.
    ///
    /// `is_smooth` is false for images of an eighth of the size, where samples are only repeated.
    pub(in crate::jpeg) fn new(h: usize, v: usize, width: usize, is_smooth: bool) -> Self {
        match (h, v) {
            (1, 1) => Self::None,
            (2, 1) if is_smooth && width > 2 => Self::Wide,
            (1, 2) if is_smooth => Self::High,
            (2, 2) if is_smooth && width > 2 => Self::Both,
            _ => Self::Repeat { h, v },
        }
    }

    /// True if the method needs the rows above and below.
    pub(in crate::jpeg) fn needs_context(self) -> bool {
        matches!(self, Self::High | Self::Both)
    }

    /// Number of output rows per row of samples.
    pub(in crate::jpeg) fn rows(self) -> usize {
        match self {
            Self::None | Self::Wide => 1,
            Self::High | Self::Both => 2,
            Self::Repeat { v, .. } => v,
        }
    }
}

pub(in crate::jpeg) fn repeat(samples: &[u8], times: usize, out: &mut [u8]) {
    for (to, &sample) in out.chunks_mut(times).zip(samples) {
        to.fill(sample);
    }
}

/// Double the width. There are at least two samples, and `out` holds twice as many. `done` samples,
/// counted from the second one, are already upsampled.
pub(in crate::jpeg) fn wide(samples: &[u8], out: &mut [u8], done: usize) {
    let count = samples.len();
    let value = |at: usize| u32::from(samples[at]);
    weigh(0..1, count, out, 2, [1, 2], value);
    weigh(done + 1..count, count, out, 2, [1, 2], value);
}

/// Blend two rows, 3/4 of the nearer one. `is_lower`: the output is below the nearer row's middle.
pub(in crate::jpeg) fn high(near: &[u8], far: &[u8], is_lower: bool, out: &mut [u8]) {
    let bias = if is_lower { 2 } else { 1 };
    for ((to, &near), &far) in out.iter_mut().zip(near).zip(far) {
        *to = ((3 * u16::from(near) + u16::from(far) + bias) >> 2) as u8;
    }
}

/// Blend two rows and double the width. There are at least two samples, and `out` holds twice as
/// many. `done` samples, counted from the second one, are already upsampled.
pub(in crate::jpeg) fn both(near: &[u8], far: &[u8], out: &mut [u8], done: usize) {
    let count = near.len().min(far.len());
    let value = |at: usize| 3 * u32::from(near[at]) + u32::from(far[at]);
    weigh(0..1, count, out, 4, [8, 7], value);
    weigh(done + 1..count, count, out, 4, [8, 7], value);
}

/// Blend neighbors in a row 3:1 and divide by 2^`bits`.
///
/// `biases` are added to the left and right pixel of a sample so that halves are rounded up and
/// down alternately.
#[inline]
fn weigh(
    range: Range<usize>,
    count: usize,
    out: &mut [u8],
    bits: u32,
    biases: [u32; 2],
    value: impl Fn(usize) -> u32,
) {
    let last = count.saturating_sub(1);
    let pixels = out.chunks_exact_mut(2).skip(range.start);
    for (at, pixels) in range.zip(pixels) {
        let here = value(at);
        let (left, right) = (value(at.saturating_sub(1)), value((at + 1).min(last)));
        pixels[0] = ((3 * here + left + biases[0]) >> bits) as u8;
        pixels[1] = ((3 * here + right + biases[1]) >> bits) as u8;
    }
}

/// Start of the next 16 samples that have neighbors: `done` samples after the second one, or
/// earlier so that the last samples also fill a register.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline]
pub(in crate::jpeg) fn next_start(done: usize, count: usize) -> Option<usize> {
    let last = count.checked_sub(17)?;
    (last > 0 && done < last + 15).then(|| (done + 1).min(last))
}
