//! CPU time of our JPEG decoder and of libjpeg-turbo, both with a reused handle and buffer, on one
//! thread, interleaved file by file.
//!
//! `turbo-bench FOLDER [ROUNDS] [DIVISOR]` prints a line for each side: name, rounds, then CPU
//! milliseconds a picture in each round. Every file is compared value by value first.

use std::error::Error;
use std::path::PathBuf;

use fiber_core::cpu_features::Instructions;
use fiber_core::decode_limits::DecodeLimits;
use fiber_core::jpeg::{Decoder, Request, Scale, read_header};
use turbojpeg::{Decompressor, Image, PixelFormat, ScalingFactor};

type Failure = Box<dyn Error>;

/// Decodes one file into the buffer.
type Side<'a> = Box<dyn FnMut(&[u8], &mut Vec<u8>) -> Result<(), Failure> + 'a>;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("usage: turbo-bench FOLDER [ROUNDS] [DIVISOR]")?;
    let rounds: usize = arguments.next().map_or(Ok(15), |text| text.parse())?;
    let divisor: usize = arguments.next().map_or(Ok(1), |text| text.parse())?;
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&folder)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    paths.retain(|path| path.extension().is_some_and(|kind| kind == "jpg"));
    paths.sort();
    let files: Vec<Vec<u8>> = paths.iter().map(std::fs::read).collect::<Result<_, _>>()?;
    let mut sides = sides(divisor)?;
    check(&files, &mut sides)?;
    let mut times = vec![Vec::new(); sides.len()];
    let mut buffer = Vec::new();
    for _ in 0..rounds {
        let mut totals = vec![0.0; sides.len()];
        for file in &files {
            for ((_, side), total) in sides.iter_mut().zip(&mut totals) {
                let start = cpu_milliseconds();
                side(file, &mut buffer)?;
                *total += cpu_milliseconds() - start;
            }
        }
        for (times, total) in times.iter_mut().zip(totals) {
            times.push(total / files.len() as f64);
        }
    }
    for ((name, _), times) in sides.iter().zip(times) {
        let times: Vec<String> = times.iter().map(|time| format!("{time:.5}")).collect();
        println!("{name} {}", times.join(" "));
    }
    Ok(())
}

fn sides<'a>(divisor: usize) -> Result<Vec<(String, Side<'a>)>, Failure> {
    let scale = [Scale::Full, Scale::Half, Scale::Quarter, Scale::Eighth]
        .into_iter()
        .find(|scale| scale.divisor() == divisor)
        .ok_or("DIVISOR: expected 1, 2, 4 or 8")?;
    let mut turbo = Decompressor::new()?;
    turbo.set_scaling_factor(ScalingFactor::new(1, divisor))?;
    let mut sides: Vec<(String, Side)> = vec![(
        "libjpeg-turbo".to_owned(),
        Box::new(move |file, buffer| {
            let header = turbo.read_header(file)?.scaled(turbo.scaling_factor());
            let (height, width) = (header.height, header.width);
            buffer.resize(height * width * 3, 0);
            turbo.decompress(
                file,
                Image {
                    pixels: &mut buffer[..],
                    width,
                    pitch: width * 3,
                    height,
                    format: PixelFormat::RGB,
                },
            )?;
            Ok(())
        }),
    )];
    for instructions in Instructions::available() {
        let mut ours = Decoder::with(instructions);
        let request = Request {
            scale,
            stop_row: None,
            limits: DecodeLimits::of_pixels(usize::MAX),
            output_bytes: 0,
        };
        sides.push((
            format!("{instructions:?}").to_lowercase(),
            Box::new(move |file, buffer| {
                let header = read_header(file)?;
                let row_bytes = scale.apply(header.width) * 3;
                buffer.resize(scale.apply(header.height) * row_bytes, 0);
                ours.decode_into(file, &request, buffer)?;
                Ok(())
            }),
        ));
    }
    Ok(sides)
}

/// Compare every side with the first one, value by value.
fn check(files: &[Vec<u8>], sides: &mut [(String, Side<'_>)]) -> Result<(), Failure> {
    let (mut expected, mut found) = (Vec::new(), Vec::new());
    for (index, file) in files.iter().enumerate() {
        for (at, (name, side)) in sides.iter_mut().enumerate() {
            found.clear();
            side(file, &mut found)?;
            if at == 0 {
                expected.clone_from(&found);
            } else if expected != found {
                return Err(format!("file {index}: {name} gives other pixels").into());
            }
        }
    }
    Ok(())
}

/// CPU time of this thread.
fn cpu_milliseconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a value of the type that the call fills.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}
