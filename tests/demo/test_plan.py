"""Plans: every one of them can be carried out."""

import json
from pathlib import Path

import pytest

from fiber.demo import floors
from fiber.demo.floors import REQUIRED
from fiber.demo.plan import Plan, find_plan

from .micro_demo import TASKS


@pytest.fixture
def micro_plans():
    """Keep the real plans in this file."""


@pytest.mark.parametrize(("data", "mode"), list(REQUIRED))
class TestEveryPlan:
    def test_runs_can_be_built(self, data, mode):
        plan = find_plan(data, mode)
        coarse, fine = plan.config("coarse", 5), plan.config("fine", 5)
        assert (coarse.model.stage, fine.model.stage) == ("coarse", "fine")
        assert coarse.train.seed == fine.train.seed == 5
        assert coarse.train.steps == plan.coarse["train.steps"]
        # The coarse model must take the fine one's towers as they are.
        assert coarse.model.swin == fine.model.swin
        fused = coarse.model.fusion.num_fused_layers
        assert fused == fine.model.fusion.num_fused_layers

    def test_every_task_and_stage_is_counted(self, data, mode):
        plan = find_plan(data, mode)
        assert set(plan.records) == set(TASKS)
        assert list(plan.seconds) == ["data", "fine", "coarse", "evaluation", "page"]

    def test_its_floors_were_recorded_with_it(self, data, mode):
        # Not FLOORS_FILE, which a fixture hides.
        recorded = json.loads(Path(floors.__file__).with_name("floors.json").read_text())
        entry = recorded[f"{data}/{mode}"]
        assert len({run["seed"] for run in entry["runs"]}) >= 3
        assert entry["plan"] == find_plan(data, mode).training

    def test_it_is_as_long_as_promised(self, data, mode):
        plan = find_plan(data, mode)
        assert sum(plan.seconds.values()) <= (600 if mode == "default" else 120)


def test_unknown_data():
    with pytest.raises(ValueError, match="did you mean scenes"):
        find_plan("scene", "fast")


def test_a_wrong_field_is_named():
    plan = Plan(train_images=1, coarse={"train.step": 3}, fine={}, records={})
    with pytest.raises(ValueError, match=r"train\.steps"):
        plan.config("coarse", 0)
