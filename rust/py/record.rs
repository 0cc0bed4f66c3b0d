//! Records as the loader takes them from Python.

use std::fmt::{self, Display};
use std::path::PathBuf;
use std::sync::Arc;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;

use super::text::named_text;
use crate::error::shown;
use crate::loader::record::{Record, StoredImage};

/// A record whose fields are converted, with the epoch and index that determine its random
/// numbers.
#[pyclass(module = "fiber._core", frozen)]
pub struct LoaderRecord {
    inner: Arc<Record>,
}

/// Name of a field in an error.
struct FieldName<'k> {
    key: &'k str,
    name: &'static str,
}

impl Display for FieldName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "record '{}': {}", shown(self.key), self.name)
    }
}

impl FieldName<'_> {
    fn text(&self, value: &Bound<'_, PyAny>) -> PyResult<String> {
        Ok(named_text(self, value)?.to_string())
    }

    fn convert<'a, 'py, T>(&self, value: &'a Bound<'py, PyAny>) -> PyResult<T>
    where
        T: FromPyObject<'a, 'py>,
    {
        value.extract().map_err(|error: T::Error| {
            let error: PyErr = error.into();
            let named = PyTypeError::new_err(format!("{self}: {error}"));
            named.set_cause(value.py(), Some(error));
            named
        })
    }
}

#[pymethods]
impl LoaderRecord {
    #[new]
    #[pyo3(signature = (*, key, epoch, index, images, text, image_id, boxes_xyxy, char_spans, answers, truth, image_size))]
    #[allow(clippy::too_many_arguments)] // Keyword arguments in Python.
    fn new(
        key: &Bound<'_, PyAny>,
        epoch: u64,
        index: u64,
        images: &Bound<'_, PyAny>,
        text: &Bound<'_, PyAny>,
        image_id: &Bound<'_, PyAny>,
        boxes_xyxy: &Bound<'_, PyAny>,
        char_spans: &Bound<'_, PyAny>,
        answers: &Bound<'_, PyAny>,
        truth: &Bound<'_, PyAny>,
        image_size: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let key = named_text("key", key).or_else(|_| {
            let name = "key";
            let key_text = key.to_string();
            let field = FieldName {
                key: &key_text,
                name,
            };
            named_text(field, key)
        })?;
        let named = |name| FieldName { key: &key, name };
        let field = named("images");
        let images: Vec<Bound<'_, PyAny>> = field.convert(images)?;
        let images = images.iter().map(|image| to_stored(&field, image));
        let record = Record {
            images: images.collect::<PyResult<_>>()?,
            text: named("text").text(text)?,
            image_id: named("image_id").text(image_id)?,
            boxes_xyxy: named("boxes_xyxy").convert(boxes_xyxy)?,
            char_spans: named("char_spans").convert(char_spans)?,
            answers: named("answers").convert(answers)?,
            truth: named("truth").convert(truth)?,
            image_size: named("image_size").convert(image_size)?,
            key: key.to_string(),
            epoch,
            index,
        };
        Ok(Self {
            inner: Arc::new(record),
        })
    }

    /// Key of the record.
    #[getter]
    fn key(&self) -> &str {
        &self.inner.key
    }

    fn __repr__(&self) -> String {
        let Record {
            key, epoch, index, ..
        } = &*self.inner;
        format!(
            "LoaderRecord(key='{}', epoch={epoch}, index={index})",
            shown(key)
        )
    }
}

impl LoaderRecord {
    pub(super) fn shared(&self) -> Arc<Record> {
        Arc::clone(&self.inner)
    }
}

/// Bytes are the contents of an image file; everything else is a path.
fn to_stored(field: &FieldName<'_>, image: &Bound<'_, PyAny>) -> PyResult<StoredImage> {
    if let Ok(bytes) = image.cast::<PyBytes>() {
        Ok(StoredImage::Bytes(Arc::new(PyBackedBytes::from(
            bytes.clone(),
        ))))
    } else {
        Ok(StoredImage::Path(field.convert::<PathBuf>(image)?))
    }
}
