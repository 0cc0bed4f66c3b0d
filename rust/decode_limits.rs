//! Limits on the size of images and on the memory that decoding one takes.

use crate::Error;

/// Default pixel limit for an image: twice the number at which Pillow warns.
pub const MAX_PIXELS: usize = 178_956_970;

/// Limits of decoding one image.
#[derive(Clone, Copy, Debug)]
pub struct DecodeLimits {
    /// Maximum number of pixels in the file, whatever the output size.
    pub max_pixels: usize,
    /// Maximum number of bytes of pixels and coefficients that exist at a time while decoding. The
    /// file itself does not count.
    pub max_decode_bytes: usize,
}

impl Default for DecodeLimits {
    fn default() -> Self {
        Self::of_pixels(MAX_PIXELS)
    }
}

impl DecodeLimits {
    /// Limit the number of pixels only.
    #[must_use]
    pub fn of_pixels(max_pixels: usize) -> Self {
        Self {
            max_pixels,
            max_decode_bytes: usize::MAX,
        }
    }

    /// Reject an image that is empty or has too many pixels.
    pub(crate) fn check_size(&self, height: usize, width: usize) -> Result<(), Error> {
        if height == 0 || width == 0 {
            let reason = format!("image has {height} x {width} pixels; expected at least 1");
            return Err(Error::decode(reason));
        }
        if height.saturating_mul(width) > self.max_pixels {
            return Err(Error::TooManyPixels {
                height,
                width,
                limit: self.max_pixels,
            });
        }
        Ok(())
    }

    /// Reject an image whose decoding takes too much memory.
    pub(crate) fn check_bytes(
        &self,
        (height, width): (usize, usize),
        bytes: usize,
    ) -> Result<(), Error> {
        if bytes > self.max_decode_bytes {
            return Err(Error::TooManyBytes {
                height,
                width,
                bytes,
                limit: self.max_decode_bytes,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_inclusive() {
        let limits = DecodeLimits {
            max_pixels: 6,
            max_decode_bytes: 18,
        };
        assert!(limits.check_size(0, 3).is_err());
        assert!(limits.check_size(2, 3).is_ok());
        let error = limits.check_size(7, 1).unwrap_err().to_string();
        assert!(
            error.contains("7 x 1 pixels") && error.contains("6 (max_pixels)"),
            "{error}"
        );
        assert!(limits.check_size(usize::MAX, 2).is_err());
        assert!(limits.check_bytes((2, 3), 18).is_ok());
        let error = limits.check_bytes((2, 3), 19).unwrap_err().to_string();
        assert!(
            error.contains("19 bytes") && error.contains("18 (max_decode_bytes)"),
            "{error}"
        );
    }
}
