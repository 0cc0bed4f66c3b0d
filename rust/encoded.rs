//! What a tokenizer makes of a text.

use crate::spans::CharSpan;
use crate::tokenizer::END_ID;

/// Token ids of a text with the span of code points that each covers; special tokens cover none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Ids, `<s>` and `</s>` included.
    pub ids: Vec<u32>,
    /// Spans without the space in front of a word.
    pub offsets: Vec<CharSpan>,
}

impl Encoded {
    /// Cut to a number of tokens, of which the last is `</s>`.
    pub(crate) fn cut(&mut self, max_tokens: Option<usize>) {
        if let Some(limit) = max_tokens
            && self.ids.len() > limit
        {
            self.ids.truncate(limit.saturating_sub(1));
            self.ids.push(END_ID);
            self.offsets.truncate(limit.saturating_sub(1));
            self.offsets.push((0, 0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_longer_texts_are_cut() {
        let empty = Encoded::default();
        let mut cut = empty.clone();
        cut.cut(Some(2));
        assert_eq!(cut, empty);
        let whole = Encoded {
            ids: vec![0, 5, 6, 2],
            offsets: vec![(0, 0), (0, 1), (1, 3), (0, 0)],
        };
        for limit in [None, Some(4)] {
            let mut same = whole.clone();
            same.cut(limit);
            assert_eq!(same, whole);
        }
        cut.clone_from(&whole);
        cut.cut(Some(3));
        assert_eq!(
            (cut.ids, cut.offsets),
            (vec![0, 5, 2], vec![(0, 0), (0, 1), (0, 0)])
        );
    }
}
