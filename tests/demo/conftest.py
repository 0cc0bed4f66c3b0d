"""One finished micro demo for all tests of this folder."""

import shutil
from pathlib import Path

import pytest

from .micro_demo import MICRO


@pytest.fixture(autouse=True)
def micro_plans(monkeypatch):
    """Every plan is the micro plan, all in this process; floors are unknown."""
    use_micro_plans(monkeypatch)


def use_micro_plans(monkeypatch):
    from fiber.demo import floors, page, plan, run

    for key in plan.PLANS:
        monkeypatch.setitem(plan.PLANS, key, MICRO)
    monkeypatch.setattr(run, "usable_cores", lambda: 0)
    monkeypatch.setattr(run, "launch", train_here)
    nowhere = floors.FLOORS_FILE.with_name("no such file.json")
    monkeypatch.setattr(floors, "FLOORS_FILE", nowhere)
    monkeypatch.setattr(page, "EVIDENCE_FILE", nowhere)


def train_here(command, job):
    """Train what `launch` would train in other processes."""
    from fiber.training.train import train

    options = dict(zip(command[2:-1:2], command[3:-1:2], strict=True))
    assert (command[0], command[-1], options["--processes"]) == ("train", "--resume", "2")
    assert (job.processes, job.restarts) == (2, 0)
    seed = int(next(word for word in command if word.startswith("train.seed=")).partition("=")[2])
    output = Path(options["--output"])
    config = MICRO.config(output.name, seed)
    start, device = options.get("--init"), options["--device"]
    train(config, data=options["--data"], output=output, init=start, device=device, resume=True)
    return 0


@pytest.fixture(scope="session")
def finished(made_once, tmp_path_factory):
    """Folder of a finished demo, of this process alone, since going on writes its page again."""
    folder = tmp_path_factory.mktemp("demo") / "finished"
    return shutil.copytree(made_once("finished_demo", run_demo) / "finished", folder)


def run_demo(folder):
    from fiber.demo import run

    with pytest.MonkeyPatch.context() as monkeypatch:
        use_micro_plans(monkeypatch)
        run.main(output=folder / "finished")
