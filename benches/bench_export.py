"""Exported graphs, in float32 and int8, beside the network that was exported.

Command: python benches/bench_export.py
Peer: the network itself, eager PyTorch in float32. Rows of milliseconds are for one image and one
text, from pixels and token ids to logits. Those of metrics are from `fiber.evaluate` on three sets
of generated pictures (`fiber data scenes`), beside the network on other pictures than those asked
about. `--preset base` times the coarse stage of the published size with random weights, without
metrics; to export a detector of that size takes much longer.
"""

import argparse
import copy
import dataclasses
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rows import interleave, refuse_debug_build, report
from torch import Tensor

import fiber
from fiber.checkpoints.model_dir import StoredModel, save_model
from fiber.config import preset
from fiber.data import Tokenizer
from fiber.export.export import export_model
from fiber.export.network import load_graphs
from fiber.models.registry import build_model
from fiber.synthetic.scenes import generate

THREADS = 2
#: (stage, task, metric) of the packaged model.
METRICS = (
    ("fine", "coco", "ap50"),
    ("fine", "refcoco", "accuracy_at_1"),
    ("coarse", "vqa", "accuracy"),
)
PEER = "network, float32"


def write_model(folder: Path, name: str | None, stage: str) -> None:
    """Write a packaged model, or one of a preset's sizes with random weights."""
    if name is None:
        fiber.load(f"scenes/{stage}", device="cpu").save(folder)
        return
    tokenizer = Tokenizer.train(["a red circle, a blue square"] * 10, 400)
    config = preset(name, stage=stage).with_vocabulary(tokenizer.vocab_size)
    config = dataclasses.replace(config, weight_start="fan_in")
    torch.manual_seed(0)
    save_model(build_model(config), folder, tokenizer)


def quantized(network: Any) -> Any:
    """Return a copy whose linear layers have int8 weights and activations of torchao."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    found = copy.deepcopy(network)
    quantize_(found, Int8DynamicActivationInt8WeightConfig())
    return found


def variants(model: Path, made: Path) -> dict[str, StoredModel]:
    """Export a model, and return what runs it, by name."""
    for name, int8 in (("float32", False), ("int8", True)):
        export_model(model, made / name, int8=int8)
    loaded = fiber.load(model, device="cpu")
    stored = StoredModel(
        network=loaded.network,
        tokenizer=loaded.tokenizer,
        answers=loaded.answers,
        classes=loaded.classes,
    )
    return {
        PEER: stored,
        "network, bfloat16": dataclasses.replace(stored, dtype=torch.bfloat16),
        "network, torchao int8": dataclasses.replace(stored, network=quantized(loaded.network)),
        "onnxruntime, float32": load_graphs(made / "float32", threads=THREADS),
        "onnxruntime, int8": load_graphs(made / "int8", threads=THREADS),
        "OpenVINO, float32": load_graphs(made / "float32", engine="openvino", threads=THREADS),
    }


def inputs(config: Any, stage: str) -> tuple[Tensor, Tensor, Tensor]:
    """Draw an image and the ids and mask of a text."""
    draw = torch.Generator().manual_seed(0)
    height, width = (480, 640) if stage == "fine" else (config.image_size, config.image_size)
    images = torch.randn(1, 3, height, width, generator=draw)
    ids = torch.randint(3, config.vocab_size, (1, 8), generator=draw)
    return images, ids, torch.ones(1, 8, dtype=torch.bool)


def milliseconds(stored: StoredModel, stage: str) -> Callable[[], float]:
    """Return a function that times one image and one text."""
    network: Any = stored.network
    images, ids, mask = inputs(network.config, stage)

    def run() -> None:
        if stage == "fine":
            network(images, ids, mask)
        else:
            fused = network.backbone.encode_pair(images, ids, mask, wanted="pooled")
            network.vqa_logits(network.pooled(fused))

    def measure() -> float:
        is_low = stored.dtype == torch.bfloat16
        with torch.inference_mode(), torch.autocast("cpu", stored.dtype, enabled=is_low):
            began = time.perf_counter()
            run()
            return 1000 * (time.perf_counter() - began)

    measure()
    return measure


def main() -> None:
    """Measure and report times and metrics."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=200, help="pictures of each set")
    parser.add_argument("--preset", help="random weights of these sizes; default: scenes")
    options = parser.parse_args()
    refuse_debug_build()
    warnings.simplefilter("ignore")
    torch.set_num_threads(THREADS)
    stages = ("coarse",) if options.preset else ("coarse", "fine")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        data = [made / f"data {seed}" for seed in range(3 if options.preset is None else 0)]
        for seed, place in enumerate(data):
            generate(place, train=8, val=options.images, novel=8, seed=seed)
        for stage in stages:
            write_model(made / stage, options.preset, stage)
            (made / f"{stage} graphs").mkdir()
            models = variants(made / stage, made / f"{stage} graphs")
            named = f"{options.preset or 'scenes'}/{stage}"
            times = {each: milliseconds(stored, stage) for each, stored in models.items()}
            found = interleave(times, options.rounds)
            rows = {f"{each}, {named}": values for each, values in found.items()}
            report("export", "ms", rows, peer=f"{PEER}, {named}")
            for own, task, metric in METRICS if options.preset is None else ():
                if own == stage:
                    report_metric(models, task, metric, data)


def report_metric(models: dict[str, StoredModel], task: str, metric: str, data: list[Path]) -> None:
    """Report a metric of every variant, and of the network on the wrong pictures."""
    rows = {
        f"{each}, {task}": [fiber.evaluate(stored, task, place)[metric] for place in data]
        for each, stored in models.items()
    }
    blind = [fiber.evaluate(models[PEER], task, p, permute_images=True)[metric] for p in data]
    rows[f"network, wrong pictures, {task}"] = blind
    report("export", metric, rows, peer=f"{PEER}, {task}")


if __name__ == "__main__":
    main()
