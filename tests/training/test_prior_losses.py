"""Runs that do not learn say so."""

import math

import pytest
import torch

from fiber.losses.itc import itc_loss
from fiber.losses.itm import pair_loss
from fiber.losses.vqa import vqa_loss
from fiber.tasks import all_tasks
from fiber.training.data import open_data
from fiber.training.meters import PriorWatch, prior_losses
from tests.training.micro_runs import all_records, coarse_config, fine_config, run

TRAININGS = [task.trained(task.config()) for task in all_tasks().values()]


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
    watch = PriorWatch({"itc": 4.159, "itm": 0.693}, steps=2000, trainings=TRAININGS)
    stuck = {"itc": 4.158, "itm": 0.5}
    assert watch.messages(380, stuck) == []
    [message] = watch.messages(400, stuck)
    assert "step 400: itc is 4.158" in message and "has 4.159" in message and "lr" in message
    assert watch.messages(420, stuck) == []
    assert len(watch.messages(440, stuck | {"itm": 0.69})) == 1


def test_every_loss_with_a_prior_has_a_usual_cause():
    class Answers:
        answer_priors = (0.5,)

    found = set()
    for training in TRAININGS:
        priors = training.priors(coarse_config(), Answers())
        found |= priors.keys()
        # Also in a run with this task alone.
        for message in PriorWatch(priors, 10, [training]).messages(400, priors):
            assert message.partition("Usual cause: ")[2] in training.causes.values(), message
    assert found == {"itc", "itm", "vqa", "nlvr2", "snli", "rank"}


class TestFirstValue:
    def test_a_loss_without_a_prior_is_compared_with_it(self):
        watch = PriorWatch({}, steps=300, trainings=TRAININGS, from_scratch=True)
        assert watch.messages(20, {"alignment": 2.77, "box": 0.5}) == []
        assert watch.messages(180, {"alignment": 2.77, "box": 0.5}) == []
        [message] = watch.messages(200, {"alignment": 2.76, "box": 0.5})
        assert message.startswith("step 200: alignment is 2.760; it was 2.770 at step 20. Usual")
        assert watch.messages(220, {"alignment": 2.76}) == []

    def test_it_may_come_late(self):
        watch = PriorWatch({}, steps=300, trainings=TRAININGS, from_scratch=True)
        assert watch.messages(300, {"mlm": 6.0}) == []
        assert len(watch.messages(320, {"mlm": 6.0})) == 1

    @pytest.mark.parametrize(("from_scratch", "last"), [(True, 2.0), (False, 2.77)])
    def test_a_loss_that_falls_and_pretrained_weights_are_not_named(self, from_scratch, last):
        watch = PriorWatch({}, steps=300, trainings=TRAININGS, from_scratch=from_scratch)
        assert watch.messages(20, {"alignment": 2.77}) == []
        assert watch.messages(200, {"alignment": last}) == []


def test_a_fine_run_that_learns_nothing_says_so(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fiber.training.meters.FIRST_STEP", 3)
    run(fine_config(optim__lr=0.0), pictures, tmp_path / "r", quiet=False)
    assert "alignment is" in (said := capsys.readouterr().err) and "at step 1. Usual cause" in said


def test_a_run_that_learns_nothing_says_so(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fiber.training.meters.FIRST_STEP", 3)
    run(coarse_config(optim__lr=0.0), pictures, tmp_path / "r", quiet=False)
    said = capsys.readouterr().err
    assert "a model that ignores inputs has" in said and "itm is" in said
