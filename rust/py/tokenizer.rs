//! Bindings of the tokenizer.

use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::spans::CharSpan;
use crate::tokenizer;

/// Byte-level BPE as RoBERTa uses it.
#[pyclass(module = "fiber._core", frozen)]
pub struct Tokenizer {
    pub(super) inner: Arc<tokenizer::Tokenizer>,
}

impl From<tokenizer::Tokenizer> for Tokenizer {
    fn from(inner: tokenizer::Tokenizer) -> Self {
        Self {
            inner: Arc::new(inner),
        }
    }
}

#[pymethods]
impl Tokenizer {
    /// Read a tokenizer.json.
    #[staticmethod]
    fn from_file(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        Ok(py.detach(|| tokenizer::Tokenizer::from_file(&path))?.into())
    }

    /// Read the text of a tokenizer.json.
    #[staticmethod]
    fn from_json(py: Python<'_>, json: &str) -> PyResult<Self> {
        Ok(py.detach(|| tokenizer::Tokenizer::from_json(json))?.into())
    }

    /// Read RoBERTa's two files.
    #[staticmethod]
    fn from_vocabulary(
        py: Python<'_>,
        vocab_json_path: PathBuf,
        merges_path: PathBuf,
    ) -> PyResult<Self> {
        Ok(py
            .detach(|| tokenizer::Tokenizer::from_vocabulary(&vocab_json_path, &merges_path))?
            .into())
    }

    /// Learn a vocabulary from texts.
    #[staticmethod]
    fn train(py: Python<'_>, texts: Vec<String>, vocab_size: usize) -> PyResult<Self> {
        Ok(py
            .detach(|| tokenizer::Tokenizer::train(texts.iter().map(String::as_str), vocab_size))?
            .into())
    }

    /// Write a tokenizer.json; it appears whole or not at all.
    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        Ok(py.detach(|| self.inner.save(&path))?)
    }

    /// The text of a tokenizer.json.
    fn to_json(&self) -> PyResult<String> {
        Ok(self.inner.to_json()?)
    }

    /// Tokens in the vocabulary, special ones included.
    #[getter]
    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }

    /// Id of <mask>, the last one.
    #[getter]
    fn mask_id(&self) -> u32 {
        self.inner.mask_id()
    }

    /// Split a text into (ids, spans of code points).
    #[pyo3(signature = (text, *, max_tokens = None))]
    fn encode(&self, text: &str, max_tokens: Option<usize>) -> PyResult<(Vec<u32>, Vec<CharSpan>)> {
        let encoded = self.inner.encode(text, max_tokens)?;
        Ok((encoded.ids, encoded.offsets))
    }

    /// Join tokens to a text.
    fn decode(&self, ids: Vec<u32>) -> PyResult<String> {
        Ok(self.inner.decode(&ids)?)
    }

    fn __len__(&self) -> usize {
        self.inner.vocab_size()
    }

    fn __repr__(&self) -> String {
        format!("Tokenizer(vocab_size={})", self.inner.vocab_size())
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyTuple>> {
        let rebuild = slf.get_type().getattr("from_json")?;
        PyTuple::new(
            slf.py(),
            [
                rebuild,
                PyTuple::new(slf.py(), [slf.get().to_json()?])?.into_any(),
            ],
        )
    }
}
