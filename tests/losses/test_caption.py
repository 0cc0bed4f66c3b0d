import math

import pytest
import torch

from fiber.losses.caption import (
    caption_loss,
    gold_loss,
    gold_weights,
    others_mean,
    self_critical_loss,
)

pytestmark = pytest.mark.oldest

# <s> a b </s> and <s> a </s> <pad>, of a vocabulary of 5.
IDS = torch.tensor([[0, 3, 4, 2], [0, 3, 2, 1]])
MASK = IDS != 1


def log_softmax(logits):
    total = math.log(sum(math.exp(x) for x in logits))
    return [x - total for x in logits]


def gold_by_hand(logits, reference, divisor):
    total = 0.0
    for caption, targets in enumerate(((3, 4, 2), (3, 2))):
        p = [
            math.exp(log_softmax(reference[caption, t].tolist())[v]) for t, v in enumerate(targets)
        ]
        own = 0.0
        for t, v in enumerate(targets):
            q = sum(p[t:]) / len(p[t:])
            own -= max(p[t] * q, 0.1) * log_softmax(logits[caption, t].tolist())[v]
        total += own / {"tokens": len(targets), "padding": 4 - len(targets)}[divisor]
    return total / 2


@pytest.mark.parametrize("divisor", ["tokens", "padding"])
def test_gold_by_hand(divisor):
    random = torch.Generator().manual_seed(0)
    # Sharp enough that some weights are above 0.1.
    logits, reference = (2 * torch.randn(2, 4, 5, generator=random) for _ in range(2))
    reference[0, 0, 3] += 5
    expected = gold_by_hand(logits, reference, divisor)
    found = gold_loss(logits, reference, IDS, MASK, divisor=divisor)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_gold_of_a_sure_copy_is_likelihood_and_of_an_unsure_one_a_tenth():
    logits = torch.randn(1, 4, 5, generator=torch.Generator().manual_seed(1))
    plain = caption_loss(logits, IDS[:1], MASK[:1])
    sure = torch.full((1, 4, 5), -100.0)
    sure[0, [0, 1, 2], [3, 4, 2]] = 100.0
    assert torch.allclose(gold_loss(logits, sure, IDS[:1], MASK[:1]), plain)
    unsure = gold_loss(logits, -sure, IDS[:1], MASK[:1])
    assert torch.allclose(unsure, 0.1 * plain)


def test_gold_trains_the_model_and_not_the_copy():
    logits = torch.randn(2, 4, 5, requires_grad=True)
    reference = torch.randn(2, 4, 5, requires_grad=True)
    gold_loss(logits, reference, IDS, MASK).backward()
    assert reference.grad is None
    assert logits.grad is not None
    # Nothing is learned where no token follows.
    assert float(logits.grad[0, 3].abs().sum() + logits.grad[1, 2:].abs().sum()) == 0
    assert float(logits.grad[1, 1].abs().sum()) > 0


@pytest.mark.parametrize("shape", [(0, 4), (2, 1)], ids=["no caption", "nothing follows"])
def test_gold_without_a_target_gives_zero_with_a_graph(shape):
    logits = torch.randn(*shape, 5, requires_grad=True)
    ids = torch.zeros(shape, dtype=torch.int64)
    loss = gold_loss(logits, logits.detach(), ids, torch.ones(shape).bool())
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None


def test_a_caption_without_a_target_is_not_counted():
    logits = torch.randn(2, 4, 5)
    ids, mask = IDS.clone(), MASK.clone()
    # <s> alone: a text without even its end.
    ids[1, 1:], mask[1, 1:] = 1, False
    both = gold_loss(logits, logits, ids, mask)
    assert torch.allclose(both, gold_loss(logits[:1], logits[:1], ids[:1], mask[:1]))


def test_gold_weights_are_between_a_tenth_and_one():
    weights = gold_weights(5 * torch.randn(3, 6, 7), torch.randint(0, 7, (3, 6)))
    assert weights.min() >= 0.1 and weights.max() <= 1


def test_gold_names_what_is_wrong():
    logits = torch.zeros(2, 4, 5)
    with pytest.raises(ValueError, match=r"reference_logits.*shape \(2, 3, 5\)"):
        gold_loss(logits, logits[:, :3], IDS, MASK)
    with pytest.raises(ValueError, match=r"divisor.*'tokens'.*'padding'.*'pads'"):
        gold_loss(logits, logits, IDS, MASK, divisor="pads")  # type: ignore[arg-type]


def test_self_critical_by_hand():
    log_probs = torch.tensor([[[-1.0, -2.0, -9.0], [-3.0, -9.0, -9.0]], [[-0.5] * 3, [-1.0] * 3]])
    is_token = torch.tensor([[[1, 1, 0], [1, 0, 0]], [[1, 1, 1], [1, 1, 1]]]).bool()
    rewards = torch.tensor([[3.0, 0.0], [1.0, 0.5]])
    means = [[-1.5, -3.0], [-0.5, -1.0]]
    expected = sum(
        100 * (1 - float(rewards[b, s])) * means[b][s] for b in range(2) for s in range(2)
    )
    found = self_critical_loss(log_probs, is_token, rewards)
    assert float(found) == pytest.approx(expected / 2)
    baseline = torch.tensor([[0.0, 3.0], [0.5, 1.0]])
    assert torch.equal(others_mean(rewards), baseline)
    expected = (-3 * -1.5 + 3 * -3.0 - 0.5 * -0.5 + 0.5 * -1.0) / 2
    found = self_critical_loss(log_probs, is_token, rewards, baseline=baseline, scale=1.0)
    assert float(found) == pytest.approx(expected)


def test_self_critical_makes_the_better_sample_likelier():
    logits = torch.zeros(1, 2, 3, 5, requires_grad=True)
    log_probs = logits.log_softmax(-1)[..., 0]
    is_token = torch.ones(1, 2, 3).bool()
    self_critical_loss(log_probs, is_token, torch.tensor([[2.0, 0.0]])).backward()
    assert logits.grad is not None
    assert (logits.grad[0, 0, :, 0] < 0).all() and (logits.grad[0, 1, :, 0] > 0).all()


def test_self_critical_ignores_what_follows_a_sample():
    log_probs = torch.tensor([[[-1.0, -math.inf], [0.0, -math.inf]]], requires_grad=True)
    is_token = torch.tensor([[[True, False], [False, False]]])
    loss = self_critical_loss(log_probs, is_token, torch.zeros(1, 2))
    loss.backward()
    assert loss.item() == -100.0
    assert log_probs.grad is not None and log_probs.grad.tolist() == [[[100.0, 0], [0, 0]]]
    empty = self_critical_loss(torch.zeros(0, 2, 3), torch.zeros(0, 2, 3).bool(), torch.zeros(0, 2))
    assert empty.item() == 0.0


def test_self_critical_names_what_is_wrong():
    zeros = torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match=r"rewards \(2,\).*\(B, S, L\)"):
        self_critical_loss(zeros, zeros.bool(), torch.zeros(2))
    with pytest.raises(ValueError, match=r"2 samples per image, got 1"):
        others_mean(torch.zeros(2, 1))
