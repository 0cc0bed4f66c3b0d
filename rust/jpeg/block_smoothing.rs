//! Block smoothing of incomplete progressive images.
//!
//! Where low-frequency coefficients are unknown, libjpeg-turbo estimates them from the DC values of
//! the surrounding 5 x 5 blocks. This module gives the same values.

use super::block::{Block, Coefficients};
use super::frame::Frame;
use super::progressive::KnownBits;

/// DC values of 5 x 5 blocks, or the factors applied to them, in row-major order.
type Neighborhood = [i32; 25];

/// An estimated coefficient: its position in the block and the factors.
struct Estimate {
    position: usize,
    /// Factors used if only DC is known; `otherwise` is used if some AC coefficients are known.
    alone: Neighborhood,
    otherwise: Option<Neighborhood>,
}

/// Coefficient 1, the horizontal gradient; transposed, coefficient 8.
const GRADIENT: Neighborhood = [
    -1, -1, 0, 1, 1, -3, 13, 0, -13, 3, -3, 38, 0, -38, 3, -3, 13, 0, -13, 3, -1, -1, 0, 1, 1,
];
const GRADIENT_OTHERWISE: Neighborhood = [
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, -7, 50, 0, -50, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];
/// Coefficient 2; transposed, 16.
const SECOND: Neighborhood = [
    0, 0, 0, 0, 0, 0, 2, -5, 2, 0, 1, 7, -14, 7, 1, 0, 2, -5, 2, 0, 0, 0, 0, 0, 0,
];
const SECOND_OTHERWISE: Neighborhood = [
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, -1, 13, -24, 13, -1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];
/// Coefficient 9, its own transpose.
const DIAGONAL: Neighborhood = [
    -1, 0, 0, 0, 1, 0, 9, 0, -9, 0, 0, 0, 0, 0, 0, 0, -9, 0, 9, 0, 1, 0, 0, 0, -1,
];
const DIAGONAL_OTHERWISE: Neighborhood = [
    0, -1, 0, 1, 0, -1, 10, 0, -10, 1, 0, 0, 0, 0, 0, 1, -10, 0, 10, -1, 0, 1, 0, -1, 0,
];
/// Coefficient 3; transposed, 24.
const THIRD: Neighborhood = [
    0, 0, 0, 0, 0, 0, 1, 0, -1, 0, 0, 2, 0, -2, 0, 0, 1, 0, -1, 0, 0, 0, 0, 0, 0,
];
/// Coefficient 10; transposed, 17.
const MIXED: Neighborhood = [
    0, 0, 0, 0, 0, 0, 1, -3, 1, 0, 0, 0, 0, 0, 0, 0, -1, 3, -1, 0, 0, 0, 0, 0, 0,
];

const fn transposed(of: Neighborhood) -> Neighborhood {
    let mut to = of;
    let mut at = 0;
    while at < 25 {
        to[at] = of[at % 5 * 5 + at / 5];
        at += 1;
    }
    to
}

const fn guess(position: usize, alone: Neighborhood, otherwise: Option<Neighborhood>) -> Estimate {
    Estimate {
        position,
        alone,
        otherwise,
    }
}

/// Estimated coefficients in zigzag order, from the second one.
const GUESSES: [Estimate; 9] = [
    guess(1, GRADIENT, Some(GRADIENT_OTHERWISE)),
    guess(
        8,
        transposed(GRADIENT),
        Some(transposed(GRADIENT_OTHERWISE)),
    ),
    guess(16, transposed(SECOND), Some(transposed(SECOND_OTHERWISE))),
    guess(9, DIAGONAL, Some(DIAGONAL_OTHERWISE)),
    guess(2, SECOND, Some(SECOND_OTHERWISE)),
    guess(3, THIRD, None),
    guess(10, MIXED, None),
    guess(17, transposed(MIXED), None),
    guess(24, transposed(THIRD), None),
];

/// Factors for DC itself, used if no AC coefficient is known.
const MEAN: Neighborhood = [
    -2, -6, -8, -6, -2, -6, 6, 42, 6, -6, -8, 42, 152, 42, -8, -6, 6, 42, 6, -6, -2, -6, -8, -6, -2,
];

pub(super) struct Smoothing {
    known: Vec<KnownBits>,
    is_one_scan: bool,
    /// The last MCU row with data in the last scan.
    last_good_row: usize,
}

impl Smoothing {
    /// Determine whether an image needs smoothing and supports it.
    pub(super) fn new(
        known: &[KnownBits],
        quantization: &[Option<[u16; 64]>],
        scans: usize,
        last_good_row: usize,
    ) -> Option<Self> {
        for (known, table) in known.iter().zip(quantization) {
            let table = (*table)?;
            let divisors = GUESSES.iter().map(|guess| guess.position).chain([0]);
            if divisors.into_iter().any(|at| table[at] == 0) || known.now[0] < 0 {
                return None;
            }
        }
        let is_partial = |known: &KnownBits| known.now[1..10].iter().any(|&bits| bits != 0);
        let is_useful = known.iter().any(is_partial);
        is_useful.then(|| Self {
            known: known.to_vec(),
            is_one_scan: scans == 1,
            last_good_row,
        })
    }

    /// Fill `blocks` with one row of smoothed blocks.
    pub(super) fn row(
        &self,
        frame: &Frame,
        index: usize,
        row: usize,
        coefficients: &Coefficients,
        quantization: &[u16; 64],
        blocks: &mut Vec<Block>,
    ) {
        blocks.clear();
        let (Some(component), Some(known)) = (frame.components.get(index), self.known.get(index))
        else {
            return;
        };
        let mcu_row = row / component.v;
        let bits = if mcu_row <= self.last_good_row {
            known.now
        } else if self.is_one_scan {
            [-1; 64]
        } else {
            known.before
        };
        let is_alone = bits[1..10].iter().all(|&bits| bits == -1);
        // In the last MCU row, libjpeg-turbo uses the number of rows in that MCU row.
        let rows = match component.blocks_high % component.v {
            rest if rest > 0 && mcu_row + 1 == frame.mcus_high => rest,
            _ => component.v,
        };
        let (counted, all) = (mcu_row * rows + row % component.v, rows * frame.mcus_high);
        let above = row - usize::from(counted > 0);
        let far_above = if counted > 1 { row - 2 } else { above };
        let below = row + usize::from(counted + 1 < all);
        let far_below = if counted + 2 < all { row + 2 } else { below };
        let rows = [far_above, above, row, below, far_below]
            .map(|row| coefficients.row(row, component.blocks_wide));
        for (column, block) in rows[2].iter().enumerate() {
            let mut block = *block;
            let window = window(&rows, column, component.blocks_wide);
            smooth(&mut block, &window, &bits, is_alone, quantization);
            blocks.push(block);
        }
    }
}

/// DC values around a block, replicated outside the image.
fn window(rows: &[&[Block]; 5], column: usize, width: usize) -> Neighborhood {
    let mut window = [0; 25];
    for (means, row) in window.chunks_exact_mut(5).zip(rows) {
        for (at, mean) in means.iter_mut().enumerate() {
            let column = (column + at).saturating_sub(2).min(width - 1);
            *mean = row.get(column).map_or(0, |block| block[0].into());
        }
    }
    window
}

fn smooth(
    block: &mut Block,
    window: &Neighborhood,
    bits: &[i32; 64],
    is_alone: bool,
    quantization: &[u16; 64],
) {
    let weighed = |factors: &Neighborhood| -> i64 {
        let terms = factors.iter().zip(window);
        let sum: i64 = terms
            .map(|(&factor, &mean)| i64::from(factor) * i64::from(mean))
            .sum();
        sum * i64::from(quantization[0])
    };
    let rounded = |sum: i64, position: usize| -> i64 {
        let divisor = i64::from(quantization[position]);
        let size = ((divisor << 7) + sum.abs()) / (divisor << 8);
        if sum < 0 { -size } else { size }
    };
    let mean = rounded(weighed(&MEAN), 0);
    for (guess, &bits) in GUESSES.iter().zip(&bits[1..10]) {
        let factors = match &guess.otherwise {
            _ if is_alone => &guess.alone,
            Some(factors) => factors,
            None => continue,
        };
        if bits == 0 || block[guess.position] != 0 {
            continue;
        }
        let mut value = rounded(weighed(factors), guess.position);
        if bits > 0 {
            let most = (1 << bits) - 1;
            value = value.clamp(-most, most);
        }
        block[guess.position] = value as i16;
    }
    if is_alone {
        block[0] = mean as i16;
    }
}
