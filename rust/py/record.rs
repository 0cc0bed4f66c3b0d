//! Records as the loader takes them from Python.

use std::fmt::{self, Display};
use std::path::PathBuf;
use std::sync::Arc;

use pyo3::exceptions::PyTypeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyTuple, PyTupleMethods};

use super::masks::{to_ids, to_mask};
use super::text::named_text;
use crate::boxes::BoxXyxy;
use crate::error::shown;
use crate::loader::record::{Masks, Record, StoredImage};

/// A record whose fields are converted, with the epoch and index that determine its random
/// numbers.
#[pyclass(module = "fiber._core", frozen)]
pub struct LoaderRecord {
    inner: Arc<Record>,
}

/// Name of a field in an error.
struct FieldName<'k> {
    key: &'k str,
    name: &'k str,
}

impl Display for FieldName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "record '{}': {}", shown(self.key), self.name)
    }
}

impl FieldName<'_> {
    fn text(&self, value: &Bound<'_, PyAny>) -> PyResult<String> {
        // The conversion that names the field is for what cannot be converted.
        value
            .extract()
            .or_else(|_| Ok(named_text(self, value)?.to_string()))
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

    /// Convert boxes; tuples of floats, as of most records, are converted faster than by
    /// [`Self::convert`].
    fn boxes(&self, value: &Bound<'_, PyAny>) -> PyResult<Vec<BoxXyxy>> {
        let of_tuple = |row: Bound<'_, PyAny>| row.extract::<(f64, f64, f64, f64)>().ok();
        let rows = value.cast::<PyTuple>().ok();
        let boxes = rows.and_then(|rows| rows.iter().map(of_tuple).collect::<Option<Vec<_>>>());
        match boxes {
            Some(boxes) => Ok(boxes.into_iter().map(BoxXyxy::from).collect()),
            None => self.convert(value),
        }
    }

    /// Convert a list; an empty tuple, as of most records without boxes or masks, is converted
    /// faster.
    fn list<'a, 'py, T>(&self, value: &'a Bound<'py, PyAny>) -> PyResult<Vec<T>>
    where
        Vec<T>: FromPyObject<'a, 'py>,
    {
        if value.cast::<PyTuple>().is_ok_and(PyTupleMethods::is_empty) {
            return Ok(Vec::new());
        }
        self.convert(value)
    }

    /// Convert texts that name masks.
    fn phrases(&self, value: &Bound<'_, PyAny>) -> PyResult<Vec<String>> {
        let phrases: Vec<Bound<'_, PyAny>> = self.list(value)?;
        phrases.iter().map(|phrase| self.text(phrase)).collect()
    }

    /// Convert masks, or the map that has them.
    fn masks(&self, value: &Bound<'_, PyAny>) -> PyResult<Masks> {
        if value.cast::<PyTuple>().is_ok_and(PyTupleMethods::is_empty) {
            return Ok(Masks::default());
        }
        if value.hasattr(intern!(value.py(), "coding"))? {
            let image = value.getattr(intern!(value.py(), "image"))?;
            return Ok(Masks::Map {
                image: to_stored(self, &image)?,
                ids: Arc::new(self.named(value.py(), to_ids(value))?),
            });
        }
        let masks: Vec<Bound<'_, PyAny>> = self.list(value)?;
        let masks = masks
            .iter()
            .map(|mask| self.named(mask.py(), to_mask(mask)));
        Ok(Masks::Each(masks.collect::<PyResult<_>>()?))
    }

    /// Add the field to an error of a conversion.
    fn named<T>(&self, py: Python<'_>, found: PyResult<T>) -> PyResult<T> {
        found.map_err(|error| {
            let named = PyTypeError::new_err(format!("{self}: {error}"));
            named.set_cause(py, Some(error));
            named
        })
    }

    fn images(&self, value: &Bound<'_, PyAny>) -> PyResult<Vec<StoredImage>> {
        if let Ok(images) = value.cast::<PyTuple>() {
            return images.iter().map(|image| to_stored(self, &image)).collect();
        }
        let images: Vec<Bound<'_, PyAny>> = self.convert(value)?;
        images.iter().map(|image| to_stored(self, image)).collect()
    }
}

#[pymethods]
impl LoaderRecord {
    /// Convert the attributes of a record; `images`, `answers` and `masks` are in the place of its
    /// own.
    #[staticmethod]
    #[pyo3(signature = (record, *, epoch, index, images, answers, masks = None))]
    fn from_record(
        record: &Bound<'_, PyAny>,
        epoch: u64,
        index: u64,
        images: &Bound<'_, PyAny>,
        answers: &Bound<'_, PyAny>,
        masks: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let py = record.py();
        let own_key = record.getattr(intern!(py, "key"))?;
        let key: String = match own_key.extract() {
            Ok(key) => key,
            Err(_) => FieldName {
                key: &own_key.to_string(),
                name: "key",
            }
            .text(&own_key)?,
        };
        let named = |name| FieldName { key: &key, name };
        /// Convert an attribute with a method of [`FieldName`].
        macro_rules! attribute {
            ($name:literal, $method:ident) => {
                named($name).$method(&record.getattr(intern!(py, $name))?)?
            };
        }
        let record = Record {
            epoch,
            index,
            images: named("images").images(images)?,
            text: attribute!("text", text),
            image_id: attribute!("image_id", text),
            boxes_xyxy: attribute!("boxes_xyxy", boxes),
            char_spans: attribute!("char_spans", list),
            answers: named("answers").convert(answers)?,
            truth: attribute!("truth", convert),
            image_size: attribute!("image_size", convert),
            masks: match masks {
                Some(masks) => named("masks").masks(masks)?,
                None => attribute!("masks", masks),
            },
            mask_labels: attribute!("mask_labels", list),
            mask_crowd: attribute!("mask_crowd", list),
            phrases: attribute!("phrases", phrases),
            phrase_masks: attribute!("phrase_masks", list),
            box_masks: attribute!("box_masks", list),
            key,
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
