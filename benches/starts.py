"""Compare what lets a small model learn in minutes with what it replaces.

Command: fiber demo --output runs/demo
         python benches/starts.py runs/demo
Rows: results/starts.csv, one per run. Runs that have a row are skipped.

All runs use the model and pictures of the demo, with the rates and batches of its recipe or, where
the start names them, those of the demo. The "off" arm leaves out one thing: a function that a model
with `weight_start` "fan_in" calls (the published models never call it), Muon, fixing the first
stages of the image encoder, relations or questions about color and shape in the first steps, class
prompts in file order, a part of the captions, or the fine stage before the coarse one. Runs of the
coarse stage start from the model in the package, or from the demo's fine stage where they fix the
first stages of the image encoder, unless the arm has no fine stage.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

from experiments import SPLITS, Rows, cpu_seconds, measured_records, run_all

from fiber.checkpoints.model_dir import load_model
from fiber.config_io import replace_fields
from fiber.demo.plan import find_plan
from fiber.evaluation.evaluate import evaluate
from fiber.models.fiber import backbone
from fiber.models.fiber.image_text import FiberImageText
from fiber.models.fiber.pyramid import FeaturePyramid
from fiber.training.config.run import load_recipe
from fiber.training.train import train


class Start(NamedTuple):
    """One thing that is left out, and the run and metric that show what it is for."""

    recipe: str
    steps: int
    task: str
    records: int
    metric: str
    #: Owner and name of the function that the "off" arm does not call, if any.
    method: tuple[type | ModuleType, str] | None = None
    #: Changes of both arms, and of the "off" arm.
    changes: Mapping[str, Any] = {}
    off: Mapping[str, Any] = {}
    #: Initial model of both arms, unless the "off" arm has none: in the package, or in the demo's
    #: folder (DEMO_FINE).
    init: str | None = None
    off_has_init: bool = True


#: The demo's own fine stage, in its folder.
DEMO_FINE = "fine"
_FINE, _COARSE = (find_plan("scenes", "default").runs[stage] for stage in ("fine", "coarse"))
_ITC_ONLY = {
    "tasks.question.share": 0,
    "tasks.image_text.itm": 0.0,
    "tasks.image_text.mlm": 0.0,
}
#: Captions are half of the steps, as the demo's recipe had it when the starts were chosen.
_HALF_QUESTIONS = {"tasks.question.share": 1}
#: The demo's coarse stage with questions of all kinds from the start.
_WITHOUT_FIRST = {name: _COARSE[name] for name in ("data.batch_size", "optim.frozen")}
_QUESTIONS_ONLY = {"tasks.image_text.share": 0}
_RETRIEVAL = ("retrieval", 1000, "text_to_image_recall_at_10")
_PHRASES = ("flickr", 300, "any_recall_at_1")
_EXPRESSIONS = ("refcoco", 1600, "accuracy_at_1")
_RELATIONS = ("refcoco", 1600, "relation/accuracy_at_1")
_VQA = ("vqa", 1500, "accuracy")
_SHAPES = ("vqa", 1500, "shape/accuracy")
STARTS = {
    "embeddings": Start(
        *("scenes_coarse", 60, *_RETRIEVAL),
        method=(FiberImageText, "init_embeddings"),
        changes=_ITC_ONLY,
        init="scenes/fine",
    ),
    "answers": Start(
        *("scenes_coarse", 120, *_VQA),
        method=(FiberImageText, "init_answer_priors"),
        changes=_QUESTIONS_ONLY,
        init="scenes/fine",
    ),
    "weights": Start("scenes_fine", 420, *_PHRASES, method=(backbone, "init_linear")),
    # In trials its gain was in words that a shorter run does not learn, such as patterns.
    "pyramid": Start(
        *("scenes_fine", 1200, *_EXPRESSIONS),
        method=(FeaturePyramid, "init_identity"),
    ),
    "muon": Start("scenes_fine", 420, *_EXPRESSIONS, off={"optim.muon_lr_multiplier": 0.0}),
    "muon, coarse": Start(
        *("scenes_coarse", 240, *_VQA),
        changes=_HALF_QUESTIONS,
        off={"optim.muon_lr_multiplier": 0.0},
        init="scenes/fine",
    ),
    # As long as the coarse stage of the demo was when this was measured, from its fine stage.
    "fixed stages": Start(
        *("scenes_coarse", 800, *_VQA),
        changes=_WITHOUT_FIRST,
        off={"optim.frozen": ()},
        init=DEMO_FINE,
    ),
    # Without it, a quarter of the expressions of every step are about relations.
    "relations first": Start(
        *("scenes_fine", _FINE["train.steps"], *_RELATIONS),
        changes=_FINE,
        off={"tasks.grounding.first_sources": (), "tasks.grounding.first_steps": 0},
    ),
    "class order": Start(
        *("scenes_fine", 420, "coco", 300, "ap50"), off={"tasks.grounding.shuffle_classes": True}
    ),
    # Without it, a fifth of the steps instead of a third is on captions. Measured when the coarse
    # stage of the demo had as many steps.
    "enough captions": Start(
        *("scenes_coarse", 600, *_RETRIEVAL),
        changes={**_WITHOUT_FIRST, "tasks.question.share": 2},
        off={"tasks.question.share": 4},
        init=DEMO_FINE,
    ),
    # Without it, two of five questions of every step are about color or shape.
    "binding first": Start(
        *("scenes_coarse", _COARSE["train.steps"], *_SHAPES),
        changes=_COARSE,
        off={"tasks.question.first_sources": (), "tasks.question.first_steps": 0},
        init=DEMO_FINE,
    ),
    "boxes first": Start(
        *("scenes_coarse", 240, *_RETRIEVAL),
        changes=_HALF_QUESTIONS,
        init="scenes/fine",
        off_has_init=False,
    ),
}


def run(folder: Path, start: str, arm: str, seed: int) -> list[dict[str, Any]]:
    """Train and evaluate one run, "on" or "off", with the data of a demo in `folder`."""
    began = cpu_seconds()
    chosen, data = STARTS[start], folder / "data"
    is_off = arm == "off"
    changes = {
        **chosen.changes,
        **(chosen.off if is_off else {}),
        "train.seed": seed,
        "train.steps": chosen.steps,
        "train.checkpoint_every": 0,
    }
    config = replace_fields(load_recipe(chosen.recipe), changes)
    left_out = nullcontext()
    if is_off and chosen.method is not None:
        left_out = mock.patch.object(*chosen.method, lambda *_, **__: None)
    init: str | Path | None = folder / DEMO_FINE if chosen.init == DEMO_FINE else chosen.init
    if is_off and not chosen.off_has_init:
        init = None
    with tempfile.TemporaryDirectory() as output, left_out:
        trained = Path(output) / "run"
        train(config, data=data, output=trained, init=init, threads=1, quiet=True, device="cpu")
        model = load_model(trained)
        found = {
            split: evaluate(
                model,
                chosen.task,
                measured_records(data, chosen.task, split, chosen.records),
                rerank=False,
            )[chosen.metric]
            for split in SPLITS
        }
    return [
        {
            "start": start,
            "arm": arm,
            "seed": seed,
            "steps": config.train.steps,
            "cpu_seconds": f"{cpu_seconds() - began:.0f}",
            "metric": f"{chosen.task}/{chosen.metric}",
            **{split: f"{value:.4f}" for split, value in found.items()},
        }
    ]


def main() -> None:
    """Make all runs that have no row yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("demo", type=Path, help="folder of a finished fiber demo")
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2, help="parallel runs, one thread each")
    parser.add_argument("--cpu-hours", type=float, default=4.0, help="budget of all rows")
    options = parser.parse_args()
    runs = [
        {"folder": options.demo, "start": start, "arm": arm, "seed": seed}
        for seed in options.seeds
        for start in options.starts
        for arm in ("on", "off")
    ]
    rows = Rows("starts", ("start", "arm", "seed"))
    run_all(rows, runs, run, workers=options.workers, cpu_hours=options.cpu_hours)


if __name__ == "__main__":
    main()
