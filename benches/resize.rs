//! Time of a resize row by row, without Python: `bench_resize.py` runs it beside its peers.
//!
//! Arguments: height, width, new height, new width, kernel, precision, instructions. It prints
//! milliseconds for a picture whose rows come in eight at a time: the median of many, so that those in
//! which the machine did something else do not count.

use std::time::Instant;

use fiber_core::Error;
use fiber_core::boxes::Crop;
use fiber_core::cpu_features::Instructions;
use fiber_core::resize::{Filter, Method, Precision, ResizeScratch, RowResizer};

/// Rows that a decoder gives out at a time.
const ROWS: usize = 8;

fn main() -> Result<(), Error> {
    // Cargo adds one of its own.
    let given: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    let [
        height,
        width,
        new_height,
        new_width,
        kernel,
        precision,
        instructions,
    ] = given.as_slice()
    else {
        return Ok(());
    };
    let number = |text: &String| text.parse::<usize>().unwrap_or(0);
    let (source, output) = (
        (number(height), number(width)),
        (number(new_height), number(new_width)),
    );
    let method = Method {
        filter: Filter::from_name(kernel)?,
        precision: Precision::from_name(precision)?,
    };
    let mut scratch = ResizeScratch::new(Instructions::from_name(instructions)?);
    let mut state = 1_u32;
    let pixels: Vec<u8> = (0..source.0 * source.1 * 3)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        })
        .collect();
    let repeats = (20_000_000 / pixels.len()).max(3);
    let mut times = Vec::with_capacity(repeats);
    let mut sum = 0_u64;
    for _ in 0..repeats {
        let began = Instant::now();
        let crop = Crop::whole(source.0, source.1);
        let mut resizer = RowResizer::new(&mut scratch, source, crop, output, method)?;
        for (part, rows) in pixels.chunks(ROWS * source.1 * 3).enumerate() {
            resizer.push_rows(part * ROWS, rows, &mut |_, row| sum += u64::from(row[0]))?;
        }
        times.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    times.sort_by(f64::total_cmp);
    println!("{} {sum}", times[repeats / 2]);
    Ok(())
}
