//! Decode arbitrary bytes as a JPEG: rows in order or an error, the same for all instruction sets.
#![no_main]

use std::cell::RefCell;

use fiber_core::cpu_features::Instructions;
use fiber_core::decode_limits::DecodeLimits;
use fiber_core::jpeg::{DecodeTask, Decoder, Request, Scale, Status, decode_two, read_header};
use libfuzzer_sys::fuzz_target;

/// Pixel limit; larger images would only take longer.
const MAX_PIXELS: usize = 1 << 16;

thread_local! {
    // Reused between inputs, as in the loader's threads, so state must not leak between files.
    static DECODERS: RefCell<Vec<Decoder>> =
        RefCell::new(Instructions::available().map(Decoder::with).collect());
}

fn decode(
    decoder: &mut Decoder,
    bytes: &[u8],
    request: &Request,
) -> Result<(Vec<u8>, Status), String> {
    let (mut pixels, mut next_row) = (Vec::new(), 0);
    let width = read_header(bytes).map_or(0, |header| request.scale.apply(header.width));
    let mut sink = |row: usize, rows: &[u8]| {
        assert_eq!(row, next_row);
        assert!(!rows.is_empty() && rows.len().is_multiple_of(3 * width));
        next_row += rows.len() / (3 * width);
        pixels.extend_from_slice(rows);
    };
    let status = decoder
        .decode(bytes, request, &mut sink)
        .map_err(|error| error.to_string())?;
    Ok((pixels, status))
}

/// Decode together with the first half of the file, which is damaged differently.
fn decode_with_peer(
    decoder: &mut Decoder,
    bytes: &[u8],
    request: &Request,
) -> Result<(Vec<u8>, Status), String> {
    let mut pixels = Vec::new();
    let [status, _] = decode_two(
        DecodeTask {
            decoder,
            bytes,
            request: *request,
            sink: &mut |_, rows| pixels.extend_from_slice(rows),
        },
        DecodeTask {
            decoder: &mut Decoder::new(),
            bytes: &bytes[..bytes.len() / 2],
            request: *request,
            sink: &mut |_, _| (),
        },
    );
    let status = status.map_err(|error| error.to_string())?;
    Ok((pixels, status))
}

fuzz_target!(|data: &[u8]| {
    // The last byte selects the options because the end of a file matters least.
    let (choice, bytes) = data.split_last().unwrap_or((&0, &[]));
    let scales = [Scale::Full, Scale::Half, Scale::Quarter, Scale::Eighth];
    let request = Request {
        scale: scales[usize::from(choice & 3)],
        stop_row: (choice & 4 != 0).then_some(usize::from(choice >> 3)),
        limits: DecodeLimits::of_pixels(MAX_PIXELS),
        output_bytes: 0,
    };
    DECODERS.with_borrow_mut(|decoders| {
        let mut results = decoders
            .iter_mut()
            .map(|decoder| decode(decoder, bytes, &request));
        let first = results.next();
        for other in results {
            assert!(first.as_ref() == Some(&other), "instructions differ");
        }
        let paired = decoders
            .first_mut()
            .map(|decoder| decode_with_peer(decoder, bytes, &request));
        assert!(first == paired, "paired decoding differs");
    });
});
