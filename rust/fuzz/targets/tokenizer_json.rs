//! Parse arbitrary bytes as a `tokenizer.json`: a usable tokenizer or an error.
#![no_main]

use fiber_core::tokenizer::Tokenizer;
use libfuzzer_sys::fuzz_target;

// Panics in other crates are converted to errors; only one that escapes is a finding.
fuzz_target!(init: std::panic::set_hook(Box::new(|_| {})), |data: &[u8]| {
    let Ok(json) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(tokenizer) = Tokenizer::from_json(json) {
        // A vocabulary that lacks some bytes may reject a text with an error, but must not panic.
        for limit in [None, Some(40), Some(2)] {
            let text = "the red cat's  mat\n\u{e9}\u{4e2d} <mask>";
            if let Ok(encoded) = tokenizer.encode(text, limit) {
                let _ = tokenizer.decode(&encoded.ids);
            }
        }
        let _ = tokenizer.to_json();
    }
});
