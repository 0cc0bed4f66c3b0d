//! Resize weights of one axis, computed as in Pillow.
//!
//! This follows Pillow's `Resample.c` step by step because sums in another order round differently.

use crate::resize::Filter;

/// Fraction bits of a weight, which leaves eight bits for a pixel and two of headroom.
pub(crate) const PRECISION_BITS: u32 = 32 - 8 - 2;

/// Fraction bits after [`Weights::round`].
pub(crate) const COARSE_BITS: u32 = 14;

/// Number of rows or columns that are accumulated together.
pub(crate) const QUAD: usize = 4;

/// First input position and weights for each output position.
#[derive(Debug)]
pub(crate) struct Weights {
    starts: Vec<usize>,
    /// Number of weights of each output position; its other entries are 0.
    counts: Vec<usize>,
    /// `taps` fixed-point entries per output position.
    values: Vec<i32>,
    taps: usize,
}

/// Output positions of one axis: `length` of `whole` from `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub whole: usize,
    pub first: usize,
    pub length: usize,
}

impl From<usize> for Span {
    /// All positions.
    fn from(whole: usize) -> Self {
        Self {
            whole,
            first: 0,
            length: whole,
        }
    }
}

impl Weights {
    pub(crate) fn new(input: usize, output: impl Into<Span>, filter: Filter) -> Self {
        #![allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss
        )] // Sizes are far below 2^53, positions are clamped to the image.
        let span = output.into();
        let output = span.length;
        let scale = input as f64 / span.whole as f64;
        let filter_scale = scale.max(1.0);
        let support = filter.support() * filter_scale;
        let taps = support.ceil() as usize * 2 + 1;
        let inverse = 1.0 / filter_scale;
        let mut weights = Self {
            starts: Vec::with_capacity(output),
            counts: Vec::with_capacity(output),
            values: vec![0; output * taps],
            taps,
        };
        let mut row = Vec::with_capacity(taps);
        for (position, values) in weights.values.chunks_exact_mut(taps).enumerate() {
            let center = ((position + span.first) as f64 + 0.5) * scale;
            let start = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(input);
            row.clear();
            let mut sum = 0.0;
            for tap in 0..end - start {
                let weight = filter.weight(((tap + start) as f64 - center + 0.5) * inverse);
                row.push(weight);
                sum += weight;
            }
            for (value, weight) in values.iter_mut().zip(&row) {
                let weight = if sum == 0.0 { *weight } else { weight / sum };
                let fixed = weight * f64::from(1_u32 << PRECISION_BITS);
                *value = (fixed + 0.5_f64.copysign(fixed)) as i32;
            }
            weights.starts.push(start);
            weights.counts.push(end - start);
        }
        weights
    }

    /// Round the weights to [`COARSE_BITS`]; the largest weight of each output is adjusted so that
    /// they still sum to one.
    pub(crate) fn round(mut self) -> Self {
        const LOST: u32 = PRECISION_BITS - COARSE_BITS;
        for values in self.values.chunks_exact_mut(self.taps) {
            for value in &mut *values {
                *value = (*value + (1 << (LOST - 1))) >> LOST << LOST;
            }
            let missing = (1 << PRECISION_BITS) - values.iter().sum::<i32>();
            if let Some(largest) = values.iter_mut().max() {
                *largest += missing;
            }
        }
        self
    }

    /// A weight after [`Self::round`], in units of [`COARSE_BITS`].
    #[cfg(target_arch = "x86_64")]
    #[allow(clippy::cast_possible_truncation)] // 1 is 2^14, and no weight is far above 1.
    pub(crate) fn coarse(value: i32) -> i16 {
        (value >> (PRECISION_BITS - COARSE_BITS)) as i16
    }

    pub(crate) fn output(&self) -> usize {
        self.starts.len()
    }

    /// Maximum number of weights per output position.
    pub(crate) fn most(&self) -> usize {
        self.counts.iter().copied().max().unwrap_or(0)
    }

    /// (first input position, weights) of every output position.
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = (usize, &[i32])> {
        self.starts
            .iter()
            .zip(&self.counts)
            .zip(self.values.chunks_exact(self.taps))
            .map(|((&start, &count), values)| (start, &values[..count]))
    }
}

/// Weights of one axis in groups of four input positions: 0 to 3, 4 to 7 and so on.
#[derive(Debug)]
pub(crate) struct QuadWeights {
    /// First group of each output position, and its offset in `quads`.
    outputs: Vec<(usize, std::ops::Range<usize>)>,
    /// Weights of each group.
    quads: Vec<[i32; QUAD]>,
    /// Maximum number of groups per output position.
    pub most: usize,
    /// Number of input positions up to the last one needed.
    pub needed: usize,
}

impl QuadWeights {
    pub(crate) fn new(weights: &Weights) -> Self {
        let mut found = Self {
            outputs: Vec::with_capacity(weights.output()),
            quads: Vec::new(),
            most: 0,
            needed: 0,
        };
        for (start, values) in weights.iter() {
            let (first, end) = (start / QUAD, (start + values.len()).div_ceil(QUAD));
            let place = found.quads.len();
            found.quads.resize(place + end - first, [0; QUAD]);
            let own = found.quads[place..].as_flattened_mut();
            own[start % QUAD..][..values.len()].copy_from_slice(values);
            found.outputs.push((first, place..found.quads.len()));
            found.most = found.most.max(end - first);
            found.needed = found.needed.max(start + values.len());
        }
        found
    }

    /// First group of an output position, and the weights of this and the following groups.
    pub(crate) fn of(&self, output: usize) -> Option<(usize, &[[i32; QUAD]])> {
        let (first, place) = self.outputs.get(output)?;
        Some((*first, self.quads.get(place.clone())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: [(usize, usize); 7] = [
        (1, 1),
        (1, 7),
        (7, 1),
        (97, 13),
        (13, 97),
        (5000, 3),
        (64, 64),
    ];

    #[test]
    fn weights_add_up_to_one() {
        for (input, output) in SIZES {
            for filter in [Filter::Bilinear, Filter::Bicubic] {
                let weights = Weights::new(input, output, filter);
                assert_eq!(weights.output(), output);
                for (start, values) in weights.iter() {
                    assert!(start + values.len() <= input);
                    let sum: i64 = values.iter().map(|&value| i64::from(value)).sum();
                    let rounding = i64::try_from(values.len()).unwrap();
                    assert!((sum - (1 << PRECISION_BITS)).abs() <= rounding);
                }
            }
        }
    }

    #[test]
    fn a_span_has_the_weights_of_its_positions() {
        let all = Weights::new(97, 40, Filter::Bicubic);
        let span = Span {
            whole: 40,
            first: 7,
            length: 12,
        };
        let part = Weights::new(97, span, Filter::Bicubic);
        let expected: Vec<_> = all.iter().skip(7).take(12).collect();
        assert_eq!(part.iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn quads_have_the_same_weights() {
        for (input, output) in SIZES {
            let weights = Weights::new(input, output, Filter::Bicubic);
            let quads = QuadWeights::new(&weights);
            for (position, (start, values)) in weights.iter().enumerate() {
                let (first, own) = quads.of(position).unwrap();
                let flat = own.as_flattened();
                let before = start - first * QUAD;
                assert_eq!(flat[before..before + values.len()], *values);
                assert_eq!(
                    flat.iter().filter(|&&w| w != 0).count(),
                    values.iter().filter(|&&w| w != 0).count()
                );
                assert!(own.len() <= quads.most);
            }
            assert_eq!(quads.needed, input);
            assert!(quads.of(output).is_none());
        }
    }
}
