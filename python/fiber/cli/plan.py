"""`fiber plan`: what a recipe needs on a cluster."""

from __future__ import annotations

import argparse
import json

from fiber.cli.arguments import add_options, key_values, pick, positive_float

_DESCRIPTION = """
Print the memory of a GPU, the split of the batch, the bytes of a step, the cores and storage of the
data, and the interval of checkpoints for a recipe on a cluster. Parameters, FLOPs and activations
are counted on the recipe's model without running it; no GPU is needed.
"""


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add `plan` to the table of commands."""
    plan = commands.add_parser(
        "plan", help="print what a recipe needs on a cluster", description=_DESCRIPTION
    )
    add_options(
        plan,
        {
            "recipe RECIPE": "recipe name (see `fiber recipes`), or a .json file with a"
            " configuration, as of `fiber train --print-config`",
            "--gpus N": "number of GPUs",
            "--gpu NAME": "GPU, such as h100, h200, a100-80gb or v100-16gb (default: h100)",
            "--gpus-per-node N": "GPUs of a node (default: 8)",
            "--node-gbps X": "network of a node in Gbit/s, over all of its cards",
            "--utilization X": "share of the peak FLOP/s that the model reaches (default: 0.4)",
            "--image-kb X": "mean size of an image file in KB (default: 125)",
            "--loader-ms X": "CPU time to load an image, in ms of one core (default: 1.2; `fiber"
            " bench data` measures it)",
            "--disk-gbps X": "rate at which a checkpoint is written, in GB/s (default: 1)",
            "--set KEY=VALUE": "override a recipe field, as in data.batch_size=2048; repeatable",
            "--json": "print JSON instead of a table",
        },
        gpus={"required": True},
        gpu={"default": "h100"},
        gpus_per_node={"default": 8},
        node_gbps={"type": positive_float},
        utilization={"type": positive_float, "default": 0.4},
        image_kb={"type": positive_float, "default": 125.0},
        loader_ms={"type": positive_float, "default": 1.2},
        disk_gbps={"type": positive_float, "default": 1.0},
        set={"action": "append", "default": []},
    )
    plan.set_defaults(run=_plan, example="`fiber plan pretrain --gpus 64`")


def _plan(options: argparse.Namespace) -> int:
    changes = key_values(options.set, "--set", "data.batch_size=2048")
    from fiber.progress import say
    from fiber.training.plan.cluster import Cluster, as_json, plan_run
    from fiber.training.plan.report import report
    from fiber.training.train import resolve_config

    config = resolve_config(options.recipe, changes)
    names = ("gpus", "gpu", "gpus_per_node", "node_gbps", "utilization")
    cluster = Cluster(**pick(options, *names, "image_kb", "loader_ms", "disk_gbps"))
    say(f"counting one step of {options.recipe} without running it; large models take a while")
    plan = plan_run(config, cluster)
    print(json.dumps(as_json(plan)) if options.json else "\n".join(report(plan, options.recipe)))
    return 0
