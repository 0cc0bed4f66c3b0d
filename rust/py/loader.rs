//! Bindings for the loader.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyDict, PyTuple};

use super::arrays::Buffer;
use super::pixels::limits;
use super::text::named_text;
use super::tokenizer::Tokenizer;
use super::transform::ImageTransform;
use crate::boxes::BoxXyxy;
use crate::decode_limits::MAX_PIXELS;
use crate::error::shown;
use crate::loader::collate::Batch;
use crate::loader::config::{LoaderConfig, OnError};
use crate::loader::record::{Record, StoredImage, Task};
use crate::loader::{self, Next};
use crate::normalize::layout::{Dtype, Layout};
use crate::rng::{self, Purpose, Rng};
use crate::tokenizer::spans::CharSpan;

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

/// Fields of a record: key, epoch, index, images, text, image id, boxes, spans, answers, truth,
/// annotated size.
type PlainRecord<'py> = (
    String,
    u64,
    u64,
    Vec<Bound<'py, PyAny>>,
    String,
    String,
    Vec<BoxXyxy>,
    Vec<Vec<CharSpan>>,
    Option<Vec<(usize, f32)>>,
    Option<bool>,
    Option<(usize, usize)>,
);

/// Those of them that are texts.
const TEXTS: [(usize, &str); 3] = [(0, "key"), (4, "text"), (5, "image_id")];

#[pymethods]
impl Loader {
    #[new]
    #[pyo3(signature = (batch_type, tokenizer, transform, *, max_tokens, seed, mlm_probability, mirrored_answers, threads, keep, on_error, accept_truncated, scaled_decoding, apply_orientation, background, dtype, layout, max_pixels = MAX_PIXELS, max_decode_bytes = None))]
    #[allow(clippy::too_many_arguments)] // Keyword arguments in Python.
    fn new(
        batch_type: &str,
        tokenizer: &Tokenizer,
        transform: &ImageTransform,
        max_tokens: usize,
        seed: u64,
        mlm_probability: f64,
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
        let config = LoaderConfig {
            task,
            tokenizer: Arc::clone(&tokenizer.inner),
            transform: transform.inner.clone(),
            max_tokens,
            seed,
            mlm_probability,
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
    fn submit(&self, records: Vec<Bound<'_, PyTuple>>) -> PyResult<()> {
        let records = records.iter().map(to_record).collect::<PyResult<_>>()?;
        self.inner.submit(records);
        Ok(())
    }

    /// Submit replacements for the bad samples reported by `next`.
    fn replace(&self, records: Vec<(usize, Bound<'_, PyTuple>)>) -> PyResult<()> {
        let records = records.iter();
        let records = records.map(|(place, record)| Ok((*place, to_record(record)?)));
        self.inner.replace(records.collect::<PyResult<_>>()?);
        Ok(())
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
        let tokens = batch.num_tokens;
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
            Task::Grounding => {
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
            }
        }
        fields.set_item("keys", batch.keys)?;
        let statuses: Vec<&str> = batch.statuses.iter().map(|it| it.name()).collect();
        fields.set_item("statuses", statuses)?;
        let skipped = batch.skipped.into_iter();
        let skipped: Vec<_> = skipped.map(|it| (it.key, it.status, it.reason)).collect();
        fields.set_item("skipped", skipped)?;
        fields.set_item("truncated_boxes", batch.truncated_boxes)?;
        fields.set_item("cropped_boxes", batch.cropped_boxes)?;
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

fn to_record(plain: &Bound<'_, PyTuple>) -> PyResult<Record> {
    let fields = plain.extract::<PlainRecord<'_>>().map_err(|error| {
        let key = plain.get_item(0).map(|key| key.to_string());
        let key = shown(&key.unwrap_or_default());
        for (place, name) in TEXTS {
            let text = plain.get_item(place).ok();
            let what = format!("record '{key}': {name}");
            if let Some(Err(error)) = text.map(|text| named_text(what, &text))
                && error.is_instance_of::<PyValueError>(plain.py())
            {
                return error;
            }
        }
        let named = PyTypeError::new_err(format!("record '{key}': {error}"));
        named.set_cause(plain.py(), Some(error));
        named
    })?;
    Ok(Record {
        key: fields.0,
        epoch: fields.1,
        index: fields.2,
        images: fields.3.iter().map(to_stored).collect::<PyResult<_>>()?,
        text: fields.4,
        image_id: fields.5,
        boxes_xyxy: fields.6,
        char_spans: fields.7,
        answers: fields.8,
        truth: fields.9,
        image_size: fields.10,
    })
}

/// Bytes are the contents of an image file; everything else is a path.
fn to_stored(image: &Bound<'_, PyAny>) -> PyResult<StoredImage> {
    if let Ok(bytes) = image.cast::<PyBytes>() {
        Ok(StoredImage::Bytes(Arc::new(PyBackedBytes::from(
            bytes.clone(),
        ))))
    } else {
        Ok(StoredImage::Path(image.extract::<PathBuf>()?))
    }
}
