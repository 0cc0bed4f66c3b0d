"""The table of a plan."""

import dataclasses

import pytest

from fiber.training.plan.cluster import Cluster, plan_run
from fiber.training.plan.report import report
from tests.training.micro_runs import coarse_config

CLUSTER = Cluster(gpus=4, gpus_per_node=2, node_gbps=400)


@pytest.fixture(scope="module")
def plan():
    """The plan of one cheap task."""
    shares = {f"tasks__{name}__share": 0 for name in ("image_text", "reasoning", "caption")}
    return plan_run(coarse_config(data__batch_size=32, **shares), CLUSTER)


def test_the_table_of_a_cluster(plan):
    text = "\n".join(report(plan, "mine"))
    assert text.startswith("mine on 4 x h100 (2 nodes of 2, 80 GB each)\n")
    for part in (
        "32 samples a step = 4 GPUs x 1 micro-batch x 8 samples",
        "replicate         shard        hybrid",
        "time at 400 Gbit/s a node",
        "efficiency, no overlap",
        "fits                                     yes           yes           yes",
        "images a second",
        "(--image-kb)",
        "minutes lose least",
        "note: activations are",
    ):
        assert part in text, part
    lines = [line for line in text.splitlines() if not line.startswith("note: ")]
    assert max(map(len, lines)) <= 110


@pytest.mark.slow
def test_each_node_downloads_what_all_nodes_read():
    def rows(nodes):
        cluster = dataclasses.replace(CLUSTER, gpus=2 * nodes)
        shares = {f"tasks__{name}__share": 0 for name in ("image_text", "reasoning", "caption")}
        plan = plan_run(coarse_config(data__batch_size=32, **shares), cluster)
        return [line.strip() for line in report(plan, "mine")]

    storage = next(line for line in rows(2) if line.startswith("storage"))
    download = next(line for line in rows(2) if line.startswith("first epoch from a URL"))
    assert (
        storage.split("; ")[1].split(" for ")[0]
        == download.split("  ")[-1].strip().split(" to ")[0]
    )
    assert not any("URL" in line for line in rows(1))


def test_samples_that_do_not_divide_and_passes(plan):
    for changes, expected in (
        ({"batch_size": 31}, "31 samples a step = 4 GPUs x 1 micro-batch x 7 or 8 samples"),
        ({"passes": 3}, "x 8 samples in 3 passes"),
    ):
        assert expected in "\n".join(report(dataclasses.replace(plan, **changes), "mine"))


def test_what_is_unknown_is_not_printed(plan):
    strategies = {
        name: dataclasses.replace(each, network_seconds=None, efficiency=None)
        for name, each in plan.strategies.items()
    }
    unknown = dataclasses.replace(
        plan,
        compute_seconds=None,
        images_per_second=None,
        cores=None,
        storage_bytes_per_second=None,
        strategies=strategies,
    )
    text = "\n".join(report(unknown, "mine"))
    assert "--node-gbps" in text
    assert "efficiency" not in text
    assert "images a second" not in text
    assert "None" not in text


def test_a_model_that_does_not_fit(plan):
    small = dataclasses.replace(plan, gpu_bytes=plan.strategies["replicate"].memory_bytes)
    line = next(line for line in report(small, "mine") if line.startswith("  fits"))
    # Shards of two GPUs, with whole weights and gradients, are as much as all on one.
    assert line.split() == ["fits", "no", "yes", "no"]
