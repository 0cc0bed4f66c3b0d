"""METER with BERT as its text encoder trains, is saved and read in every form, and answers."""

import dataclasses

import pytest
import safetensors.torch
import torch

import fiber
from fiber.checkpoints.encoders import encoder_states
from fiber.checkpoints.export import write_published
from fiber.checkpoints.load import read_model
from fiber.checkpoints.vocabulary.wordpiece import read_vocab_txt
from fiber.config import ClipConfig
from fiber.data import Tokenizer, sources
from fiber.inference import Model
from fiber.models.encoders.bert_config import BertConfig
from fiber.models.meter.config import CrossConfig, MeterConfig, MeterHeadsConfig
from fiber.models.meter.image_text import MeterImageText
from fiber.tasks.transform import TransformConfig
from fiber.training.config.run import DataConfig, OptimConfig, RunConfig, TrainConfig
from fiber.training.config.tasks import ImageTextTask, QuestionTask, TasksConfig
from fiber.training.train import train

TINY = MeterConfig(
    image_size=48,
    max_tokens=24,
    weight_start="fan_in",
    clip=ClipConfig(patch_size=16, width=32, num_blocks=1, num_heads=2),
    text_encoder="bert",
    bert=BertConfig(
        vocab_size=64,
        width=32,
        num_layers=1,
        num_heads=2,
        ffn_width=64,
        max_positions=24,
        dropout=0.0,
    ),
    cross=CrossConfig(width=24, num_layers=2, num_heads=2, ffn_width=48, dropout=0.0),
    image_text=MeterHeadsConfig(heads=("itm", "mlm", "vqa"), num_answers=32),
)
TASKS = TasksConfig(
    image_text=ImageTextTask(share=1, itc=0.0, itm_negatives="random"),
    question=QuestionTask(share=1),
)


def config(**changes):
    data = DataConfig(batch_size=4, transform=TransformConfig(kind="center_crop"), **changes)
    length = TrainConfig(steps=2, checkpoint_every=1)
    return RunConfig(tasks=TASKS, model=TINY, data=data, optim=OptimConfig(lr=1e-3), train=length)


@pytest.fixture(scope="module")
def vocabulary(small_scenes, tmp_path_factory):
    """A vocabulary of the words of the data, as bert-base-uncased's vocab.txt."""
    folder = tmp_path_factory.mktemp("bert")
    texts = [record.text for record in sources.captions(small_scenes, "train")]
    words = sorted({word.strip("?,.") for text in texts for word in text.lower().split()} - {""})
    specials = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join([*specials, "?", ",", *words]) + "\n")
    return folder


def test_it_trains_is_resumed_and_answers(small_scenes, vocabulary, tmp_path):
    tokenizer = read_vocab_txt(vocabulary / "vocab.txt")
    start = encoder_states(MeterImageText(TINY.with_vocabulary(tokenizer.vocab_size)))["bert"]
    safetensors.torch.save_file(start, tmp_path / "bert.safetensors")
    run, output = config(), tmp_path / "run"
    given = {"data": small_scenes, "quiet": True, "device": "cpu"}
    train(run, tokenizer=vocabulary, init=tmp_path / "bert.safetensors", output=output, **given)
    (output / "model.safetensors").unlink()
    train(run, output=output, resume=True, **given)
    model = fiber.load(output, device="cpu")
    assert model.config.bert.vocab_size == tokenizer.vocab_size
    assert model.tokenizer.to_json() == tokenizer.to_json()
    # A step of AdamW changes a weight by about the learning rate at most; there were two.
    words = model.network.backbone.text.embeddings.word.weight
    torch.testing.assert_close(
        words.detach(), start["embeddings.word_embeddings.weight"], rtol=0, atol=2.2 * run.optim.lr
    )
    record = sources.questions(small_scenes, "train")[0]
    answer = model.answer(record.images[0], record.text)
    assert answer[0].answer in model.answers
    # Saved, published and read again: the same network.
    model.save(tmp_path / "saved")
    write_published(model.network, tmp_path / "published.ckpt")
    for path in ("saved", "published.ckpt"):
        again = fiber.load(
            tmp_path / path, tokenizer=tokenizer, answers=model.answers, device="cpu"
        )
        assert again.config == model.config
        assert again.answer(record.images[0], record.text) == answer


def test_a_file_of_another_code_is_recognized_by_its_tensors(tmp_path):
    bert = dataclasses.replace(TINY.bert, width=64, num_heads=1)
    cross = dataclasses.replace(TINY.cross, width=64, num_heads=1)
    network = MeterImageText(dataclasses.replace(TINY, bert=bert, cross=cross))
    write_published(network, tmp_path / "own.ckpt")
    content = torch.load(tmp_path / "own.ckpt", weights_only=False)
    content["hyper_parameters"]["config"] = {"tokenizer": "my-bert"}
    torch.save(content, tmp_path / "theirs.ckpt")
    found = read_model(tmp_path / "theirs.ckpt").config
    assert found.text_encoder == "bert"
    assert found.bert == dataclasses.replace(bert, dropout=BertConfig().dropout)
    # At most 50 tokens in published runs, and at most the text encoder's positions.
    assert found.max_tokens == 24


@pytest.mark.parametrize("kind", ["text", "question"])
def test_texts_without_words_are_refused(vocabulary, kind):
    tokenizer = read_vocab_txt(vocabulary / "vocab.txt")
    network = MeterImageText(TINY.with_vocabulary(tokenizer.vocab_size)).eval()
    model = Model(network, tokenizer, answers=[str(n) for n in range(32)])
    image = torch.zeros(48, 48, 3, dtype=torch.uint8).numpy()
    ask = model.match if kind == "text" else model.answer
    with pytest.raises(ValueError, match=r"'\[PAD\] \[MASK\]' contains only special tokens"):
        ask(image, "[PAD] [MASK]")


class TestTokenizers:
    def test_robertas(self, tmp_path):
        network = MeterImageText(TINY.with_vocabulary(261))
        other = Tokenizer.train([], 261)
        message = r"BERT expects .* the padding id is 1; expected 0"
        with pytest.raises(ValueError, match=message):
            Model(network, other)
        Model(network).save(tmp_path / "model")
        with pytest.raises(ValueError, match=message):
            fiber.load(tmp_path / "model", tokenizer=other, device="cpu")

    def test_a_trained_one(self, small_scenes, tmp_path):
        with pytest.raises(ValueError, match="those that fiber trains are RoBERTa's kind"):
            train(
                config(),
                data=small_scenes,
                tokenizer="train",
                output=tmp_path / "run",
                quiet=True,
                device="cpu",
            )
        assert not (tmp_path / "run").exists()

    def test_of_another_size(self, vocabulary, tmp_path):
        Model(MeterImageText(TINY)).save(tmp_path / "model")
        with pytest.raises(ValueError, match=r"the tokenizer has \d+ tokens, expected 64"):
            fiber.load(tmp_path / "model", tokenizer=vocabulary, device="cpu")

    @pytest.mark.parametrize(
        ("post_processor", "message"),
        [
            (None, r"start with ids \[\] and end with \[\]; expected one token \(\[CLS\]\)"),
            ("[MASK]", "there is no mask token"),
        ],
    )
    def test_without_a_special_token(self, vocabulary, post_processor, message):
        tokenizer = read_vocab_txt(vocabulary / "vocab.txt")
        json = tokenizer.to_json()
        if post_processor is None:
            start = json.index('"post_processor":')
            json = (
                f'{json[:start]}"post_processor": null, {json[json.index(chr(34) + "decoder") :]}'
            )
        else:
            json = json.replace("[MASK]", "[OTHER]")
        with pytest.raises(ValueError, match=message):
            Model(
                MeterImageText(TINY.with_vocabulary(tokenizer.vocab_size)),
                Tokenizer.from_json(json),
            )


def test_whole_words_are_for_robertas_vocabularies():
    with pytest.raises(ValueError, match=r"mlm_unit 'word' .* text encoder 'bert' needs 'token'"):
        config(mlm_unit="word")
