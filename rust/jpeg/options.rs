//! Options of decoding, and what is known of a file before and after it.

use crate::decode_limits::DecodeLimits;

/// Output size as a fraction of the stored size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scale {
    /// Full size.
    #[default]
    Full,
    /// Half the height and width, rounded up.
    Half,
    /// A quarter of the height and width, rounded up.
    Quarter,
    /// An eighth of the height and width, rounded up.
    Eighth,
}

impl Scale {
    /// Divisor of height and width.
    #[must_use]
    pub fn divisor(self) -> usize {
        match self {
            Self::Full => 1,
            Self::Half => 2,
            Self::Quarter => 4,
            Self::Eighth => 8,
        }
    }

    /// Scaled size in pixels.
    #[must_use]
    pub fn apply(self, size: usize) -> usize {
        size.div_ceil(self.divisor())
    }
}

/// Header of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Height in rows.
    pub height: usize,
    /// Width in columns.
    pub width: usize,
    /// EXIF orientation, 1 (upright) to 8; 1 if missing.
    pub orientation: u8,
    /// True if the image is progressive.
    pub is_progressive: bool,
    /// Number of components: 1 for gray, 3 for color, 4 for CMYK.
    pub components: usize,
}

/// Completeness of a decoded image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// All pixels come from the file.
    Whole,
    /// Some pixels were filled as in libjpeg-turbo, for the given reason.
    Filled(String),
}

/// Decoding options.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Output size.
    pub scale: Scale,
    /// First output row that is not needed; decoding stops there.
    pub stop_row: Option<usize>,
    /// Limits on the size in the file and on memory.
    pub limits: DecodeLimits,
    /// Bytes that the caller allocates for the output, counted in the limit.
    pub output_bytes: usize,
}
