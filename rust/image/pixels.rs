//! Pixels of decoded images, with and without alpha.

/// An RGB image: `height * width * 3` bytes, top row first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rgb {
    /// Height in rows.
    pub height: usize,
    /// Width in columns.
    pub width: usize,
    /// Interleaved RGB bytes.
    pub pixels: Vec<u8>,
}

impl Rgb {
    pub(crate) fn new(height: usize, width: usize, pixels: Vec<u8>) -> Self {
        Self {
            height,
            width,
            pixels,
        }
    }
}

/// A borrowed RGB image: an [`Rgb`], or a Python array.
#[derive(Clone, Copy, Debug)]
pub struct RgbView<'a> {
    /// Height in rows.
    pub height: usize,
    /// Width in columns.
    pub width: usize,
    /// Interleaved RGB bytes, as in [`Rgb`].
    pub pixels: &'a [u8],
}

impl<'a> From<&'a Rgb> for RgbView<'a> {
    fn from(image: &'a Rgb) -> Self {
        Self {
            height: image.height,
            width: image.width,
            pixels: &image.pixels,
        }
    }
}

/// An RGBA image: `height * width * 4` bytes, top row first; colors are not premultiplied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rgba {
    /// Height in rows.
    pub height: usize,
    /// Width in columns.
    pub width: usize,
    /// Interleaved RGBA bytes.
    pub pixels: Vec<u8>,
}

impl Rgba {
    pub(crate) fn new(height: usize, width: usize, pixels: Vec<u8>) -> Self {
        Self {
            height,
            width,
            pixels,
        }
    }

    /// The colors, in the same memory.
    pub(crate) fn without_alpha(mut self) -> Rgb {
        let count = self.height * self.width;
        for pixel in 1..count {
            self.pixels.copy_within(4 * pixel..4 * pixel + 3, 3 * pixel);
        }
        self.pixels.truncate(3 * count);
        Rgb::new(self.height, self.width, self.pixels)
    }
}

/// Use of the alpha channel while decoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AlphaUse {
    /// Drop it; the colors below it show, as in Pillow's `convert("RGB")`.
    Drop,
    /// Composite over this background.
    Over([u8; 3]),
    /// Keep it unless every pixel is opaque.
    Keep,
}

/// A decoded image: RGBA if alpha was kept and a pixel is not opaque, else RGB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// Without alpha.
    Rgb(Rgb),
    /// With alpha.
    Rgba(Rgba),
}

impl Decoded {
    /// (height, width) in pixels, bytes per pixel, and the pixels.
    pub(crate) fn parts(&self) -> ((usize, usize), usize, &[u8]) {
        match self {
            Self::Rgb(image) => ((image.height, image.width), 3, &image.pixels),
            Self::Rgba(image) => ((image.height, image.width), 4, &image.pixels),
        }
    }

    /// The colors; alpha is dropped.
    pub(crate) fn into_rgb(self) -> Rgb {
        match self {
            Self::Rgb(image) => image,
            Self::Rgba(image) => image.without_alpha(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropping_alpha_keeps_every_color() {
        assert!(
            Rgba::new(0, 3, Vec::new())
                .without_alpha()
                .pixels
                .is_empty()
        );
        let image = Rgba::new(1, 3, vec![1, 2, 3, 0, 4, 5, 6, 9, 7, 8, 9, 255]);
        assert_eq!(
            image.clone().without_alpha(),
            Rgb::new(1, 3, (1..10).collect())
        );
        let decoded = Decoded::Rgba(image);
        assert_eq!(decoded.parts().1, 4);
        assert_eq!(decoded.into_rgb().pixels.len(), 9);
    }
}
