"""Compare fusion inside the encoders with co-attention, merged attention, and none, on top of them.

Command: python benches/fusion.py runs/evidence runs/fusion
         python benches/evidence_page.py
Rows: results/fusion.csv, one per run. Runs that have a row are skipped. The data are those of
`evidence.py`.

All arms of a seed start from the same two encoders, trained without fusion to find boxes, and train
ITM, VQA and NLVR2 in turn on the same samples. Fusion inside the encoders is FIBER's; co-attention
and merged attention are METER's, on the outputs of the same encoders. Arms of "equal FLOPs" train
for as many more steps as have the floating-point operations of the first arm: those that torch
counts in a whole step, the optimizer's included. It does not count attention that the extension
computes, a small part. Referring expressions, a task of `evidence.py`, are not compared: their
answers are boxes, and METER has no region-level output. Relations are asked by questions and by
captions with swapped words instead.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from evidence import IMAGES
from experiments import SPLITS, Rows, cpu_seconds, measured_records, run_all, use_one_thread
from torch.utils.flop_counter import FlopCounterMode

from fiber.checkpoints.encoders import encoder_states
from fiber.checkpoints.model_dir import load_model
from fiber.config import FiberConfig, preset
from fiber.config_io import replace_fields
from fiber.data import sources
from fiber.evaluation.evaluate import evaluate
from fiber.models.meter.config import CrossConfig, MeterConfig, MeterHeadsConfig
from fiber.synthetic.scenes import generate
from fiber.training.config.run import RunConfig, load_recipe
from fiber.training.config.tasks import ImageTextTask, QuestionTask, ReasoningTask, TasksConfig
from fiber.training.train import train

IN_ENCODERS, CO_ATTENTION, MERGED, NONE = (
    "in the encoders",
    "co-attention",
    "merged attention",
    "none",
)
#: The first arm is compared with the others.
ARMS = (IN_ENCODERS, CO_ATTENTION, MERGED, NONE)
EQUAL_FLOPS = ", equal FLOPs"
SEEDS = (0, 1, 2)
#: Steps of the encoders on boxes, and of each arm.
START_STEPS, STEPS = 1500, 1200
#: Layers of METER's fusion, half of those of the published model.
CROSS_LAYERS = 3
HEADS = ("itm", "vqa", "nlvr2")
TASKS = TasksConfig(
    image_text=ImageTextTask(share=1, itc=0.0, mlm=0.0, itm_negatives="random"),
    question=QuestionTask(share=1),
    reasoning=ReasoningTask(share=1),
)
#: Evaluated records of each task per split.
RECORDS = {"vqa": 5000, "nlvr2": 2000, "matching": 600, "winoground": 400}
#: Metrics of the rows as (task, metric).
METRICS = (
    ("vqa", "accuracy"),
    ("vqa", "color/accuracy"),
    ("vqa", "shape/accuracy"),
    ("vqa", "exists/accuracy"),
    ("vqa", "relation/accuracy"),
    ("nlvr2", "accuracy"),
    ("matching", "accuracy"),
    ("winoground", "text"),
    ("winoground", "image"),
    ("winoground", "group"),
)


def model_of(arm: str) -> FiberConfig | MeterConfig:
    """Return the model of an arm. All have the encoders of preset small."""
    small = preset("small")
    if arm == IN_ENCODERS:
        return replace_fields(small, {"image_text.heads": HEADS})
    merged = arm == MERGED
    return MeterConfig(
        image_size=small.image_size,
        max_tokens=small.max_tokens,
        weight_start=small.weight_start,
        image_encoder="swin",
        swin=small.swin,
        roberta=small.roberta,
        cross=CrossConfig(
            kind="merged_attention" if merged else "co_attention",
            width=small.roberta.width,
            num_layers=0 if arm == NONE else CROSS_LAYERS,
            num_heads=small.roberta.num_heads,
            ffn_width=small.roberta.ffn_width,
            dropout=0.0,
        ),
        image_text=MeterHeadsConfig(heads=HEADS, num_answers=small.num_answers),
    )


def train_start(folder: Path, output: Path, seed: int) -> None:
    """Train encoders without fusion to find boxes, or what is left of it."""
    use_one_thread()
    changes = {
        "model.fusion.num_fused_layers": 0,
        "train.steps": START_STEPS,
        "train.seed": seed,
    }
    train(
        replace_fields(load_recipe("scenes_fine"), changes),
        data={"grounding": sources.referring(folder, "train")},
        tokenizer=folder,
        output=output,
        resume=True,
        threads=1,
        quiet=True,
        device="cpu",
    )


def write_encoders(start: Path, output: Path, config: FiberConfig | MeterConfig) -> None:
    """Write the encoders of a model as files to start from."""
    output.mkdir()
    for name, state in encoder_states(load_model(start).network).items():
        tensors = {key: tensor.contiguous() for key, tensor in state.items()}
        if name == "swin" and isinstance(config, MeterConfig):
            # METER reads the last map through a norm that the detector does not have.
            width = config.image_width
            tensors |= {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
        safetensors.torch.save_file(tensors, output / f"{name}.safetensors")


def run_config(arm: str, seed: int, steps: int) -> RunConfig:
    """Return how an arm is trained: as the coarse stage of the demo, with other tasks."""
    recipe = load_recipe("scenes_coarse")
    changes = {"train.steps": steps, "train.seed": seed, "train.checkpoint_every": 0}
    return replace_fields(
        dataclasses.replace(recipe, model=model_of(arm), tasks=TASKS),
        changes,
    )


def run(folder: Path, starts: Path, arm: str, seed: int, steps: int) -> list[dict[str, Any]]:
    """Train and evaluate one arm; return its row."""
    began = cpu_seconds()
    kind = arm.removesuffix(EQUAL_FLOPS)
    with tempfile.TemporaryDirectory() as scratch:
        encoders, output = Path(scratch) / "encoders", Path(scratch) / "run"
        write_encoders(starts / f"{seed}", encoders, model_of(kind))
        common: dict[str, Any] = {
            "data": folder,
            "tokenizer": folder,
            "init": encoders,
            "threads": 1,
            "quiet": True,
            "device": "cpu",
        }
        rotation = len(TASKS.rotation())
        with FlopCounterMode(display=False) as counter:
            train(run_config(kind, seed, rotation), output=Path(scratch) / "counted", **common)
        trained = cpu_seconds()
        train(run_config(kind, seed, steps), output=output, **common)
        trained = cpu_seconds() - trained
        model = load_model(output)
    numbers = {
        (task, metric, split): value
        for task, limit in RECORDS.items()
        for split in SPLITS
        for metric, value in evaluate(
            model, task, measured_records(folder, task, split, limit)
        ).items()
    }
    row = {
        "arm": arm,
        "seed": seed,
        "steps": steps,
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "gflop_per_step": f"{counter.get_total_flops() / rotation / 1e9:.3f}",
        "train_cpu_seconds": f"{trained:.0f}",
    }
    for task, metric in METRICS:
        for split in SPLITS:
            row[f"{task}/{metric}/{split}"] = f"{numbers[task, metric, split]:.4f}"
    row["cpu_seconds"] = f"{cpu_seconds() - began:.0f}"
    return [row]


def equal_flops_steps(arm: str, rows: Sequence[Mapping[str, str]]) -> int:
    """Return the steps of an arm that have the operations of the first arm."""
    cost = {row["arm"]: float(row["gflop_per_step"]) for row in rows}
    rotation = len(TASKS.rotation())
    return round(STEPS * cost[ARMS[0]] / cost[arm] / rotation) * rotation


def main() -> None:
    """Train and measure all runs that have no row yet, within the budget."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, help="folder of the data, created if needed")
    parser.add_argument("starts", type=Path, help="folder of the encoders to start from")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--workers", type=int, default=2, help="parallel runs, one thread each")
    parser.add_argument("--cpu-hours", type=float, default=4.0, help="budget of all rows")
    options = parser.parse_args()
    generate(options.data, **IMAGES, workers=options.workers)
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        made = [
            pool.submit(train_start, options.data, options.starts / f"{seed}", seed)
            for seed in options.seeds
        ]
        for start in made:
            start.result()
    rows = Rows("fusion", ("arm", "seed"))

    def finish(arms: Mapping[str, int]) -> None:
        runs = [
            {
                "folder": options.data,
                "starts": options.starts,
                "arm": arm,
                "seed": seed,
                "steps": steps,
            }
            for seed in options.seeds
            for arm, steps in arms.items()
        ]
        run_all(rows, runs, run, workers=options.workers, cpu_hours=options.cpu_hours)

    finish(dict.fromkeys(ARMS, STEPS))
    finish({f"{arm}{EQUAL_FLOPS}": equal_flops_steps(arm, rows.rows) for arm in ARMS[1:]})


if __name__ == "__main__":
    main()
