"""Plans: every one of them can be carried out."""

import json
from pathlib import Path

import pytest

from fiber.demo import floors
from fiber.demo.floors import REQUIRED
from fiber.demo.plan import STAGES, Plan, find_plan

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
        assert coarse.train.steps == plan.runs["coarse"]["train.steps"]
        # The coarse model must take the fine one's towers as they are.
        assert coarse.model.swin == fine.model.swin
        fused = coarse.model.fusion.num_fused_layers
        assert fused == fine.model.fusion.num_fused_layers

    def test_every_task_and_stage_is_counted(self, data, mode):
        plan = find_plan(data, mode)
        assert set(plan.records) == set(TASKS)
        assert list(plan.runs) == list(STAGES) == ["fine", "coarse"]
        assert list(plan.seconds) == ["data", *plan.runs, "evaluation", "page"]

    def test_every_run_starts_with_the_previous_model(self, data, mode, tmp_path):
        plan = find_plan(data, mode)
        first, *others = plan.runs
        assert "--init" not in plan.train_command(first, 0, tmp_path)
        for run, previous in zip(others, plan.runs, strict=False):
            command = plan.train_command(run, 0, tmp_path)
            assert command[command.index("--init") + 1] == str(tmp_path / previous)

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
    plan = Plan(train_images=1, runs={"coarse": {"train.step": 3}}, records={})
    with pytest.raises(ValueError, match=r"train\.steps"):
        plan.config("coarse", 0)
