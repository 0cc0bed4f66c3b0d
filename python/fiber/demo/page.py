"""Content of the demo's report: summary, headlines, examples, figures and commands."""

from __future__ import annotations

import io
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fiber.atomic_io import read_json
from fiber.demo.abilities import EXPRESSIONS, QUESTIONS, VERDICTS, Ability, judge, summarize
from fiber.demo.contact_sheet import draw_image
from fiber.demo.examples import Example, Examples, Scored, Twice
from fiber.demo.floors import MetricRow
from fiber.demo.folder import DemoFolder
from fiber.demo.measures import SHOWN
from fiber.demo.plan import STAGES, Plan
from fiber.demo.report import (
    Claim,
    DemoReport,
    Group,
    Headline,
    HeadlineBar,
    KindTable,
    Throughput,
    Tile,
    TileText,
)
from fiber.progress import readable_seconds
from fiber.synthetic.scene_graph import COLORS, SHAPES
from fiber.training.metrics_file import read_metrics
from fiber.training.run_dir import RunFolder

#: Rows on fusion, as {"claims": [...]}, written by `benches/evidence_page.py`.
EVIDENCE_FILE = Path(__file__).with_name("evidence.json")

_WHAT = {
    "scenes": "rendered scenes of colored shapes",
    "stamps": "real cut-outs pasted on photographs",
}
#: What each split shows, by kind of data.
SPLIT_NAMES = {
    "scenes": {"val": "new pictures", "novel": "new combinations"},
    "stamps": {"val": "new pictures", "novel": "new nouns"},
}
#: What words of position mean, by kind of data.
_POSITIONS = {
    "scenes": " Words of position mean the main direction: what is more above than left of a ring"
    " is above it, and not left of it.",
    "stamps": "",
}
#: What each run learns from.
_TAUGHT = {
    "fine": "boxes of phrases, captions and classes",
    "coarse": "captions and questions",
}
_TITLES = {
    "fine": "Fine stage",
    "coarse": "Coarse stage",
}
_OF_BOXES = {
    "alignment": "which words an object fits",
    "box": "its edges",
    "centerness": "its center",
}
#: What the losses of each run are.
_LOSSES = {
    "fine": _OF_BOXES,
    "coarse": {
        "itc": "contrast of pictures and captions",
        "itm": "matching of pictures and captions",
        "mlm": "masked words of captions",
        "vqa": "answers",
    },
}
_CURVES = (
    " Lower is better. Dashed: a model that ignores its inputs (boxes have no such value)."
    " Learning rates are multiples of the first, for the parts that learn faster."
)
_KIND_TITLES = {
    EXPRESSIONS: "Finding the object of a phrase, by what tells it apart",
    QUESTIONS: "Answering questions, by what they ask for",
}


def make_report(
    folder: DemoFolder,
    plan: Plan,
    about: Mapping[str, Any],
    *,
    rows: Sequence[MetricRow],
    abilities: Sequence[Ability],
    examples: Examples,
    problems: Sequence[str],
    machine: Mapping[str, str],
    evaluated: tuple[int, float],
) -> DemoReport:
    """Collect the content of the page.

    `about` contains the kind of data, the mode and the seed. `evaluated` is the number of records
    evaluated for the table, and the evaluation time in seconds.
    """
    floors = sum(row.floor is not None for row in rows)
    passed = (
        f"Every run of the demo is checked. {floors} of the {len(rows)} metrics below have a floor,"
        " the least value that is expected from recorded runs. The model has to reach every floor"
        " on the right pictures, and must not reach it if each picture is exchanged for another"
        " (permuted). This run passed."
    )
    throughput = _throughput(folder, plan, evaluated)
    claims, names = read_claims(), SPLIT_NAMES[about["data"]]
    return DemoReport(
        title=f"fiber demo: {_WHAT[about['data']]}",
        lead=_lead(folder, plan, about, throughput, machine),
        summary=summarize(
            abilities,
            novel=names["novel"],
            untrained=untrained_groups(plan),
            has_evidence=bool(claims),
        ),
        novel=names["novel"],
        verdict="This run failed:" if problems else passed,
        problems=problems,
        headlines=make_headlines(rows, names),
        twice_text=_describe_twice(examples.twice, names) + _POSITIONS[about["data"]],
        twice=[
            (
                f"{names[own.split]}{how}: {'both found' if shown.is_right else 'not both found'}",
                [make_tile(replace(shown, boxes=[box]), folder.data) for box in shown.boxes],
            )
            for own in examples.twice
            for how, chosen in (("", own.shown), (", by position", own.relations))
            for shown in chosen
        ],
        scored_text=_describe_scored(examples.scored, names) + _POSITIONS[about["data"]],
        scored=_groups(examples.scored, folder.data),
        kinds=make_kind_tables(abilities),
        claims=claims,
        curves=_curves(folder.path, plan),
        own_commands=own_commands(folder.path, about["data"], examples.scored),
        own_text=_describe_own(folder.data, about["data"]),
        rows=rows,
        throughput=throughput,
        commands=commands(folder.path, plan, about),
        machine=dict(machine),
        notes=_notes(folder.path, plan, machine),
    )


def read_claims() -> list[Claim]:
    """Read the rows of the evidence bench; empty if it has not been run."""
    known = read_json(EVIDENCE_FILE)["claims"] if EVIDENCE_FILE.is_file() else []
    return [Claim(**claim) for claim in known]


def _lead(
    folder: DemoFolder,
    plan: Plan,
    about: Mapping[str, Any],
    throughput: Sequence[Throughput],
    machine: Mapping[str, str],
) -> list[str]:
    seconds = sum(speed.seconds for speed in throughput if speed.stage.endswith("training"))
    sizes = [_parameters(folder.path / stage / "model.safetensors") for stage in STAGES]
    cores = machine.get("cores", "?")
    trained = [f"{run['train.steps']:,} steps on {_TAUGHT[n]}" for n, run in plan.runs.items()]
    lead = [
        "FIBER is a vision-language model: it looks at a picture and a text together. This demo"
        f" trained a small one from scratch, without pretrained weights, on {plan.train_images:,}"
        f" generated pictures ({_WHAT[about['data']]}): {', then '.join(trained)}."
        " Training took"
        f" {readable_seconds(seconds)} on {cores} CPU core{'' if cores == '1' else 's'}. One model"
        f" predicts boxes (fine stage, {sizes[0]:.1f} million parameters), the other matches"
        f" captions and answers questions (coarse stage, {sizes[1]:.1f} million)."
    ]
    held_out = read_json(folder.data / "dataset.json").get("held_out", {}).get("color_shape")
    if held_out:
        lead.append(
            "It was tested on new pictures, and on pictures with new combinations: a"
            f" {' '.join(held_out[0])}, for example, is in no training picture."
        )
    else:
        lead.append(
            "It was tested on new pictures, and on pictures of objects whose nouns occur in no"
            " training picture."
        )
    return lead


def _parameters(weights: Path) -> float:
    """Return the number of parameters in millions."""
    from safetensors import safe_open

    with safe_open(weights, "pt") as file:
        names = file.keys()
        return sum(math.prod(file.get_slice(name).get_shape()) for name in names) / 1e6


def untrained_groups(plan: Plan) -> list[str]:
    """Return the tasks of pairs whose losses have no weight in the plan's coarse stage."""
    task = plan.config("coarse", 0).tasks.image_text
    return [
        group
        for group, loss in (("retrieval", "itc"), ("matching", "itm"))
        if not task.weights()[loss]
    ]


def make_headlines(rows: Sequence[MetricRow], names: Mapping[str, str]) -> list[Headline]:
    """Return the headline metrics with bars for both baselines and both splits.

    Errors of an average precision, and of a recall over the phrases of a caption, are taken to be
    those of as many predictions as records.
    """
    known = {(row.metric, row.split): row for row in rows}
    headlines = []
    for shown in sorted(SHOWN, key=lambda shown: shown.stage == "coarse"):
        val = known.get((shown.metric, "val"))
        if not shown.headline or val is None:
            continue
        bars = []
        if val.chance is not None:
            bars.append(HeadlineBar("chance", val.chance, "chance"))
        if val.blind is not None:
            bars.append(HeadlineBar("blind guess", val.blind, "blind"))
        verdicts = []
        for split, name in names.items():
            if row := known.get((shown.metric, split)):
                guess = max(row.chance or 0.0, row.blind or 0.0)
                bars.append(HeadlineBar(name, row.model, split, guess))
                verdicts.append(judge(row.model, guess, row.count))
        verdict = max(verdicts, key=VERDICTS.index)
        headlines.append(Headline(shown.headline, shown.how, bars, verdict))
    return headlines


def make_kind_tables(abilities: Sequence[Ability]) -> list[KindTable]:
    """Return the accuracy by kind of word, one table per task."""
    tables = []
    for task, title in _KIND_TITLES.items():
        own = [ability for ability in abilities if ability.task == task]
        kinds = []
        for group in dict.fromkeys(ability.group for ability in own):
            both = [ability for ability in own if ability.group == group]
            kinds.append((both[0].name, both[0].example, both))
        if kinds:
            tables.append(KindTable(title, kinds))
    return tables


def make_tile(example: Example, data: Path) -> Tile:
    """Draw an example, with one line for each box and its answer."""
    texts = [
        TileText(
            number=number if len(example.boxes) > 1 else 0,
            text=box.text,
            verdict="found" if box.is_found else "missed",
            is_right=box.is_found,
        )
        for number, box in enumerate(example.boxes, 1)
    ]
    if example.question:
        is_right = example.answer == example.truth
        verdict = example.answer if is_right else f"{example.answer} (it is {example.truth})"
        texts.append(TileText(0, example.question, verdict, is_right))
    file = io.BytesIO()
    draw_image(example, data).save(file, "JPEG", quality=90)
    return Tile(file.getvalue(), texts)


def _pictures(split: str, names: Mapping[str, str]) -> str:
    """Return "new pictures" or, for example, "pictures with new combinations"."""
    return names[split] if split == "val" else f"pictures with {names[split]}"


def _describe_twice(twice: Sequence[Twice], names: Mapping[str, str]) -> str:
    counts = [
        f"{own.both_found} of the first {own.count} {_pictures(own.split, names)}"
        f" (picking objects at random: {own.by_chance:.0f})"
        for own in twice
        if own.count
    ]
    return (
        "Each picture is asked for two different objects. A model that ignores the phrase gives the"
        " same box twice, so it never finds both. This model finds both on"
        f" {' and '.join(counts)}. Shown are the first pictures in file order that have phrases for"
        " two objects, and the first ones on which both phrases say where an object is, whether the"
        " model finds both or not. The orange box is the model's, the dashed box is the truth."
    )


def _describe_scored(scored: Scored, names: Mapping[str, str]) -> str:
    asked = f"{scored.count} {_pictures(scored.split, names)}"
    return (
        "For each picture, the model finds the objects that a caption mentions, and answers a"
        f" question. On {scored.right} of the first {asked},"
        " everything is right; right answers may be lucky guesses (see the kinds of question"
        " below). Numbered boxes are the model's, dashed boxes are the truth."
    )


def _groups(scored: Scored, data: Path) -> list[Group]:
    groups = [
        (f"The first {len(scored.hits)} in file order on which everything is right", scored.hits),
        (f"The first {len(scored.misses)} in file order with a mistake", scored.misses),
    ]
    return [
        Group(title, [make_tile(example, data) for example in shown])
        for title, shown in groups
        if shown
    ]


def _describe_own(data_folder: Path, data: str) -> str:
    parameters = read_json(data_folder / "dataset.json")["parameters"]
    if data != "scenes":
        return (
            "The model knows the stamps of its training pictures, pasted on photographs; on other"
            " pictures it guesses. These commands ask about one of the demo's pictures."
        )
    backgrounds = (
        "a plain or textured background"
        if parameters.get("varied")
        else "grayish, textured backgrounds; on others, such as white, expect mistakes. The model"
        " in the package also knows plain ones: pass --model scenes"
    )
    return (
        f"Draw 1 to {parameters['max_objects']} shapes that do not touch, each about a quarter"
        " (small) or two fifths (large) of the picture high. The words of its training are the"
        f" shapes {', '.join(SHAPES)}; the colors {', '.join(COLORS)}; small and large; plain and"
        f" striped. It was trained on {backgrounds}."
        " On a photograph it guesses. --save writes the picture with its boxes to the folder"
        " annotated. The last two commands ask about one of the demo's pictures."
    )


def own_commands(path: Path, data: str, scored: Scored) -> list[str]:
    """Return shell commands that ask the demo's models about a drawing and an image of the demo."""
    here = shlex.quote(str(path))
    asked = []
    if data == "scenes":
        asked.append(("drawing.png", "a red circle; the large star", "what color is the star?"))
    for example in (*scored.hits, *scored.misses)[:1]:
        phrases = "; ".join(box.text for box in example.boxes)
        asked.append((shlex.quote(str(path / "data" / example.image)), phrases, example.question))
    lines = []
    for image, phrases, question in asked:
        asked_for = f"--phrases {shlex.quote(phrases)} --save annotated"
        lines.append(f"fiber ground {image} {asked_for} --model {here}")
        lines.append(f"fiber answer {image} {shlex.quote(question)} --model {here}")
    return lines


def _curves(path: Path, plan: Plan) -> list[tuple[str, Path]]:
    figures = []
    for run in plan.runs:
        file = path / run / "curves.png"
        # There are no curves without matplotlib.
        if file.is_file():
            lines = read_metrics(RunFolder(path=path / run).metrics_file)
            trained = {name for line in lines for name in line["losses"]}
            parts = [f"{name}: {what}" for name, what in _LOSSES[run].items() if name in trained]
            tasks = plan.config(run, 0).tasks.active().items()
            first = "".join(
                f" The first {task.first_steps} steps of the task {name} read"
                f" {', '.join(dict.fromkeys(task.first_sources))}."
                for name, task in tasks
                if task.first_sources
            )
            figures.append((f"{_TITLES[run]}. {'; '.join(parts)}.{first}{_CURVES}", file))
    return figures


def _notes(path: Path, plan: Plan, machine: Mapping[str, str]) -> list[str]:
    notes = []
    for run in plan.runs:
        commit = read_json(path / run / "config.json").get("commit")
        if commit and commit != machine["commit"]:
            notes.append(f"The model in {run}/ was trained at commit {commit}.")
        if not (path / run / "curves.png").is_file():
            notes.append(f"No training curves in {run}/, since matplotlib is not installed.")
    return notes


def _throughput(folder: DemoFolder, plan: Plan, evaluated: tuple[int, float]) -> list[Throughput]:
    speeds = []
    made = folder.noted("data_stage")
    if made:
        speeds.append(Throughput("data", made["pictures"], made["seconds"]))
    for run in plan.runs:
        lines = read_metrics(RunFolder(path=folder.path / run).metrics_file)
        if lines:
            speeds.append(Throughput(f"{run} training", lines[-1]["images"], lines[-1]["seconds"]))
    return [*speeds, Throughput("evaluation, records", *evaluated)]


def commands(path: Path, plan: Plan, about: Mapping[str, Any]) -> list[str]:
    """Return shell commands that reproduce the demo, both as a whole and part by part."""
    data, seed, here = about["data"], about["seed"], shlex.quote(str(path))
    options = "" if data == "scenes" else f" --data {data}"
    options += " --fast" if about["mode"] == "fast" else ""

    stages = {shown.task: shown.stage for shown in SHOWN}
    return [
        "# everything",
        f"fiber demo{options} --seed {seed} --output {here}",
        "",
        "# part by part",
        f"fiber data {data} --output {here}/data --images {plan.train_images} --seed {seed}",
        *(shlex.join(["fiber", *plan.train_command(run, seed, path)]) for run in plan.runs),
        "",
        "# each task on all records of a split; the table uses a fixed random subset",
        *(
            f"fiber eval {here}/{stage} {task} --data {here}/data --split novel --device cpu"
            for task, stage in stages.items()
        ),
    ]
