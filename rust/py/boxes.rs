//! Bindings for text spans and boxes.

use pyo3::prelude::*;

use super::arrays::Buffer;
use crate::tokenizer::spans::{self, CharSpan};

/// Map each box to the tokens that name it: (boxes, tokens).
#[pyfunction]
#[pyo3(signature = (offsets, char_spans))]
pub fn positive_map(offsets: Vec<CharSpan>, char_spans: Vec<Vec<CharSpan>>) -> PyResult<Buffer> {
    let rows = char_spans.iter();
    let rows: Vec<bool> = rows
        .flat_map(|spans| spans::positive_row(&offsets, spans))
        .collect();
    Buffer::new(rows, &[char_spans.len(), offsets.len()])
}

/// Swap "left" and "right" in a text and shift spans accordingly.
#[pyfunction]
#[pyo3(signature = (text, char_spans = Vec::new()))]
pub fn mirror_words(text: &str, char_spans: Vec<CharSpan>) -> (String, Vec<CharSpan>) {
    let mirrored = spans::mirror_words(text);
    let moved = char_spans.iter().map(|&span| mirrored.move_span(span));
    let moved = moved.collect();
    (mirrored.text, moved)
}
