"""Small runs for the tests, also started as a process: `python micro_runs.py JSON`."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fiber.config import preset
from fiber.config_io import replace_fields
from fiber.data import Tokenizer
from fiber.data.record import Record
from fiber.tasks.transform import TransformConfig
from fiber.training.config.run import DataConfig, OptimConfig, RunConfig, TrainConfig
from fiber.training.config.tasks import (
    CaptionTask,
    GroundingTask,
    ImageTextTask,
    QuestionTask,
    ReasoningTask,
    TasksConfig,
)
from fiber.training.run_dir import RunFolder
from fiber.training.tracking.callback import Callback
from fiber.training.train import Run, train

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 220), "white": (245,) * 3}
SIDE = 48


def make_data(folder: Path, count: int = 12) -> None:
    """Paint one coloured square a picture and train a tokenizer on the captions."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for number in range(count):
        pixels = random.integers(90, 130, (SIDE, SIDE, 3)).astype(np.uint8)
        x0, y0, x1, y1 = (int(edge) for edge in box_of(number))
        pixels[y0:y1, x0:x1] = COLOURS[colour_of(number)]
        Image.fromarray(pixels).save(folder / f"{number}.png")
    texts = [record.text for records in all_records(folder, count).values() for record in records]
    Tokenizer.train(texts, vocab_size=290).save(str(folder / "tokenizer.json"))


def colour_of(number: int) -> str:
    return list(COLOURS)[number % len(COLOURS)]


def box_of(number: int) -> tuple[float, float, float, float]:
    x0, y0 = 2 + 5 * (number % 4), 3 + 6 * (number % 3)
    return float(x0), float(y0), float(x0 + 16 + number), float(y0 + 18)


def all_records(folder: Path, count: int = 12) -> dict[str, list[Record]]:
    """Records of every task."""
    records: dict[str, list[Record]] = {
        name: [] for name in ("image_text", "question", "reasoning", "caption", "grounding")
    }
    for number in range(count):
        image = str(folder / f"{number}.png")
        other = (number + 1) % count
        caption = f"a {colour_of(number)} square number {number}"
        records["image_text"].append(Record(key=f"c{number}", images=(image,), text=caption))
        records["caption"].append(Record(key=f"d{number}", images=(image,), text=caption))
        records["question"].append(
            Record(
                key=f"q{number}",
                images=(image,),
                text="what colour is the square?",
                answers={colour_of(number): 1.0, "grey": 0.3},
            )
        )
        records["reasoning"].append(
            Record(
                key=f"n{number}",
                images=(image, str(folder / f"{other}.png")),
                text=f"the left square is {colour_of(number if number % 2 else other)}",
                truth=bool(number % 2),
            )
        )
        phrase = f"the {colour_of(number)} square"
        records["grounding"].append(
            Record(
                key=f"g{number}",
                images=(image,),
                text=phrase,
                boxes_xyxy=(box_of(number),),
                char_spans=(((0, len(phrase)),),),
                box_labels=(0,),
                labels=(phrase,),
                label_spans=(((0, len(phrase)),),),
            )
        )
    return records


def coarse_config(**changes: Any) -> RunConfig:
    """Every coarse task on the micro model; `changes` by dotted name with __ for dots."""
    config = RunConfig(
        model=preset("micro"),
        tasks=TasksConfig(
            image_text=ImageTextTask(share=2),
            question=QuestionTask(share=1),
            reasoning=ReasoningTask(share=1),
            caption=CaptionTask(share=1),
        ),
        data=DataConfig(batch_size=4),
        optim=OptimConfig(lr=1e-3, clip_norm=1.0),
        train=TrainConfig(steps=10, log_every=1, checkpoint_every=4),
    )
    return replace_fields(config, {key.replace("__", "."): value for key, value in changes.items()})


def fine_config(**changes: Any) -> RunConfig:
    """Grounding on the micro model."""
    config = RunConfig(
        model=preset("micro", stage="fine"),
        tasks=TasksConfig(grounding=GroundingTask(share=1)),
        data=DataConfig(
            batch_size=4,
            transform=TransformConfig(kind="shorter_side", shorter_sides=(64,), max_size=96),
        ),
        optim=OptimConfig(lr=1e-3, clip_norm=1.0),
        train=TrainConfig(steps=6, log_every=1, checkpoint_every=3),
    )
    return replace_fields(config, {key.replace("__", "."): value for key, value in changes.items()})


def with_dropout(config: RunConfig, rate: float = 0.1) -> RunConfig:
    """Turn on every random layer of the model."""
    changes = {"model.roberta.dropout": rate, "model.swin.drop_path": rate}
    return replace_fields(config, changes)


def run(config: RunConfig, folder: Path, output: Path, **options: Any) -> Run:
    """Train on the records of `make_data`; what is validated is asked about half of them."""
    records = all_records(folder)
    data = {name: records[name] for name in config.tasks.active()}
    if config.validation.task is not None:
        asked = "grounding" if config.model.stage == "fine" else "question"
        options.setdefault("validation", records[asked][:6])
    options.setdefault("tokenizer", str(folder / "tokenizer.json"))
    options = {"quiet": True, "device": "cpu", "threads": 1} | options
    return train(config, data=data, output=output, **options)


class HangAfterStep(Callback):
    """Sleeps on the ranks that have it."""

    all_ranks = True

    def on_step_end(self, step: int, metrics: Any) -> None:
        time.sleep(300)


class HoldAfterStep(Callback):
    """Waits after a step: writes a file of its number in a folder, until the file is gone.

    So a signal finds a run that has not finished, on any machine.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.file, self.step = folder / f"held-{step}", step

    def on_step_end(self, step: int, metrics: Any) -> None:
        if step == self.step:
            self.file.touch()
            while self.file.exists():
                time.sleep(0.005)


def main() -> None:
    torch.set_num_threads(1)
    # It takes longer than a run.
    RunFolder.draw = lambda folder, priors: None
    arguments = json.loads(sys.argv[1])
    build = fine_config if arguments["stage"] == "fine" else coarse_config
    config = build(**arguments["changes"])
    if arguments.get("dropout"):
        config = with_dropout(config, arguments["dropout"])
    began = time.monotonic()
    try:
        callbacks: list[Callback] = [HangAfterStep()] if arguments.get("hangs") else []
        if arguments.get("hold_after"):
            callbacks.append(HoldAfterStep(Path(arguments["output"]), arguments["hold_after"]))
        options = {"resume": arguments["resume"], "callbacks": callbacks}
        options["init"] = arguments.get("init")
        run(config, Path(arguments["data"]), Path(arguments["output"]), **options)
    except FileExistsError as error:
        sys.exit(f"{error} (after {time.monotonic() - began:.3f} s)")


if __name__ == "__main__":
    main()
