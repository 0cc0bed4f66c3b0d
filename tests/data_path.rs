//! The whole data path through its public face, without Python: files in, batches out.

#![allow(clippy::unwrap_used, clippy::panic)] // Tests end that way.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fiber_core::Error;
use fiber_core::decode_limits::DecodeLimits;
use fiber_core::loader::collate::Batch;
use fiber_core::loader::config::{LoaderConfig, OnError};
use fiber_core::loader::record::{Record, StoredImage, Task};
use fiber_core::loader::{Loader, Next};
use fiber_core::normalize::Normalization;
use fiber_core::normalize::layout::{Dtype, Layout};
use fiber_core::resize::Filter;
use fiber_core::resize::alpha::Alpha;
use fiber_core::tokenizer::Tokenizer;
use fiber_core::tokenizer::masking::{Masker, MaskingConfig, MlmUnit};
use fiber_core::transform::color_jitter::ColorJitter;
use fiber_core::transform::rand_augment::RandAugment;
use fiber_core::transform::{Geometry, Transform};

const TEXT: &str = "the left cup stands on the right table";

fn config(task: Task) -> LoaderConfig {
    let tokenizer = Tokenizer::train([TEXT; 3].into_iter(), 300).unwrap();
    let masking = MaskingConfig {
        unit: MlmUnit::Token,
        probability: 0.3,
        seed: 7,
    };
    let masker = Masker::new(&tokenizer, masking, Some(12)).unwrap();
    LoaderConfig {
        task,
        tokenizer: Arc::new(tokenizer),
        transform: Transform {
            geometry: Geometry::RandomResizedCrop {
                size: 16,
                scale: (0.5, 1.0),
                ratio: (0.75, 4.0 / 3.0),
            },
            method: Filter::Bicubic.into(),
            flip_probability: 0.5,
            color_jitter: ColorJitter::off(),
            rand_augment: RandAugment {
                // Boxes do not follow operations that move pixels.
                num_ops: if task == Task::Grounding { 0 } else { 2 },
                ..RandAugment::off()
            },
            alpha: Alpha::Drop,
            normalization: Normalization::default(),
        },
        max_tokens: 12,
        seed: 7,
        masker: Some(Arc::new(masker)),
        mirrored_answers: Vec::new(),
        on_error: OnError::Raise,
        accept_truncated: false,
        scaled_decoding: false,
        apply_orientation: false,
        background: None,
        dtype: Dtype::Float32,
        layout: Layout::Chw,
        limits: DecodeLimits::default(),
    }
}

/// A folder of its own for each test, with pictures in it.
fn pictures(name: &str, count: u32) -> Vec<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).unwrap();
    (0..count)
        .map(|number| {
            let path = folder.join(format!("{number}.png"));
            let (width, height) = (20 + number, 30);
            let file = std::fs::File::create(&path).unwrap();
            let mut encoder = png::Encoder::new(file, width, height);
            encoder.set_color(png::ColorType::Rgb);
            let pixels: Vec<u8> = (0..width * height * 3)
                .map(|value| u8::try_from(value.wrapping_mul(number + 31) % 251).unwrap())
                .collect();
            encoder
                .write_header()
                .unwrap()
                .write_image_data(&pixels)
                .unwrap();
            path
        })
        .collect()
}

fn record(index: u64, path: PathBuf) -> Record {
    Record {
        key: format!("r{index}"),
        index,
        images: vec![StoredImage::Path(path)],
        text: TEXT.to_owned(),
        boxes_xyxy: vec![[2.0, 3.0, 15.0, 20.0]],
        char_spans: vec![vec![(4, 12)]],
        ..Record::default()
    }
}

fn run(task: Task, paths: &[PathBuf], threads: usize) -> Result<Vec<Batch>, Error> {
    let loader = Loader::new(config(task), threads, 2)?;
    let session = loader.open();
    let records: Vec<Record> = (0..)
        .zip(paths)
        .map(|(index, path)| record(index, path.clone()))
        .collect();
    for batch in records.chunks(4) {
        session.submit(batch.to_vec(), None);
    }
    session.finish();
    let mut batches = Vec::new();
    loop {
        match session.next(Duration::from_secs(60))? {
            Next::Batch(batch) => batches.push(*batch),
            Next::End => return Ok(batches),
            Next::NotYet | Next::Replace(_) => panic!("no batch within a minute"),
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_batches() {
    let paths = pictures("threads", 14);
    for task in [Task::ImageText, Task::Grounding] {
        let expected = run(task, &paths, 1).unwrap();
        assert_eq!(expected.len(), 4);
        assert!(expected.iter().all(
            |batch| batch.images.as_ref().unwrap().len() == batch.keys.len() * 3 * 16 * 16 * 4
        ));
        for threads in [2, 8] {
            // Every field, bit by bit.
            assert_eq!(
                format!("{:?}", run(task, &paths, threads).unwrap()),
                format!("{expected:?}")
            );
        }
    }
}

#[test]
fn a_missing_file_is_named_with_its_record() {
    let mut paths = pictures("missing", 3);
    paths[1] = PathBuf::from("no/such/picture.jpg");
    let message = run(Task::ImageText, &paths, 2).unwrap_err().to_string();
    assert!(
        message.starts_with("record 'r1': no/such/picture.jpg: "),
        "{message}"
    );
}
