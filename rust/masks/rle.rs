//! COCO's run lengths: runs of zeros and ones in turn, down the columns of an image.

use std::sync::Arc;

use crate::masks::SharedBits;
use crate::masks::planes::ColumnPlane;
use crate::masks::sample_grid::SampleGrid;

/// Run lengths of a mask.
#[derive(Clone)]
pub struct Rle {
    /// Lengths of the runs, the first of zeros.
    pub counts: Counts,
    /// (height, width) in pixels.
    pub size: (usize, usize),
}

/// Lengths of runs.
#[derive(Clone)]
pub enum Counts {
    /// Numbers.
    Plain(Arc<[i64]>),
    /// COCO's text: differences from the run before the last one, in groups of five bits from the
    /// lowest on, each a character from "0" on.
    Compressed(SharedBits),
}

/// Character of a group of zeros.
const ZERO: u8 = b'0';
/// Bit of a group that says that another one follows.
const MORE: u8 = 1 << 5;
/// Sign bit of the last group.
const SIGN: u8 = 1 << 4;
/// Maximum number of bits of a run.
const MOST_BITS: u32 = 60;

impl Rle {
    /// Set the pixels of the mask.
    pub(crate) fn draw(&self, grid: &SampleGrid, plane: &mut ColumnPlane) -> Result<(), String> {
        self.runs(|start, end| plane.fill(grid, start..end))
    }

    /// Call `take` with the first pixel of each run of ones and the one behind its last.
    pub(crate) fn runs(&self, mut take: impl FnMut(usize, usize)) -> Result<(), String> {
        let pixels = self.size.0.saturating_mul(self.size.1);
        let (mut at, mut is_one) = (0, false);
        let mut push = |run: i64| {
            let length = usize::try_from(run)
                .map_err(|_| format!("has a run of {run} pixels; expected 0 or more"))?;
            if length > pixels - at {
                return Err(format!(
                    "is too long: its runs go beyond the {pixels} pixels of {} x {}",
                    self.size.0, self.size.1
                ));
            }
            if is_one && length > 0 {
                take(at, at + length);
            }
            at += length;
            is_one = !is_one;
            Ok(())
        };
        match &self.counts {
            Counts::Plain(counts) => counts.iter().try_for_each(|&run| push(run))?,
            Counts::Compressed(text) => decompress((**text).as_ref(), push)?,
        }
        if at < pixels {
            return Err(format!(
                "is too short: its runs have {at} of the {pixels} pixels of {} x {}",
                self.size.0, self.size.1
            ));
        }
        Ok(())
    }
}

/// Call `push` with each run of a compressed text.
fn decompress(text: &[u8], mut push: impl FnMut(i64) -> Result<(), String>) -> Result<(), String> {
    let mut before = [0_i64; 2];
    let (mut value, mut bits, mut count) = (0_i64, 0, 0);
    for (at, &character) in text.iter().enumerate() {
        let group = match character.checked_sub(ZERO) {
            Some(group) if group < 2 * MORE => group,
            _ => {
                return Err(format!(
                    "has byte {character} at {at}; expected run lengths as COCO's text, '0' to 'o'"
                ));
            }
        };
        if bits >= MOST_BITS {
            return Err(format!(
                "has a run of more than {MOST_BITS} bits at byte {at}"
            ));
        }
        value |= i64::from(group & (MORE - 1)) << bits;
        bits += 5;
        if group & MORE != 0 {
            continue;
        }
        if group & SIGN != 0 {
            value |= -1 << bits;
        }
        // The first three runs are stored as they are.
        if count > 2 {
            value += before[0];
        }
        push(value)?;
        before = [before[1], value];
        (value, bits) = (0, 0);
        count += 1;
    }
    if bits > 0 {
        return Err("ends within a run length".to_owned());
    }
    Ok(())
}

/// Compress the runs of an (height, width) mask of bytes, any of which may be set.
pub(crate) fn encode(mask: &[u8], size: (usize, usize)) -> Vec<u8> {
    let mut text = Vec::new();
    let (mut before, mut count) = ([0_i64; 2], 0);
    let mut push = |run: i64| {
        let mut left = if count > 2 { run - before[0] } else { run };
        loop {
            // Five bits.
            let group = u8::try_from(left & 31).unwrap_or(0);
            left >>= 5;
            let is_last = left == if group & SIGN == 0 { 0 } else { -1 };
            text.push(ZERO + group + if is_last { 0 } else { MORE });
            if is_last {
                break;
            }
        }
        before = [before[1], run];
        count += 1;
    };
    let (mut run, mut is_one) = (0, false);
    for x in 0..size.1 {
        for y in 0..size.0 {
            let pixel = mask.get(y * size.1 + x).is_some_and(|&value| value != 0);
            if pixel != is_one {
                push(run);
                (run, is_one) = (0, pixel);
            }
            run += 1;
        }
    }
    push(run);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(counts: Counts, size: (usize, usize)) -> Result<Vec<(usize, usize)>, String> {
        let mut found = Vec::new();
        let rle = Rle { counts, size };
        rle.runs(|start, end| found.push((start, end)))?;
        Ok(found)
    }

    fn plain(counts: &[i64], size: (usize, usize)) -> Result<Vec<(usize, usize)>, String> {
        runs(Counts::Plain(counts.into()), size)
    }

    fn text(counts: &str, size: (usize, usize)) -> Result<Vec<(usize, usize)>, String> {
        runs(Counts::Compressed(Arc::new(counts.to_owned())), size)
    }

    #[test]
    fn runs_alternate() {
        assert_eq!(plain(&[0, 6], (2, 3)), Ok(vec![(0, 6)]));
        assert_eq!(plain(&[1, 2, 0, 1, 2], (2, 3)), Ok(vec![(1, 3), (3, 4)]));
        assert_eq!(plain(&[6], (2, 3)), Ok(vec![]));
    }

    #[test]
    fn wrong_runs_are_named() {
        for (counts, expected) in [
            (&[1, 2][..], "too short"),
            (&[1, 9], "too long"),
            (&[1, -1, 6], "-1"),
            (&[i64::MAX, i64::MAX], "too long"),
            (&[], "too short"),
        ] {
            let error = plain(counts, (2, 3)).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        for (counts, expected) in [
            ("1 ", "byte 32 at 1"),
            ("1p", "byte 112 at 1"),
            ("P", "ends within"),
            ("1O", "-1 pixels"),
            ("ooooooooooooo", "more than 60 bits"),
        ] {
            let error = text(counts, (2, 3)).unwrap_err();
            assert!(error.contains(expected), "{counts}: {error}");
        }
    }

    #[test]
    fn encoded_masks_are_read_again() {
        for size in [(1, 1), (7, 5), (40, 33)] {
            let mask: Vec<u8> = (0..size.0 * size.1)
                .map(|at| u8::from(at * at % 7 < 3 || at / 50 % 3 == 1))
                .collect();
            let counts = Counts::Compressed(Arc::new(encode(&mask, size)));
            let mut found = vec![0; mask.len()];
            for (start, end) in runs(counts, size).unwrap() {
                for at in start..end {
                    found[at % size.0 * size.1 + at / size.0] = 1;
                }
            }
            assert_eq!(found, mask);
        }
    }
}
