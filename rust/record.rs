//! Records as they are handed in, and how one becomes a sample of a batch.

use std::path::PathBuf;
use std::sync::Arc;

use crate::Error;
use crate::augment::Transform;
use crate::boxes::BoxXyxy;
use crate::image::{self, Rgb};
use crate::random::{Draws, Purpose};
use crate::spans::{self, CharSpan, Mirrored};
use crate::tokenizer::{Encoded, Tokenizer};

/// A picture as it is stored.
#[derive(Clone, Debug)]
pub enum StoredImage {
    /// A file.
    Path(PathBuf),
    /// The bytes of one.
    Bytes(Vec<u8>),
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
    pub fn pictures(self) -> usize {
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

/// Everything that turns records into samples.
#[derive(Clone)]
pub struct Settings {
    /// What the batches are for.
    pub task: Task,
    /// For the text.
    pub tokenizer: Arc<Tokenizer>,
    /// For the pictures and boxes.
    pub transform: Transform,
    /// Longest text in tokens, `<s>` and `</s>` included.
    pub max_tokens: usize,
    /// Start of every random draw.
    pub seed: u64,
    /// Part of the tokens that is picked for masking.
    pub mlm_probability: f64,
    /// For each answer, the one that is right in the mirrored picture.
    pub mirrored_answers: Vec<usize>,
    /// Leave bad samples out instead of stopping.
    pub skip_errors: bool,
    /// Largest picture.
    pub max_pixels: usize,
}

/// A record, ready to be put into a batch.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// Name of the record.
    pub key: String,
    /// Resized pictures, not yet normalised.
    pub images: Vec<Rgb>,
    /// (height, width) of the first stored picture.
    pub original_size: (usize, usize),
    /// Ids of the text.
    pub token_ids: Vec<u32>,
    /// Ids with some masked.
    pub masked_ids: Vec<u32>,
    /// The original id where one was picked for masking.
    pub mlm_labels: Vec<Option<u32>>,
    /// Hash of the picture's name.
    pub image_id: i64,
    /// (answer, soft score).
    pub answers: Vec<(usize, f32)>,
    /// Whether the statement is true.
    pub truth: bool,
    /// Boxes in pixels of the resized picture.
    pub boxes_xyxy: Vec<BoxXyxy>,
    /// For each box, which tokens name it.
    pub positive_map: Vec<Vec<bool>>,
    /// Boxes left out because no token of the text names them.
    pub truncated_boxes: usize,
    /// Boxes left out because the crop left too little of them.
    pub cropped_boxes: usize,
}

impl Settings {
    /// Read, decode, transform, tokenise and mask one record.
    ///
    /// # Errors
    /// [`Error::InRecord`] with what is wrong.
    pub fn prepare(&self, record: &Record) -> Result<Sample, Error> {
        self.prepare_unnamed(record)
            .map_err(|error| error.in_record(&record.key))
    }

    fn prepare_unnamed(&self, record: &Record) -> Result<Sample, Error> {
        self.check(record)?;
        let mut sample = Sample {
            key: record.key.clone(),
            image_id: hash(&record.image_id),
            truth: record.truth.unwrap_or(false),
            ..Sample::default()
        };
        let mut flipped = false;
        for (number, stored) in (0_u8..).zip(&record.images) {
            let image = self.read(stored)?;
            let size = (image.height, image.width);
            let mut draws = self.draws(record, Purpose::Picture(number));
            let plan = self.transform.plan(size.0, size.1, &mut draws);
            sample.images.push(plan.apply(&image)?);
            if number == 0 {
                sample.original_size = size;
                flipped = plan.flip;
                if self.task == Task::Grounding {
                    sample.boxes_xyxy = Vec::new();
                    let moved = plan.move_boxes(&record.boxes_xyxy, size.0, size.1)?;
                    self.ground(record, flipped, &moved, &mut sample)?;
                }
            }
        }
        match self.task {
            Task::Grounding => {}
            // "left" means the left picture of the two.
            Task::Reasoning => sample.token_ids = self.encode(&record.text)?.ids,
            Task::ImageText | Task::Question => {
                let text = mirror_if(flipped, &record.text);
                sample.token_ids = self.encode(&text.text)?.ids;
            }
        }
        if self.task == Task::ImageText {
            self.mask(record, &mut sample);
        }
        if let Some(answers) = &record.answers {
            sample.answers = answers
                .iter()
                .map(|&(answer, score)| (self.answer(answer, flipped), score))
                .collect();
        }
        Ok(sample)
    }

    fn check(&self, record: &Record) -> Result<(), Error> {
        let pictures = self.task.pictures();
        if record.images.len() != pictures {
            return Err(Error::field(
                "images",
                format!(
                    "{} pictures; expected {pictures} in this task",
                    record.images.len()
                ),
            ));
        }
        match self.task {
            Task::Question if record.answers.is_none() && !self.mirrored_answers.is_empty() => Err(
                Error::field("answers", "missing; expected answers with their scores"),
            ),
            Task::Reasoning if record.truth.is_none() => {
                Err(Error::field("truth", "missing; expected True or False"))
            }
            Task::Grounding if record.char_spans.len() != record.boxes_xyxy.len() => {
                Err(Error::field(
                    "char_spans",
                    format!(
                        "{} entries for {} boxes; expected one for each box",
                        record.char_spans.len(),
                        record.boxes_xyxy.len()
                    ),
                ))
            }
            _ => Ok(()),
        }
    }

    fn draws(&self, record: &Record, purpose: Purpose) -> Draws {
        Draws::new(self.seed, record.epoch, record.index, purpose)
    }

    fn read(&self, stored: &StoredImage) -> Result<Rgb, Error> {
        match stored {
            StoredImage::Bytes(bytes) => image::decode(bytes, self.max_pixels),
            StoredImage::Path(path) => read_image(path, self.max_pixels),
        }
    }

    fn encode(&self, text: &str) -> Result<Encoded, Error> {
        self.tokenizer.encode(text, Some(self.max_tokens))
    }

    /// Encode the text and keep the boxes that both the crop and the tokens leave.
    fn ground(
        &self,
        record: &Record,
        flipped: bool,
        moved: &[Option<BoxXyxy>],
        sample: &mut Sample,
    ) -> Result<(), Error> {
        let text = mirror_if(flipped, &record.text);
        let encoded = self.encode(&text.text)?;
        for (box_xyxy, spans) in moved.iter().zip(&record.char_spans) {
            let Some(box_xyxy) = box_xyxy else {
                sample.cropped_boxes += 1;
                continue;
            };
            let spans: Vec<CharSpan> = spans.iter().map(|&span| text.move_span(span)).collect();
            let row = spans::positive_row(&encoded.offsets, &spans);
            if row.contains(&true) {
                sample.boxes_xyxy.push(*box_xyxy);
                sample.positive_map.push(row);
            } else {
                sample.truncated_boxes += 1;
            }
        }
        sample.token_ids = encoded.ids;
        Ok(())
    }

    /// Mask words as BERT does: of the picked ones 80 % `<mask>`, 10 % any token, 10 % unchanged.
    fn mask(&self, record: &Record, sample: &mut Sample) {
        let mut draws = self.draws(record, Purpose::MaskedWords);
        let mask_id = self.tokenizer.mask_id();
        let specials = 0..=crate::tokenizer::UNKNOWN_ID;
        for &id in &sample.token_ids {
            // Every token takes the same number of draws, whatever comes of them.
            let (pick, kind, other) = (draws.unit(), draws.unit(), draws.below(mask_id.into()));
            let is_word = !specials.contains(&id) && id != mask_id;
            let picked = is_word && pick < self.mlm_probability;
            sample.mlm_labels.push(picked.then_some(id));
            sample.masked_ids.push(if !picked || kind >= 0.9 {
                id
            } else if kind < 0.8 {
                mask_id
            } else {
                u32::try_from(other).unwrap_or(id)
            });
        }
    }

    fn answer(&self, answer: usize, flipped: bool) -> usize {
        if flipped {
            self.mirrored_answers.get(answer).copied().unwrap_or(answer)
        } else {
            answer
        }
    }
}

/// Read and decode a file.
///
/// # Errors
/// [`Error::File`] where it cannot be read, [`Error::Decode`] where it is broken, both with its path.
pub fn read_image(path: &std::path::Path, max_pixels: usize) -> Result<Rgb, Error> {
    let bytes = std::fs::read(path).map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })?;
    image::decode(&bytes, max_pixels).map_err(|error| error.in_file(path))
}

fn mirror_if(flipped: bool, text: &str) -> Mirrored {
    if flipped {
        spans::mirror_words(text)
    } else {
        Mirrored::unchanged(text)
    }
}

/// FNV-1a, without the sign bit: the same name gives the same number in every process.
fn hash(name: &str) -> i64 {
    let hash = name.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    });
    (hash >> 1).cast_signed()
}
