//! Bindings for the tokenizer.

use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::{PyDict, PyTuple};

use super::arrays::Buffer;
use super::text::{json_of, text_of, texts_of};
use crate::Error;
use crate::tokenizer::batch::{self, BatchMasking, BatchOptions};
use crate::tokenizer::masking::{MaskingConfig, MlmUnit};
use crate::tokenizer::spans::CharSpan;
use crate::tokenizer::{TokenOverrides, Tokenizer as Inner};

/// Tokenizer for any `tokenizer.json`.
#[pyclass(module = "fiber._core", frozen)]
pub struct Tokenizer {
    pub(super) inner: Arc<Inner>,
}

/// Build a tokenizer without holding the GIL.
fn wrap(
    py: Python<'_>,
    build: impl FnOnce() -> Result<Inner, Error> + Send,
) -> PyResult<Tokenizer> {
    let inner = Arc::new(py.detach(build)?);
    Ok(Tokenizer { inner })
}

#[pymethods]
impl Tokenizer {
    /// Read a tokenizer.json file.
    #[staticmethod]
    #[pyo3(signature = (path, *, pad_token = None, mask_token = None))]
    fn from_file(
        py: Python<'_>,
        path: PathBuf,
        pad_token: Option<String>,
        mask_token: Option<String>,
    ) -> PyResult<Self> {
        let named = named(pad_token, mask_token);
        wrap(py, || Inner::from_file_with(&path, &named))
    }

    /// Parse the contents of a tokenizer.json.
    #[staticmethod]
    #[pyo3(signature = (json, *, pad_token = None, mask_token = None))]
    fn from_json(
        py: Python<'_>,
        #[pyo3(from_py_with = json_of)] json: PyBackedStr,
        pad_token: Option<String>,
        mask_token: Option<String>,
    ) -> PyResult<Self> {
        let named = named(pad_token, mask_token);
        wrap(py, || Inner::from_json_with(&json, &named))
    }

    /// Read RoBERTa's vocab.json and merges.txt.
    #[staticmethod]
    fn from_vocabulary(
        py: Python<'_>,
        vocab_json_path: PathBuf,
        merges_path: PathBuf,
    ) -> PyResult<Self> {
        wrap(py, || {
            Inner::from_vocabulary(&vocab_json_path, &merges_path)
        })
    }

    /// Train a byte-level BPE on texts.
    #[staticmethod]
    fn train(
        py: Python<'_>,
        #[pyo3(from_py_with = texts_of)] texts: Vec<PyBackedStr>,
        vocab_size: usize,
    ) -> PyResult<Self> {
        let texts = texts.iter().map(|text| &**text);
        wrap(py, || Inner::train(texts, vocab_size))
    }

    /// Write a tokenizer.json atomically.
    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        let json = py.detach(|| self.inner.to_json())?;
        // Checks the path and explains a full disk, as for every other file.
        py.import("fiber.atomic_io")?
            .call_method1("write_text", (path, json))?;
        Ok(())
    }

    /// Return the contents of a tokenizer.json.
    fn to_json(&self) -> PyResult<String> {
        Ok(self.inner.to_json()?)
    }

    /// Number of tokens, including special tokens.
    #[getter]
    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }

    /// Id of the padding token.
    #[getter]
    fn pad_id(&self) -> u32 {
        self.inner.special_tokens().pad
    }

    /// Id of the mask token, if any.
    #[getter]
    fn mask_id(&self) -> Option<u32> {
        self.inner.special_tokens().mask
    }

    /// Id of the unknown token, if any.
    #[getter]
    fn unknown_id(&self) -> Option<u32> {
        self.inner.special_tokens().unknown
    }

    /// Ids prepended to every text, such as BOS.
    #[getter]
    fn start_ids(&self) -> Vec<u32> {
        self.inner.special_tokens().template.before.clone()
    }

    /// Ids appended to every text, such as EOS.
    #[getter]
    fn end_ids(&self) -> Vec<u32> {
        self.inner.special_tokens().template.after.clone()
    }

    /// Ids of all special tokens.
    #[getter]
    fn special_ids(&self) -> Vec<u32> {
        self.inner.special_tokens().special.clone()
    }

    /// True if texts are encoded by the built-in byte-level BPE.
    #[getter]
    fn is_fast(&self) -> bool {
        self.inner.is_fast()
    }

    /// Raise an error if fiber's models cannot use this vocabulary.
    fn check_for_models(&self) -> PyResult<()> {
        Ok(self.inner.check_for_models()?)
    }

    /// Encode a text to ids and code point spans.
    #[pyo3(signature = (text, *, max_tokens = None))]
    fn encode(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = text_of)] text: PyBackedStr,
        max_tokens: Option<usize>,
    ) -> PyResult<(Vec<u32>, Vec<CharSpan>)> {
        let encoded = py.detach(|| self.inner.encode(&text, max_tokens))?;
        Ok((encoded.ids, encoded.offsets))
    }

    /// Encode texts to padded arrays.
    #[pyo3(signature = (texts, *, max_tokens = None, pad_to = None, offsets = false))]
    fn encode_batch<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = texts_of)] texts: Vec<PyBackedStr>,
        max_tokens: Option<usize>,
        pad_to: Option<usize>,
        offsets: bool,
    ) -> PyResult<Bound<'py, PyDict>> {
        let options = BatchOptions {
            max_tokens,
            pad_to,
            offsets,
            masking: None,
        };
        self.batch(py, &texts, &options)
    }

    /// Encode texts to padded arrays, with MLM masking.
    #[pyo3(signature = (texts, *, mlm_probability, seed, epoch, indices, max_tokens = None, pad_to = None, mlm_unit = "token"))]
    #[allow(clippy::too_many_arguments)] // Keyword arguments in Python.
    fn encode_masked_batch<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = texts_of)] texts: Vec<PyBackedStr>,
        mlm_probability: f64,
        seed: u64,
        epoch: u64,
        indices: Vec<u64>,
        max_tokens: Option<usize>,
        pad_to: Option<usize>,
        mlm_unit: &str,
    ) -> PyResult<Bound<'py, PyDict>> {
        let masking = BatchMasking {
            config: MaskingConfig {
                unit: MlmUnit::from_name(mlm_unit)?,
                probability: mlm_probability,
                seed,
            },
            epoch,
            indices,
        };
        let options = BatchOptions {
            max_tokens,
            pad_to,
            offsets: false,
            masking: Some(masking),
        };
        self.batch(py, &texts, &options)
    }

    /// Map each box to the tokens of a text that name it: (boxes, tokens).
    #[pyo3(signature = (text, char_spans, *, max_tokens = None))]
    fn positive_map(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = text_of)] text: PyBackedStr,
        char_spans: Vec<Vec<CharSpan>>,
        max_tokens: Option<usize>,
    ) -> PyResult<Buffer> {
        let (rows, tokens) =
            py.detach(|| self.inner.positive_map(&text, &char_spans, max_tokens))?;
        Buffer::new(rows, &[char_spans.len(), tokens])
    }

    /// Decode ids to text.
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
        (rebuild, (slf.get().to_json()?,)).into_pyobject(slf.py())
    }
}

fn named(pad: Option<String>, mask: Option<String>) -> TokenOverrides {
    TokenOverrides { pad, mask }
}

impl Tokenizer {
    fn batch<'py>(
        &self,
        py: Python<'py>,
        texts: &[PyBackedStr],
        options: &BatchOptions,
    ) -> PyResult<Bound<'py, PyDict>> {
        let batch = py.detach(|| batch::encode(&self.inner, texts, options))?;
        let fields = PyDict::new(py);
        let shape = [texts.len(), batch.num_tokens];
        let set = |name, buffer: PyResult<Buffer>| fields.set_item(name, Bound::new(py, buffer?)?);
        set("token_ids", Buffer::new(batch.token_ids, &shape))?;
        set("text_mask", Buffer::new(batch.text_mask, &shape))?;
        if options.offsets {
            set(
                "offsets",
                Buffer::new(batch.offsets, &[shape[0], shape[1], 2]),
            )?;
        }
        if options.masking.is_some() {
            set("masked_ids", Buffer::new(batch.masked_ids, &shape))?;
            set("mlm_labels", Buffer::new(batch.mlm_labels, &shape))?;
        }
        Ok(fields)
    }
}
