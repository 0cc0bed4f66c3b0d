//! Panics of other crates as errors.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::Error;

/// Do some work, and turn a panic in it, which only broken input can cause, into an error.
///
/// `error` gets what the panic said.
///
/// # Errors
/// Those of the work, and the one that `error` makes.
pub(crate) fn guard<T>(
    work: impl FnOnce() -> Result<T, Error>,
    error: impl FnOnce(&str) -> Error,
) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(error(text.unwrap_or("no reason given")))
    })
}
