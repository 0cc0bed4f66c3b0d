"""Files at which the `tokenizers` crate panics: errors that name the file, and nothing printed."""

import json

import pytest

from fiber.data import Tokenizer

WORDS = {"type": "WordLevel", "vocab": {"<unk>": 0, "a": 1}, "unk_token": "<unk>"}
#: A double array of one unit, in which every character is looked up beyond its end.
CHARSMAP = {"type": "Precompiled", "precompiled_charsmap": "BAAAAAAAAABhAA=="}
PAIR = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]


def template(single):
    return {"type": "TemplateProcessing", "single": single, "pair": PAIR, "special_tokens": {}}


AT_LOADING = {
    "a prefix longer than a token": {
        "model": {
            "type": "BPE",
            "vocab": {"a": 0, "b": 1, "ab": 2},
            "merges": [["a", "b"]],
            "continuing_subword_prefix": "####",
        }
    },
    "an unknown special token": {
        "post_processor": template([{"SpecialToken": {"id": "<s>", "type_id": 0}}])
    },
    "a second text": {"post_processor": template(PAIR)},
}


def write(folder, **parts):
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({"version": "1.0", "model": WORDS} | parts))
    return path


@pytest.mark.parametrize("name", AT_LOADING)
def test_a_panic_at_loading_names_the_file(name, tmp_path, capfd):
    path = write(tmp_path, **AT_LOADING[name])
    with pytest.raises(ValueError, match=r"tokenizer\.json: .*panicked: .*\.rs:\d+\)"):
        Tokenizer.from_file(path)
    assert capfd.readouterr() == ("", "")


def test_a_panic_at_encoding_names_the_file_again_and_again(tmp_path, capfd):
    tokenizer = Tokenizer.from_file(write(tmp_path, normalizer=CHARSMAP))
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_batch([text])):
        for _ in range(2):
            with pytest.raises(
                ValueError, match=r"tokenizer\.json: .*panicked: index out of bounds"
            ):
                encode("a")
    assert capfd.readouterr() == ("", "")


def test_a_panic_at_decoding_names_the_file(tmp_path, capfd):
    strip = {"type": "Strip", "content": "a", "start": 0, "stop": 2**64 - 1}
    tokenizer = Tokenizer.from_file(write(tmp_path, decoder=strip))
    with pytest.raises(ValueError, match=r"tokenizer\.json: .*panicked: index out of bounds"):
        tokenizer.decode([1])
    assert capfd.readouterr() == ("", "")


def test_an_error_at_encoding_names_the_file(tmp_path):
    tokenizer = Tokenizer.from_file(write(tmp_path, model=WORDS | {"unk_token": "absent"}))
    with pytest.raises(ValueError, match=r"tokenizer\.json: .*UNK"):
        tokenizer.encode("b")


def test_names_in_errors_are_bounded_and_printable():
    merges = [["\x1b]0;owned\x07" * 300, "a"]]
    model = {"type": "BPE", "vocab": {"a": 0}, "merges": merges}
    with pytest.raises(ValueError, match="owned") as caught:
        Tokenizer.from_json(json.dumps({"version": "1.0", "model": model}))
    message = str(caught.value)
    assert message.isprintable() and len(message) < 5000
