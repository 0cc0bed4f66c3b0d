//! A picture before it is painted: its bytes and what its header says.

use crate::Error;
use crate::image::orientation;
use crate::image::{self, Format, Rgb};
use crate::jpeg;
use crate::loader::config::LoaderConfig;
use crate::loader::record::{SharedBytes, StoredImage};

/// A picture whose size is known and whose pixels are not decoded yet.
#[derive(Clone)]
pub struct ProbedImage {
    stored: StoredImage,
    bytes: SharedBytes,
    format: Format,
    /// How it is turned before anything else, as EXIF counts; 1 is not at all.
    orientation: u8,
    /// (height, width) in pixels, after it is turned.
    pub size: (usize, usize),
}

impl ProbedImage {
    /// Read the picture's bytes and their header.
    ///
    /// # Errors
    /// [`Error::File`] where a file cannot be read, [`Error::Decode`] for a broken header, and
    /// [`Error::TooManyPixels`] above the limit.
    pub fn new(stored: &StoredImage, config: &LoaderConfig) -> Result<Self, Error> {
        let bytes = stored.read()?;
        Self::of_bytes(stored, bytes, config).map_err(|fault| stored.name_fault(fault))
    }

    fn of_bytes(
        stored: &StoredImage,
        bytes: SharedBytes,
        config: &LoaderConfig,
    ) -> Result<Self, Error> {
        let content = (*bytes).as_ref();
        let (height, width, format) = image::probe(content)?;
        let mut size = (height, width);
        let orientation = if config.apply_orientation {
            image::orientation(content, format)
        } else {
            1
        };
        image::check_size(size.0, size.1, config.max_pixels)?;
        if orientation::swaps_sides(orientation) {
            size = (size.1, size.0);
        }
        Ok(Self {
            stored: stored.clone(),
            bytes,
            format,
            orientation,
            size,
        })
    }

    /// The file.
    pub(crate) fn bytes(&self) -> &[u8] {
        (*self.bytes).as_ref()
    }

    /// Whether its rows can be taken as they are decoded; all of the others are needed at once.
    pub(crate) fn is_streamed(&self) -> bool {
        self.format == Format::Jpeg && self.orientation == 1
    }

    /// All of its pixels, turned.
    ///
    /// # Errors
    /// [`Error::Decode`] for broken bytes.
    pub(crate) fn decode(&self, config: &LoaderConfig) -> Result<(Rgb, jpeg::Status), Error> {
        if self.format != Format::Jpeg {
            let picture = image::decode_over(self.bytes(), config.max_pixels, config.background)?;
            return Ok((
                orientation::turn(picture, self.orientation)?,
                jpeg::Status::Whole,
            ));
        }
        let request = jpeg::Request {
            scale: jpeg::Scale::Full,
            stop_row: None,
            max_pixels: config.max_pixels,
        };
        let (picture, status) = image::decode_jpeg(self.bytes(), &request)?;
        Ok((orientation::turn(picture, self.orientation)?, status))
    }

    /// Name the picture in an error.
    pub(crate) fn name_fault(&self, fault: Error) -> Error {
        self.stored.name_fault(fault)
    }
}
