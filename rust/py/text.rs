//! Conversion of Python strings, which unlike Rust's may hold surrogates.

use std::fmt::Display;

use pyo3::exceptions::{PyTypeError, PyUnicodeEncodeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::PyString;

use crate::try_alloc;

/// Convert the argument `what`; `ValueError` if it has a surrogate, which is half a character.
pub fn named_text(what: impl Display, found: &Bound<'_, PyAny>) -> PyResult<PyBackedStr> {
    let Ok(text) = found.cast::<PyString>() else {
        let message = format!("{what} is {}; expected str", type_name(found));
        return Err(PyTypeError::new_err(message));
    };
    PyBackedStr::try_from(text.clone()).map_err(|error| match surrogate(found, &error) {
        Some(reason) => PyValueError::new_err(format!("{what} {reason}")),
        None => error,
    })
}

/// Convert the `text` argument.
pub fn text_of(found: &Bound<'_, PyAny>) -> PyResult<PyBackedStr> {
    named_text("text", found)
}

/// Convert the `json` argument.
pub fn json_of(found: &Bound<'_, PyAny>) -> PyResult<PyBackedStr> {
    named_text("json", found)
}

/// Convert the `texts` argument.
pub fn texts_of(found: &Bound<'_, PyAny>) -> PyResult<Vec<PyBackedStr>> {
    let count = match found.len() {
        Ok(count) if !found.is_instance_of::<PyString>() => count,
        _ => 0,
    };
    let bytes = count.saturating_mul(size_of::<PyBackedStr>());
    try_alloc::check(bytes, || format!("{count} texts; pass fewer at once"))?;
    found.extract().map_err(|_| {
        let expected = "expected a sequence of str";
        let wrong = (0..count).find_map(|at| {
            let text = found.get_item(at).ok()?;
            if !text.is_instance_of::<PyString>() {
                let message = format!("texts[{at}] is not a str; {expected}");
                return Some(PyTypeError::new_err(message));
            }
            named_text(format_args!("texts[{at}]"), &text).err()
        });
        wrong.unwrap_or_else(|| {
            PyTypeError::new_err(format!("texts is {}; {expected}", type_name(found)))
        })
    })
}

fn type_name(found: &Bound<'_, PyAny>) -> String {
    let name = found.get_type().name();
    name.map_or_else(
        |_| "of unknown type".to_owned(),
        |name| format!("of type {name}"),
    )
}

/// What is wrong with a text that UTF-8 has no bytes for; None after another error.
fn surrogate(text: &Bound<'_, PyAny>, error: &PyErr) -> Option<String> {
    let py = text.py();
    if !error.is_instance_of::<PyUnicodeEncodeError>(py) {
        return None;
    }
    let at: usize = error.value(py).getattr("start").ok()?.extract().ok()?;
    let code: u32 = text
        .get_item(at)
        .and_then(|character| py.import("builtins")?.getattr("ord")?.call1((character,)))
        .and_then(|code| code.extract())
        .ok()?;
    Some(format!(
        "has a surrogate, U+{code:04X}, as character {at}; expected Unicode text"
    ))
}
