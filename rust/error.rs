//! What can go wrong, one variant for each cause.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

/// A fault in the caller's data or arguments.
#[derive(Debug)]
pub enum Error {
    /// A file could not be read or written.
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// Bytes that are no picture, or a broken one.
    Decode {
        /// The file, where there is one.
        path: Option<PathBuf>,
        /// What is wrong.
        reason: String,
    },
    /// A picture of a kind that nobody here can decode.
    Unsupported {
        /// The file, where there is one.
        path: Option<PathBuf>,
        /// What is not supported.
        reason: String,
    },
    /// A picture larger than the limit.
    TooManyPixels {
        /// Height in pixels.
        height: usize,
        /// Width in pixels.
        width: usize,
        /// The most pixels allowed.
        limit: usize,
    },
    /// A box of which nothing lies inside its picture.
    EmptyBox {
        /// Which box of the record.
        index: usize,
        /// The box as stored, xyxy in pixels.
        box_xyxy: [f64; 4],
        /// Height of the picture in pixels.
        height: usize,
        /// Width of the picture in pixels.
        width: usize,
    },
    /// A box that reaches too far outside its picture.
    BoxOutside {
        /// Which box of the record.
        index: usize,
        /// The box as stored, xyxy in pixels.
        box_xyxy: [f64; 4],
        /// How far its farthest edge is outside, in pixels.
        beyond: f64,
        /// Height of the picture in pixels.
        height: usize,
        /// Width of the picture in pixels.
        width: usize,
    },
    /// A tokenizer file that cannot be used, or a text that cannot be encoded.
    Tokenizer(String),
    /// A field that the task needs and the record lacks or holds wrongly.
    Field {
        /// Name of the field.
        field: &'static str,
        /// What was got and expected.
        reason: String,
    },
    /// An argument outside its range.
    Argument {
        /// Name of the argument.
        name: &'static str,
        /// What was got and expected.
        reason: String,
    },
    /// Memory that the system does not give.
    Memory {
        /// How much was asked for.
        bytes: usize,
        /// What for, and what would need less.
        what: String,
    },
    /// A fault of this library: a worker thread panicked over a record.
    Worker,
    /// A pass whose threads are gone.
    Closed {
        /// How they went, and what was expected.
        reason: &'static str,
    },
    /// Any of the above, in a record.
    InRecord {
        /// Key of the record.
        key: String,
        /// What is wrong with it.
        source: Box<Error>,
    },
}

impl Error {
    /// Say in which record the fault is.
    #[must_use]
    pub fn in_record(self, key: &str) -> Self {
        Self::InRecord {
            key: key.to_owned(),
            source: Box::new(self),
        }
    }

    /// What became of the picture, in a word: "missing", "corrupt", "unsupported", or "invalid" where
    /// the fault is in another field of the record.
    #[must_use]
    pub fn status(&self) -> &'static str {
        match self {
            Self::File { .. } => "missing",
            Self::Decode { .. } => "corrupt",
            Self::Unsupported { .. } | Self::TooManyPixels { .. } => "unsupported",
            Self::InRecord { source, .. } => source.status(),
            _ => "invalid",
        }
    }

    /// Whether there was too little memory, which is no fault of a record.
    #[must_use]
    pub fn is_memory(&self) -> bool {
        match self {
            Self::Memory { .. } => true,
            Self::InRecord { source, .. } => source.is_memory(),
            _ => false,
        }
    }

    /// Say in which file a decoding fault is.
    #[must_use]
    pub fn in_file(self, file: &std::path::Path) -> Self {
        match self {
            Self::Decode { path: None, reason } => Self::Decode {
                path: Some(file.to_owned()),
                reason,
            },
            Self::TooManyPixels { .. } | Self::Unsupported { path: None, .. } => {
                Self::Unsupported {
                    path: Some(file.to_owned()),
                    reason: self.to_string(),
                }
            }
            other => other,
        }
    }

    /// A kind of picture that is known and not decoded, without a file.
    pub(crate) fn unsupported(reason: impl Into<String>) -> Self {
        Self::Unsupported {
            path: None,
            reason: reason.into(),
        }
    }

    /// A decoding fault without a file.
    pub(crate) fn decode(reason: impl Into<String>) -> Self {
        Self::Decode {
            path: None,
            reason: reason.into(),
        }
    }

    /// An argument outside its range.
    pub(crate) fn argument(name: &'static str, reason: impl Into<String>) -> Self {
        Self::Argument {
            name,
            reason: reason.into(),
        }
    }

    /// A field that a record lacks or holds wrongly.
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
            } => {
                let why = if *limit == crate::try_alloc::MAX_PIXELS {
                    ", a fixed limit of the loader (fiber._core.decode_image takes max_pixels); \
                     store it smaller"
                } else {
                    " (max_pixels)"
                };
                write!(
                    f,
                    "picture of {height} x {width} pixels; expected at most {limit} pixels{why}"
                )
            }
            Self::EmptyBox {
                index,
                box_xyxy: [x0, y0, x1, y1],
                height,
                width,
            } => {
                write!(f, "box {index} is ({x0}, {y0}, {x1}, {y1}): ")?;
                if x0 < x1 && y0 < y1 {
                    write!(
                        f,
                        "nothing of it lies inside the picture of height {height} and width {width} \
                         pixels"
                    )
                } else {
                    f.write_str("expected numbers with x0 < x1 and y0 < y1")
                }
            }
            Self::BoxOutside {
                index,
                box_xyxy: [x0, y0, x1, y1],
                beyond,
                height,
                width,
            } => write!(
                f,
                "box {index} is ({x0}, {y0}, {x1}, {y1}): it reaches {beyond} pixels outside the \
                 picture of height {height} and width {width} pixels; expected at most {}",
                crate::boxes::SLACK_PIXELS
            ),
            Self::Field { field, reason } => write!(f, "{field}: {reason}"),
            Self::Argument { name, reason } => write!(f, "{name}: {reason}"),
            Self::Memory { bytes, what } => {
                write!(f, "out of memory: {bytes} bytes for {what}")
            }
            Self::Worker => f.write_str(
                "a worker thread panicked, which is a fault of fiber; please report the record",
            ),
            Self::Closed { reason } => f.write_str(reason),
            Self::InRecord { key, source } => write!(f, "record '{key}': {source}"),
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

/// Do some work, and turn a panic in it, which only broken input can cause, into an error.
///
/// `error` gets what the panic said.
///
/// # Errors
/// Those of the work, and the one that `error` makes.
pub(crate) fn catch_panic<T>(
    work: impl FnOnce() -> Result<T, Error>,
    error: impl FnOnce(&str) -> Error,
) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(error(text.unwrap_or("no reason given")))
    })
}
