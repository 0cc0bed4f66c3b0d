//! Loops over rows with vectors of any width.

/// Loops over rows, shared by AVX2 and NEON; `$lanes` is the number of samples per register.
macro_rules! row_loops {
    ($features:literal, $lanes:literal) => {
        /// Double the width, as in [`crate::jpeg::pixels::upsample::wide`]. Returns the number of samples
        /// done, counted from the second one.
        #[target_feature(enable = $features)]
        pub(super) fn wide(samples: &[u8], out: &mut [u8]) -> usize {
            let mut done = 0;
            while let Some(at) = next_start(done, samples.len()) {
                let (Some(before), Some(here), Some(next), Some(to)) = (
                    widened(samples, at - 1),
                    widened(samples, at),
                    widened(samples, at + 1),
                    out.get_mut(2 * at..).and_then(<[u8]>::first_chunk_mut),
                ) else {
                    break;
                };
                weigh::<2>([before, here, next], [1, 2], to);
                done = at + 15;
            }
            done
        }

        /// Blend two rows and double the width, as in [`crate::jpeg::pixels::upsample::both`]. Returns the
        /// number of samples done, counted from the second one.
        #[target_feature(enable = $features)]
        pub(super) fn both(near: &[u8], far: &[u8], out: &mut [u8]) -> usize {
            let mut done = 0;
            while let Some(at) = next_start(done, near.len().min(far.len())) {
                let (Some(before), Some(here), Some(next), Some(to)) = (
                    weighed(near, far, at - 1),
                    weighed(near, far, at),
                    weighed(near, far, at + 1),
                    out.get_mut(2 * at..).and_then(<[u8]>::first_chunk_mut),
                ) else {
                    break;
                };
                weigh::<4>([before, here, next], [8, 7], to);
                done = at + 15;
            }
            done
        }

        /// Convert `YCbCr` pixels, see [`crate::jpeg::pixels::color::convert`]. Returns the number of
        /// pixels done: all, or none if they do not fill a register.
        #[target_feature(enable = $features)]
        pub(super) fn convert(luma: &[u8], blue: &[u8], red: &[u8], out: &mut [u8]) -> usize {
            let count = out.len() / 3;
            let Some(last) = count.checked_sub($lanes) else {
                return 0;
            };
            let mut at = 0;
            loop {
                let (Some(y), Some(cb), Some(cr), Some(out)) = (
                    luma.get(at..).and_then(<[u8]>::first_chunk),
                    blue.get(at..).and_then(<[u8]>::first_chunk),
                    red.get(at..).and_then(<[u8]>::first_chunk),
                    out.get_mut(3 * at..).and_then(<[u8]>::first_chunk_mut),
                ) else {
                    return at;
                };
                convert_part(y, cb, cr, out);
                if at == last {
                    return count;
                }
                // The last register ends at the last pixel; some pixels are converted twice.
                at = (at + $lanes).min(last);
            }
        }
    };
}
pub(super) use row_loops;
