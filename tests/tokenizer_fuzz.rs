//! Our byte-level BPE against the crate `tokenizers`: random vocabularies, rules and texts.
//!
//! `FIBER_FUZZ_ROUNDS=10000 cargo test --release --test tokenizer_fuzz -- --nocapture` for longer.

#![allow(clippy::unwrap_used)] // The functions beside the tests are theirs.

use std::panic::{AssertUnwindSafe, catch_unwind};

use fiber_core::rng::{Purpose, Rng};
use fiber_core::tokenizer::Tokenizer;
use serde_json::{Value, json};

/// Vocabularies of an ordinary run.
const ROUNDS: u64 = 60;
const TEXTS: usize = 150;

/// Every white space, and characters that look like some but are none.
const SPACES: &str = "\t\n\u{b}\u{c}\r \u{85}\u{a0}\u{1680}\u{2000}\u{2001}\u{2002}\u{2003}\u{2004}\
    \u{2005}\u{2006}\u{2007}\u{2008}\u{2009}\u{200a}\u{2028}\u{2029}\u{202f}\u{205f}\u{3000}\
    \u{1c}\u{1f}\u{180e}\u{200b}\u{2060}\u{feff}\u{120}";
/// Numbers of all three kinds, marks, joiners, letters of every kind, unassigned ones.
const ODD: &str = "0\u{663}\u{b2}\u{bd}\u{2167}\u{3007}\u{1d7d9}\u{301}\u{20e3}\u{fe0f}\u{200d}\u{200c}\
    \u{1f469}\u{1f3fd}\u{1c5}\u{2b0}\u{5d0}\u{4e2d}\u{ac00}\u{1c89}\u{a7ce}\u{378}\u{e000}\u{10ffff}\
    \u{0}\u{7f}\u{ad}'\u{2019}_-<>/\"";
const WORDS: [&str; 22] = [
    "the",
    " red",
    " cat",
    "'s",
    "'t",
    "'re",
    "'ve",
    "'m",
    "'ll",
    "'d",
    "'S",
    " '",
    "don't",
    "42",
    " 7",
    "!!",
    "<mask>",
    "</s>",
    "<s>",
    " <pad> ",
    "na\u{ef}ve",
    "\u{1f468}\u{200d}\u{1f469}",
];
const ADDED: [&str; 12] = [
    "<a>", "<a><b>", "cat", "red cat", " x", "x ", "\u{120}", "\u{e9}", "\u{3000}", "'s", "<",
    "a_b",
];

struct Source(Rng);

impl Source {
    fn new(round: u64) -> Self {
        Self(Rng::new(3, 0, round, Purpose::Order))
    }

    fn coin(&mut self) -> bool {
        self.0.index(2) == 0
    }

    fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.0.index(of.len())].clone()
    }

    fn letter(&mut self, of: &str) -> char {
        let of: Vec<char> = of.chars().collect();
        self.one(&of)
    }

    fn code_point(&mut self) -> char {
        let below = self.one(&[0x80, 0x800, 0x3000, 0x1_0000, 0x11_0000]);
        loop {
            let drawn = u32::try_from(self.0.index(below)).unwrap();
            if let Some(found) = char::from_u32(drawn) {
                return found;
            }
        }
    }

    fn text(&mut self) -> String {
        let mut text = String::new();
        for _ in 0..self.0.index(24) {
            match self.0.index(10) {
                0 => text.push(self.code_point()),
                1 => text.push(self.letter(SPACES)),
                2 => text.push(self.letter(ODD)),
                3 => text.push_str(self.one(&ADDED)),
                4 => (0..self.0.index(4)).for_each(|_| text.push(' ')),
                5 => text.extend((0..self.0.index(6)).map(|_| self.letter("abcdeABC"))),
                6 if self.0.index(8) == 0 => {
                    let (letter, count) = (self.letter("a 1!\u{e9}\n"), self.0.index(200));
                    text.extend(std::iter::repeat_n(letter, count));
                }
                _ => text.push_str(self.one(&WORDS)),
            }
        }
        text
    }

    /// Learned merges, and where they should be odd, pairs of any two tokens.
    fn model(&mut self) -> Value {
        let texts: Vec<String> = (0..200).map(|_| self.text()).collect();
        let size = 261 + self.0.index(400);
        let trained = Tokenizer::train(texts.iter().map(String::as_str), size).unwrap();
        let mut content: Value = serde_json::from_str(&trained.to_json().unwrap()).unwrap();
        let vocabulary = content["model"]["vocab"].as_object_mut().unwrap();
        // <mask> must stay the last.
        vocabulary.remove("<mask>");
        let mut tokens: Vec<String> = vocabulary.keys().cloned().collect();
        let mut added = Vec::new();
        for _ in 0..self.0.index(120) {
            let pair = [self.one(&tokens), self.one(&tokens)];
            let merged = pair.concat();
            if merged.len() < 40 && !vocabulary.contains_key(&merged) {
                vocabulary.insert(merged.clone(), json!(vocabulary.len()));
                tokens.push(merged);
                added.push(json!(pair));
            }
        }
        let merges = content["model"]["merges"].as_array_mut().unwrap();
        merges.extend(added);
        if self.coin() {
            // The order of the merges is all that counts.
            for at in (1..merges.len()).rev() {
                merges.swap(at, self.0.index(at + 1));
            }
        }
        content["model"]["ignore_merges"] = json!(self.0.index(3) == 0);
        content
    }

    fn rules(&mut self, content: &mut Value) {
        let (prefix, pattern) = (self.coin(), self.0.index(3) > 0);
        let level = |prefix: bool, trim: bool, pattern: bool| {
            json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": trim,
                   "use_regex": pattern})
        };
        content["pre_tokenizer"] = level(prefix, true, pattern);
        let trim = level(self.coin(), self.0.index(3) > 0, true);
        let special = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
        let named =
            |id: &str, ids: &[u32]| json!({"id": id, "ids": ids, "tokens": vec![id; ids.len()]});
        let template = json!({
            "type": "TemplateProcessing",
            "single": [special("<s>"), {"Sequence": {"id": "A", "type_id": 0}}, special("</s>")],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": named("<s>", &[0, 3]), "</s>": named("</s>", &[2])},
        });
        content["post_processor"] = match self.0.index(5) {
            0 => Value::Null,
            1 => trim,
            2 => template,
            3 => json!({"type": "Sequence", "processors": [trim, template]}),
            _ => json!({"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0],
                        "trim_offsets": self.0.index(3) > 0, "add_prefix_space": self.coin()}),
        };
    }

    fn added_tokens(&mut self, content: &mut Value) {
        let vocabulary = content["model"]["vocab"].clone();
        let mut next = vocabulary.as_object().unwrap().len();
        let mut contents: Vec<&str> = ADDED.into_iter().filter(|_| self.0.index(3) == 0).collect();
        contents.push("<mask>");
        let tokens = content["added_tokens"].as_array_mut().unwrap();
        tokens.truncate(4);
        for text in contents {
            let known = vocabulary.get(text).cloned();
            let id = known.unwrap_or_else(|| {
                next += 1;
                json!(next - 1)
            });
            tokens.push(json!({"id": id, "content": text}));
        }
        for token in tokens {
            token["special"] = json!(true);
            for flag in ["single_word", "lstrip", "rstrip", "normalized"] {
                token[flag] = json!(self.0.index(3) == 0);
            }
            if token["content"].as_str().unwrap().trim().is_empty() {
                // A token of spaces that takes those beside it is refused.
                (token["lstrip"], token["rstrip"]) = (json!(false), json!(false));
            }
        }
    }
}

/// Compare, and tell whether there was anything to compare with.
fn assert_equal(ours: &Tokenizer, theirs: &tokenizers::Tokenizer, text: &str, about: &str) -> bool {
    let got = ours.encode(text, None).unwrap();
    let encode = || theirs.encode_char_offsets(text, true).unwrap();
    let Ok(expected) = catch_unwind(AssertUnwindSafe(encode)) else {
        // A token of spaces behind one with `rstrip` can be more than the crate can cut.
        assert!(about.contains("\"rstrip\":true"), "{text:?} {about}");
        return false;
    };
    assert_eq!(got.ids, expected.get_ids(), "{text:?} {about}");
    assert_eq!(got.offsets, expected.get_offsets(), "{text:?} {about}");
    true
}

#[test]
fn random_vocabularies_and_texts() {
    let rounds = std::env::var("FIBER_FUZZ_ROUNDS").map_or(ROUNDS, |n| n.parse().unwrap());
    let (mut texts, mut compared) = (0, 0);
    for round in 0..rounds {
        let mut source = Source::new(round);
        let mut content = source.model();
        source.rules(&mut content);
        source.added_tokens(&mut content);
        let json = content.to_string();
        let ours = Tokenizer::from_json(&json).unwrap();
        assert!(ours.is_fast());
        let mut theirs = tokenizers::Tokenizer::from_bytes(json.as_bytes()).unwrap();
        for _ in 0..TEXTS {
            let text = source.text();
            let about = format!(
                "round {round}: {} {} {}",
                content["pre_tokenizer"], content["post_processor"], content["added_tokens"]
            );
            compared += usize::from(assert_equal(&ours, &theirs, &text, &about));
            let limit = 3 + source.0.index(20);
            let (whole, cut) = (ours.encode(&text, None), ours.encode(&text, Some(limit)));
            let (whole, cut) = (whole.unwrap(), cut.unwrap());
            assert_eq!(cut.ids.len(), whole.ids.len().min(limit));
            theirs
                .with_truncation(Some(tokenizers::TruncationParams {
                    max_length: limit,
                    ..tokenizers::TruncationParams::default()
                }))
                .unwrap();
            if let Ok(expected) = catch_unwind(AssertUnwindSafe(|| {
                theirs.encode_char_offsets(text.as_str(), true).unwrap()
            })) {
                assert_eq!(cut.ids, expected.get_ids(), "{text:?} {about}");
                assert_eq!(cut.offsets, expected.get_offsets(), "{text:?} {about}");
            }
            theirs.with_truncation(None).unwrap();
            texts += 1;
        }
    }
    println!("{rounds} vocabularies, {texts} texts, {compared} compared");
    assert!(compared * 1000 > texts * 999);
}

#[test]
fn every_code_point_between_letters_digits_and_spaces() {
    let texts = ["the red cat's 42 don't"; 4];
    let ours = Tokenizer::train(texts.into_iter(), 300).unwrap();
    let json = ours.to_json().unwrap();
    let theirs = tokenizers::Tokenizer::from_bytes(json.as_bytes()).unwrap();
    assert!(ours.is_fast());
    let all: Vec<char> = ('\0'..=char::MAX).collect();
    for characters in all.chunks(64) {
        let text: String = characters
            .iter()
            .flat_map(|&c| [c, 'a', c, ' ', c, '1'])
            .collect();
        assert!(assert_equal(&ours, &theirs, &text, ""));
    }
}

#[test]
fn other_kinds_go_through_the_crate() {
    let trained = Tokenizer::train(["the red cat"; 4].into_iter(), 300).unwrap();
    let content: Value = serde_json::from_str(&trained.to_json().unwrap()).unwrap();
    let changes = [
        ("normalizer", json!({"type": "Lowercase"})),
        ("pre_tokenizer", json!({"type": "Whitespace"})),
        ("pre_tokenizer", Value::Null),
        (
            "post_processor",
            json!({"type": "BertProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0]}),
        ),
    ];
    for (part, other) in changes {
        let mut content = content.clone();
        content[part] = other;
        let json = content.to_string();
        let ours = Tokenizer::from_json(&json).unwrap();
        assert!(!ours.is_fast(), "{part}");
        let theirs = tokenizers::Tokenizer::from_bytes(json.as_bytes()).unwrap();
        for text in ["", "The RED cat", "the <mask> \u{e9}"] {
            assert!(assert_equal(&ours, &theirs, text, part));
        }
    }
    let mut with_option = content.clone();
    with_option["model"]["byte_fallback"] = json!(true);
    assert!(
        !Tokenizer::from_json(&with_option.to_string())
            .unwrap()
            .is_fast()
    );
}
