"""Plan a run on a cluster: memory, batch, bytes, data and checkpoints, from the recipe alone."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from dataclasses import dataclass

from fiber.config_io import require
from fiber.tasks import find_task
from fiber.training.config.run import RunConfig
from fiber.training.distributed.shard import group_size
from fiber.training.machine_memory import FROZEN_BYTES, TRAINED_BYTES, count_parameters
from fiber.training.objectives.forward_passes import ForwardPasses
from fiber.training.plan.gpus import find_gpu, peak_of
from fiber.training.plan.step_cost import TextShape, count_step, largest_image
from fiber.training.plan.traffic import (
    gradient_bytes,
    loss_traffic,
    shard_bytes,
    weight_bytes,
)
from fiber.training.task_training import trainings_of

#: Hours of one GPU between two unexpected interruptions: 419 in 54 days of 16,384 GPUs.
#: Source: The Llama 3 Herd of Models (Grattafiori et al., 2024), section 3.3.4.
GPU_HOURS_PER_INTERRUPTION = 54 * 24 * 16_384 / 419


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Hardware and assumptions of a plan."""

    gpus: int
    #: Name of a GPU in `gpus.GPUS`.
    gpu: str = "h100"
    gpus_per_node: int = 8
    #: Network of a node in Gbit/s, over all of its cards; None leaves times of the network out.
    node_gbps: float | None = None
    #: Share of the peak FLOP/s that the model reaches.
    utilization: float = 0.4
    #: Mean size of an image file in KB (1,000 bytes).
    image_kb: float = 125.0
    #: CPU time to load an image, in milliseconds of one core.
    loader_ms: float = 1.2
    #: Rate at which a checkpoint is written, in GB/s.
    disk_gbps: float = 1.0

    def __post_init__(self) -> None:
        find_gpu(self.gpu)
        for name in ("gpus", "gpus_per_node"):
            require(
                getattr(self, name) >= 1, f"{name} must be 1 or more, got {getattr(self, name)}"
            )
        for name in ("node_gbps", "image_kb", "loader_ms", "disk_gbps"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name} must be above 0, got {value}")
        require(0 < self.utilization <= 1, f"utilization must be in (0, 1], got {self.utilization}")
        require(
            self.gpus < self.gpus_per_node or self.gpus % self.gpus_per_node == 0,
            f"gpus {self.gpus} is not a multiple of gpus_per_node {self.gpus_per_node}",
        )

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return max(1, self.gpus // self.gpus_per_node)

    @property
    def node_size(self) -> int:
        """Number of GPUs in use on each node."""
        return self.gpus // self.nodes


@dataclass(frozen=True, kw_only=True)
class StrategyPlan:
    """One value of `train.strategy`; groups of "hybrid" are nodes."""

    #: Bytes on a GPU of weights, gradients, optimizer and EMA.
    state_bytes: float
    #: Bytes on a GPU of whole weights and gradients within a step.
    whole_bytes: float
    #: Bytes on a GPU with activations, queue and reference model.
    memory_bytes: float
    #: Bytes of weights and gradients through a GPU in a step.
    step_bytes: float
    #: Seconds of a step that the network takes, without overlap; None if unknown or on one node.
    network_seconds: float | None
    #: Share of a step that is computation, if communication does not overlap with the backward
    #: pass, and if it overlaps completely; None as above.
    efficiency: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class ClusterPlan:
    """What a run needs on a cluster. Numbers of tasks are means over the steps of a rotation."""

    cluster: Cluster
    parameters: int
    trained_parameters: int
    #: Samples and micro-batches of a step; samples of a micro-batch on a GPU, and its passes.
    batch_size: int
    accumulation: int
    samples_per_gpu: int
    passes: int
    #: Tokens of each text, the most that the model takes, and (height, width) of each image.
    tokens: int
    image_size: tuple[int, int]
    #: FLOPs of a sample, forward and backward.
    flops_per_sample: float
    #: Seconds of computation of a step; None if the GPU lacks the precision.
    compute_seconds: float | None
    #: Bytes on a GPU that are the same for all strategies, and the memory of the GPU.
    activation_bytes: float
    objective_bytes: float
    gpu_bytes: float
    #: Bytes through a GPU in a step that losses exchange: embeddings, negatives.
    contrast_bytes: float
    negative_bytes: float
    strategies: dict[str, StrategyPlan]
    #: Of a node: images and cores to decode them, and bytes of image files, per second.
    images_per_second: float | None
    cores: float | None
    storage_bytes_per_second: float | None
    #: Size of a checkpoint, time to write it, hours between interruptions of the cluster, and
    #: minutes between checkpoints at which least time is lost (Young's approximation).
    checkpoint_bytes: float
    checkpoint_seconds: float
    interruption_hours: float
    checkpoint_minutes: float
    #: What the numbers leave out.
    notes: tuple[str, ...]


def plan_run(config: RunConfig, cluster: Cluster) -> ClusterPlan:
    """Plan a run of a configuration.

    The model is counted as configured: a run sets the sizes of its vocabulary and answers from the
    data.

    Raises:
        ValueError: if a micro-batch has fewer samples than there are GPUs.
    """
    parameters, trained = count_parameters(config)
    samples = samples_of(config, cluster.gpus)
    gpu, precision = find_gpu(cluster.gpu), config.train.precision
    tokens = config.model.max_tokens
    share, weight = _shares(config)
    sizes = {task: largest_image(config, task) for task in share}
    passes = ForwardPasses.of(samples, config.train.samples_per_pass).count
    of_a_pass = -(-samples // passes)
    costs = {task: _cost(config, task, of_a_pass, tokens, sizes[task]) for task in share}
    traffic = {
        task: loss_traffic(config, task, cluster.gpus, tokens, sizes[task]) for task in share
    }
    flops = sum(weight[task] * cost[0] for task, cost in costs.items())
    activations = max(cost[1] for cost in costs.values())
    contrast = sum(share[task] * each.contrast for task, each in traffic.items())
    negatives = sum(share[task] * each.negatives for task, each in traffic.items())

    peak = peak_of(gpu, precision)
    compute = None
    if peak is not None:
        compute = config.data.batch_size * flops / (cluster.gpus * peak * cluster.utilization)
    images = None
    if compute is not None:
        per_sample = sum(part * find_task(task).images for task, part in weight.items())
        images = config.data.batch_size * per_sample / compute / cluster.nodes
    kept = _objective_bytes(config, parameters, cluster.gpus)
    average = 4 * parameters if config.train.ema_decay > 0 else 0
    strategies = {
        name: _strategy(
            name,
            cluster,
            precision,
            parameters=parameters,
            trained=trained,
            average=average,
            other=activations + kept,
            loss_bytes=(contrast, negatives),
            compute=compute,
        )
        for name in ("replicate", "shard", "hybrid")
    }
    checkpoint = _checkpoint_bytes(config, parameters, trained)
    seconds = checkpoint / (1e9 * cluster.disk_gbps)
    hours = GPU_HOURS_PER_INTERRUPTION / cluster.gpus
    return ClusterPlan(
        cluster=cluster,
        parameters=parameters,
        trained_parameters=trained,
        batch_size=max(config.batch_size(task) for task in config.tasks.active()),
        accumulation=config.train.accumulation,
        samples_per_gpu=samples,
        passes=passes,
        tokens=tokens,
        image_size=max(sizes.values(), key=math.prod),
        flops_per_sample=flops / sum(weight.values()),
        compute_seconds=compute,
        activation_bytes=activations,
        objective_bytes=kept,
        gpu_bytes=1e9 * gpu.memory_gb,
        contrast_bytes=contrast,
        negative_bytes=negatives,
        strategies=strategies,
        images_per_second=images,
        cores=None if images is None else images * cluster.loader_ms / 1e3,
        storage_bytes_per_second=None if images is None else images * 1e3 * cluster.image_kb,
        checkpoint_bytes=checkpoint,
        checkpoint_seconds=seconds,
        interruption_hours=hours,
        checkpoint_minutes=math.sqrt(2 * seconds * 3600 * hours) / 60,
        notes=tuple(_notes(config, cluster, passes, has_peak=peak is not None)),
    )


def _checkpoint_bytes(config: RunConfig, parameters: int, trained: int) -> float:
    """Return the size of a checkpoint, which has the parts of all GPUs."""
    average = 4 * parameters if config.train.ema_decay > 0 else 0
    return 4 * parameters + 8 * trained + average + _objective_bytes(config, parameters, gpus=1)


def _shares(config: RunConfig) -> tuple[dict[str, float], dict[str, float]]:
    """Return the steps of each task in a step of the run, and its batches of `data.batch_size`."""
    steps = dict.fromkeys(config.tasks.active(), 1.0)
    if not config.tasks.together:
        rotation = Counter(config.tasks.rotation())
        steps = {task: count / rotation.total() for task, count in rotation.items()}
    whole = config.data.batch_size
    return steps, {task: part * (config.batch_size(task) / whole) for task, part in steps.items()}


def samples_of(config: RunConfig, gpus: int) -> int:
    """Return the samples of a micro-batch on a GPU; the most, if tasks or GPUs differ.

    Raises:
        ValueError: if there are fewer samples than GPUs.
    """
    for task in config.tasks.active():
        samples = config.micro_batch_size(task)
        require(
            gpus <= samples,
            f"{config.batch_size_field(task)} in {config.train.accumulation} micro-batches"
            f" (train.accumulation) leaves {samples} samples for {gpus} GPUs; expected one or more"
            " for each",
        )
    return max(-(-config.micro_batch_size(task) // gpus) for task in config.tasks.active())


def _cost(
    config: RunConfig, task: str, samples: int, tokens: int, size: tuple[int, int]
) -> tuple[float, float]:
    """Return the FLOPs of a sample and the activation bytes of a pass of `samples`."""
    one, two = (count_step(config, task, TextShape(n, tokens), size) for n in (1, 2))
    each = two.activation_bytes - one.activation_bytes
    flops = two.flops
    if config.train.gradient_checkpointing:
        # Recomputation is no progress.
        flops = count_step(config, task, TextShape(2, tokens), size, memory=False).flops
    return flops / 2, one.activation_bytes + (samples - 1) * each


def _objective_bytes(config: RunConfig, parameters: int, gpus: int) -> int:
    """Return the bytes on a GPU of what objectives keep, such as the queue of ITC."""
    trainings = trainings_of(config.tasks.active()).values()
    return sum(training.state_bytes(config, parameters, gpus) for training in trainings)


def _strategy(
    name: str,
    cluster: Cluster,
    precision: str,
    *,
    parameters: int,
    trained: int,
    average: float,
    other: float,
    loss_bytes: tuple[float, float],
    compute: float | None,
) -> StrategyPlan:
    """Compute memory, bytes and network time of a strategy."""
    gpus = cluster.gpus
    state = TRAINED_BYTES * trained + FROZEN_BYTES * (parameters - trained) + average
    whole = 0.0
    sent = remote = gradient_bytes(trained, gpus)
    if name != "replicate":
        group = group_size(gpus) if name == "shard" else cluster.node_size
        state = state / group
        # Gradients of all branches and micro-batches are summed before they are reduced.
        whole = float(weight_bytes(precision) * parameters + 4 * trained)
        inside = shard_bytes(parameters, trained, group, precision)
        # Each GPU sums its shard of the gradients over groups.
        across = gradient_bytes(trained, gpus // group) / group
        sent = inside + across
        remote = cluster.node_size * across + (inside if group > cluster.node_size else 0.0)
    network, efficiency = None, None
    if cluster.node_gbps is not None and cluster.nodes > 1 and compute is not None:
        contrast, negatives = loss_bytes
        # A ring enters each node once; negatives come to each of its GPUs, from any node.
        fetched = negatives * cluster.node_size * (cluster.nodes - 1) / cluster.nodes
        network = (remote + contrast + fetched) / (cluster.node_gbps * 1e9 / 8)
        # The backward pass is two thirds of the computation.
        overlapped = max(compute, compute / 3 + network)
        efficiency = compute / (compute + network), compute / overlapped
    return StrategyPlan(
        state_bytes=state,
        whole_bytes=whole,
        memory_bytes=state + whole + other,
        step_bytes=sent,
        network_seconds=network,
        efficiency=efficiency,
    )


def _notes(config: RunConfig, cluster: Cluster, passes: int, *, has_peak: bool) -> list[str]:
    """List what the numbers leave out."""
    notes = [
        "activations are the tensors saved for the backward pass; temporary memory of kernels,"
        " buckets of gradients and the CUDA context come on top",
        "the interval of checkpoints is that of runs that wait for them; they are written in the"
        " background, so a shorter one costs a copy of the state each",
    ]
    if passes > 1:
        notes.append(
            f"activations are those of one of {passes} passes (train.samples_per_pass); inputs of"
            " the fused layers are kept for all samples and come on top, and so does the time to"
            " compute what precedes them twice"
        )
    if not has_peak:
        notes.append(
            f"{cluster.gpu} has no tensor cores for train.precision {config.train.precision!r}; no"
            " times"
        )
    sizes = {task: config.batch_size(task) for task in config.tasks.active()}
    if len(set(sizes.values())) > 1:
        notes.append(
            "tasks have batches of their own ("
            + ", ".join(f"{task} {size}" for task, size in sizes.items())
            + "); memory is that of the largest one"
        )
    if config.tasks.together and len(sizes) > 1:
        notes.append("each step trains all tasks, one after the other")
    for training in trainings_of(config.tasks.active()).values():
        if not training.is_counted(config):
            notes.append(training.cost_note)
    return notes


def as_json(plan: ClusterPlan) -> dict[str, object]:
    """Return a plan as plain values."""
    return dataclasses.asdict(plan)
