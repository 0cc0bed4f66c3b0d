"""Plans of runs: memory, batch, times and checkpoints, and what cannot be planned."""

import json
import math

import pytest

from fiber.config_io import replace_fields
from fiber.models.registry import build_model
from fiber.training.config.run import load_recipe
from fiber.training.plan.cluster import Cluster, as_json, plan_run, samples_of
from fiber.training.plan.gpus import GPUS
from fiber.training.plan.step_cost import TextShape, count_step
from fiber.training.plan.traffic import gradient_bytes, loss_traffic, shard_bytes
from tests.training.micro_runs import coarse_config, fine_config, run


def pairs(**changes):
    """Captions alone."""
    changes = {"tasks__reasoning__share": 0, "tasks__caption__share": 0} | changes
    return coarse_config(tasks__question__share=0, data__batch_size=32, **changes)


def questions(**changes):
    """Questions alone, which are fast to count."""
    shares = {f"tasks__{name}__share": 0 for name in ("image_text", "reasoning", "caption")}
    return coarse_config(data__batch_size=32, **shares, **changes)


def test_one_gpu():
    plan = plan_run(questions(), Cluster(gpus=1, node_gbps=100))
    assert plan.samples_per_gpu == 32
    assert plan.contrast_bytes == plan.negative_bytes == 0
    for strategy in plan.strategies.values():
        assert strategy.step_bytes == 0
        assert strategy.network_seconds is None and strategy.efficiency is None
    assert plan.strategies["replicate"].state_bytes == 16 * plan.parameters


@pytest.mark.slow
def test_a_plan_is_what_its_parts_count():
    config = pairs(train__accumulation=2, train__ema_decay=0.99)
    cluster = Cluster(gpus=4, gpus_per_node=2, node_gbps=8, gpu="a100-40gb", utilization=0.5)
    plan = plan_run(config, cluster)
    model = build_model(config.model)
    count = sum(p.numel() for p in model.parameters())
    assert plan.parameters == plan.trained_parameters == count
    assert (plan.samples_per_gpu, plan.accumulation, cluster.nodes) == (4, 2, 2)
    tokens, size = config.model.max_tokens, (64, 64)
    cost = count_step(config, "image_text", TextShape(4, tokens), size)
    assert plan.flops_per_sample == pytest.approx(cost.flops / 4, rel=0.01)  # rounded MLM tokens
    assert plan.activation_bytes == pytest.approx(cost.activation_bytes, rel=0.01)
    seconds = 32 * plan.flops_per_sample / (4 * 0.5 * GPUS["a100-40gb"].float32)
    assert plan.compute_seconds == pytest.approx(seconds)
    traffic = loss_traffic(config, "image_text", 4, tokens, size)
    assert (plan.contrast_bytes, plan.negative_bytes) == traffic

    replicate, shard = plan.strategies["replicate"], plan.strategies["shard"]
    assert replicate.state_bytes == 20 * count
    assert shard.state_bytes == 5 * count
    assert (replicate.whole_bytes, shard.whole_bytes) == (0, (4 + 4) * count)
    for strategy in (replicate, shard):
        rest = strategy.state_bytes + strategy.whole_bytes
        assert strategy.memory_bytes == rest + plan.activation_bytes
    assert replicate.step_bytes == gradient_bytes(count, 4)
    assert shard.step_bytes == shard_bytes(count, count, 4, "float32")
    # 8 Gbit/s are a gigabyte; two GPUs fetch half of their negatives from the other node.
    sent = replicate.step_bytes + traffic.contrast + traffic.negatives
    assert replicate.network_seconds == pytest.approx(sent / 1e9)
    alone, hidden = replicate.efficiency
    assert alone == pytest.approx(seconds / (seconds + sent / 1e9))
    assert hidden == pytest.approx(seconds / max(seconds, seconds / 3 + sent / 1e9))


@pytest.mark.slow
def test_data_of_a_node():
    config = coarse_config(tasks__image_text__share=1, tasks__caption__share=0, data__batch_size=8)
    cluster = Cluster(gpus=4, gpus_per_node=2, image_kb=200, loader_ms=2)
    plan = plan_run(config, cluster)
    # A third of the steps has two images a sample.
    images = 8 * (4 / 3) / plan.compute_seconds / 2
    assert plan.images_per_second == pytest.approx(images)
    assert plan.cores == pytest.approx(images * 0.002)
    assert plan.storage_bytes_per_second == pytest.approx(images * 200_000)


@pytest.mark.slow
def test_frozen_parts_need_less():
    config = questions(optim__frozen=("backbone",))
    plan, whole = (plan_run(each, Cluster(gpus=2)) for each in (config, questions()))
    frozen = whole.parameters - plan.trained_parameters
    assert 0 < plan.trained_parameters < 0.5 * plan.parameters
    assert plan.strategies["replicate"].state_bytes == 16 * plan.trained_parameters + 4 * frozen
    assert plan.strategies["replicate"].step_bytes == gradient_bytes(plan.trained_parameters, 2)
    assert plan.flops_per_sample < whole.flops_per_sample


@pytest.mark.slow
def test_a_checkpoint_has_the_size_of_its_files(pictures, tmp_path):
    config = pairs(
        train__ema_decay=0.9,
        train__steps=2,
        train__checkpoint_every=1,
        tasks__image_text__itc_form="queue",
        tasks__image_text__queue_length=64,
    )
    config = run(config, pictures, tmp_path / "r").config
    plan = plan_run(config, Cluster(gpus=1, disk_gbps=0.5))
    folder = tmp_path / "r" / "checkpoints" / "step-00000001"
    size = sum(file.stat().st_size for file in folder.iterdir())
    # Names and headers of a small model take a part of the files.
    assert plan.checkpoint_bytes < size < 1.15 * plan.checkpoint_bytes
    assert plan.checkpoint_seconds == pytest.approx(plan.checkpoint_bytes / 0.5e9)


@pytest.mark.slow
def test_checkpoints_are_as_often_as_young_says():
    plans = [plan_run(questions(), Cluster(gpus=count)) for count in (8, 32)]
    for plan, count in zip(plans, (8, 32), strict=True):
        hours = 54 * 24 * 16384 / 419 / count
        assert plan.interruption_hours == pytest.approx(hours)
        expected = math.sqrt(2 * plan.checkpoint_seconds * hours * 3600) / 60
        assert plan.checkpoint_minutes == pytest.approx(expected)


@pytest.mark.slow
def test_gradient_checkpointing_saves_memory_and_is_no_progress():
    plain, saving = (
        plan_run(questions(train__gradient_checkpointing=value), Cluster(gpus=1))
        for value in (False, True)
    )
    assert saving.activation_bytes < plain.activation_bytes
    assert saving.flops_per_sample == plain.flops_per_sample


def test_a_gpu_without_the_precision_has_no_times():
    plan = plan_run(
        questions(train__precision="bfloat16"),
        Cluster(gpus=16, gpu="v100-16gb", node_gbps=100),
    )
    assert plan.compute_seconds is None and plan.images_per_second is None
    assert plan.strategies["replicate"].efficiency is None
    assert any("'bfloat16'" in note for note in plan.notes)


@pytest.mark.slow
def test_images_of_several_sizes_are_counted_at_the_largest():
    plan = plan_run(fine_config(), Cluster(gpus=1))
    assert any("largest" in note for note in plan.notes)
    assert plan.image_size == (64, 96)


@pytest.mark.parametrize(
    ("objective", "copies"), [pytest.param("gold", 1, marks=pytest.mark.slow), ("cider", 0)]
)
def test_captions(objective, copies):
    """GOLD has a reference model; sampled captions are not counted, which a note says."""
    shares = {f"tasks__{name}__share": 0 for name in ("image_text", "reasoning", "question")}
    config = coarse_config(tasks__caption__objective=objective, **shares)
    plan = plan_run(config, Cluster(gpus=1))
    assert plan.objective_bytes == 4 * plan.parameters * copies
    assert any("sampled" in note for note in plan.notes) == (objective == "cider")


def test_a_plan_is_json():
    values = json.loads(json.dumps(as_json(plan_run(questions(), Cluster(gpus=2)))))
    assert values["cluster"]["gpus"] == 2
    assert values["strategies"]["shard"]["state_bytes"] > 0


def test_more_gpus_than_samples():
    config, message = pairs(train__accumulation=2), "leaves 16 samples for 17 GPUs"
    with pytest.raises(ValueError, match=message):
        samples_of(config, 17)
    with pytest.raises(ValueError, match=message):
        plan_run(config, Cluster(gpus=17, gpus_per_node=1))


def test_gpus_that_do_not_divide_a_batch_have_a_sample_more_or_less():
    assert [samples_of(questions(), gpus) for gpus in (1, 3, 8, 31, 32)] == [32, 11, 4, 2, 1]


@pytest.mark.slow
def test_passes_need_the_memory_of_one():
    whole = plan_run(questions(), Cluster(gpus=4))
    parts = plan_run(questions(train__samples_per_pass=3), Cluster(gpus=4))
    same = plan_run(questions(), Cluster(gpus=11, gpus_per_node=1))
    assert (whole.passes, parts.passes, same.passes) == (1, 3, 1)
    assert (parts.samples_per_gpu, same.samples_per_gpu) == (8, 3)
    assert parts.activation_bytes == same.activation_bytes < whole.activation_bytes
    assert parts.flops_per_sample == whole.flops_per_sample
    assert any("passes" in note for note in parts.notes)


@pytest.mark.slow
def test_hybrid_shards_in_a_node_and_sums_over_nodes():
    cluster = Cluster(gpus=8, gpus_per_node=4, node_gbps=8)
    plan = plan_run(questions(), cluster)
    replicate, hybrid = plan.strategies["replicate"], plan.strategies["hybrid"]
    count = plan.parameters
    assert hybrid.state_bytes == replicate.state_bytes / 4
    assert hybrid.whole_bytes == (4 + 4) * count
    # In a node of four: weights are gathered, gradients scattered; over two nodes a quarter of the
    # gradients is summed.
    assert hybrid.step_bytes == pytest.approx(count * (3 / 4 * (4 + 4) + 2 * 1 / 2 * 4 / 4))
    # All four quarters leave the node.
    assert hybrid.network_seconds == pytest.approx(2 * 1 / 2 * 4 * count / 1e9)
    one = plan_run(questions(), Cluster(gpus=4, gpus_per_node=4)).strategies
    assert one["hybrid"] == one["shard"]


def test_shard_is_over_groups_of_at_most_64():
    config = replace_fields(questions(), {"data.batch_size": 256})
    cluster = Cluster(gpus=128, gpus_per_node=8, node_gbps=8)
    plan = plan_run(config, cluster)
    replicate, shard = plan.strategies["replicate"], plan.strategies["shard"]
    count = plan.parameters
    assert shard.state_bytes == replicate.state_bytes / 64
    # Weights are gathered and gradients scattered in a group, then shards are summed over two.
    inside, across = 63 / 64 * (4 + 4), 2 * 1 / 2 * 4 / 64
    assert shard.step_bytes == pytest.approx(count * (inside + across))
    # A ring of a group enters a node once; the shards of its eight GPUs leave it one by one.
    assert shard.network_seconds == pytest.approx(count * (inside + 8 * across) / 1e9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpus": 0}, "gpus must be 1 or more, got 0"),
        ({"gpus": 12}, "gpus 12 is not a multiple of gpus_per_node 8"),
        ({"gpus": 8, "gpus_per_node": 0}, "gpus_per_node must be 1 or more, got 0"),
        ({"gpus": 8, "gpu": "h1000"}, "'h1000' is unknown; did you mean h100"),
        ({"gpus": 8, "node_gbps": 0.0}, "node_gbps must be above 0, got 0.0"),
        ({"gpus": 8, "utilization": 1.5}, r"utilization must be in \(0, 1\], got 1.5"),
        ({"gpus": 8, "disk_gbps": -1.0}, "disk_gbps must be above 0"),
    ],
)
def test_an_invalid_cluster(options, message):
    with pytest.raises(ValueError, match=message):
        Cluster(**options)


@pytest.mark.slow
def test_pretraining_at_the_published_size():
    """The numbers that the design of training on clusters starts from."""
    config = load_recipe("pretrain")
    plan = plan_run(config, Cluster(gpus=64, node_gbps=400))
    assert plan.parameters == 281_295_840
    assert plan.samples_per_gpu == 8
    assert plan.strategies["replicate"].step_bytes == pytest.approx(2.215e9, rel=1e-3)
    published = replace_fields(config, {"tasks.image_text.itc_form": "queue"})
    queued = plan_run(published, Cluster(gpus=64))
    # Images of 4,096 pairs, of which a GPU of 64 holds 64; the other tensors are on each.
    assert queued.checkpoint_bytes - plan.checkpoint_bytes == pytest.approx(7.27e9, rel=1e-3)
    assert queued.objective_bytes == pytest.approx(7.25e9 / 64 + 0.027e9, rel=1e-2)
