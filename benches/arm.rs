//! Reads JPEG files, decodes them, or decodes and resizes them with one set of instructions: what
//! `arm.py` counts the instructions of.
//!
//! Arguments: read, decode, squash or hash; instructions; files. It prints a hash of the last row of
//! every picture, which depends on all that was decoded before and costs nothing; hash: of all pixels,
//! decoded and squashed.

use std::hash::{DefaultHasher, Hasher};

use fiber_core::boxes::Crop;
use fiber_core::cpu_features::Instructions;
use fiber_core::decode_limits::DecodeLimits;
use fiber_core::image::Rgb;
use fiber_core::jpeg::{Decoder, Request, Scale, read_header};
use fiber_core::resize::{Filter, ResizeScratch, resize_with};

/// Side of a squashed picture.
const SIDE: usize = 384;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Cargo adds one of its own.
    let given: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    let [work, instructions, files @ ..] = given.as_slice() else {
        return Ok(());
    };
    let instructions = Instructions::from_name(instructions)?;
    let mut decoder = Decoder::with(instructions);
    let mut scratch = ResizeScratch::new(instructions);
    let mut hasher = DefaultHasher::new();
    for file in files {
        let bytes = std::fs::read(file)?;
        let header = read_header(&bytes)?;
        let mut image = Rgb {
            height: header.height,
            width: header.width,
            pixels: vec![0; header.height * header.width * 3],
        };
        let request = Request {
            scale: Scale::Full,
            stop_row: None,
            limits: DecodeLimits::default(),
            output_bytes: 0,
        };
        if work != "read" {
            decoder.decode_into(&bytes, &request, &mut image.pixels)?;
        }
        if work == "hash" {
            hasher.write(&image.pixels);
        }
        if work == "squash" || work == "hash" {
            let crop = Crop::whole(image.height, image.width);
            image = resize_with(&mut scratch, &image, crop, (SIDE, SIDE), Filter::Bicubic)?;
        }
        let last = image.pixels.len() - image.width * 3;
        hasher.write(&image.pixels[if work == "hash" { 0 } else { last }..]);
    }
    println!("{:016x}", hasher.finish());
    Ok(())
}
