//! Character spans: which tokens they overlap, and how they shift when words are swapped.
//!
//! All spans are half-open and in code points.

/// Half-open range [start, end) of code points.
pub type CharSpan = (usize, usize);

/// Flag the tokens that overlap one of the spans.
pub fn positive_row(offsets: &[CharSpan], spans: &[CharSpan]) -> Vec<bool> {
    offsets
        .iter()
        .map(|&(token_start, token_end)| {
            spans.iter().any(|&(start, end)| {
                // <s>, </s> and padding have empty spans, so they overlap no other span.
                token_start < token_end && token_start < end && start < token_end
            })
        })
        .collect()
}

/// Lowercase words that are swapped if the image is mirrored.
const SIDES: [(&str, &str); 5] = [
    ("left", "right"),
    ("leftmost", "rightmost"),
    ("leftward", "rightward"),
    ("leftwards", "rightwards"),
    ("lefthand", "righthand"),
];

/// A text with "left" and "right" swapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirrored {
    /// The new text.
    pub text: String,
    /// Spans of the swapped words in the old and the new text, in order.
    edits: Vec<(CharSpan, CharSpan)>,
}

/// Swap "left" and "right".
///
/// Only whole words are swapped; so is "right" in the sense of "correct".
pub fn mirror_words(text: &str) -> Mirrored {
    let mut mirrored = Mirrored {
        text: String::with_capacity(text.len() + 8),
        edits: Vec::new(),
    };
    let (mut old, mut new) = (0, 0);
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let in_word = first.is_alphanumeric();
        let end = rest
            .find(|c: char| c.is_alphanumeric() != in_word)
            .unwrap_or(rest.len());
        let (piece, after) = rest.split_at(end);
        let length = piece.chars().count();
        if let Some(swapped) = other_side(piece) {
            let swapped_length = swapped.chars().count();
            let edit = ((old, old + length), (new, new + swapped_length));
            mirrored.edits.push(edit);
            mirrored.text.push_str(&swapped);
            new += swapped_length;
        } else {
            mirrored.text.push_str(piece);
            new += length;
        }
        old += length;
        rest = after;
    }
    mirrored
}

impl Mirrored {
    /// Wrap a text without swaps.
    pub fn unchanged(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            edits: Vec::new(),
        }
    }

    /// Map a span from the old text to the new text.
    pub fn move_span(&self, (start, end): CharSpan) -> CharSpan {
        (self.position(start, false), self.position(end, true))
    }

    /// Map a position; one inside a swapped word moves to the start or end of the word.
    fn position(&self, position: usize, is_end: bool) -> usize {
        // Edits before the position; there are as many as words, and a span for each.
        let before = self.edits.partition_point(|&((_, end), _)| end <= position);
        if let Some(&((start, _), (new_start, new_end))) = self.edits.get(before)
            && start < position
        {
            return if is_end { new_end } else { new_start };
        }
        let last = before.checked_sub(1).and_then(|at| self.edits.get(at));
        last.map_or(position, |&((_, old_end), (_, new_end))| {
            new_end + (position - old_end)
        })
    }
}

/// The opposite word in the same case.
fn other_side(word: &str) -> Option<String> {
    let lower = word.to_lowercase();
    let other = SIDES.iter().find_map(|&(left, right)| {
        if lower == left {
            Some(right)
        } else if lower == right {
            Some(left)
        } else {
            None
        }
    })?;
    let mut letters = word.chars();
    let first_upper = letters.next().is_some_and(char::is_uppercase);
    let rest_upper = letters.next().is_some_and(char::is_uppercase);
    Some(match (first_upper, rest_upper) {
        (true, true) => other.to_uppercase(),
        (true, false) => other
            .chars()
            .take(1)
            .flat_map(char::to_uppercase)
            .chain(other.chars().skip(1))
            .collect(),
        _ => other.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_text_has_no_words() {
        let mirrored = mirror_words("");
        assert_eq!(mirrored.text, "");
        assert_eq!(mirrored.move_span((0, 0)), (0, 0));
        assert!(positive_row(&[], &[(0, 1)]).is_empty());
    }

    #[test]
    fn words_swap_whole_and_keep_their_case() {
        let swap = |text| mirror_words(text).text;
        assert_eq!(swap("Left of the RIGHT cup"), "Right of the LEFT cup");
        assert_eq!(swap("leftmost, right-hand"), "rightmost, left-hand");
        assert_eq!(
            swap("leftover bright copyright"),
            "leftover bright copyright"
        );
        assert_eq!(swap("é left ü"), "é right ü");
    }

    #[test]
    fn spans_follow_their_words() {
        let text = "the left dog left of the right cat";
        let mirrored = mirror_words(text);
        assert_eq!(mirrored.text, "the right dog right of the left cat");
        let word = |text: &str, (start, end): CharSpan| -> String {
            text.chars().skip(start).take(end - start).collect()
        };
        for (span, before, after) in [
            ((0, 12), "the left dog", "the right dog"),
            ((9, 12), "dog", "dog"),
            ((21, 34), "the right cat", "the left cat"),
            ((4, 8), "left", "right"),
        ] {
            assert_eq!(word(text, span), before);
            assert_eq!(word(&mirrored.text, mirrored.move_span(span)), after);
        }
    }

    #[test]
    fn mirroring_twice_is_nothing() {
        let text = "Left, right and LEFT — leftwards";
        let mirrored = mirror_words(text);
        let back = mirror_words(&mirrored.text);
        assert_eq!(back.text, text);
        let all = (0, text.chars().count());
        assert_eq!(back.move_span(mirrored.move_span(all)), all);
    }

    #[test]
    fn tokens_are_positive_where_they_overlap() {
        let offsets = [(0, 0), (0, 3), (4, 7), (7, 9), (0, 0)];
        assert_eq!(
            positive_row(&offsets, &[(4, 8)]),
            [false, false, true, true, false]
        );
        assert_eq!(
            positive_row(&offsets, &[(3, 4)]),
            [false, false, false, false, false]
        );
        assert_eq!(
            positive_row(&offsets, &[(0, 1), (8, 9)]),
            [false, true, false, true, false]
        );
    }
}
