//! Contrast, brightness and sharpness, bit-exact with the augmentation used to fine-tune FIBER
//! (NumPy and OpenCV on 8-bit values). Pillow gives the same values, except where sharpness leaves
//! their range.

use crate::image::Rgb;
use crate::simd;
#[cfg(target_arch = "x86_64")]
use crate::transform::simd::lut_avx512;

/// A lookup table for each channel.
type Tables = [[u8; 256]; 3];

const UNCHANGED: [u8; 256] = {
    let mut table = [0; 256];
    let mut value = 0;
    while value < 256 {
        #[allow(clippy::cast_possible_truncation)] // Below 256.
        {
            table[value] = value as u8;
        }
        value += 1;
    }
    table
};

/// Stretch each channel to [0, 255].
///
/// Constant channels are unchanged.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Clamped.
pub fn auto_contrast(image: &mut Rgb) {
    let (low, high) = extremes(image);
    let mut tables: Tables = [UNCHANGED; 3];
    for (table, (low, high)) in tables.iter_mut().zip(low.into_iter().zip(high)) {
        if low < high {
            let scale = 255.0 / f64::from(high - low);
            for (value, new) in (0_u8..=255).zip(table) {
                let stretched = f64::from(value) * scale - f64::from(low) * scale;
                *new = stretched.clamp(0.0, 255.0) as u8;
            }
        }
    }
    look_up(image, &tables);
}

/// Minimum and maximum of each channel.
fn extremes(image: &Rgb) -> ([u8; 3], [u8; 3]) {
    /// Number of bytes compared per step, a multiple of the number of channels.
    const BYTES: usize = 48;
    let (mut low, mut high) = ([u8::MAX; BYTES], [0; BYTES]);
    let (blocks, rest) = image.pixels.as_chunks::<BYTES>();
    let mut compare = |bytes: &[u8]| {
        for ((low, high), &byte) in low.iter_mut().zip(&mut high).zip(bytes) {
            *low = byte.min(*low);
            *high = byte.max(*high);
        }
    };
    for block in blocks {
        compare(block);
    }
    compare(rest);
    let of_channel = |values: [u8; BYTES], pick: fn(u8, u8) -> u8, start: u8| {
        let channel = |channel: usize| values.into_iter().skip(channel).step_by(3);
        [0, 1, 2].map(|at| channel(at).fold(start, pick))
    };
    let low = of_channel(low, u8::min, u8::MAX);
    (low, of_channel(high, u8::max, 0))
}

/// Equalize the histogram of each channel.
///
/// Constant and nearly constant channels are unchanged.
#[allow(clippy::cast_possible_truncation)] // At most 255.
pub fn equalize(image: &mut Rgb) {
    let mut tables: Tables = [UNCHANGED; 3];
    for (table, counts) in tables.iter_mut().zip(histograms(image)) {
        let last = counts.iter().rfind(|&&count| count > 0).copied();
        let step = (counts.iter().sum::<u64>() - last.unwrap_or(0)) / 255;
        if step > 0 {
            let mut below = step / 2;
            for (new, count) in table.iter_mut().zip(counts) {
                *new = (below / step).min(255) as u8;
                below += count;
            }
        }
    }
    look_up(image, &tables);
}

/// Histogram of each channel.
fn histograms(image: &Rgb) -> [[u64; 256]; 3] {
    // Pixels alternate between two histograms because successive increments of the same counter
    // would wait for each other.
    let mut counts = [[0_u32; 256]; 6];
    let (pairs, rest) = image.pixels.as_chunks::<6>();
    for pair in pairs {
        for (counts, &value) in counts.iter_mut().zip(pair) {
            counts[usize::from(value)] += 1;
        }
    }
    for (counts, &value) in counts.iter_mut().zip(rest) {
        counts[usize::from(value)] += 1;
    }
    let [first, second] = [0, 3].map(|start| [0, 1, 2].map(|channel| counts[start + channel]));
    std::array::from_fn(|channel| {
        std::array::from_fn(|value| {
            u64::from(first[channel][value]) + u64::from(second[channel][value])
        })
    })
}

/// Scale all values and clamp them to 255.
#[allow(clippy::cast_possible_truncation)] // Single precision, as in the published code.
pub fn brightness(image: &mut Rgb, factor: f64) {
    let factor = factor as f32;
    by_table(image, |value| f32::from(value) * factor);
}

/// Apply a function to all values; results are clamped to [0, 255] and truncated.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Clamped.
pub(crate) fn by_table(image: &mut Rgb, new: impl Fn(u8) -> f32) {
    let table = UNCHANGED.map(|value| new(value).clamp(0.0, 255.0) as u8);
    look_up(image, &[table; 3]);
}

fn look_up(image: &mut Rgb, tables: &Tables) {
    #[cfg(target_arch = "x86_64")]
    let done = lut_avx512::look_up(&mut image.pixels, tables);
    #[cfg(not(target_arch = "x86_64"))]
    let done = 0;
    look_up_plain(image.pixels.get_mut(done..).unwrap_or_default(), tables);
}

fn look_up_plain(pixels: &mut [u8], tables: &Tables) {
    let [red, green, blue] = tables;
    for pixel in pixels.as_chunks_mut::<3>().0 {
        pixel[0] = red[usize::from(pixel[0])];
        pixel[1] = green[usize::from(pixel[1])];
        pixel[2] = blue[usize::from(pixel[2])];
    }
}

/// Blend with a blurred image (3 x 3 mean with center weight five): a factor of 0 gives the blurred
/// image, 1 the original.
///
/// The border is unchanged. Values outside [0, 255] wrap around as in FIBER's code (`WRAPS`), or are
/// clamped as in Pillow.
#[allow(clippy::cast_possible_truncation)] // Single precision, as in the published code.
pub fn sharpness<const WRAPS: bool>(image: &mut Rgb, factor: f64) {
    if image.height > 2 && image.width > 2 {
        let factor = factor as f32;
        simd::run(SharpenRows::<WRAPS> { image, factor });
    }
}

struct SharpenRows<'a, const WRAPS: bool> {
    image: &'a mut Rgb,
    factor: f32,
}

impl<const WRAPS: bool> simd::SimdLoop for SharpenRows<'_, WRAPS> {
    #[inline(always)]
    #[allow(clippy::inline_always)] // Compiled for several instruction sets.
    fn run(self) {
        let stride = self.image.width * 3;
        let mut above = self.image.pixels[..stride].to_vec();
        let mut middle = above.clone();
        let mut rest = &mut self.image.pixels[stride..];
        while rest.len() > stride {
            let (output, next) = rest.split_at_mut(stride);
            middle.copy_from_slice(output);
            let rows = [&above[..], &middle, &next[..stride]];
            sharpen_row::<WRAPS>(&mut output[3..stride - 3], rows, self.factor);
            std::mem::swap(&mut above, &mut middle);
            rest = next;
        }
    }
}

/// Compute one row, except its ends, from three rows.
#[inline(always)]
#[allow(clippy::inline_always, clippy::cast_possible_truncation)] // Wraps around if it should.
fn sharpen_row<const WRAPS: bool>(output: &mut [u8], rows: [&[u8]; 3], factor: f32) {
    let count = output.len();
    // The same rows, one and two pixels further to the right.
    let [above, middle, below] = rows.map(|row| [0, 3, 6].map(|start| &row[start..start + count]));
    for (i, output) in output.iter_mut().enumerate() {
        let sum =
            |row: [&[u8]; 3]| u16::from(row[0][i]) + u16::from(row[1][i]) + u16::from(row[2][i]);
        let value = middle[1][i];
        let total = sum(above) + sum(middle) + sum(below) + 4 * u16::from(value);
        // Multiples of 1/13, rounded to nearest; there are no ties.
        let mean = f32::from((2 * total + 13) / 26);
        let sharp = mean + factor * (f32::from(value) - mean);
        let sharp = if WRAPS {
            sharp
        } else {
            sharp.clamp(0.0, 255.0)
        };
        *output = (sharp.trunc() + simd::INTEGER).to_bits() as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::gray;

    fn changed(mut image: Rgb, change: impl Fn(&mut Rgb)) -> Rgb {
        change(&mut image);
        image
    }

    #[test]
    fn other_instructions_look_up_the_same() {
        let mut state = 1_u8;
        let mut next = || {
            state = state.wrapping_mul(29).wrapping_add(17);
            state
        };
        for pixels in [1, 63, 64, 65, 200] {
            let image = Rgb::new(1, pixels, (0..3 * pixels).map(|_| next()).collect());
            let table = UNCHANGED.map(|value| value.wrapping_mul(7).wrapping_add(3));
            for tables in [
                [table; 3],
                [table, UNCHANGED.map(|value| !value), UNCHANGED],
            ] {
                let mut plain = image.pixels.clone();
                look_up_plain(&mut plain, &tables);
                let found = changed(image.clone(), |image| look_up(image, &tables));
                assert_eq!(found.pixels, plain, "{pixels} pixels");
            }
        }
    }

    #[test]
    fn one_value_has_no_contrast() {
        for image in [gray(1, &[9]), gray(40, &[77; 400])] {
            assert_eq!(changed(image.clone(), auto_contrast), image);
            assert_eq!(changed(image.clone(), equalize), image);
            assert_eq!(
                changed(image.clone(), |image| sharpness::<true>(image, 1.9)),
                image
            );
        }
    }

    #[test]
    fn contrast_is_stretched_per_channel() {
        let image = Rgb::new(1, 3, vec![10, 0, 7, 20, 100, 7, 30, 255, 7]);
        let stretched = changed(image, auto_contrast);
        assert_eq!(stretched.pixels, [0, 0, 7, 127, 100, 7, 255, 255, 7]);
    }

    #[test]
    fn extremes_are_found_at_any_position() {
        for place in 0..50 {
            let mut values = [100; 50];
            values[place] = 90;
            values[(place + 7) % 50] = 120;
            let (low, high) = extremes(&gray(50, &values));
            assert_eq!((low, high), ([90; 3], [120; 3]), "{place}");
        }
    }

    #[test]
    fn histograms_are_equalized() {
        // 510 dark and 256 bright pixels: a step is 510 / 255 = 2 pixels, and half a step is added.
        let mut values = vec![3; 510];
        values.extend([8; 256]);
        let equal = changed(gray(766, &values), equalize);
        assert!(equal.pixels[..1530].iter().all(|&value| value == 0));
        assert!(equal.pixels[1530..].iter().all(|&value| value == 255));
        // Fewer than 255 pixels besides the brightest ones do not make a step.
        let few = gray(4, &[1, 2, 3, 4]);
        assert_eq!(changed(few.clone(), equalize), few);
    }

    #[test]
    fn brightness_is_clamped() {
        let image = changed(gray(4, &[0, 100, 187, 188]), |image| {
            brightness(image, 1.36);
        });
        assert_eq!(image, gray(4, &[0, 136, 254, 255]));
    }

    #[test]
    fn sharpness_changes_the_interior_and_wraps_or_clamps() {
        let with_middle = |value| {
            let mut values = [130; 9];
            values[4] = value;
            gray(3, &values)
        };
        let sharp = |value, factor| {
            changed(with_middle(value), |image| sharpness::<true>(image, factor)).pixels[12]
        };
        let clamped = |value, factor| {
            changed(with_middle(value), |image| {
                sharpness::<false>(image, factor);
            })
            .pixels[12]
        };
        // The mean of eight times 130 and five times 143 is 135.
        assert_eq!((sharp(143, 0.0), sharp(143, 1.0)), (135, 143));
        // 135 + 1.5 * 8.
        assert_eq!(sharp(143, 1.5), 147);
        // The mean is 178: 178 + 1.36 * 77 = 282.72, and 80: 80 - 1.36 * 80 = -28.8.
        assert_eq!((sharp(255, 1.36), sharp(0, 1.36)), (26, 228));
        assert_eq!((clamped(255, 1.36), clamped(0, 1.36)), (255, 0));
        assert_eq!((clamped(143, 0.0), clamped(143, 1.5)), (135, 147));
        let image = changed(with_middle(143), |image| sharpness::<true>(image, 1.5));
        assert_eq!(image.pixels[..12], [130; 12]);
    }
}
