//! Encode arbitrary text with trained vocabularies; results must match the `tokenizers` crate.
#![no_main]

use std::sync::LazyLock;

use fiber_core::tokenizer::Tokenizer;
use libfuzzer_sys::fuzz_target;

const TEXTS: [&str; 6] = [
    "the red cat's mat isn't where they've left it, is it?",
    "don't 42 4242 ... !!! ''' <mask> </s>",
    "na\u{ef}ve caf\u{e9} \u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467} \u{4e2d}\u{6587}\u{4e2d}\u{6587}",
    "   four   spaces\t\ttabs\n\nlines\u{a0}\u{3000}",
    "\u{663}\u{664} \u{2167} \u{bd} \u{1c5} a\u{301}e\u{301}",
    "aaaaaaaaaaaaaaaa bbbbbbbb abababababab",
];

/// (fiber, `tokenizers`) pairs with a small and a larger vocabulary.
static PAIRS: LazyLock<Vec<(Tokenizer, tokenizers::Tokenizer)>> = LazyLock::new(|| {
    [270, 420]
        .into_iter()
        .map(|size| {
            let texts = TEXTS.into_iter().cycle().take(4 * TEXTS.len());
            let ours = Tokenizer::train(texts, size).expect("the texts are valid");
            let json = ours.to_json().expect("it was just trained");
            let theirs = tokenizers::Tokenizer::from_bytes(json).expect("`tokenizers` can read it");
            assert!(ours.is_fast());
            (ours, theirs)
        })
        .collect()
});

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    for (ours, theirs) in PAIRS.iter() {
        let got = ours.encode(&text, None).expect("every text has tokens");
        let expected = theirs
            .encode_char_offsets(text.as_ref(), true)
            .expect("every text has tokens");
        assert_eq!(got.ids, expected.get_ids());
        assert_eq!(got.offsets, expected.get_offsets());
        let cut = ours.encode(&text, Some(5)).expect("every text has tokens");
        assert_eq!(cut.ids.len(), got.ids.len().min(5));
    }
});
