//! Decode arbitrary bytes as a mask: run lengths, polygons or an id map, in planes of their size.
//!
//! The first byte chooses the kind, the next two the size of the image, as in tests/fuzz/masks.py,
//! which compares with pycocotools.
#![no_main]

use std::sync::Arc;

use fiber_core::decode_limits::DecodeLimits;
use fiber_core::masks::id_map::{self, Coding, MapIds};
use fiber_core::masks::planes::Planes;
use fiber_core::masks::polygon::Polygons;
use fiber_core::masks::rle::{Counts, Rle};
use fiber_core::masks::stored_mask::{self, StoredMask};
use libfuzzer_sys::fuzz_target;

/// Numbers of a polygon.
const RING: usize = 24;

fn check(planes: &Planes, count: usize, size: (usize, usize)) {
    let row = size.1.div_ceil(8);
    assert_eq!((planes.count, planes.size), (count, size));
    assert_eq!(planes.bytes.len(), count * size.0 * row);
    // No pixel is beyond the last column.
    let padding = (1_u16 << (row * 8 - size.1)) - 1;
    let ends = planes.bytes.chunks_exact(row).filter_map(|row| row.last());
    assert!(ends.into_iter().all(|&last| u16::from(last) & padding == 0));
}

fn decode_map(content: &[u8]) {
    for coding in [Coding::Rgb, Coding::Gray] {
        let (ids, void) = (vec![1, 2, 3], vec![0]);
        let map = MapIds {
            ids,
            void,
            coding,
            may_lack: true,
        };
        let limits = DecodeLimits::of_pixels(1 << 16);
        if let Ok(planes) = id_map::decode(content, &map, &limits) {
            check(&planes, 3, planes.size);
        }
    }
}

fn polygons(numbers: &[f64]) -> StoredMask {
    let rings = numbers.chunks(RING).map(<[f64]>::to_vec).collect();
    StoredMask::Polygons(Polygons { rings })
}

// Panics in other crates are converted to errors; only one that escapes is a finding.
fuzz_target!(init: std::panic::set_hook(Box::new(|_| {})), |data: &[u8]| {
    let &[kind, height, width, ref content @ ..] = data else {
        return;
    };
    let size = (usize::from(height % 64) + 1, usize::from(width % 64) + 1);
    let mask = match kind % 5 {
        0 => {
            let counts = Counts::Compressed(Arc::new(content.to_vec()));
            StoredMask::Rle(Rle { counts, size })
        }
        1 => {
            let runs = content.chunks_exact(2);
            let counts = runs.map(|run| i64::from(i16::from_le_bytes([run[0], run[1]])));
            let counts = Counts::Plain(counts.collect());
            StoredMask::Rle(Rle { counts, size })
        }
        // Numbers of two bytes are near the image; those of four are any.
        2 => polygons(
            &content
                .chunks_exact(2)
                .map(|n| f64::from(i16::from_le_bytes([n[0], n[1]])) / 256.0)
                .collect::<Vec<_>>(),
        ),
        3 => polygons(
            &content
                .chunks_exact(4)
                .map(|n| f64::from(f32::from_le_bytes([n[0], n[1], n[2], n[3]])))
                .collect::<Vec<_>>(),
        ),
        _ => return decode_map(content),
    };
    let Ok(planes) = stored_mask::decode(&[mask], size) else {
        return;
    };
    check(&planes, 1, size);
    let bits = Arc::new(planes.bytes.clone());
    let again = stored_mask::decode(&[StoredMask::Packed { bits, size }], size);
    assert_eq!(again.expect("bits of a decoded mask are a mask").bytes, planes.bytes);
});
