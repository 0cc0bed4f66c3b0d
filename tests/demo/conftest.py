"""One finished micro demo for all tests of this folder."""

import shutil

import pytest

from .micro_demo import MICRO


@pytest.fixture(autouse=True)
def micro_plans(monkeypatch):
    """Every plan is the micro plan; pictures are drawn in this process, floors are unknown."""
    use_micro_plans(monkeypatch)


def use_micro_plans(monkeypatch):
    from fiber.demo import floors, page, plan, run

    for key in plan.PLANS:
        monkeypatch.setitem(plan.PLANS, key, MICRO)
    monkeypatch.setattr(run, "usable_cores", lambda: 0)
    nowhere = floors.FLOORS_FILE.with_name("no such file.json")
    monkeypatch.setattr(floors, "FLOORS_FILE", nowhere)
    monkeypatch.setattr(page, "EVIDENCE_FILE", nowhere)


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
