//! What a tokenizer makes of a text.

use crate::tokenizer::spans::CharSpan;

/// Token ids of a text with the span of code points that each covers; special tokens cover none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Ids, those that stand around every text included.
    pub ids: Vec<u32>,
    /// Spans without the space in front of a word.
    pub offsets: Vec<CharSpan>,
}

impl Encoded {
    /// Cut to a number of tokens, of which the last `after` are kept.
    pub(crate) fn cut(&mut self, max_tokens: Option<usize>, after: usize) {
        if let Some(limit) = max_tokens
            && let Some(surplus) = self.ids.len().checked_sub(limit).filter(|&n| n > 0)
        {
            let words = limit.saturating_sub(after);
            self.ids.drain(words..words + surplus);
            self.offsets.drain(words..words + surplus);
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
        cut.cut(Some(2), 1);
        assert_eq!(cut, empty);
        let whole = Encoded {
            ids: vec![0, 5, 6, 2],
            offsets: vec![(0, 0), (0, 1), (1, 3), (0, 0)],
        };
        for limit in [None, Some(4)] {
            let mut same = whole.clone();
            same.cut(limit, 1);
            assert_eq!(same, whole);
        }
        cut.clone_from(&whole);
        cut.cut(Some(3), 1);
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
