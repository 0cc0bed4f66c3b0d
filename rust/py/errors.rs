//! Conversion of [`Error`] to Python exceptions.

use pyo3::exceptions::{
    PyFileNotFoundError, PyMemoryError, PyOSError, PyRuntimeError, PyValueError,
};
use pyo3::prelude::*;
use pyo3::types::PyType;

use crate::Error;

pyo3::create_exception!(
    fiber,
    DecodeError,
    PyValueError,
    "Raised if an image cannot be decoded; the message gives the file and the reason."
);

/// Create the exception class, with a default `status`.
pub(super) fn decode_error(py: Python<'_>) -> PyResult<Bound<'_, PyType>> {
    let class = py.get_type::<DecodeError>();
    class.setattr("status", "corrupt")?;
    Ok(class)
}

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match innermost(&error) {
            Error::File { path, source } => {
                // Keep the record's key, a prefix; Python itself adds the file name.
                let place = message
                    .strip_suffix(&format!("{}: {source}", path.display()))
                    .unwrap_or_default();
                let (number, reason) = describe(source);
                let arguments = (
                    number,
                    format!("{place}{reason}"),
                    path.as_os_str().to_owned(),
                );
                if source.kind() == std::io::ErrorKind::NotFound {
                    PyFileNotFoundError::new_err(arguments)
                } else {
                    PyOSError::new_err(arguments)
                }
            }
            Error::Decode { .. }
            | Error::Unsupported { .. }
            | Error::TooManyPixels { .. }
            | Error::TooManyBytes { .. } => {
                let refused = DecodeError::new_err(message);
                let with_status =
                    Python::attach(|py| refused.value(py).setattr("status", error.status()));
                with_status.map_or_else(|problem| problem, |()| refused)
            }
            Error::Memory { .. } => PyMemoryError::new_err(message),
            Error::Worker(_) | Error::Closed(_) => PyRuntimeError::new_err(message),
            _ => PyValueError::new_err(message),
        }
    }
}

fn innermost(error: &Error) -> &Error {
    match error {
        Error::InRecord { source, .. } => innermost(source),
        other => other,
    }
}

/// errno for an error that has none: EINVAL.
const INVALID: i32 = 22;

/// errno and message. Rust appends the errno to the message, but Python puts it in front.
fn describe(source: &std::io::Error) -> (i32, String) {
    let number = source.raw_os_error();
    let words = source.to_string();
    let words = number.map_or(words.as_str(), |number| {
        words
            .strip_suffix(&format!(" (os error {number})"))
            .unwrap_or(&words)
    });
    (number.unwrap_or(INVALID), words.to_owned())
}
