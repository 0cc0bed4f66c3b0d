"""Run a task on images in a pipeline of your own with Ray Data (ray[data] 2.60).

    python examples/cluster/ray_map.py photos --task caption --model MODEL --output DIR

`fiber map --engine ray` does this for everything that fiber reads. This script is for pipelines
that read, filter or write with Ray Data themselves. All nodes must see the images and DIR. A later
run skips the images whose rows were written, also after a failure.
"""

import argparse
from pathlib import Path

import ray
from ray.data.checkpoint import CheckpointConfig

from fiber.inference import Annotator


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("--task", default="embed", help="a task that needs no text of an image")
    parser.add_argument("--model", default="scenes")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1, help="maximum number of workers")
    parser.add_argument("--cpus", type=float, default=1.0, help="of each worker")
    parser.add_argument("--gpus", type=float, default=0.0, help="of each worker")
    options = parser.parse_args()
    output = options.output.resolve()
    # The rows of a finished run count as written, too.
    ray.data.DataContext.get_current().checkpoint_config = CheckpointConfig(
        id_column="path",
        checkpoint_path=str(output / "checkpoint"),
        delete_checkpoint_on_success=False,
    )
    model = str(Path(options.model).resolve()) if Path(options.model).exists() else options.model
    images = ray.data.read_binary_files(str(options.images.resolve()), include_paths=True)
    rows = images.rename_columns({"bytes": "image"}).map_batches(
        Annotator,
        fn_constructor_args=(model, options.task),
        batch_size=64,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=options.workers),
        num_cpus=options.cpus,
        num_gpus=options.gpus,
    )
    rows.write_parquet(str(output / "rows"))


if __name__ == "__main__":
    main()
