//! The error type of the crate, one variant per cause.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fmt::{self, Write};
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Once;

/// An error in the caller's data or arguments.
#[derive(Debug)]
pub enum Error {
    /// Failed to read or write a file.
    File {
        /// Path of the file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// Data that is not an image, or a corrupt image.
    Decode {
        /// Path of the file, if known.
        path: Option<PathBuf>,
        /// Description of the problem.
        reason: String,
    },
    /// An image of a known but unsupported type.
    Unsupported {
        /// Path of the file, if known.
        path: Option<PathBuf>,
        /// What is not supported.
        reason: String,
    },
    /// An image that exceeds the pixel limit.
    TooManyPixels {
        /// Height in pixels.
        height: usize,
        /// Width in pixels.
        width: usize,
        /// Maximum number of pixels.
        limit: usize,
    },
    /// An image whose decoding exceeds the memory limit.
    TooManyBytes {
        /// Height in pixels.
        height: usize,
        /// Width in pixels.
        width: usize,
        /// Memory that decoding takes, in bytes.
        bytes: usize,
        /// Maximum number of bytes.
        limit: usize,
    },
    /// A box with no area inside its image, or that extends too far outside.
    InvalidBox {
        /// Index of the box in the record.
        index: usize,
        /// The box, and what was expected.
        reason: String,
    },
    /// An unusable tokenizer file, or a text that cannot be encoded.
    Tokenizer(String),
    /// A record field that is missing or has an invalid value.
    Field {
        /// Name of the field.
        field: &'static str,
        /// The value, and what was expected.
        reason: String,
    },
    /// An argument that is invalid or out of range.
    Argument {
        /// Name of the argument.
        name: &'static str,
        /// The value, and what was expected.
        reason: String,
    },
    /// A failed allocation.
    Memory {
        /// Requested size in bytes.
        bytes: usize,
        /// What the memory was for, and how to reduce it.
        what: String,
    },
    /// A bug: what a worker thread did wrong.
    Worker(String),
    /// A session whose threads no longer exist.
    Closed(&'static str),
    /// An error in a record, with the record's key.
    InRecord {
        /// Key of the record.
        key: String,
        /// The underlying error.
        source: Box<Error>,
    },
}

impl Error {
    /// Add the record's key to the error.
    pub(crate) fn in_record(self, key: &str) -> Self {
        Self::InRecord {
            key: key.to_owned(),
            source: Box::new(self),
        }
    }

    /// Status of the sample: "missing", "corrupt" or "unsupported" for the image, or "invalid" for
    /// any other error.
    pub(crate) fn status(&self) -> &'static str {
        match self {
            Self::File { .. } => "missing",
            Self::Decode { .. } => "corrupt",
            Self::Unsupported { .. } | Self::TooManyPixels { .. } | Self::TooManyBytes { .. } => {
                "unsupported"
            }
            Self::InRecord { source, .. } => source.status(),
            _ => "invalid",
        }
    }

    /// True if an allocation failed, which is not the record's fault.
    pub(crate) fn is_memory(&self) -> bool {
        match self {
            Self::Memory { .. } => true,
            Self::InRecord { source, .. } => source.is_memory(),
            _ => false,
        }
    }

    /// Add the file's path to a decode error.
    pub(crate) fn in_file(self, file: &Path) -> Self {
        match self {
            Self::Decode { path: None, reason } => Self::Decode {
                path: Some(file.to_owned()),
                reason,
            },
            Self::TooManyPixels { .. }
            | Self::TooManyBytes { .. }
            | Self::Unsupported { path: None, .. } => Self::Unsupported {
                path: Some(file.to_owned()),
                reason: self.to_string(),
            },
            other => other,
        }
    }

    pub(crate) fn file(path: &Path, source: std::io::Error) -> Self {
        let path = path.to_owned();
        Self::File { path, source }
    }

    /// An unsupported image, without a path.
    pub(crate) fn unsupported(reason: impl Into<String>) -> Self {
        Self::Unsupported {
            path: None,
            reason: reason.into(),
        }
    }

    /// A decode error, without a path.
    pub(crate) fn decode(reason: impl Into<String>) -> Self {
        Self::Decode {
            path: None,
            reason: reason.into(),
        }
    }

    pub(crate) fn argument(name: &'static str, reason: impl Into<String>) -> Self {
        Self::Argument {
            name,
            reason: reason.into(),
        }
    }

    pub(crate) fn field(field: &'static str, reason: impl Into<String>) -> Self {
        Self::Field {
            field,
            reason: reason.into(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, source } => write!(f, "{}: {source}", path.display()),
            Self::Decode {
                path: Some(path),
                reason,
            }
            | Self::Unsupported {
                path: Some(path),
                reason,
            } => write!(f, "{}: {reason}", path.display()),
            Self::Decode { path: None, reason }
            | Self::Unsupported { path: None, reason }
            | Self::Tokenizer(reason) => f.write_str(reason),
            Self::TooManyPixels {
                height,
                width,
                limit,
            } => write!(
                f,
                "image has {height} x {width} pixels; expected at most {limit} (max_pixels)"
            ),
            Self::TooManyBytes {
                height,
                width,
                bytes,
                limit,
            } => write!(
                f,
                "image has {height} x {width} pixels, and decoding it takes {bytes} bytes; \
                 expected at most {limit} (max_decode_bytes)"
            ),
            Self::InvalidBox { index, reason } => write!(f, "box {index} is {reason}"),
            Self::Field { field, reason } => write!(f, "{field}: {reason}"),
            Self::Argument { name, reason } => write!(f, "{name}: {reason}"),
            Self::Memory { bytes, what } => {
                write!(f, "out of memory: {bytes} bytes for {what}")
            }
            Self::Worker(what) => write!(
                f,
                "a worker thread failed: {what}. This is a bug in fiber; please report it and \
                 include the record"
            ),
            Self::Closed(reason) => f.write_str(reason),
            Self::InRecord { key, source } => write!(f, "record '{}': {source}", shown(key)),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::File { source, .. } => Some(source),
            Self::InRecord { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Implement `from_name` and `name` for an enum; `$argument` is its name in errors.
macro_rules! named {
    ($kind:ident, $argument:literal, [$($variant:ident = $name:literal),+ $(,)?]) => {
        impl $kind {
            /// All variants with their names.
            pub(crate) const NAMES: &[(Self, &str)] = &[$((Self::$variant, $name)),+];

            /// Look up a variant by name.
            ///
            /// # Errors
            /// [`crate::Error::Argument`] if the name is unknown.
            pub fn from_name(name: &str) -> Result<Self, crate::Error> {
                crate::error::by_name($argument, name, Self::NAMES)
            }

            /// Name of the variant.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name),+
                }
            }
        }
    };
}
pub(crate) use named;

/// Look up a value by name; the error lists all valid names.
pub(crate) fn by_name<T: Copy>(
    argument: &'static str,
    name: &str,
    known: &[(T, &str)],
) -> Result<T, Error> {
    let found = known.iter().find(|&&(_, known)| known == name);
    found.map(|&(value, _)| value).ok_or_else(|| {
        let mut names: Vec<String> = known.iter().map(|(_, name)| format!("'{name}'")).collect();
        let last = names.pop().unwrap_or_default();
        let reason = format!("'{name}'; expected {} or {last}", names.join(", "));
        Error::argument(argument, reason)
    })
}

/// Reject a probability outside [0, 1].
pub(crate) fn check_probability(name: &'static str, probability: f64) -> Result<(), Error> {
    if (0.0..=1.0).contains(&probability) {
        return Ok(());
    }
    let reason = format!("{probability}; expected 0 to 1");
    Err(Error::argument(name, reason))
}

/// Maximum length in characters of a text from a file that an error shows.
const MOST_SHOWN: usize = 300;

/// A text from a file for an error: without characters that control a terminal or the direction of
/// a line, and of bounded length.
pub(crate) fn shown(text: &str) -> String {
    let mut shown = String::new();
    let mut characters = text.chars();
    for character in characters.by_ref().take(MOST_SHOWN) {
        if character.is_control()
            || matches!(
                character,
                '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
            )
        {
            shown.extend(character.escape_unicode());
        } else {
            shown.push(character);
        }
    }
    if characters.next().is_some() {
        // Writing to a string cannot fail.
        let _ = write!(shown, "... ({} bytes)", text.len());
    }
    shown
}

thread_local! {
    /// Calls of [`caught`] that this thread is in.
    static CATCHING: Cell<usize> = const { Cell::new(0) };
    /// Where the last panic of such a call was.
    static PLACE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Run `work`; return the message and place of a panic, which is not printed.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    report_only_uncaught();
    CATCHING.set(CATCHING.get() + 1);
    let done = catch_unwind(AssertUnwindSafe(work));
    CATCHING.set(CATCHING.get() - 1);
    done.map_err(|panic| format!("{}{}", shown(message_of(&*panic)), PLACE.take()))
}

/// Run `work`; convert a panic, which only corrupt input or a bug can cause, with `error`.
pub(crate) fn catch_panic<T>(
    work: impl FnOnce() -> Result<T, Error>,
    error: impl FnOnce(&str) -> Error,
) -> Result<T, Error> {
    caught(work).unwrap_or_else(|why| Err(error(&why)))
}

fn message_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("no message")
}

/// Have the hook of panics note the place instead of printing, on threads that catch them.
fn report_only_uncaught() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if CATCHING.get() == 0 {
                report(panic);
            } else {
                PLACE.set(panic.location().map(place_of).unwrap_or_default());
            }
        }));
    });
}

/// File and line, in parentheses; of a crate from a registry, without the registry's folder.
fn place_of(location: &Location<'_>) -> String {
    let file = location.file();
    let file = match file.split_once("/registry/src/") {
        Some((_, registry)) => registry.split_once('/').map_or(registry, |(_, file)| file),
        None => file,
    };
    format!(" ({file}:{})", location.line())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caught(text: &'static str) -> String {
        let panics = || -> Result<(), Error> { panic!("{text}") };
        let error = catch_panic(panics, |why| Error::Worker(why.to_owned()));
        error.unwrap_err().to_string()
    }

    #[test]
    fn caught_panics_are_named_and_not_printed() {
        assert!(caught("an index").contains("failed: an index (rust/error.rs:"));
        assert_eq!((CATCHING.get(), PLACE.take()), (0, String::new()));
        let nested = catch_panic(|| Ok(caught("inside")), |why| Error::Worker(why.to_owned()));
        assert!(nested.unwrap().contains("inside"));
    }

    #[test]
    fn texts_are_shown_without_control_characters_and_bounded() {
        assert_eq!(shown(""), "");
        for text in ["na\u{ef}ve 'x'", "\u{2018}a\u{2014}b\u{2019}"] {
            assert_eq!(shown(text), text);
        }
        assert_eq!(shown("\u{1b}]0;\n\u{202e}"), "\\u{1b}]0;\\u{a}\\u{202e}");
        let long = shown(&"\u{e9}".repeat(1 << 20));
        assert_eq!(
            long,
            format!("{}... ({} bytes)", "\u{e9}".repeat(300), 2 << 20)
        );
    }
}
