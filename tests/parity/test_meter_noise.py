"""The measurement of noise takes the steps of a run, and finds noise where there is some."""

import pytest
import torch

from fiber.training.optim import build_optimizer, lr_factor, set_learning_rate
from tests.golden import METER
from tests.parity import meter_noise
from tests.parity.meter import OPTIM, STEPS, losses_of, only_losses
from tests.parity.meter_case import TASKS, published_pieces

pytestmark = pytest.mark.oldest

SMALL = meter_noise.BASE | {
    "tower": {"layers": 3, "width": 64, "patch": 16, "ctx_width": 16},
    "text": {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    },
    "hidden": 32,
    "heads": 2,
    "top": 2,
    "V": 60,
    "A": 23,
    "std": 0.1,
}


@pytest.fixture(scope="module")
def case():
    return meter_noise.DrawnCase(SMALL, seed=0)


def test_steps_in_the_backward_pass_are_those_of_one_optimizer(case):
    found = meter_noise.measure(case, "pretrain", torch.float64)
    model = case.model("pretrain").double().train()
    optimizer = build_optimizer(model, OPTIM)
    for step in range(3):
        set_learning_rate(optimizer, OPTIM.lr * lr_factor(step, STEPS, OPTIM))
        optimizer.zero_grad(set_to_none=True)
        losses = only_losses(losses_of(model, case, "pretrain"))
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    after = published_pieces(model)
    for name, norm in {**found.weights, **found.biases}.items():
        assert after[name].norm().item() == norm
    assert found.losses["step 0 total"] != found.losses["step 2 total"]


@pytest.mark.parametrize("task", TASKS)
def test_noise_is_between_roundings_and_mistakes(case, task):
    single, double = (meter_noise.measure(case, task, t) for t in (torch.float32, torch.float64))
    found = meter_noise.errors(single, double)
    assert set(found) == {*("tensors",) * (task == "pretrain"), "losses", "weights", "biases"}
    for error, name in found.values():
        assert 1e-9 < error < 1e-3, name
    assert all(error == 0 for error, _ in meter_noise.errors(double, double).values())


def test_the_command_prints_every_error_of_a_recorded_case(capsys):
    """The micro cases were recorded in float32, too."""
    meter_noise.main(["vqa", "--case", str(METER / "clip_micro.json")])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[2] for line in lines] == ["losses", "weights", "biases", "recorded"]
    error, step = float(lines[-1][4]), lines[-1][6]
    assert 1e-9 < error < 5e-6
    assert step in "0123"
