"""Methods of `fiber.Model` and `fiber.evaluate` give what the METER network gives."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from fiber import _core
from fiber.cli import main
from fiber.config import preset
from fiber.data import Tokenizer
from fiber.data.record import Record
from fiber.evaluation.evaluate import evaluate
from fiber.inference import Model
from fiber.models.heads import MissingHeadError
from fiber.models.pair_scoring import ranking_head
from fiber.models.registry import architecture_of, build_model, inference_transform
from tests.golden import METER
from tests.parity.meter_case import MeterCase
from tests.parity.tolerances import METER as TOLERANCES

pytestmark = pytest.mark.oldest

TEXTS = ("a red dog", "left of a cat", "what color is the dog")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["what color is the dog", "a red dog left of a cat"] * 9, 270)


@pytest.fixture(scope="module")
def images():
    draw = np.random.default_rng(0)
    sizes = (64, 90, 71)
    return [Image.fromarray(draw.integers(0, 256, (size, 70, 3), np.uint8)) for size in sizes]


def make_model(task, tokenizer, **options):
    torch.manual_seed(0)
    config = MeterCase(METER / "clip_micro.json").meter_config(task)
    config = config.with_vocabulary(tokenizer.vocab_size)
    network = architecture_of(config).network(config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return Model(network, tokenizer, **options)


def pixels(model, images):
    transform = inference_transform(model.config)
    values = [_core.apply_transform(np.array(image), transform)[0] for image in images]
    found = [torch.frombuffer(bytearray(own), dtype=torch.float32) for own in values]
    return torch.stack([own.view(3, 64, 64) for own in found])


def logits(model, images, text, head):
    arrays = model.tokenizer.encode_batch([text] * len(images), max_tokens=16)
    ids, mask = (torch.from_numpy(np.asarray(arrays[n])) for n in ("token_ids", "text_mask"))
    with torch.no_grad():
        return model.network(pixels(model, images), ids, mask, head)


def test_answer(tokenizer, images):
    answers = [str(number) for number in range(23)]
    model = make_model("vqa", tokenizer, answers=answers)
    found = model.answer(images, TEXTS[2], top_k=3)
    best = logits(model, images, TEXTS[2], "vqa").argsort(descending=True)[:, :3].tolist()
    assert [[answer.answer for answer in own] for own in found] == [
        [answers[place] for place in own] for own in best
    ]


def test_reason_marks_the_right_image(tokenizer, images):
    model = make_model("nlvr2", tokenizer)
    arrays = tokenizer.encode_batch([TEXTS[0]], max_tokens=16)
    ids, mask = (torch.from_numpy(np.asarray(arrays[n])) for n in ("token_ids", "text_mask"))
    with torch.no_grad():
        expected = model.network(pixels(model, images[:2])[None], ids, mask, "nlvr2")
    seen = []
    network_logits = model.network.nlvr2_logits
    model.network.nlvr2_logits = lambda *given: seen.append(network_logits(*given)) or seen[-1]
    assert model.reason(tuple(images[:2]), TEXTS[0]) == bool(expected[0, 1] > expected[0, 0])
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-4)


def test_match(tokenizer, images):
    model = make_model("pretrain", tokenizer)
    expected = logits(model, images, TEXTS[0], "itm").softmax(1)[:, 1].numpy()
    np.testing.assert_allclose(model.match(images, TEXTS[0]), expected, rtol=1e-4, atol=1e-5)


def test_entail(tokenizer, images):
    model = make_model("snli", tokenizer)
    expected = logits(model, images, TEXTS[0], "snli").softmax(1)
    found = model.entail(images, TEXTS[0])
    np.testing.assert_allclose([own[1:] for own in found], expected.numpy(), rtol=1e-3, atol=1e-4)
    names = ("contradiction", "neutral", "entailment")
    assert [own.label for own in found] == [names[place] for place in expected.argmax(1).tolist()]
    assert model.entail(images[0], TEXTS[0]).label == found[0].label
    several = model.entail(images[0], TEXTS[:2])
    expected = [logits(model, images[:1], text, "snli").softmax(1)[0].numpy() for text in TEXTS[:2]]
    np.testing.assert_allclose(
        [own[1:] for own in several], expected, rtol=0, atol=TOLERANCES.tensors
    )


@pytest.mark.parametrize(("task", "head"), [("irtr", "rank"), ("pretrain", "itm")])
def test_retrieval_scores_every_pair(tokenizer, images, task, head):
    model = make_model(task, tokenizer)
    scores = torch.stack([logits(model, images, text, head) for text in TEXTS])
    # Without a ranking head, pairs are ranked by the logit of a match.
    scores = scores if head == "rank" else scores[..., 1]
    files = []
    for image in images:
        file = io.BytesIO()
        image.save(file, "PNG")
        files.append(file.getvalue())
    records = [
        Record(key=str(n), images=(file,), text=text, image_id=str(n))
        for n, (file, text) in enumerate(zip(files, TEXTS, strict=True))
    ]
    metrics = evaluate(model, "retrieval", records)
    ranks = (scores > scores.diagonal()[:, None]).sum(1)
    expected = (ranks < 1).float().mean().item()
    assert metrics["text_to_image_recall_at_1"] == pytest.approx(expected)
    ranks = (scores > scores.diagonal()[None]).sum(0)
    expected = (ranks < 1).float().mean().item()
    assert metrics["image_to_text_recall_at_1"] == pytest.approx(expected)


def test_without_a_ranking_head_the_logit_of_a_match_ranks():
    """The recorded ranking head is that row of the ITM head."""
    case = MeterCase(METER / "clip_micro.json")
    model, (ids, mask) = case.model("pretrain"), case.text()
    with torch.no_grad():
        fused = model.backbone.encode_pair(case.input("image"), ids, mask, wanted="pooled")
        scores = ranking_head(model)(model.pooled(fused))
    # The first text of each image is the true one.
    expected = case.stored("irtr.score").reshape(case.records["irtr.score"]["shape"])[:, 0]
    largest = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(scores, expected, rtol=0, atol=TOLERANCES.tensors * largest)


def test_search_ranks_by_the_ranking_head(tokenizer, images):
    model = make_model("irtr", tokenizer)
    scores = logits(model, images, TEXTS[1], "rank")
    hits = model.search(TEXTS[1], images)
    assert [hit.index for hit in hits] == scores.argsort(descending=True).tolist()
    np.testing.assert_allclose(
        [hit.score for hit in hits], scores.sort(descending=True)[0], rtol=1e-4, atol=1e-4
    )


def test_search_without_a_ranking_head_ranks_by_the_logit_of_a_match(tokenizer):
    """As `fiber.evaluate` does; the log odds rank these images in another order."""
    model = make_model("pretrain", tokenizer)
    draw = np.random.default_rng(0)
    images = [Image.fromarray(draw.integers(0, 256, (64, 64, 3), np.uint8)) for _ in range(8)]
    found = logits(model, images, TEXTS[1], "itm")
    order = found[:, 1].argsort(descending=True).tolist()
    assert order != (found[:, 1] - found[:, 0]).argsort(descending=True).tolist()
    hits = model.search(TEXTS[1], images)
    assert [hit.index for hit in hits] == order
    shown = found[order, 1].numpy()
    np.testing.assert_allclose([hit.score for hit in hits], shown, rtol=0, atol=TOLERANCES.tensors)


def test_heads_that_it_lacks_are_named(tokenizer, images):
    model = make_model("vqa", tokenizer)
    with pytest.raises(MissingHeadError, match="the head 'itc'; this model has vqa"):
        model.embed_images(images)
    with pytest.raises(MissingHeadError, match="needs the head 'caption'") as error:
        model.caption(images)
    # No recipe trains a METER model to caption.
    assert "To train this head" not in str(error.value)
    with pytest.raises(MissingHeadError, match=r"entail needs .* 'snli'.*train meter_snli_ve"):
        model.entail(images, "a dog")
    with torch.device("meta"):
        fiber_model = Model(build_model(preset("micro")))
    with pytest.raises(MissingHeadError, match="entail needs the head 'snli'"):
        fiber_model.entail(images, "a dog")


def test_there_are_no_gates_to_set_to_zero(tokenizer, images):
    file = io.BytesIO()
    images[0].save(file, "PNG")
    records = [Record(key="0", images=(file.getvalue(),), text="a dog", answers={"1": 1.0})]
    model = make_model("vqa", tokenizer, answers=[str(number) for number in range(23)])
    with pytest.raises(ValueError, match="gated cross-attention"):
        evaluate(model, "vqa", records, fusion=False)


def test_the_command_prints_every_probability(tokenizer, images, tmp_path, capsys):
    model = make_model("snli", tokenizer)
    model.save(tmp_path / "model")
    images[0].save(tmp_path / "a.png")
    named = ["--model", str(tmp_path / "model"), "--device", "cpu"]
    assert main(["entail", str(tmp_path / "a.png"), "a red dog", *named]) == 0
    result = json.loads(capsys.readouterr().out)
    expected = model.entail(images[0], "a red dog")
    assert (result["hypothesis"], result["label"]) == ("a red dog", expected.label)
    for name in ("contradiction", "neutral", "entailment"):
        assert result[name] == pytest.approx(getattr(expected, name), abs=1e-4)
    assert main(["answer", str(tmp_path / "a.png"), "what is it?", *named]) == 2
    assert "answer needs the head 'vqa'" in capsys.readouterr().err
