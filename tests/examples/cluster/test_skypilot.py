"""skypilot.yaml: fields of a task, and its commands on two machines that are this one."""

import itertools
import re

import pytest
import yaml

from tests.examples.cluster.local_cluster import (
    EXAMPLES,
    FEW,
    check_finished,
    end_of,
    small_run,
)
from tests.kill_ranks import free_port

FILE = EXAMPLES / "skypilot.yaml"
TASK = yaml.safe_load(FILE.read_text())


def test_fields_of_the_task():
    assert TASK.keys() == {
        *("name", "num_nodes", "resources", "volumes", "envs", "setup", "run"),
    }
    assert TASK["resources"].keys() == {"infra", "accelerators", "job_recovery"}
    recovery = TASK["resources"]["job_recovery"]
    assert recovery == {"max_restarts_on_errors": 3, "recover_on_exit_codes": [75]}
    # SkyPilot takes strings only.
    assert all(isinstance(value, str) for value in TASK["envs"].values())
    (mount,) = TASK["volumes"]
    for name in ("DATA", "INIT", "OUTPUT"):
        assert TASK["envs"][name].startswith(f"{mount}/")


def test_skypilot_reads_the_file():
    sky = pytest.importorskip("sky", reason="skypilot is missing")
    task = sky.Task.from_yaml(str(FILE))
    assert task.num_nodes == TASK["num_nodes"]


@pytest.mark.parametrize("init", ["", "weights of encoders"])
def test_words_of_the_command(cluster, tmp_path, init):
    cluster.add_command("fiber", '#!/bin/sh\nprintf "%s\\n" "$@"\n')
    machines = {
        "SKYPILOT_NUM_NODES": "4",
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2\n10.0.0.3\n10.0.0.4",
        "SKYPILOT_TASK_ID": "sky-managed-2026-11-29-12-00-00-000000_fiber_7-0",
    }
    variables = TASK["envs"] | machines | {"INIT": init, "DATA": "a folder"}
    job = cluster.start(["bash", "-c", TASK["run"]], tmp_path / "run", variables)
    words = end_of(job).splitlines()
    assert words[:4] == ["train", "pretrain", "--data", "a folder"]
    assert words[4:6] == (["--init", init] if init else ["--output", "/shared/runs/pretrain"])
    options = dict(itertools.pairwise(words))
    assert options["--set"] == "train.checkpoint_minutes=15"
    assert options["--rendezvous"] == "10.0.0.1:29400"
    assert options["--nodes"] == "4"
    assert options["--job"] == machines["SKYPILOT_TASK_ID"]


@pytest.mark.slow
def test_it_trains_on_two_machines(cluster, data, tmp_path):
    output = tmp_path / "run"
    # Both machines are this one, where the port of the file may be in use.
    run = re.sub(r":29400\b", f":{free_port()}", TASK["run"])
    assert run != TASK["run"]
    settings = small_run(data, output)
    own = {"RECIPE": settings[0], "DATA": str(data), "INIT": "", "OUTPUT": str(output)}
    own |= {"SETTINGS": " ".join(settings[settings.index("--set") :])}
    machines = {
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.1",
        "SKYPILOT_TASK_ID": "sky-managed-2026-11-29-12-00-00-000000_fiber_7-0",
        "SKYPILOT_NUM_GPUS_PER_NODE": "0",
    }
    jobs = [
        cluster.start(
            ["bash", "-c", run],
            output,
            TASK["envs"] | own | machines | {"SKYPILOT_NODE_RANK": str(rank)},
        )
        for rank in (0, 1)
    ]
    check_finished(output, FEW, end_of(*jobs))
