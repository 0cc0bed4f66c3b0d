//! Records as they are handed in.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::Error;
use crate::boxes::BoxXyxy;
use crate::image::{self, Rgb};
use crate::tokenizer::spans::CharSpan;

/// Bytes that anybody may own, such as an interpreter or a mapped file.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A picture as it is stored.
#[derive(Clone)]
pub enum StoredImage {
    /// A file.
    Path(PathBuf),
    /// The bytes of one.
    Bytes(SharedBytes),
}

impl fmt::Debug for StoredImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "Path({})", path.display()),
            Self::Bytes(bytes) => write!(f, "Bytes({})", (**bytes).as_ref().len()),
        }
    }
}

/// What a batch is for, and so which fields it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Pictures with captions.
    ImageText,
    /// Pictures with questions.
    Question,
    /// Pairs of pictures with a statement.
    Reasoning,
    /// Pictures with a text and boxes.
    Grounding,
}

impl Task {
    /// Find a task by name.
    ///
    /// # Errors
    /// [`Error::Argument`] for another name.
    pub fn from_name(name: &str) -> Result<Self, Error> {
        match name {
            "image_text" => Ok(Self::ImageText),
            "question" => Ok(Self::Question),
            "reasoning" => Ok(Self::Reasoning),
            "grounding" => Ok(Self::Grounding),
            _ => Err(Error::argument(
                "batch_type",
                format!(
                    "'{name}' does not exist; expected 'image_text', 'question', 'reasoning' or \
                     'grounding'"
                ),
            )),
        }
    }

    /// Pictures of a record.
    #[must_use]
    pub fn images(self) -> usize {
        if self == Self::Reasoning { 2 } else { 1 }
    }
}

/// One record, with what its random draws depend on.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Name in messages.
    pub key: String,
    /// Epoch in which it is read.
    pub epoch: u64,
    /// Its place in the data set.
    pub index: u64,
    /// One picture, or two.
    pub images: Vec<StoredImage>,
    /// Caption, question, statement or prompt.
    pub text: String,
    /// (height, width) of the first picture as the annotations have it, where they do.
    pub image_size: Option<(usize, usize)>,
    /// Equal names mean the same picture.
    pub image_id: String,
    /// Boxes in pixels of the stored picture.
    pub boxes_xyxy: Vec<BoxXyxy>,
    /// For each box, the spans of the text that name it.
    pub char_spans: Vec<Vec<CharSpan>>,
    /// (answer, soft score) where answers are known.
    pub answers: Option<Vec<(usize, f32)>>,
    /// Whether the statement is true.
    pub truth: Option<bool>,
}

impl StoredImage {
    /// Its bytes.
    ///
    /// # Errors
    /// [`Error::File`] where they cannot be read.
    pub fn read(&self) -> Result<SharedBytes, Error> {
        match self {
            Self::Bytes(bytes) => Ok(Arc::clone(bytes)),
            Self::Path(path) => Ok(Arc::new(read_file(path)?)),
        }
    }

    /// Say in which file a fault of its bytes is.
    #[must_use]
    pub fn name_fault(&self, fault: Error) -> Error {
        match self {
            Self::Bytes(_) => fault,
            Self::Path(path) => fault.in_file(path),
        }
    }
}

impl Record {
    /// Refuse a picture of another size than annotated, whose boxes would be moved wrongly.
    ///
    /// # Errors
    /// [`Error::Field`] with both sizes.
    pub fn check_size(&self, stored: (usize, usize)) -> Result<(), Error> {
        match self.image_size {
            Some(annotated) if annotated != stored => Err(Error::field(
                "image_size",
                format!(
                    "the annotations say {} x {} pixels (height x width), the picture has {} x {}",
                    annotated.0, annotated.1, stored.0, stored.1
                ),
            )),
            _ => Ok(()),
        }
    }

    /// A number for the picture's name.
    ///
    /// FNV-1a, without the sign bit: the same name gives the same number in every process.
    #[must_use]
    pub fn image_number(&self) -> i64 {
        let hash = self
            .image_id
            .bytes()
            .fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
            });
        (hash >> 1).cast_signed()
    }
}

/// Read and decode a file, over a colour as [`image::decode_over`].
///
/// # Errors
/// [`Error::File`] where it cannot be read, [`Error::Decode`] where it is broken, both with its path.
pub fn read_image(
    path: &Path,
    max_pixels: usize,
    background: Option<[u8; 3]>,
) -> Result<Rgb, Error> {
    image::decode_over(&read_file(path)?, max_pixels, background)
        .map_err(|error| error.in_file(path))
}

fn read_file(path: &Path) -> Result<Vec<u8>, Error> {
    let read = || {
        // A pipe that nobody writes to would be waited for, a device might never end.
        let kind = std::fs::metadata(path)?.file_type();
        if !kind.is_file() && !kind.is_dir() {
            return Err(std::io::Error::other("it is no regular file"));
        }
        std::fs::read(path)
    };
    read().map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(image_id: &str) -> i64 {
        let record = Record {
            image_id: image_id.to_owned(),
            ..Record::default()
        };
        record.image_number()
    }

    #[test]
    fn the_same_name_has_the_same_number() {
        assert_eq!(number("a"), number("a"));
        assert_ne!(number("a"), number("b"));
        assert!(number("a") >= 0 && number("") >= 0);
    }

    #[test]
    fn a_missing_file_is_named() {
        let stored = StoredImage::Path("no/such.png".into());
        let message = stored.read().err().unwrap().to_string();
        assert!(message.starts_with("no/such.png: "), "{message}");
    }
}
