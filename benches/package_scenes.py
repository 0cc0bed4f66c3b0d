"""Write the two stages of the model in the package in bfloat16, and measure them.

Command: fiber data scenes --varied --images 100000 --output runs/varied
         fiber train packaged_words --data runs/varied --output runs/packaged/words --processes 2
         fiber train packaged_fine --data runs/varied --init runs/packaged/words \\
             --output runs/packaged/fine --processes 2
         fiber data scenes --varied --images 12000 --output runs/varied-12000
         fiber train packaged_absent --data runs/varied-12000 --init runs/packaged/fine \\
             --output runs/packaged/absent
         fiber train packaged_coarse --data runs/varied --init runs/packaged/fine \\
             --output runs/packaged/coarse --processes 2
         python benches/package_scenes.py runs/packaged
Output: python/fiber/packaged/scenes, with the weights, presence.json, metrics.json and README.md.

Without a folder of runs, the weights in the package are measured again, which takes minutes. The
metrics are those of the weights in bfloat16, as a user loads them.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from experiments import measured_records

import fiber
from fiber.atomic_io import read_json, write_json
from fiber.checkpoints.model_dir import STAGES, load_model, save_model, write_weights
from fiber.checkpoints.provenance import DATA_PATH
from fiber.checkpoints.stages import packaged_model
from fiber.demo.guesses import Guesser
from fiber.env import describe_machine
from fiber.evaluation.evaluate import evaluate
from fiber.metrics.boxes import pairwise_iou
from fiber.metrics.presence import PRESENCE_FILE, to_json
from fiber.synthetic.scenes import generate
from fiber.tasks.grounding.presence import calibrate_model
from fiber.training.metrics_file import read_metrics
from fiber.training.run_dir import RunFolder

#: Records of each task, the stage that has its head, and the metric of the table with its name.
TASKS = {
    "refcoco": (1600, "fine", "accuracy_at_1", "referring expressions, accuracy at IoU 0.5"),
    "flickr": (300, "fine", "any_recall_at_1", "phrases of captions, recall at 1"),
    "coco": (150, "fine", "ap50", "detection of the eight shapes, AP50"),
    "vqa": (1500, "coarse", "accuracy", "questions, accuracy"),
    "retrieval": (1000, "coarse", "text_to_image_recall_at_10", "text finds image, recall at 10"),
    "matching": (300, "coarse", "accuracy", "caption matches or not, accuracy"),
    "masked_words": (400, "coarse", "accuracy", "masked words of captions, accuracy"),
    "caption": (300, "coarse", "cider_d", "captions, CIDEr-D"),
}
SPLITS = ("val", "novel")
#: Runs in their order; the recipe of "words" is packaged_words.
RUNS = ("words", "fine", "absent", "coarse")
#: Last run of each stage.
LAST = {"coarse": "coarse", "fine": "absent"}
#: Images of val and novel, and of train, from which the blind baselines are estimated.
IMAGES, TRAINING_IMAGES = 1500, 20_000
#: Tasks whose card has a row for relations, which are harder than other words.
WITH_RELATIONS = ("refcoco", "vqa")
#: Tasks and number of images of val that a test measures again.
CHECKED, CHECKED_IMAGES = ("refcoco", "flickr", "coco", "vqa", "retrieval", "matching"), 150
#: Images on which single classes are asked for that they do not show.
ABSENT_IMAGES = 100
#: Expressions whose direction is reversed.
REVERSED = 400
OPPOSITES = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def write_stage(run: Path, folder: Path) -> None:
    """Write the model of a finished run in bfloat16."""
    stored = load_model(run)
    assert stored.tokenizer is not None
    save_model(stored.network, folder, stored.tokenizer, stored.answers)
    state = stored.network.state_dict()
    half = {n: t.bfloat16() if t.is_floating_point() else t for n, t in state.items()}
    write_weights(folder, half)
    config, values = read_json(run / "config.json"), read_json(folder / "config.json")
    training = {name: config[name] for name in ("data", "tasks", "optim", "train")}
    write_json(folder / "config.json", values | {"training": training})


def length(run: Path) -> dict[str, Any]:
    """Return the length of a finished run, and the commit of its code."""
    line = read_metrics(RunFolder(path=run).metrics_file)[-1]
    known = {"steps": line["step"], "samples": line["images"], "seconds": line["seconds"]}
    pictures = training_data(run)["counts"]["train"]
    return known | {"pictures": pictures, "commit": read_json(run / "config.json")["commit"]}


def training_data(run: Path) -> dict[str, Any]:
    """Return the parameters of the data that a run was trained on."""
    return read_json(Path(read_json(run / "config.json")[DATA_PATH]) / "dataset.json")["parameters"]


def measure(folder: Path, data: Path) -> dict[str, Any]:
    """Evaluate both stages on both splits, with baselines."""
    models = {stage: load_model(folder / stage) for stage in STAGES}
    guesser = Guesser(data, models["coarse"], 20_000)
    found: dict[str, Any] = {}
    for task, (limit, stage, _, _) in TASKS.items():
        records = {split: measured_records(data, task, split, limit) for split in SPLITS}
        guesses = {} if task == "caption" else guesser.guess(task, records)
        for split in SPLITS:
            metrics = evaluate(models[stage], task, records[split], rerank=False)
            found.setdefault(task, {})[split] = {
                "records": len(records[split]),
                "model": rounded(metrics),
                **{name: rounded(values) for name, values in guesses.get(split, {}).items()},
            }
            print(task, split, rounded(metrics), flush=True)
    return found


def limits(data: Path) -> dict[str, Any]:
    """Measure what the model is known to get wrong, on val: rates and their numbers of cases."""
    model = fiber.load("scenes/fine", device="cpu")
    images, classes = [], []
    for record in measured_records(data, "coco", "val", ABSENT_IMAGES):
        shown = {record.labels[label] for label in record.box_labels}
        absent = [name for name in record.labels if name not in shown]
        images += [record.images[0]] * len(absent)
        classes += [[name] for name in absent]
    invented = [len(found.labels) > 0 for found in model.detect(images, classes)]
    relations = [
        record
        for record in measured_records(data, "refcoco", "val", 10**9)
        if record.group == "relation"
    ][:REVERSED]
    images = [record.images[0] for record in relations]
    texts = [[record.text] for record in relations]
    found = model.ground(images, texts), model.ground(images, [[reverse(t[0])] for t in texts])
    same = [
        len(one.labels) > 0
        and len(other.labels) > 0
        and float(pairwise_iou(one.boxes_xyxy[:1], other.boxes_xyxy[:1])[0, 0]) > 0.5
        for one, other in zip(*found, strict=True)
    ]
    return {
        "absent_class_found": {"rate": round(mean(invented), 4), "cases": len(invented)},
        "reversed_relation_same_box": {"rate": round(mean(same), 4), "cases": len(same)},
    }


def reverse(text: str) -> str:
    """Reverse the direction of a relation, as in "the star left of the ring"."""
    [direction] = [words for words in OPPOSITES if f" {words} " in text]
    return text.replace(direction, OPPOSITES[direction])


def check(folder: Path) -> dict[str, Any]:
    """Evaluate some tasks on the first images of val, as a test does."""
    with tempfile.TemporaryDirectory() as place:
        data = evaluation_data(folder, Path(place) / "scenes", train=0, val=CHECKED_IMAGES, novel=0)
        metrics = {
            task: rounded(evaluate(load_model(folder / TASKS[task][1]), task, data, rerank=False))
            for task in CHECKED
        }
    return {"images": CHECKED_IMAGES, "metrics": metrics}


def evaluation_data(folder: Path, output: Path, **counts: int) -> Path:
    """Generate images to evaluate on."""
    return generate(output, **counts, varied=True, tokenizer=folder / "fine" / "tokenizer.json")


def rounded(metrics: Mapping[str, float]) -> dict[str, float]:
    """Round metrics to four digits."""
    return {name: round(value, 4) for name, value in metrics.items()}


def write_card(folder: Path, results: Mapping[str, Any]) -> None:
    """Write README.md, the model card."""
    lines = [
        "| task | split | records | model | chance | blind |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for task, (_, _, metric, title) in TASKS.items():
        for split in SPLITS:
            own = results["tasks"][task][split]
            values = [own[name].get(metric) if name in own else None for name in _COLUMNS]
            cells = ["-" if value is None else f"{value:.3f}" for value in values]
            lines.append(f"| {title} | {split} | {own['records']} | {' | '.join(cells)} |")
            if task in WITH_RELATIONS:
                values = [own[name][f"relation/{metric}"] for name in _COLUMNS]
                cells = [f"{value:.3f}" for value in values]
                lines.append(f"| - of these, relations | {split} | | {' | '.join(cells)} |")
    trained = []
    for name in RUNS:
        run = results["runs"][name]
        trained.append(
            f"- `packaged_{name}`: {run['steps']:,} steps, {run['samples']:,} samples of"
            f" {run['pictures']:,} pictures, {run['seconds'] / 60:.0f} minutes on two cores, commit"
            f" {run['commit'][:12]}."
        )
    known = results["limits"]
    text = _CARD.format(
        table="\n".join(lines),
        trained="\n".join(trained),
        absent=_rate(known["absent_class_found"]),
        false=f"{results['presence']['phrase/false_answers_at_95']:.1%}",
        phrases=f"{results['presence']['phrase/absent']:,.0f}",
        reversed=_rate(known["reversed_relation_same_box"]),
        bytes=f"{results['bytes'] / 1e6:.1f}",
        images=f"{results['data']['counts']['train']:,}",
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _rate(known: Mapping[str, Any]) -> str:
    return f"{known['rate']:.1%} of {known['cases']:,}"


_COLUMNS = ("model", "chance", "blind")
_CARD = """# scenes

The model that `fiber.load("scenes")` loads: both stages of a small FIBER, {bytes} MB in bfloat16.
It knows drawings of colored shapes and nothing else: circle, square, triangle, star, diamond,
cross, heart and ring, in red, green, blue, yellow, purple, cyan, white and black, small or large,
plain or striped, up to three in a picture. On photographs its output is a guess.

## Training

From scratch on {images} generated pictures (`fiber data scenes --varied`), with no other pictures
or texts, with seed 0: boxes for shapes, colors and relations, then for words of every kind, then
with phrases that are not in the picture; and, from the backbone before these, captions and
questions. `fiber recipes NAME` explains each recipe, `config.json`
of a stage has all of its values. Another version of the code may train other weights.

{trained}

## Results

On pictures of the same generator: val has the combinations of color and shape of the training
pictures, novel has others. chance guesses among the objects or candidates, and answers a question
with one of the answers to such questions or a word of a random object, whichever is right more
often; blind is the best guess without the picture. By kind of word: `metrics.json`.
`python benches/package_scenes.py` measures the model again and writes this page.

{table}

## Limits

- Relations (left of, right of, above, below): in {reversed} expressions, the best box stays the
  same if the direction is reversed. A model that knows relations changes it. Questions about
  relations are answered much worse (see the table).
- Classes that are not in the picture: asked for one alone, `detect` returns a box in {absent}
  cases.
- Phrases that are not in the picture: at 95% of the recall, a box is found for {false} of
  {phrases} of val. `fine/presence.json` has the presence of phrases and the default thresholds
  (`fiber calibrate`). Relations of objects that are there, but in another direction, are told
  apart less well (docs/evidence.md).
- `match` asks whether a caption describes the whole picture: one that leaves objects out is no
  match. `search` ranks whole pictures, too.
- Images for questions, captions and matching are scaled to a square, and training pictures are
  square, so shapes in wide or tall pictures may be taken for others. Boxes keep the proportions.
- Small objects of the training pictures are about a quarter of the picture high, large ones two
  fifths. Much smaller ones may be missed.

## Use

Examples, tests and first steps. Not for photographs, and not as a measure of the published model,
which is far larger and was trained on photographs. License: that of this package.
"""


def main() -> None:
    """Write the package's model from finished runs, or measure it again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("runs", nargs="?", type=Path, help="folder of words/, fine/ and coarse/")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = packaged_model("scenes")
    if options.runs is None:
        known = read_json(folder / "metrics.json")
    else:
        known = {
            "data": training_data(options.runs / RUNS[0]),
            "runs": {name: length(options.runs / name) for name in RUNS},
        }
        shutil.rmtree(folder, ignore_errors=True)
        for stage in STAGES:
            write_stage(options.runs / LAST[stage], folder / stage)
    with tempfile.TemporaryDirectory() as place:
        data = evaluation_data(
            folder, Path(place) / "scenes", train=TRAINING_IMAGES, val=IMAGES, novel=IMAGES
        )
        presence, calibration = calibrate_model(fiber.load(folder / "fine", device="cpu"), data)
        presence = dataclasses.replace(presence, data="fiber data scenes --varied, val")
        write_json(folder / "fine" / PRESENCE_FILE, to_json(presence))
        results = {
            "presence": rounded(calibration),
            "data": known["data"],
            "runs": known["runs"],
            "machine": describe_machine(),
            "bytes": sum(file.stat().st_size for file in folder.rglob("*.safetensors")),
            "tasks": measure(folder, data),
            "limits": limits(data),
            "check": check(folder),
        }
    write_json(folder / "metrics.json", results)
    write_card(folder, results)


if __name__ == "__main__":
    main()
