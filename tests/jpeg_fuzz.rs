//! Broken JPEGs: whatever the bytes are, decoding ends with rows or with an error, the same for every set
//! of instructions. Some seconds; `FIBER_FUZZ_SECONDS=3600 cargo test --release --test jpeg_fuzz` for longer.

use std::time::{Duration, Instant};

use fiber_core::cpu_features::Instructions;
use fiber_core::decode_limits::DecodeLimits;
use fiber_core::jpeg::{DecodeTask, Decoder, Request, Scale, Status, decode_two, read_header};

/// Files that mutations begin with.
const SEEDS: [&[u8]; 5] = [
    include_bytes!("jpeg_seeds/baseline.jpg"),
    include_bytes!("jpeg_seeds/progressive.jpg"),
    include_bytes!("jpeg_seeds/restart.jpg"),
    include_bytes!("jpeg_seeds/inks.jpg"),
    include_bytes!("jpeg_seeds/scans.jpg"),
];

/// The most pixels of a picture here: more only take longer.
const MAX_PIXELS: usize = 1 << 16;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        value ^ (value >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % (end.max(1) as u64)).unwrap_or(0)
    }

    fn byte(&mut self) -> u8 {
        // Markers, lengths and fills are met more often than by chance.
        const LIKELY: [u8; 12] = [
            0, 1, 2, 0x11, 0x7F, 0xC4, 0xD0, 0xD8, 0xD9, 0xDA, 0xDB, 0xFF,
        ];
        if self.below(3) == 0 {
            LIKELY[self.below(LIKELY.len())]
        } else {
            self.next().to_le_bytes()[0]
        }
    }
}

fn mutate(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..=random.below(6) {
        let at = random.below(bytes.len());
        match random.below(8) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, random.byte()),
            2 => {
                let end = (at + random.below(40)).min(bytes.len());
                bytes.drain(at..end);
            }
            3 => {
                // A piece of another file, or the same piece again.
                let other = SEEDS[random.below(SEEDS.len())];
                let start = random.below(other.len());
                let piece = &other[start..(start + random.below(200)).min(other.len())];
                bytes.splice(at..at, piece.iter().copied());
            }
            4 => bytes.extend_from_slice(SEEDS[random.below(SEEDS.len())]),
            _ if !bytes.is_empty() => bytes[at] = random.byte(),
            _ => {}
        }
        bytes.truncate(1 << 16);
    }
}

/// What comes of a picture: pixels and status, or the error's text.
type Outcome = Result<(Vec<u8>, Status), String>;

/// The same of two pictures that are decoded together.
fn decode_together(
    decoders: [&mut Decoder; 2],
    files: [&[u8]; 2],
    requests: [&Request; 2],
) -> [Outcome; 2] {
    let (mut pixels, mut pixels_too) = (Vec::new(), Vec::new());
    let [decoder, other] = decoders;
    let [status, status_too] = decode_two(
        DecodeTask {
            decoder,
            bytes: files[0],
            request: *requests[0],
            sink: &mut |_, rows| pixels.extend_from_slice(rows),
        },
        DecodeTask {
            decoder: other,
            bytes: files[1],
            request: *requests[1],
            sink: &mut |_, rows| pixels_too.extend_from_slice(rows),
        },
    );
    [(status, pixels), (status_too, pixels_too)].map(|(status, pixels)| match status {
        Ok(status) => Ok((pixels, status)),
        Err(error) => Err(error.to_string()),
    })
}

/// Rows and status, or the error's text; checks that rows come in order and of the right length.
fn decode(decoder: &mut Decoder, bytes: &[u8], request: &Request) -> Outcome {
    let mut pixels = Vec::new();
    let mut next_row = 0;
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
    let height = read_header(bytes).map_or(0, |header| header.height);
    let expected = request
        .scale
        .apply(height)
        .min(request.stop_row.unwrap_or(usize::MAX));
    assert_eq!(next_row, expected);
    Ok((pixels, status))
}

#[test]
fn broken_bytes_end_with_rows_or_an_error() {
    let seconds = std::env::var("FIBER_FUZZ_SECONDS").map_or(3, |text| text.parse().unwrap());
    let mut decoders: Vec<Decoder> = Instructions::available().map(Decoder::with).collect();
    let scales = [Scale::Full, Scale::Half, Scale::Quarter, Scale::Eighth];
    let (mut whole, mut filled, mut refused) = (0_u64, 0_u64, 0_u64);
    let mut others: Vec<Decoder> = Instructions::available().map(Decoder::with).collect();
    // The file before, which the next one is decoded beside.
    let mut before: Option<(Vec<u8>, Request, Outcome)> = None;
    let end = Instant::now() + Duration::from_secs(seconds);
    for seed in 0.. {
        if Instant::now() > end {
            break;
        }
        let mut random = Random(seed);
        let mut bytes = SEEDS[random.below(SEEDS.len())].to_vec();
        mutate(&mut random, &mut bytes);
        let request = Request {
            scale: scales[random.below(4)],
            stop_row: (random.below(4) == 0).then(|| random.below(70)),
            limits: DecodeLimits::of_pixels(MAX_PIXELS),
            output_bytes: 0,
        };
        let start = Instant::now();
        let mut results = decoders
            .iter_mut()
            .map(|decoder| decode(decoder, &bytes, &request));
        let first = results.next().unwrap();
        for other in results {
            assert!(first == other, "seed {seed}: instructions differ");
        }
        if let Some((other, other_request, other_outcome)) = &before {
            for (decoder, second) in decoders.iter_mut().zip(&mut others) {
                let files = [&bytes, other.as_slice()];
                let requests = [&request, other_request];
                let together = decode_together([decoder, second], files, requests);
                assert!(together[0] == first, "seed {seed}: together differs");
                assert!(together[1] == *other_outcome, "seed {seed}: beside differs");
            }
        }
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "seed {seed} takes too long"
        );
        match &first {
            Ok((_, Status::Whole)) => whole += 1,
            Ok((_, Status::Filled(_))) => filled += 1,
            Err(_) => refused += 1,
        }
        before = Some((bytes, request, first));
    }
    println!("{whole} whole, {filled} filled in, {refused} refused");
    assert!(whole > 0 && filled > 0 && refused > 0);
}

#[test]
fn seeds_are_whole() {
    let request = Request {
        scale: Scale::Full,
        stop_row: None,
        limits: DecodeLimits::of_pixels(MAX_PIXELS),
        output_bytes: 0,
    };
    for bytes in SEEDS {
        let (_, status) = decode(&mut Decoder::new(), bytes, &request).unwrap();
        assert_eq!(status, Status::Whole);
    }
}
