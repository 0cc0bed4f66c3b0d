"""Runs that do not learn say so."""

import math

import pytest
import torch

from fiber.losses.itc import itc_loss
from fiber.losses.itm import pair_loss
from fiber.losses.language import vqa_loss
from fiber.training.data import open_data
from fiber.training.meters import PriorWatch, prior_losses
from tests.training.micro_runs import all_records, coarse_config, run


def test_priors_are_the_losses_of_constant_predictions(pictures):
    config = coarse_config(tasks__caption__share=0)
    records = {name: all_records(pictures)[name] for name in config.tasks.active()}
    data = open_data(config, records, tokenizer=str(pictures / "tokenizer.json"))
    priors = prior_losses(config, data)
    same, one = torch.ones(4, 8) / math.sqrt(8), torch.tensor(0.07)
    constant = itc_loss(same, same, one, torch.arange(4), torch.arange(4))[0]
    assert priors["itc"] == pytest.approx(constant.item(), abs=1e-5)
    # A third of the pairs match.
    logits = torch.tensor([[math.log(2 / 3), math.log(1 / 3)]]).expand(12, 2)
    labels = torch.tensor([1] * 4 + [0] * 8)
    assert priors["itm"] == pytest.approx(pair_loss(logits, labels).item(), abs=1e-5)
    targets = torch.eye(4)[torch.arange(12) % 4]
    logits = torch.logit(torch.tensor(data.answer_priors)).expand(12, -1)
    assert priors["vqa"] == pytest.approx(vqa_loss(logits, targets).item(), abs=1e-5)
    assert priors["nlvr2"] == pytest.approx(math.log(2))


def test_a_stuck_loss_is_named_once_with_its_usual_cause():
    watch = PriorWatch({"itc": 4.159, "itm": 0.693}, steps=2000)
    stuck = {"itc": 4.158, "itm": 0.5}
    assert watch.messages(380, stuck) == []
    [message] = watch.messages(400, stuck)
    assert "step 400: itc is 4.158" in message and "has 4.159" in message and "lr" in message
    assert watch.messages(420, stuck) == []
    assert len(watch.messages(440, stuck | {"itm": 0.69})) == 1


def test_a_run_that_learns_nothing_says_so(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fiber.training.meters.FIRST_STEP", 3)
    run(coarse_config(optim__lr=0.0), pictures, tmp_path / "r", quiet=False)
    said = capsys.readouterr().err
    assert "a model that ignores inputs has" in said and "itm is" in said
