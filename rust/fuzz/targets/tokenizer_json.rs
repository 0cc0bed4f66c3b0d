//! Any bytes as a `tokenizer.json`: a tokenizer that can be used, or an error.
#![no_main]

use fiber_core::tokenizer::Tokenizer;
use libfuzzer_sys::fuzz_target;

// Panics of other crates become errors: only one that comes through is a find.
fuzz_target!(init: std::panic::set_hook(Box::new(|_| {})), |data: &[u8]| {
    let Ok(json) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(tokenizer) = Tokenizer::from_json(json) {
        // A vocabulary without some of the bytes may refuse a text, which is an error and no panic.
        let _ = tokenizer.encode("the red cat's  mat\n\u{e9}\u{4e2d} <mask>", Some(40));
    }
});
