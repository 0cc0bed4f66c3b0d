"""Print a plan as a table."""

from __future__ import annotations

from fiber.training.plan.cluster import ClusterPlan, StrategyPlan
from fiber.training.plan.gpus import find_gpu


def report(plan: ClusterPlan, recipe: str) -> list[str]:
    """Return the lines of a plan."""
    return [
        *_run(plan, recipe),
        *_strategies(plan),
        *_data(plan),
        *_checkpoints(plan),
        *(f"note: {note}" for note in plan.notes),
    ]


def _run(plan: ClusterPlan, recipe: str) -> list[str]:
    cluster, (height, width) = plan.cluster, plan.image_size
    spec = find_gpu(cluster.gpu)
    lines = [
        f"{recipe} on {cluster.gpus} x {cluster.gpu} ({_count(cluster.nodes, 'node')} of"
        f" {cluster.node_size}, {spec.memory_gb} GB each)",
        _row(
            "parameters",
            f"{_millions(plan.parameters)}, {_millions(plan.trained_parameters)} trained",
        ),
        _row(
            "batch",
            f"{plan.batch_size} samples a step = {cluster.gpus} GPUs x"
            f" {_count(plan.accumulation, 'micro-batch', 'micro-batches')} x {_samples(plan)}",
        ),
        _row(
            "sample",
            f"{height} x {width} pixels, {plan.tokens} tokens,"
            f" {_number(plan.flops_per_sample / 1e9)} GFLOP forward and backward",
        ),
    ]
    if plan.compute_seconds is not None:
        lines.append(
            _row(
                "compute",
                f"{_number(1e3 * plan.compute_seconds)} ms a step at"
                f" {cluster.utilization:.0%} of the peak",
            )
        )
    return lines


def _strategies(plan: ClusterPlan) -> list[str]:
    """Compare the strategies, one column each."""
    strategies = plan.strategies.values()
    shared = (plan.activation_bytes, plan.objective_bytes)
    losses = (plan.contrast_bytes, plan.negative_bytes)

    def line(name: str, cells: list[str]) -> str:
        return _row(name, "".join(f"{cell:>14}" for cell in cells))

    def gigabytes(name: str, values: list[float]) -> str:
        return line(name, [f"{_number(value / 1e9)} GB" for value in values])

    def megabytes(name: str, values: list[float]) -> str:
        return line(name, [f"{_number(value / 1e6)} MB" for value in values])

    both = len(plan.strategies)
    lines = [
        "",
        line("memory of a GPU", list(plan.strategies)),
        gigabytes("  weights, gradients, optimizer", [each.state_bytes for each in strategies]),
        gigabytes("  whole within a step", [each.whole_bytes for each in strategies]),
        gigabytes("  activations", [shared[0]] * both),
        gigabytes("  queue, reference model", [shared[1]] * both),
        gigabytes("  total", [each.memory_bytes for each in strategies]),
        line("  fits", [_fits(each, plan.gpu_bytes) for each in strategies]),
        "",
        line("bytes through a GPU in a step", list(plan.strategies)),
        megabytes("  weights and gradients", [each.step_bytes for each in strategies]),
        megabytes("  pairs of ITC", [losses[0]] * both),
        megabytes("  negatives of ITM", [losses[1]] * both),
    ]
    if all(each.network_seconds is not None for each in strategies):
        lines += [
            line(
                f"  time at {_number(plan.cluster.node_gbps or 0)} Gbit/s a node",
                [f"{_number(1e3 * (each.network_seconds or 0))} ms" for each in strategies],
            ),
            line("  efficiency, no overlap", [_efficiency(each, 0) for each in strategies]),
            line("  efficiency, full overlap", [_efficiency(each, 1) for each in strategies]),
        ]
    elif plan.cluster.nodes > 1:
        lines.append("  time on the network: give --node-gbps")
    return lines


def _data(plan: ClusterPlan) -> list[str]:
    cluster = plan.cluster
    if plan.images_per_second is None or plan.cores is None:
        return []
    storage = plan.storage_bytes_per_second or 0.0
    of_all = f"{_number(storage * cluster.nodes / 1e6)} MB/s"
    lines = [
        "",
        "data of a node, at the speed of computation",
        _row("  images a second", _number(plan.images_per_second)),
        _row("  cores", f"{plan.cores:.1f} at {cluster.loader_ms:g} ms an image (--loader-ms)"),
        _row(
            "  storage",
            f"{_number(storage / 1e6)} MB/s at {cluster.image_kb:g} KB an image (--image-kb);"
            f" {of_all} for all nodes",
        ),
    ]
    if cluster.nodes > 1:
        lines.append(
            _row("  first epoch from a URL", f"{of_all} to each node, which downloads all shards")
        )
    return lines


def _checkpoints(plan: ClusterPlan) -> list[str]:
    lines = [
        "",
        "checkpoints",
        _row(
            "  size",
            f"{_number(plan.checkpoint_bytes / 1e9)} GB, {_number(plan.checkpoint_seconds)} s at"
            f" {plan.cluster.disk_gbps:g} GB/s (--disk-gbps)",
        ),
        _row(
            "  interval",
            f"{_number(plan.checkpoint_minutes)} minutes lose least, with an interruption every"
            f" {_number(plan.interruption_hours)} hours",
        ),
        _row("", "set as train.checkpoint_minutes"),
    ]
    if plan.compute_seconds is not None:
        steps = max(1, round(60 * plan.checkpoint_minutes / plan.compute_seconds))
        lines.append(_row("", f"at most {steps} steps (train.checkpoint_every)"))
    return lines


def _fits(strategy: StrategyPlan, gpu_bytes: float) -> str:
    return "yes" if strategy.memory_bytes < gpu_bytes else "no"


def _efficiency(strategy: StrategyPlan, which: int) -> str:
    assert strategy.efficiency is not None
    return f"{strategy.efficiency[which]:.2f}"


def _row(name: str, text: str) -> str:
    return f"{name:<31} {text}"


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} million"


def _samples(plan: ClusterPlan) -> str:
    """Describe a GPU's samples of a micro-batch."""
    samples = _count(plan.samples_per_gpu, "sample")
    if plan.batch_size // plan.accumulation % plan.cluster.gpus:
        samples = f"{plan.samples_per_gpu - 1} or {samples}"
    return samples if plan.passes == 1 else f"{samples} in {plan.passes} passes"


def _count(count: int, noun: str, nouns: str = "") -> str:
    return f"{count} {noun if count == 1 else nouns or noun + 's'}"


def _number(value: float) -> str:
    """Format with three significant digits, without an exponent.

    >>> _number(0.01234), _number(5.6789), _number(98765.4), _number(0)
    ('0.0123', '5.68', '98765', '0')
    """
    if value == 0 or abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.3g}"
