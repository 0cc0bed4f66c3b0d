"""Losses of MLM, captioning and the tasks with labels: by hand, and as recorded."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from fiber.losses.caption import caption_loss
from fiber.losses.entailment import entailment_loss
from fiber.losses.mlm import mlm_loss
from fiber.losses.nlvr2 import nlvr2_loss
from fiber.losses.ranking import ranking_loss
from fiber.losses.vqa import vqa_loss
from tests.golden import COARSE

pytestmark = pytest.mark.oldest


def log_softmax(logits):
    total = math.log(sum(math.exp(x) for x in logits))
    return [x - total for x in logits]


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (torch.randn(0, 7), torch.zeros(0, dtype=torch.int64)),
        (torch.randn(2, 3, 7), torch.full((2, 3), -100)),
        (torch.randn(0, 3, 7), torch.zeros(0, 3, dtype=torch.int64)),
    ],
    ids=["no position", "no picked token", "no sample"],
)
def test_masked_words_without_a_picked_token_give_zero_with_a_graph(logits, labels):
    logits.requires_grad_()
    loss = mlm_loss(logits, labels)
    assert loss.item() == 0.0
    loss.backward()
    assert float(logits.grad.abs().sum()) == 0.0


def test_masked_words_by_hand():
    logits = torch.tensor([[[1.0, 2.0, 0.0], [5.0, 0.0, 0.0]], [[0.0, 0.0, 1.0], [3.0, 1.0, 1.0]]])
    labels = torch.tensor([[1, -100], [0, 2]])
    picked = [log_softmax([1, 2, 0])[1], log_softmax([0, 0, 1])[0], log_softmax([3, 1, 1])[2]]
    expected = -sum(picked) / 3
    assert float(mlm_loss(logits, labels)) == pytest.approx(expected, abs=1e-6)
    at = labels != -100
    assert float(mlm_loss(logits[at], labels[at])) == pytest.approx(expected, abs=1e-6)
    assert mlm_loss(logits.bfloat16(), labels).dtype == torch.float32


def test_caption_by_hand():
    # <s> a b </s> and <s> a </s> <pad>, of a vocabulary of 5.
    ids = torch.tensor([[0, 3, 4, 2], [0, 3, 2, 1]])
    mask = ids != 1
    logits = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    targets = [(0, 0, 3), (0, 1, 4), (0, 2, 2), (1, 0, 3), (1, 1, 2)]
    expected = -sum(log_softmax(logits[b, t].tolist())[v] for b, t, v in targets) / 5
    assert float(caption_loss(logits, ids, mask)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("shape", [(0, 4), (3, 1)], ids=["no caption", "nothing follows"])
def test_caption_without_a_next_token_gives_zero_with_a_graph(shape):
    logits = torch.randn(*shape, 5, requires_grad=True)
    loss = caption_loss(logits, torch.zeros(shape, dtype=torch.int64), torch.ones(shape).bool())
    loss.backward()
    assert loss.item() == 0.0 and logits.grad is not None


def test_answers_by_hand():
    logits, targets = (
        torch.tensor([[0.0, 2.0], [-1.0, 0.5]]),
        torch.tensor([[0.3, 1.0], [0.0, 0.6]]),
    )
    total = 0.0
    for x, t in zip(logits.flatten().tolist(), targets.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-x))
        total -= t * math.log(p) + (1 - t) * math.log(1 - p)
    assert float(vqa_loss(logits, targets)) == pytest.approx(total / 2, abs=1e-6)
    assert float(vqa_loss(logits[:0], targets[:0])) == 0.0


def test_statements_by_hand():
    logits = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    expected = -(log_softmax([0, 1])[1] + log_softmax([2, 0])[1]) / 2
    assert float(nlvr2_loss(logits, torch.tensor([1, 1]))) == pytest.approx(expected, abs=1e-6)
    assert float(nlvr2_loss(logits[:0], torch.zeros(0, dtype=torch.int64))) == 0.0


def test_wrong_shapes_and_dtypes_are_named():
    ids = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"shape \(2, 3, 7\).*labels \(2, 4\)"):
        mlm_loss(torch.zeros(2, 3, 7), torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"labels.*torch.float32.*torch.int64"):
        mlm_loss(torch.zeros(2, 3, 7), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"token_ids \(2, 3\)"):
        caption_loss(torch.zeros(2, 4, 7), ids, ids.bool())
    with pytest.raises(ValueError, match=r"text_mask.*shape \(2, 2\)"):
        caption_loss(torch.zeros(2, 3, 7), ids, ids[:, :2].bool())
    with pytest.raises(ValueError, match=r"targets \(2, 4\).*\(B, answers\)"):
        vqa_loss(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"shape \(2, 3\), truths \(2,\)"):
        nlvr2_loss(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"shape \(2, 3\), entailment labels \(3,\)"):
        entailment_loss(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"truths.*torch.bool"):
        nlvr2_loss(torch.zeros(2, 2), torch.zeros(2).bool())


@pytest.mark.parametrize("name", ["micro", "tiny", "tinyhot"])
def test_losses_equal_the_original(name):
    tensors = load_file(COARSE / f"{name}.safetensors")
    scalars = json.loads((COARSE / f"{name}.json").read_text())["scalars"]
    samples = len(tensors["input.text_ids"])
    answers = tensors["fused.vqa_logits"].shape[1]
    targets = torch.zeros(samples, answers)
    for row, scores in zip(
        targets, [{1: 1, 5: 0.3}, {2: 0.6}, {3: 0.9, 9: 0.3, 0: 1}], strict=True
    ):
        for answer, score in scores.items():
            row[answer] = score
    found = {
        "mlm": mlm_loss(tensors["mlm.logits"], tensors["input.text_labels_mlm"].long()),
        "caption_mle": caption_loss(
            tensors["caption.logits"],
            tensors["input.text_ids"].long(),
            tensors["input.text_masks"].bool(),
        ),
        "vqa": vqa_loss(tensors["fused.vqa_logits"], targets),
        "nlvr2": nlvr2_loss(tensors["nlvr2.logits"], torch.tensor([1, 0, 1])),
    }
    for key, loss in found.items():
        # The same float32 logits summed in another order.
        assert float(loss) == pytest.approx(scalars[f"loss.{key}"], rel=1e-6), key


def test_entailment_is_the_mean_cross_entropy_of_three_classes():
    logits, labels = torch.randn(5, 3), torch.tensor([2, 0, 1, 1, 2])
    expected = -logits.log_softmax(1)[torch.arange(5), labels].mean()
    torch.testing.assert_close(entailment_loss(logits, labels), expected)
    with pytest.raises(ValueError, match=r"\(5, 2\).*expected \(B, 3\)"):
        entailment_loss(logits[:, :2], labels)
    with pytest.raises(ValueError, match="int64"):
        entailment_loss(logits, labels.int())


def test_ranking_prefers_the_first_text():
    scores = torch.tensor([[2.0, 0.0, -1.0], [0.0, 3.0, 0.0]])
    expected = -scores.log_softmax(1)[:, 0].mean()
    torch.testing.assert_close(ranking_loss(scores), expected)
    assert ranking_loss(scores.flip(1)) != ranking_loss(scores)
    with pytest.raises(ValueError, match=r"\(2, 1\)"):
        ranking_loss(scores[:, :1])
