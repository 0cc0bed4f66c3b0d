"""Train on the workers of a Ray cluster with Ray Train (ray[train] 2.60).

    python examples/cluster/ray_train.py pretrain --data DATA --init ENCODERS --output RUN \
        --workers 32

All nodes must see DATA (or it is a URL), ENCODERS and RUN. After a worker or a node is lost, Ray
starts the workers again, and the run continues from its newest checkpoint.
"""

import argparse
from pathlib import Path

import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

import fiber


def train_on_worker(settings: dict) -> None:
    """Train as one rank; Ray has joined the workers to a process group, which fiber uses."""
    # True at the first start too: without a checkpoint, the run starts from step 0.
    run = fiber.train(**settings, resume=True)
    if ray.train.get_context().get_world_rank() == 0:
        print(f"finished: {run.folder}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recipe")
    parser.add_argument("--data", required=True)
    parser.add_argument("--init")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2, help="one per GPU of the cluster")
    parser.add_argument("--cpu", action="store_true", help="train on CPUs")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    # Workers have another working directory.
    output = options.output.resolve()
    is_url = "://" in options.data
    settings = {
        "recipe": options.recipe,
        "data": options.data if is_url else str(Path(options.data).resolve()),
        "init": options.init and str(Path(options.init).resolve()),
        "output": str(output),
        "set": dict(setting.split("=", 1) for setting in options.set),
    }
    TorchTrainer(
        train_on_worker,
        train_loop_config=settings,
        scaling_config=ScalingConfig(num_workers=options.workers, use_gpu=not options.cpu),
        run_config=RunConfig(
            name=output.name,
            # Ray's own files; the checkpoints are in `output`.
            storage_path=str(output.parent / "ray"),
            failure_config=FailureConfig(max_failures=3),
        ),
    ).fit()


if __name__ == "__main__":
    main()
