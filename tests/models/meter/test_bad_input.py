"""What a user may get wrong with a METER file, in Python and in commands.

Tensors that are missing, unknown or misshapen, and sizes, are in `test_published.py` and
`test_infer_config.py` too.
"""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

import fiber
from fiber.checkpoints.export import write_published
from fiber.cli import main
from fiber.data import Tokenizer
from fiber.models.heads import MissingHeadError
from fiber.models.meter.image_text import MeterImageText
from fiber.models.meter.released import RELEASED, head_hint
from fiber.models.registry import recognize
from tests.golden import KEYS, METER
from tests.models.meter.test_published import meta_state
from tests.parity.meter_case import MeterCase
from tests.published_keys import meter_shapes as keys_of

QUESTION = "what color is the dog"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A published VQA file, the tokenizer and answers that it lacks, and an image."""
    folder = tmp_path_factory.mktemp("files")
    tokenizer = Tokenizer.train([QUESTION, "a red dog left of a cat"] * 9, 270)
    tokenizer.save(folder / "tokenizer.json")
    (folder / "answers.json").write_text(json.dumps([str(number) for number in range(23)]))
    config = MeterCase(METER / "clip_micro.json").meter_config("vqa")
    torch.manual_seed(0)
    network = MeterImageText(config.with_vocabulary(tokenizer.vocab_size))
    write_published(network, folder / "vqa.ckpt")
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    Image.fromarray(image).save(folder / "a.png")
    return folder


@pytest.fixture(scope="module")
def model(folder):
    answers = folder / "answers.json"
    return fiber.load(
        folder / "vqa.ckpt", tokenizer=folder / "tokenizer.json", answers=answers, device="cpu"
    )


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("vit_model.visual.conv1.weight", None, "missing vit_model.visual.conv1.weight"),
        ("vit_model.visual.conv1.weight", (2, 3), r"conv1.weight has shape \(2, 3\), expected 4"),
        ("vit_model.visual.conv1.weight", (128, 3, 16, 8), r"16, 8\), expected \(128, 3, 16, 16"),
        ("vit_model.visual.positional_embedding", (17,), r"shape \(17,\), expected 2 dimensions"),
        ("vit_model.visual.positional_embedding", (0, 128), r"\(0, 128\), expected 2 dimensions"),
        ("vqa_classifier.3.weight", (), r"vqa_classifier.3.weight has shape \(\), expected 2"),
        ("cross_modal_text_transform.weight", (), r"transform.weight has shape \(\), expected 2"),
        ("token_type_embeddings.weight", (3, 48), r"shape \(3, 48\), expected \(2, 48\)"),
        ("text_transformer.encoder.layer.1.output.dense.bias", None, "missing text_.*dense.bias"),
        ("itc_pooler.dense.weight", (2, 2), "unknown itc_pooler.dense.weight"),
    ],
)
def test_tensors_that_do_not_fit(folder, tmp_path, name, shape, message):
    content = torch.load(folder / "vqa.ckpt", weights_only=False)
    if shape is None:
        del content["state_dict"][name]
    else:
        content["state_dict"][name] = torch.zeros(shape)
    torch.save(content, tmp_path / "changed.ckpt")
    with pytest.raises(ValueError, match=rf"changed\.ckpt: (?s:.*){message}"):
        fiber.load(tmp_path / "changed.ckpt")


def test_a_long_question_is_truncated_with_a_warning(folder, model):
    words = [QUESTION] * 20
    with pytest.warns(UserWarning, match=r"has (\d{3}) tokens and is truncated .* of 16 tokens"):
        answers = model.answer(folder / "a.png", " ".join(words), top_k=23)
    # The first tokens are those that count.
    with pytest.warns(UserWarning, match="truncated"):
        assert model.answer(folder / "a.png", " ".join(words[:10]), top_k=23) == answers


def test_a_model_without_answers_and_tokenizer_asks_for_both(folder):
    bare = fiber.load(folder / "vqa.ckpt", device="cpu")
    with pytest.raises(ValueError, match=r"no answers .*--answers.*no tokenizer.*--tokenizer"):
        bare.answer(folder / "a.png", QUESTION)


@pytest.mark.parametrize("name", RELEASED)
def test_heads_of_the_released_files(name):
    """As inferred from the keys of each file."""
    assert (
        recognize(keys_of(name)).infer_config(meta_state(keys_of(name)), {}).heads
        == (RELEASED[name])
    )
    files = json.loads((KEYS / "meter_published_files.json").read_text())["kinds"]
    assert set(files) == set(RELEASED)


CALLS = {
    "itm": lambda model, image: model.match(image, "a dog"),
    "nlvr2": lambda model, image: model.reason((image, image), "a dog"),
    "snli": lambda model, image: model.entail(image, "a dog"),
    "itc": lambda model, image: model.embed_images([image]),
    "caption": lambda model, image: model.caption(image),
    "grounding": lambda model, image: model.ground(image, ["a dog"]),
}


@pytest.mark.parametrize(
    ("head", "named"),
    [
        ("itm", "meter_clip16_288_roberta_pretrain.ckpt"),
        ("nlvr2", "meter_clip16_288_roberta_nlvr2.ckpt has the head 'nlvr2'"),
        ("snli", "meter_clip16_288_roberta_snli.ckpt has the head 'snli'"),
        ("itc", "METER has no contrastive head, and so no embeddings of images or texts"),
        ("caption", "METER has no caption head; FIBER has one"),
        ("grounding", "METER predicts no boxes; FIBER does"),
    ],
)
def test_a_missing_head_names_the_file_that_has_it(folder, model, head, named):
    with pytest.raises(MissingHeadError, match=f"needs the head '{head}'; this model has vqa") as e:
        CALLS[head](model, folder / "a.png")
    assert named in str(e.value)


def test_ranking_and_words_have_files_too():
    assert "roberta_coco.ckpt have the head 'rank'" in head_hint("rank")
    assert "swinbase" in head_hint("mlm")


def test_embeddings_of_texts_and_search_by_them_say_the_same(model):
    with pytest.raises(MissingHeadError, match=r"embed_texts .*no contrastive head"):
        model.embed_texts(["a dog"])
    # Without reranking, search is by embeddings.
    with pytest.raises(MissingHeadError, match=r"search .*no contrastive head"):
        model.search("a dog", [np.zeros((9, 9, 3), np.uint8)], rerank=False)


#: What a model without a head that ranks pairs says: its heads, the files, and the recipes.
NO_RANKING = (
    r"needs the head 'rank' or 'itm'; this model has vqa\."
    r".*roberta_flickr\.ckpt, meter_clip16_288_roberta_coco\.ckpt have the head 'rank'"
    r".*288_roberta_pretrain\.ckpt,.* have the head 'itm'"
    r".*meter_retrieval_coco_published` or `fiber train meter_pretrain_published`"
)


def test_search_and_retrieval_name_the_files_that_rank_pairs(folder, model, capsys):
    with pytest.raises(MissingHeadError, match=f"search {NO_RANKING}"):
        model.search("a dog", [np.zeros((9, 9, 3), np.uint8)])
    with pytest.raises(MissingHeadError, match=f"task 'retrieval' {NO_RANKING}"):
        fiber.evaluate(model, "retrieval", [])
    named = ["--model", str(folder / "vqa.ckpt"), "--device", "cpu"]
    tokenizer = ["--tokenizer", str(folder / "tokenizer.json")]
    assert main(["search", "a dog", str(folder / "a.png"), *named, *tokenizer]) == 2
    assert re.search(NO_RANKING, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["caption", "IMAGE"], "METER has no caption head"),
        (["entail", "IMAGE", "a dog"], "meter_clip16_288_roberta_snli.ckpt has the head 'snli'"),
        (["match", "IMAGE", "a dog"], "meter_clip16_288_roberta_flickr.ckpt"),
        (["ground", "IMAGE", "--phrases", "a dog"], "METER predicts no boxes"),
        (["answer", "IMAGE", "what is it?"], "no answers for its VQA head"),
    ],
)
def test_commands_print_it_and_end_with_2(folder, capsys, command, message):
    command = [str(folder / "a.png") if word == "IMAGE" else word for word in command]
    named = ["--model", str(folder / "vqa.ckpt"), "--device", "cpu"]
    tokenizer = ["--tokenizer", str(folder / "tokenizer.json")]
    assert main([*command, *named, *tokenizer]) == 2
    assert message in capsys.readouterr().err


def test_evaluating_a_task_that_it_has_no_head_for(model):
    with pytest.raises(
        MissingHeadError, match=r"task 'nlvr2' .*roberta_nlvr2\.ckpt has the head 'nlvr2'"
    ):
        fiber.evaluate(model, "nlvr2", [])
