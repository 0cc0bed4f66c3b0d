//! Decode arbitrary bytes as an image: the pixels must match the header's size, or it is an error.
#![no_main]

use fiber_core::decode_limits::DecodeLimits;
use fiber_core::image::{decode_over, probe};
use libfuzzer_sys::fuzz_target;

// Panics in other crates are converted to errors; only one that escapes is a finding.
fuzz_target!(init: std::panic::set_hook(Box::new(|_| {})), |data: &[u8]| {
    let Ok(image) = decode_over(data, DecodeLimits::of_pixels(1 << 16), Some([9, 99, 199])) else {
        return;
    };
    assert_eq!(image.pixels.len(), image.height * image.width * 3);
    let (height, width, _) = probe(data).expect("what can be decoded has a size");
    assert_eq!((height, width), (image.height, image.width));
});
