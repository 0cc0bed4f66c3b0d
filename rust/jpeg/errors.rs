//! Errors about the contents of a file.

use crate::Error;

pub(super) fn broken(reason: impl std::fmt::Display) -> Error {
    Error::decode(format!("JPEG: {reason}"))
}

pub(super) fn unsupported(what: impl std::fmt::Display) -> Error {
    Error::unsupported(format!("JPEG: unsupported: {what}"))
}
