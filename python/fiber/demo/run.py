"""Run the demo: data, fine stage, coarse stage, evaluation and report.

The published model trains the coarse stage first, from pretrained encoders. Here, the encoders are
new, and boxes teach them what captions alone hardly do in minutes, such as shapes
(docs/evidence.md). Therefore, the fine stage is first.

Each part writes its complete result to the output folder. A part is skipped if its result exists,
so an interrupted demo resumes. Everything runs on the CPU, where the same seed gives the same
numbers.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from fiber.atomic_io import write_json
from fiber.config_io import to_dict
from fiber.demo import floors
from fiber.demo.contact_sheet import draw_sheet
from fiber.demo.examples import find_examples, from_json, to_json
from fiber.demo.folder import DemoFolder, fingerprint
from fiber.demo.measures import Evaluator, Measures
from fiber.demo.page import make_report
from fiber.demo.plan import PROCESSES, STAGES, find_plan
from fiber.demo.report import format_table, write_html
from fiber.env import describe_machine, provenance, usable_cores
from fiber.progress import ImageProgress, readable_seconds, say
from fiber.training.distributed.launch import INTERRUPTED, Job, launch
from fiber.training.run_dir import RunFolder


def main(
    *,
    data: str = "scenes",
    fast: bool = False,
    output: str | os.PathLike[str] | None = None,
    seed: int = 0,
    permute_images: bool = False,
) -> int:
    """Run or resume the demo. The arguments are those of `fiber demo`.

    Returns:
        0 on success; 1 if a metric is below its floor, a required group of metrics has no floor, or
        a metric reaches its floor on permuted images. Always 1 with `permute_images`.

    Raises:
        ValueError: if the folder contains unrelated files, or a demo with different parameters.
    """
    mode = "fast" if fast else "default"
    path = Path(output) if output is not None else default_output(data, mode)
    demo = Demo(data=data, mode=mode, seed=seed, output=path)
    if permute_images:
        demo.clock.skip("page")
    demo.train()
    rows = demo.measure(permute_images=permute_images)
    problems = floors.failures(rows, data, mode) + floors.permuted_survivors(rows)
    if not permute_images:
        demo.clock.run("page", lambda: demo.write_page(rows, problems))
    print(format_table(rows), flush=True)
    for problem in problems:
        say(f"fiber: {problem}")
    if permute_images:
        say("Images were permuted: the model column shows what the text alone achieves.")
        return 1
    say(f"page: {path / 'report.html'}")
    return 1 if problems else 0


def default_output(data: str, mode: str) -> Path:
    """Return the default output folder: runs/demo, runs/demo-fast, runs/demo-stamps, ..."""
    parts = ["demo", *([data] if data != "scenes" else []), *([mode] if mode != "default" else [])]
    return Path("runs") / "-".join(parts)


class Demo:
    """One demo with its plan, folder and clock. The arguments are those of `main`."""

    def __init__(self, *, data: str, mode: str, seed: int, output: Path) -> None:
        self.about = {"data": data, "mode": mode, "seed": seed}
        self.plan = find_plan(data, mode)
        configs = {name: self.plan.config(name, seed) for name in self.plan.runs}
        # Parameters of the data and models. Evaluation results have their own fingerprints.
        parameters = {
            **self.about,
            "train_images": self.plan.train_images,
            "held_out_images": self.plan.held_out_images,
            **{name: to_dict(config) for name, config in configs.items()},
        }
        self.folder = DemoFolder(output, parameters)
        self.models = {stage: output / stage for stage in STAGES}
        self.clock = Clock(self.plan.seconds)

    def train(self) -> None:
        """Make the dataset, and train the models."""
        finished = (self.folder.data / "dataset.json").is_file()
        self.clock.run("data", self._make_data, finished=finished)
        for name in self.plan.runs:
            self.clock.run(
                name,
                partial(self._train, name),
                finished=RunFolder(path=self.folder.path / name).is_finished,
            )

    def _make_data(self) -> None:
        began, held_out = time.monotonic(), self.plan.held_out_images
        sizes = {"train": self.plan.train_images, "val": held_out, "novel": held_out}
        generator = importlib.import_module(f"fiber.synthetic.{self.about['data']}")
        generator.generate(
            self.folder.data,
            **sizes,
            seed=self.about["seed"],
            workers=usable_cores(),
            progress=ImageProgress(),
        )
        seconds = time.monotonic() - began
        self.folder.note("data_stage", {"pictures": sum(sizes.values()), "seconds": seconds})

    def _train(self, name: str) -> None:
        """Train a model, or resume its run from the newest checkpoint."""
        command = self.plan.train_command(name, self.about["seed"], self.folder.path)
        code = launch([*command, "--resume"], Job(processes=PROCESSES, restarts=0))
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        if code:
            raise SystemExit(code)

    def measure(self, *, permute_images: bool) -> list[floors.MetricRow]:
        """Run the evaluation, and return the rows with their floors and verdicts."""
        self.evaluator = Evaluator(self.folder.data, self.plan, self.models)
        self.measures = Measures(self.folder, self.evaluator)
        self.clock.run("evaluation", self._evaluate)
        rows = self.measures.rows(permute_images=permute_images)
        return floors.judge(rows, floors.load_floors(self.about["data"], self.about["mode"]))

    def _evaluate(self) -> None:
        self.measures.measure(min(PROCESSES, usable_cores()))
        self.measures.rows()

    def write_page(self, rows: list[floors.MetricRow], problems: list[str]) -> None:
        """Write rows.json, contact_sheet.png and report.html."""
        machine, abilities = describe_machine(), self.measures.abilities()
        known = {
            **self.about,
            "plan": self.plan.training,
            "commit": provenance()["commit"],
            "machine": machine,
            "rows": [asdict(row) for row in rows],
            "abilities": [asdict(ability) for ability in abilities],
        }
        write_json(self.folder.path / "rows.json", known)
        weights = [model / "model.safetensors" for model in self.models.values()]
        dataset = self.folder.data / "dataset.json"
        known = self.folder.measured(
            "examples", fingerprint(*weights, dataset, provenance()), self._find_examples
        )
        examples = from_json(known["examples"])
        draw_sheet(self.folder.path / "contact_sheet.png", self.folder.data, examples)
        report = make_report(
            self.folder,
            self.plan,
            self.about,
            rows=rows,
            abilities=abilities,
            examples=examples,
            problems=problems,
            machine=machine,
            evaluated=self.measures.throughput(),
        )
        write_html(report, self.folder.path / "report.html")

    def _find_examples(self) -> dict[str, Any]:
        coarse, fine = self.evaluator.model("coarse"), self.evaluator.model("fine")
        return {"examples": to_json(find_examples(self.folder.data, coarse=coarse, fine=fine))}


class Clock:
    """Logs the current part, its duration and an estimate of the remaining time."""

    def __init__(self, seconds: Mapping[str, float]) -> None:
        """Set the expected duration of each part in seconds, in their order."""
        self.seconds = dict(seconds)
        self._took, self._planned = 0.0, 0.0

    def skip(self, *parts: str) -> None:
        """Remove parts from the time estimate."""
        self.seconds = {name: s for name, s in self.seconds.items() if name not in parts}

    def run(self, part: str, work: Callable[[], None], *, finished: bool = False) -> None:
        """Run and time a part, unless it is finished."""
        parts = list(self.seconds)
        later = parts[parts.index(part) + 1 :]
        number = f"[{parts.index(part) + 1}/{len(parts)}] {part}"
        if finished:
            say(f"{number}: already finished")
            return
        say(f"{number} ...")
        began = time.monotonic()
        work()
        took = time.monotonic() - began
        self._took += took
        self._planned += self.seconds[part]
        line = f"{number}: {readable_seconds(took)}"
        if later:
            # Scale by this machine's speed so far, relative to the plan.
            left = sum(self.seconds[name] for name in later) * self._took / self._planned
            line += f"; next: {later[0]}; about {readable_seconds(left)} left"
        say(line)
