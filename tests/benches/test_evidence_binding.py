"""The bench of binding questions trains and measures every arm."""

import pytest

from fiber.demo.plan import find_plan
from fiber.synthetic.scenes import generate


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("binding") / "scenes", train=80, val=40, novel=40)


@pytest.mark.slow
def test_a_run_has_a_row_with_every_metric(bench, scenes):
    steps = {"fine": 1, "coarse": 2}
    [row] = bench.run(scenes, f"{bench.NONE}{bench.EQUAL_TIME}", 1, steps)
    assert (row["arm"], row["seed"]) == ("no fusion, equal time", 1)
    assert (row["fine_steps"], row["coarse_steps"]) == (1, 2)
    for metric in bench.METRICS:
        for split in ("val", "novel"):
            assert 0 <= float(row[f"vqa/{metric}/{split}"]) <= 1


def test_the_coarse_stage_is_that_of_the_demo(bench):
    coarse = find_plan("scenes", "default").runs["coarse"]
    assert bench.COARSE["tasks.question.first_sources"] == ("questions:color", "questions:shape")
    assert {n: v for n, v in coarse.items() if not n.startswith("train.")} == bench.COARSE
    assert coarse["train.steps"] == bench.STEPS["coarse"]
