//! Boxes of a picture: cut to it, resized, mirrored and packed; nanoseconds a picture of 64 boxes.
//!
//! Command: `cargo bench --bench boxes`. Prints the median and the 20th and 80th percentile of many
//! runs, with and without a crop. `bench_boxes.py` runs it beside torchvision and numpy.

#![allow(clippy::cast_precision_loss)] // Nanoseconds and counts.

use std::hint::black_box;
use std::time::Instant;

use fiber_core::boxes::BoxXyxy;
use fiber_core::boxes::Crop;
use fiber_core::rng::{Purpose, Rng};
use fiber_core::transform::boxes::{BoxTransform, PackedBoxes};

const BOXES: usize = 64;
/// So few that a run is rarely interrupted.
const PICTURES: usize = 20;
const RUNS: usize = 5001;

fn main() {
    let mut rng = Rng::new(0, 0, 0, Purpose::Order);
    let boxes: Vec<BoxXyxy> = (0..BOXES)
        .map(|_| {
            let (x, y) = (rng.range(-0.9, 500.0), rng.range(-0.9, 400.0));
            [x, y, x + rng.range(2.0, 140.0), y + rng.range(2.0, 80.0)]
        })
        .collect();
    let whole = BoxTransform {
        from: (480, 640),
        crop: Crop {
            top: 0,
            left: 0,
            height: 480,
            width: 640,
        },
        to: (800, 1066),
        flip: true,
    };
    let part = BoxTransform {
        crop: Crop {
            top: 20,
            left: 50,
            height: 400,
            width: 500,
        },
        ..whole
    };
    for (name, journey) in [("whole picture", whole), ("crop", part)] {
        let mut packed = PackedBoxes::default();
        let mut times: Vec<f64> = (0..=RUNS)
            .map(|_| {
                let began = Instant::now();
                for _ in 0..PICTURES {
                    packed.clear();
                    let packing = black_box(&journey).pack(black_box(&boxes), &mut packed);
                    assert!(packing.is_ok());
                    black_box(&packed);
                }
                began.elapsed().as_nanos() as f64 / PICTURES as f64
            })
            .skip(1)
            .collect();
        times.sort_by(f64::total_cmp);
        println!(
            "{name:14} {:6.0} ns ({:.0} to {:.0}), {} of {BOXES} boxes kept",
            times[RUNS / 2],
            times[RUNS / 5],
            times[4 * RUNS / 5],
            packed.boxes_xyxy.len()
        );
    }
}
