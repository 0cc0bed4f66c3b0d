//! Records and configs shared by unit tests.

use std::sync::Arc;

use crate::decode_limits::DecodeLimits;
use crate::image::Rgb;
use crate::loader::config::{LoaderConfig, OnError};
use crate::loader::record::{Record, StoredImage, Task};
use crate::normalize::Normalization;
use crate::normalize::layout::{Dtype, Layout};
use crate::resize::Filter;
use crate::resize::alpha::Alpha;
use crate::tokenizer::Tokenizer;
use crate::tokenizer::masking::{Masker, MaskingConfig};
use crate::transform::color_jitter::ColorJitter;
use crate::transform::rand_augment::RandAugment;
use crate::transform::{Geometry, Transform};

/// A gray PNG that gets brighter to the right.
pub(crate) fn png(height: u32, width: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Grayscale);
    let mut writer = encoder.write_header().unwrap();
    let row: Vec<u8> = (0..width)
        .map(|x| u8::try_from(x * 255 / width).unwrap())
        .collect();
    let pixels = row.repeat(height as usize);
    writer.write_image_data(&pixels).unwrap();
    writer.finish().unwrap();
    bytes
}

/// A config for 8 x 8 images.
pub(crate) fn config(task: Task) -> LoaderConfig {
    let texts = ["the left cup", "the right cup", "a red dog", "the red dog"];
    let tokenizer = Tokenizer::train(texts.into_iter(), 280).unwrap();
    let masking = MaskingConfig {
        probability: 0.15,
        ..MaskingConfig::default()
    };
    let masker = Masker::new(&tokenizer, masking, Some(16)).unwrap();
    LoaderConfig {
        task,
        tokenizer: Arc::new(tokenizer),
        transform: Transform {
            geometry: Geometry::Squash { size: 8 },
            method: Filter::Bicubic.into(),
            flip_probability: 0.0,
            color_jitter: ColorJitter::off(),
            rand_augment: RandAugment::off(),
            alpha: Alpha::Drop,
            normalization: Normalization::default(),
        },
        max_tokens: 16,
        seed: 0,
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

/// A record with one image and one box.
pub(crate) fn record(key: &str) -> Record {
    Record {
        key: key.to_owned(),
        images: vec![StoredImage::Bytes(Arc::new(png(10, 20)))],
        text: "the left cup".to_owned(),
        boxes_xyxy: vec![[1.0, 2.0, 5.0, 6.0]],
        char_spans: vec![vec![(4, 8)]],
        ..Record::default()
    }
}

/// A gray image with the given values.
pub(crate) fn gray(width: usize, values: &[u8]) -> Rgb {
    Rgb::new(
        values.len() / width,
        width,
        values.iter().flat_map(|&value| [value; 3]).collect(),
    )
}

/// An image whose values ascend in steps of 7, modulo 256.
pub(crate) fn gradient(height: usize, width: usize) -> Rgb {
    let pixels = (0..height * width * 3).map(|i| u8::try_from(i * 7 % 256).unwrap());
    Rgb::new(height, width, pixels.collect())
}
