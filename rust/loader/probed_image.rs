//! An image before decoding: its encoded bytes and header information.

use crate::Error;
use crate::image::orientation;
use crate::image::{self, AlphaUse, Decoded, Format};
use crate::jpeg;
use crate::loader::config::LoaderConfig;
use crate::loader::record::{SharedBytes, StoredImage};

/// An encoded image and its size.
#[derive(Clone)]
pub struct ProbedImage {
    stored: StoredImage,
    bytes: SharedBytes,
    format: Format,
    /// EXIF orientation to apply first; 1 if there is none.
    orientation: u8,
    /// (height, width) in pixels after applying the orientation.
    pub size: (usize, usize),
}

impl ProbedImage {
    /// Read the bytes and the header of the image.
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
        config.limits.check_size(size.0, size.1)?;
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

    /// EXIF orientation to apply; 1 if there is none.
    pub(crate) fn orientation(&self) -> u8 {
        self.orientation
    }

    /// (height, width) in pixels before applying the orientation.
    pub(crate) fn stored_size(&self) -> (usize, usize) {
        if orientation::swaps_sides(self.orientation) {
            (self.size.1, self.size.0)
        } else {
            self.size
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        (*self.bytes).as_ref()
    }

    /// True if rows can be processed as they are decoded, without buffering the whole image.
    pub(crate) fn is_streamed(&self) -> bool {
        self.format == Format::Jpeg && self.orientation == 1
    }

    /// Decode the whole image and apply its orientation.
    pub(crate) fn decode(&self, config: &LoaderConfig) -> Result<(Decoded, jpeg::Status), Error> {
        self.check_copy(config, 3)?;
        let (image, status) = if self.format == Format::Jpeg {
            let request = jpeg::Request {
                scale: jpeg::Scale::Full,
                stop_row: None,
                limits: config.limits,
                output_bytes: 0,
            };
            let (image, status) = image::decode_jpeg(self.bytes(), &request)?;
            (Decoded::Rgb(image), status)
        } else {
            let alpha = match config.background {
                Some(background) => AlphaUse::Over(background),
                None if config.transform.keeps_alpha() => AlphaUse::Keep,
                None => AlphaUse::Drop,
            };
            let image = image::decode(self.bytes(), config.limits, alpha)?;
            (image, jpeg::Status::Whole)
        };
        if matches!(image, Decoded::Rgba(_)) {
            self.check_copy(config, 4)?;
        }
        let upright = orientation::apply_orientation(image, self.orientation)?;
        Ok((upright, status))
    }

    /// Check that the image as stored and its upright copy, if there is one, fit in the limits.
    fn check_copy(&self, config: &LoaderConfig, channels: usize) -> Result<(), Error> {
        if self.orientation == 1 {
            return Ok(());
        }
        let bytes = 2 * channels * self.size.0 * self.size.1;
        config.limits.check_bytes(self.size, bytes)
    }

    pub(crate) fn name_fault(&self, fault: Error) -> Error {
        self.stored.name_fault(fault)
    }
}
