//! Bindings for the loader.

use std::sync::Arc;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::arrays::Buffer;
use super::pixels::limits;
use super::record::LoaderRecord;
use super::tokenizer::Tokenizer;
use super::transform::ImageTransform;
use crate::decode_limits::MAX_PIXELS;
use crate::loader::collate::Batch;
use crate::loader::config::{LoaderConfig, OnError};
use crate::loader::record::Task;
use crate::loader::{self, Next};
use crate::normalize::layout::{Dtype, Layout};
use crate::rng::{self, Purpose, Rng};
use crate::tokenizer::masking::{Masker, MaskingConfig, MlmUnit};

/// Timeout of a single wait; between waits, Python handles signals such as Ctrl-C.
const SLICE: Duration = Duration::from_millis(50);

/// Worker threads that turn records into batches.
#[pyclass(module = "fiber._core", frozen)]
pub struct Loader {
    inner: loader::Loader,
    fields: BatchFields,
}

/// One epoch.
#[pyclass(module = "fiber._core", frozen)]
pub struct Session {
    inner: loader::Session,
    fields: BatchFields,
}

/// The settings that determine the fields of a batch.
#[derive(Clone, Copy)]
struct BatchFields {
    task: Task,
    num_answers: usize,
    dtype: Dtype,
}

#[pymethods]
impl Loader {
    #[new]
    #[pyo3(signature = (batch_type, tokenizer, transform, *, max_tokens, seed, mlm_probability, mlm_unit = "token", mlm_seed = None, mirrored_answers, threads, keep, on_error, accept_truncated, scaled_decoding, apply_orientation, background, dtype, layout, max_pixels = MAX_PIXELS, max_decode_bytes = None))]
    #[allow(clippy::too_many_arguments)] // Keyword arguments in Python.
    fn new(
        batch_type: &str,
        tokenizer: &Tokenizer,
        transform: &ImageTransform,
        max_tokens: usize,
        seed: u64,
        mlm_probability: f64,
        mlm_unit: &str,
        mlm_seed: Option<u64>,
        mirrored_answers: Vec<usize>,
        threads: usize,
        keep: usize,
        on_error: &str,
        accept_truncated: bool,
        scaled_decoding: bool,
        apply_orientation: bool,
        background: Option<(u8, u8, u8)>,
        dtype: &str,
        layout: &str,
        max_pixels: usize,
        max_decode_bytes: Option<usize>,
    ) -> PyResult<Self> {
        let task = Task::from_name(batch_type)?;
        let dtype = Dtype::from_name(dtype)?;
        let fields = BatchFields {
            task,
            num_answers: mirrored_answers.len(),
            dtype,
        };
        let masking = MaskingConfig {
            unit: MlmUnit::from_name(mlm_unit)?,
            probability: mlm_probability,
            seed: mlm_seed.unwrap_or(seed),
        };
        masking.check()?;
        let tokenizer = Arc::clone(&tokenizer.inner);
        let masker = (task == Task::ImageText)
            .then(|| Masker::new(&tokenizer, masking, Some(max_tokens)))
            .transpose()?;
        let config = LoaderConfig {
            task,
            tokenizer,
            transform: transform.inner.clone(),
            max_tokens,
            seed,
            masker: masker.map(Arc::new),
            mirrored_answers,
            on_error: OnError::from_name(on_error)?,
            accept_truncated,
            scaled_decoding,
            apply_orientation,
            background: background.map(<[u8; 3]>::from),
            dtype,
            layout: Layout::from_name(layout)?,
            limits: limits(max_pixels, max_decode_bytes),
        };
        Ok(Self {
            inner: loader::Loader::new(config, threads, keep)?,
            fields,
        })
    }

    /// Start a session.
    fn open(&self) -> Session {
        Session {
            inner: self.inner.open(),
            fields: self.fields,
        }
    }

    /// Current and peak total size of the batch buffers, in bytes.
    #[getter]
    fn image_bytes(&self) -> (usize, usize) {
        self.inner.image_bytes()
    }
}

#[pymethods]
impl Session {
    /// Submit the records of one batch without blocking.
    #[pyo3(signature = (records, *, first_sample = None))]
    fn submit(&self, records: Vec<PyRef<'_, LoaderRecord>>, first_sample: Option<u64>) {
        let records: Vec<_> = records.iter().map(|it| it.shared()).collect();
        self.inner.submit(records, first_sample);
    }

    /// Submit replacements for the bad samples reported by `next`.
    fn replace(&self, records: Vec<(usize, PyRef<'_, LoaderRecord>)>) {
        let records = records.iter();
        let records = records.map(|(place, record)| (*place, record.shared()));
        self.inner.replace(records.collect());
    }

    /// Signal that no more batches will be submitted.
    fn finish(&self) {
        self.inner.finish();
    }

    /// Discard all pending batches.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.inner.close());
    }

    /// Wait for the next batch without holding the GIL. Returns None after the last one, or a list
    /// of bad samples if the batch needs replacements.
    fn next<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        loop {
            match py.detach(|| self.inner.next(SLICE))? {
                Next::Batch(batch) => return Ok(Some(self.fields.to_dict(py, *batch)?.into_any())),
                Next::Replace(places) => {
                    let places = places.into_iter();
                    let places = places.map(|(place, it)| (place, it.key, it.status, it.reason));
                    let places: Vec<_> = places.collect();
                    return Ok(Some(places.into_pyobject(py)?.into_any()));
                }
                Next::End => return Ok(None),
                Next::NotYet => py.check_signals()?,
            }
        }
    }
}

impl BatchFields {
    fn to_dict(self, py: Python<'_>, batch: Batch) -> PyResult<Bound<'_, PyDict>> {
        let fields = PyDict::new(py);
        let size = batch.keys.len();
        let (tokens, emptied) = (batch.num_tokens, batch.masks.emptied);
        let set = |name, buffer: PyResult<Buffer>| fields.set_item(name, Bound::new(py, buffer?)?);
        let images = match batch.images {
            Some(block) => Buffer::of_pixels(block, self.dtype, &batch.image_shape),
            None => Buffer::new(Vec::<f32>::new(), &batch.image_shape),
        };
        let texts = [size, tokens];
        set("images", images)?;
        set("image_sizes", Buffer::new(batch.image_sizes, &[size, 2]))?;
        set(
            "original_sizes",
            Buffer::new(batch.original_sizes, &[size, 2]),
        )?;
        set("token_ids", Buffer::new(batch.token_ids, &texts))?;
        set("text_mask", Buffer::new(batch.text_mask, &texts))?;
        match self.task {
            Task::ImageText => {
                set("image_ids", Buffer::new(batch.image_ids, &[size]))?;
                set("masked_ids", Buffer::new(batch.masked_ids, &texts))?;
                set("mlm_labels", Buffer::new(batch.mlm_labels, &texts))?;
            }
            Task::Question => {
                set(
                    "targets",
                    Buffer::new(batch.targets, &[size, self.num_answers]),
                )?;
            }
            Task::Reasoning => set("truths", Buffer::new(batch.truths, &[size]))?,
            Task::Grounding | Task::GroundingMasks => {
                let boxes = batch.boxes_xyxy.len() / 4;
                set("boxes_xyxy", Buffer::new(batch.boxes_xyxy, &[boxes, 4]))?;
                set(
                    "boxes_per_image",
                    Buffer::new(batch.boxes_per_image, &[size]),
                )?;
                set(
                    "positive_map",
                    Buffer::new(batch.positive_map, &[boxes, tokens]),
                )?;
                if self.task.has_masks() {
                    let (height, width) = batch.masks.size;
                    let shape = [boxes, height, width.div_ceil(8)];
                    set("box_masks", Buffer::new(batch.masks.phrase_masks, &shape))?;
                }
            }
            Task::Segmentation => {
                let masks = batch.masks;
                let (height, stride) = (masks.size.0, masks.size.1.div_ceil(8));
                let (own, phrases) = (masks.mask_labels.len(), masks.phrase_masks.len());
                let phrases = phrases.checked_div(height * stride).unwrap_or(0);
                let texts = [phrases, masks.num_tokens];
                let planes = |count| [count, height, stride];
                set("masks", Buffer::new(masks.masks, &planes(own)))?;
                set("mask_labels", Buffer::new(masks.mask_labels, &[own]))?;
                set(
                    "masks_per_image",
                    Buffer::new(masks.masks_per_image, &[size]),
                )?;
                set("phrase_ids", Buffer::new(masks.phrase_ids, &texts))?;
                set("phrase_mask", Buffer::new(masks.phrase_mask, &texts))?;
                let unions = Buffer::new(masks.phrase_masks, &planes(phrases));
                set("phrase_masks", unions)?;
                let counts = Buffer::new(masks.phrases_per_image, &[size]);
                set("phrases_per_image", counts)?;
            }
        }
        fields.set_item("keys", batch.keys)?;
        let statuses: Vec<&str> = batch.statuses.iter().map(|it| it.name()).collect();
        fields.set_item("statuses", statuses)?;
        let skipped = batch.skipped.into_iter();
        let skipped: Vec<_> = skipped.map(|it| (it.key, it.status, it.reason)).collect();
        fields.set_item("skipped", skipped)?;
        fields.set_item("emptied_masks", emptied)?;
        fields.set_item("truncated_boxes", batch.truncated_boxes)?;
        fields.set_item("cropped_boxes", batch.cropped_boxes)?;
        fields.set_item("truncated_texts", batch.truncated_texts)?;
        fields.set_item("wordless_texts", batch.wordless_texts)?;
        Ok(fields)
    }
}

/// Shuffled order of an epoch: a permutation of 0..count.
#[pyfunction]
pub fn permutation(py: Python<'_>, count: usize, seed: u64, epoch: u64) -> PyResult<Buffer> {
    let order = py.detach(|| rng::permutation(count, seed, epoch));
    Buffer::new(order, &[count])
}

/// Random integer in [0, bound), determined by the other arguments.
#[pyfunction]
pub fn draw_below(bound: u64, seed: u64, epoch: u64, index: u64, attempt: u8) -> u64 {
    Rng::new(seed, epoch, index, Purpose::Replacement(attempt)).below(bound)
}
