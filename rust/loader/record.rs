//! Input records.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::Error;
use crate::boxes::BoxXyxy;
use crate::decode_limits::DecodeLimits;
use crate::error::named;
use crate::image::{self, AlphaUse, Decoded};
use crate::masks::id_map::MapIds;
use crate::masks::stored_mask::StoredMask;
use crate::tokenizer::spans::CharSpan;

/// Bytes with any owner, such as Python or a memory-mapped file.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A stored image.
#[derive(Clone)]
pub enum StoredImage {
    /// Path of a file.
    Path(PathBuf),
    /// Contents of a file.
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

/// Task of a batch; determines its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Images with captions.
    ImageText,
    /// Images with questions.
    Question,
    /// Pairs of images with a statement.
    Reasoning,
    /// Images with a text and boxes.
    Grounding,
    /// Images with a text, boxes and their masks.
    GroundingMasks,
    /// Images with masks and phrases.
    Segmentation,
}

named!(
    Task,
    "batch_type",
    [
        ImageText = "image_text",
        Question = "question",
        Reasoning = "reasoning",
        Grounding = "grounding",
        GroundingMasks = "grounding_masks",
        Segmentation = "segmentation"
    ]
);

impl Task {
    /// Number of images per record.
    pub(crate) fn images(self) -> usize {
        if self == Self::Reasoning { 2 } else { 1 }
    }

    /// Whether the batch has boxes for spans of a text.
    pub(crate) fn has_boxes(self) -> bool {
        matches!(self, Self::Grounding | Self::GroundingMasks)
    }

    /// Whether the batch has masks.
    pub(crate) fn has_masks(self) -> bool {
        matches!(self, Self::GroundingMasks | Self::Segmentation)
    }
}

/// Masks of a record.
#[derive(Clone, Debug)]
pub enum Masks {
    /// Each on its own.
    Each(Arc<[StoredMask]>),
    /// In one image.
    Map {
        /// A PNG.
        image: StoredImage,
        /// Id of each mask.
        ids: Arc<MapIds>,
    },
}

impl Default for Masks {
    fn default() -> Self {
        Self::Each(Arc::from([]))
    }
}

impl Masks {
    /// Number of masks.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Each(masks) => masks.len(),
            Self::Map { ids, .. } => ids.ids.len(),
        }
    }
}

/// A record, with the epoch and index that determine its random numbers.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Name of the record in errors.
    pub key: String,
    /// Epoch.
    pub epoch: u64,
    /// Index in the dataset.
    pub index: u64,
    /// One or two images.
    pub images: Vec<StoredImage>,
    /// Caption, question, statement or prompt.
    pub text: String,
    /// Annotated (height, width) of the first image, if known.
    pub image_size: Option<(usize, usize)>,
    /// Image name; records with the same name share the image.
    pub image_id: String,
    /// Boxes in pixels of the stored image.
    pub boxes_xyxy: Vec<BoxXyxy>,
    /// For each box, the text spans that name it.
    pub char_spans: Vec<Vec<CharSpan>>,
    /// (answer index, soft score), if known.
    pub answers: Option<Vec<(usize, f32)>>,
    /// Whether the statement is true, if known.
    pub truth: Option<bool>,
    /// Masks of the first image, as stored.
    pub masks: Masks,
    /// Class of each mask.
    pub mask_labels: Vec<i64>,
    /// For each mask, whether it is of a crowd; none if no mask is.
    pub mask_crowd: Vec<bool>,
    /// Texts that name masks.
    pub phrases: Vec<String>,
    /// For each phrase, its masks.
    pub phrase_masks: Vec<Vec<usize>>,
    /// For each box, its mask, or -1; none if no box has one.
    pub box_masks: Vec<i64>,
}

impl StoredImage {
    /// Read the encoded bytes.
    pub(crate) fn read(&self) -> Result<SharedBytes, Error> {
        match self {
            Self::Bytes(bytes) => Ok(Arc::clone(bytes)),
            Self::Path(path) => Ok(Arc::new(read_file(path)?)),
        }
    }

    /// Add the file's path to an error.
    pub(crate) fn name_fault(&self, fault: Error) -> Error {
        match self {
            Self::Bytes(_) => fault,
            Self::Path(path) => fault.in_file(path),
        }
    }
}

impl Record {
    /// Check that the stored size matches the annotated size; otherwise the boxes would be wrong.
    pub(crate) fn check_size(&self, stored: (usize, usize)) -> Result<(), Error> {
        match self.image_size {
            Some(annotated) if annotated != stored => Err(Error::field(
                "image_size",
                format!(
                    "annotated as {} x {} pixels (height x width), but the image has {} x {}",
                    annotated.0, annotated.1, stored.0, stored.1
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Hash of the image name.
    ///
    /// FNV-1a without the sign bit, which is stable across processes.
    pub(crate) fn image_number(&self) -> i64 {
        let mut hash = 0xCBF2_9CE4_8422_2325_u64;
        for byte in self.image_id.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
        }
        (hash >> 1).cast_signed()
    }
}

/// Read and decode an image file; see [`image::decode`].
pub(crate) fn read_image(
    path: &Path,
    limits: DecodeLimits,
    alpha: AlphaUse,
) -> Result<Decoded, Error> {
    image::decode(&read_file(path)?, limits, alpha).map_err(|error| error.in_file(path))
}

fn read_file(path: &Path) -> Result<Vec<u8>, Error> {
    let read = || {
        // Reading a pipe without a writer would block, and reading a device might never end.
        let kind = std::fs::metadata(path)?.file_type();
        if !kind.is_file() && !kind.is_dir() {
            return Err(std::io::Error::other("not a regular file"));
        }
        std::fs::read(path)
    };
    read().map_err(|source| Error::file(path, source))
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
