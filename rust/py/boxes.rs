//! Bindings for text spans and boxes.

use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;

use super::arrays::Buffer;
use super::text::text_of;
use crate::tokenizer::spans::{self, CharSpan};
use crate::try_alloc;

/// Map each box to the tokens that name it: (boxes, tokens).
#[pyfunction]
#[pyo3(signature = (offsets, char_spans))]
pub fn positive_map(offsets: Vec<CharSpan>, char_spans: Vec<Vec<CharSpan>>) -> PyResult<Buffer> {
    let mut rows = Vec::new();
    try_alloc::reserve_rows(&mut rows, char_spans.len(), offsets.len())?;
    for spans in &char_spans {
        rows.extend(spans::positive_row(&offsets, spans));
    }
    Buffer::new(rows, &[char_spans.len(), offsets.len()])
}

/// Swap "left" and "right" in a text and shift spans accordingly.
#[pyfunction]
#[pyo3(signature = (text, char_spans = Vec::new()))]
pub fn mirror_words(
    #[pyo3(from_py_with = text_of)] text: PyBackedStr,
    char_spans: Vec<CharSpan>,
) -> (String, Vec<CharSpan>) {
    let mirrored = spans::mirror_words(&text);
    let moved = char_spans.iter().map(|&span| mirrored.move_span(span));
    let moved = moved.collect();
    (mirrored.text, moved)
}
