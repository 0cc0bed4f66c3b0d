//! Encoding of texts to tokens.

use std::sync::Arc;

use tokenizers::{Encoding, PostProcessor};

use crate::Error;
use crate::tokenizer::Tokenizer;
use crate::tokenizer::byte_level::Tokens;
use crate::tokenizer::prompt_cache::{EncodedPrompt, PromptCache};
use crate::tokenizer::spans::CharSpan;

/// Token ids of a text and their code point spans; special tokens have empty spans.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids, including special tokens.
    pub ids: Vec<u32>,
    /// Code point spans without leading spaces.
    pub offsets: Vec<CharSpan>,
    /// True if the text has more tokens.
    pub is_truncated: bool,
}

impl Encoded {
    fn of(encoding: &Encoding) -> Self {
        Self {
            ids: encoding.get_ids().to_vec(),
            offsets: encoding.get_offsets().to_vec(),
            is_truncated: false,
        }
    }

    /// Truncate to a number of tokens, keeping the last `after` tokens.
    pub(crate) fn cut(&mut self, max_tokens: Option<usize>, after: usize) {
        if let Some(limit) = max_tokens
            && let Some(surplus) = self.ids.len().checked_sub(limit).filter(|&n| n > 0)
        {
            let words = limit.saturating_sub(after);
            self.ids.drain(words..words + surplus);
            self.offsets.drain(words..words + surplus);
            self.is_truncated = true;
        }
    }
}

impl Tokenizer {
    /// Encode a text, truncated to `max_tokens` tokens including special tokens.
    ///
    /// Encodings of long texts are cached because prompts recur.
    ///
    /// # Errors
    /// [`Error::Argument`] if `max_tokens` cannot hold the special tokens around a text,
    /// [`Error::Tokenizer`] if `tokenizers` fails.
    pub fn encode(&self, text: &str, max_tokens: Option<usize>) -> Result<Encoded, Error> {
        self.check_max_tokens(max_tokens)?;
        if !self.special_tokens.template.is_plain {
            return self.encode_cut(text, max_tokens);
        }
        if PromptCache::keeps(text) {
            return Ok(self.prompt(text)?.encoded(max_tokens));
        }
        self.encode_uncached(text, max_tokens)
    }

    fn encode_uncached(&self, text: &str, max_tokens: Option<usize>) -> Result<Encoded, Error> {
        if let Some(fast) = &self.fast {
            let mut tokens = Tokens::default();
            let limit = max_tokens.unwrap_or(usize::MAX);
            fast.encode(std::iter::once(text), limit, true, &mut tokens);
            let spans = tokens.spans.iter();
            let offsets = spans.map(|&(start, end)| (start as usize, end as usize));
            return Ok(Encoded {
                offsets: offsets.collect(),
                ids: tokens.ids,
                is_truncated: tokens.truncated_texts > 0,
            });
        }
        let mut encoded = self.encode_whole(text)?;
        encoded.cut(max_tokens, self.special_tokens.template.after.len());
        Ok(encoded)
    }

    /// Encode a text, truncating it before the post-processor runs.
    fn encode_cut(&self, text: &str, max_tokens: Option<usize>) -> Result<Encoded, Error> {
        let (Some(limit), Some(inner)) = (max_tokens, &self.unprocessed) else {
            return self.encode_whole(text);
        };
        self.check_text(text)?;
        let limit = limit.saturating_sub(self.special_tokens.template.added);
        self.guarded(|| {
            let whole = inner.encode_char_offsets(text, true)?;
            let encoding = first_tokens(&whole, limit);
            let processor = self.inner.get_post_processor();
            let processed = processor.map(|it| it.process(encoding.clone(), None, true));
            let mut encoded = Encoded::of(&processed.unwrap_or(Ok(encoding))?);
            encoded.is_truncated = whole.len() > limit;
            Ok(encoded)
        })
    }

    /// Encode with the `tokenizers` crate, including the post-processor.
    fn encode_whole(&self, text: &str) -> Result<Encoded, Error> {
        self.check_text(text)?;
        self.guarded(|| Ok(Encoded::of(&self.inner.encode_char_offsets(text, true)?)))
    }

    /// Encode a text that is likely to recur and can be truncated afterwards.
    fn prompt(&self, text: &str) -> Result<Arc<EncodedPrompt>, Error> {
        self.prompt_cache.get_or_make(text, || {
            let encoded = self.encode_uncached(text, None)?;
            let after = self.special_tokens.template.after.len();
            Ok(EncodedPrompt::new(encoded, after))
        })
    }

    /// Map the spans of boxes to tokens: (boxes, tokens) flags by row, and the row length.
    pub(crate) fn positive_map(
        &self,
        text: &str,
        boxes: &[Vec<CharSpan>],
        max_tokens: Option<usize>,
    ) -> Result<(Vec<bool>, usize), Error> {
        self.check_max_tokens(max_tokens)?;
        if self.special_tokens.template.is_plain {
            return self.prompt(text)?.positive_map(boxes, max_tokens);
        }
        let cut = self.encode_cut(text, max_tokens)?;
        EncodedPrompt::new(cut, 0).positive_map(boxes, None)
    }

    /// Append the tokens of texts, each truncated to `max_tokens`; return their counts.
    pub(crate) fn encode_into<'a>(
        &self,
        texts: impl Iterator<Item = &'a str>,
        max_tokens: Option<usize>,
        with_spans: bool,
        tokens: &mut Tokens,
    ) -> Result<Vec<usize>, Error> {
        self.check_max_tokens(max_tokens)?;
        if let Some(fast) = &self.fast {
            let limit = max_tokens.unwrap_or(usize::MAX);
            return Ok(fast.encode(texts, limit, with_spans, tokens));
        }
        let number = |position: usize| u32::try_from(position).unwrap_or(u32::MAX);
        texts
            .map(|text| {
                let encoded = self.encode(text, max_tokens)?;
                tokens.ids.extend_from_slice(&encoded.ids);
                if with_spans {
                    let spans = encoded.offsets.iter();
                    tokens
                        .spans
                        .extend(spans.map(|&(start, end)| (number(start), number(end))));
                }
                tokens.truncated_texts += usize::from(encoded.is_truncated);
                Ok(encoded.ids.len())
            })
            .collect()
    }
}

/// The first tokens of an encoding. `Encoding::truncate` also keeps all that follow, in parts, and
/// a template with two texts would join each part of one with each of the other.
fn first_tokens(encoding: &Encoding, count: usize) -> Encoding {
    let count = count.min(encoding.len());
    Encoding::new(
        encoding.get_ids()[..count].to_vec(),
        encoding.get_type_ids()[..count].to_vec(),
        encoding.get_tokens()[..count].to_vec(),
        encoding.get_word_ids()[..count].to_vec(),
        encoding.get_offsets()[..count].to_vec(),
        encoding.get_special_tokens_mask()[..count].to_vec(),
        encoding.get_attention_mask()[..count].to_vec(),
        Vec::new(),
        std::iter::empty().collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_longer_texts_are_truncated() {
        let empty = Encoded::default();
        let mut cut = empty.clone();
        cut.cut(Some(2), 1);
        assert_eq!(cut, empty);
        let whole = Encoded {
            ids: vec![0, 5, 6, 2],
            offsets: vec![(0, 0), (0, 1), (1, 3), (0, 0)],
            is_truncated: false,
        };
        for limit in [None, Some(4)] {
            let mut same = whole.clone();
            same.cut(limit, 1);
            assert_eq!(same, whole);
        }
        cut.clone_from(&whole);
        cut.cut(Some(3), 1);
        assert!(cut.is_truncated);
        assert_eq!(
            (cut.ids, cut.offsets),
            (vec![0, 5, 2], vec![(0, 0), (0, 1), (0, 0)])
        );
        let mut cut = whole.clone();
        cut.cut(Some(3), 0);
        assert_eq!(cut.ids, [0, 5, 6]);
        let mut cut = whole;
        cut.cut(Some(2), 2);
        assert_eq!((cut.ids, cut.offsets), (vec![6, 2], vec![(1, 3), (0, 0)]));
    }
}
