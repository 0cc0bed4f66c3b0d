"""Tokenizers that models cannot read are refused where they meet one."""

import re
import shutil

import pytest

import fiber
from fiber.checkpoints.model_dir import save_model
from fiber.checkpoints.vocabulary.files import Vocabulary, read_vocabulary, write_vocabulary
from fiber.checkpoints.vocabulary.sources import open_tokenizer
from fiber.data import Tokenizer
from fiber.inference import Model


@pytest.fixture
def other(pictures) -> Tokenizer:
    """The data's own tokenizer, but for what its padding is called."""
    json = Tokenizer.from_file(pictures / "tokenizer.json").to_json()
    return Tokenizer.from_json(json.replace('"<pad>"', '"[PAD]"'))


MESSAGE = (
    "fiber's models .*RoBERTa.* tokenizer: "
    r"<pad> has no id; expected 1 in a vocabulary of \d+"
)


def test_given_ones(other, tmp_path):
    with pytest.raises(ValueError, match=f"^{MESSAGE}"):
        open_tokenizer(other)
    path = tmp_path / "tokenizer.json"
    other.save(path)
    for named in (path, tmp_path):
        with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: {MESSAGE}"):
            open_tokenizer(named)


def test_those_of_models(other, micro_models, tmp_path):
    model = fiber.load(micro_models["coarse"], device="cpu")
    with pytest.raises(ValueError, match=MESSAGE):
        fiber.load(micro_models["coarse"], tokenizer=other)
    with pytest.raises(ValueError, match=MESSAGE):
        Model(model.network, other)
    with pytest.raises(ValueError, match=MESSAGE):
        save_model(model.network, tmp_path / "saved", other)
    assert not (tmp_path / "saved").exists()
    write_vocabulary(tmp_path, Vocabulary(other))
    with pytest.raises(ValueError, match=rf"tokenizer\.json: {MESSAGE}"):
        read_vocabulary(tmp_path)
    folder = tmp_path / "model"
    shutil.copytree(micro_models["coarse"], folder)
    shutil.copy(tmp_path / "tokenizer.json", folder)
    with pytest.raises(ValueError, match=rf"tokenizer\.json: {MESSAGE}"):
        fiber.load(folder, device="cpu")
