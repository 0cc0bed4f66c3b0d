"""BERT's tokenizer from vocab.txt gives the ids of transformers' own."""

import json

import pytest

from fiber.checkpoints.vocabulary.sources import open_tokenizer
from fiber.checkpoints.vocabulary.wordpiece import read_vocab_txt
from fiber.models.meter.config import MeterConfig

pytestmark = pytest.mark.oldest

WORDS = (
    "[PAD] [unused0] [UNK] [CLS] [SEP] [MASK] a red dog cat ##s ##ing walk left of ! ? , . ' é e"
    " 狗 1 ##2"
)
TEXTS = ["", "A red dog's walking!", "DOGS, Écats 狗 12", "[MASK] dog zzz  cat\u200d", "e\u0301"]
BERT = MeterConfig(text_encoder="bert")


def write(folder, words=WORDS, **config):
    (folder / "vocab.txt").write_text("\n".join(words.split()) + "\n", encoding="utf-8")
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder / "vocab.txt"


@pytest.mark.parametrize("do_lower_case", [True, False])
def test_ids_are_those_of_transformers(tmp_path, do_lower_case):
    transformers = pytest.importorskip("transformers")
    ours = read_vocab_txt(write(tmp_path, do_lower_case=do_lower_case))
    theirs = transformers.BertTokenizerFast.from_pretrained(
        str(tmp_path), do_lower_case=do_lower_case
    )
    for text in TEXTS:
        assert ours.encode(text)[0] == theirs(text)["input_ids"]
    assert (ours.pad_id, ours.mask_id, ours.unknown_id) == (0, 5, 2)
    assert (ours.start_ids, ours.end_ids, ours.vocab_size) == ([3], [4], 25)
    # What is saved is read by transformers alike.
    ours.save(tmp_path / "tokenizer.json")
    again = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert [again(text)["input_ids"] for text in TEXTS] == [ours.encode(t)[0] for t in TEXTS]


def test_case_without_a_config_is_that_of_the_vocabulary(tmp_path):
    assert read_vocab_txt(write(tmp_path)).encode("Dog")[0] == [3, 8, 4]
    cased = read_vocab_txt(write(tmp_path, f"{WORDS} Dog"))
    assert (cased.encode("Dog")[0], cased.encode("dog")[0]) == ([3, 25, 4], [3, 8, 4])


def test_a_folder_a_file_and_a_tokenizer_json_are_opened(tmp_path):
    path = write(tmp_path)
    for given in (tmp_path, path):
        assert open_tokenizer(given, BERT).encode("a dog")[0] == [3, 6, 8, 4]
    read_vocab_txt(path).save(tmp_path / "tokenizer.json")
    path.unlink()
    assert open_tokenizer(tmp_path, BERT).encode("a dog")[0] == [3, 6, 8, 4]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", r"lacks \[PAD\], \[UNK\], \[CLS\], \[SEP\], \[MASK\]"),
        (WORDS.replace("[MASK]", "mask"), r"vocab\.txt lacks \[MASK\]; expected the vocabulary"),
        (f"{WORDS} dog", "duplicate token 'dog'"),
        (f"first {WORDS}", r"vocab\.txt: .*the padding id is 1; expected 0"),
    ],
)
def test_wrong_vocabularies_are_named(tmp_path, words, message):
    write(tmp_path, words)
    with pytest.raises(ValueError, match=message):
        open_tokenizer(tmp_path, BERT)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "vocab.txt").write_bytes(b"[PAD]\n\xff")
    with pytest.raises(ValueError, match=r"vocab\.txt is not UTF-8"):
        open_tokenizer(tmp_path, BERT)


def test_robertas_models_refuse_it(tmp_path):
    with pytest.raises(ValueError, match=r"vocab\.txt: .*RoBERTa.*not a BPE"):
        open_tokenizer(write(tmp_path), MeterConfig())
