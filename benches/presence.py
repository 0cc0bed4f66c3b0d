"""Ask models for phrases of which half are not in the image: false answers and presence.

Command: fiber data scenes --varied --images 2000 --output runs/varied
         python benches/presence.py runs/varied before=DIR retrained-0=runs/absent-0 ...
         python benches/presence.py --tables
Rows: results/presence.csv, one per model, split, kind of phrases and metric. A model that has rows
is skipped. `--tables` prints the tables of docs/evidence.md, and draws its reliability diagram.

A model is named ARM-SEED, or ARM. Truth is that of the scene graph, not of the annotations, which
training and calibration use. "all" are the phrases of the images, as many again of other images of
the same kind (expression, phrase of a caption, class) that this image does not show. Other kinds
are probes, all absent: one word of a phrase of the image is changed, as their name says.

False answers are those of absent phrases at the highest score that keeps 95 % of the recall (right
boxes of present phrases, without a threshold). By chance, they are 0.95. The blind guess is how
often a text was true on training images.
"""

from __future__ import annotations

import argparse
import functools
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
from experiments import SPLITS, Rows

import fiber
from fiber.atomic_io import read_json
from fiber.metrics.boxes import pairwise_iou
from fiber.metrics.presence import (
    BINS,
    calibration_error,
    false_answers,
    ranking_quality,
    reliability,
)
from fiber.synthetic.scene_graph import CONVERSE, Thing, World, relation
from fiber.synthetic.scenes import SceneRecipe
from fiber.tasks.grounding.presence import calibrate_model

#: Kinds of words in phrases, as attributes of `Thing`.
KINDS = ("size", "material", "color", "noun")
#: Evaluated images of each split, and images of train for the blind guess.
IMAGES, BLIND_IMAGES = 150, 1500
#: Of the reliability diagram: the model in the package.
ARM, SEED = "absent", "0"
CHART = Path(__file__).parents[1] / "docs" / "images" / "reliability.svg"
PROBES = ("noun", "color", "size", "material", "binding", "landmark", "relation")


class Asked(NamedTuple):
    """A phrase that a model is asked for in an image."""

    image: str
    text: str
    #: "all", or the kind of probe.
    kind: str
    #: Boxes of the objects that it names; none if it is absent.
    boxes: tuple[tuple[float, ...], ...] = ()


class Meaning(NamedTuple):
    """Words that a phrase requires of an object, and of one that it is in a relation to."""

    words: tuple[tuple[str, str], ...]
    relation: str = ""
    other: tuple[tuple[str, str], ...] = ()


def meaning(world: World, text: str) -> Meaning | None:
    """Parse a phrase of `fiber.synthetic.captions`; None for plurals."""
    lists = (world.sizes, world.materials, world.colors, world.nouns)
    kinds = {word: kind for kind, own in zip(KINDS, lists, strict=True) for word in own}
    name = next((name for name in CONVERSE if f" {name} " in text), "")
    found = []
    for part in text.split(f" {name} ") if name else [text]:
        words = [word for word in part.split() if word not in ("a", "an", "the", "object")]
        if any(word not in kinds for word in words):
            return None
        found.append(tuple((kinds[word], word) for word in words))
    return Meaning(found[0], name, found[1] if name else ())


def fits(thing: Thing, words: Sequence[tuple[str, str]]) -> bool:
    """Return whether an object is what words say."""
    return all(getattr(thing, kind) == word for kind, word in words)


def named(things: Sequence[Thing], asked: Meaning) -> list[int] | None:
    """Return the objects that a phrase names; None if a relation is nearly diagonal."""
    heads = [i for i, thing in enumerate(things) if fits(thing, asked.words)]
    if not heads or not asked.relation:
        return heads
    others = [i for i, thing in enumerate(things) if fits(thing, asked.other)]
    pairs = [(i, relation(things[i], things[j])) for i in heads for j in others if i != j]
    found = sorted({i for i, own in pairs if own == asked.relation})
    return None if not found and any(own is None for _, own in pairs) else found


def phrases_of(recipe: SceneRecipe, split: str, index: int) -> Iterator[tuple[str, str]]:
    """Yield the phrases of an image, with their kinds."""
    image = recipe.describe(split, index)
    for each in image.expressions:
        yield each.text, "expression"
    for caption in image.captions:
        for start, end in caption.spans:
            yield caption.text[start:end], "caption"
    for noun in sorted({thing.noun for thing in recipe.scene(split, index).things}):
        yield noun, "class"


def probes_of(
    world: World, things: Sequence[Thing], texts: Sequence[str], rng: random.Random
) -> list[tuple[str, str]]:
    """Return phrases with one word that is wrong, by kind; some may be true by chance.

    `texts` are the expressions of the image; those with a relation get another landmark, or another
    direction.
    """
    colors, nouns = {thing.color for thing in things}, {thing.noun for thing in things}
    thing, found = rng.choice(things), []
    other_noun = rng.choice([noun for noun in world.nouns if noun not in nouns])
    other_color = rng.choice([color for color in world.colors if color not in colors])
    found.append(("noun", f"the {thing.color} {other_noun}"))
    found.append(("color", f"the {other_color} {thing.noun}"))
    for kind, words in (("size", world.sizes), ("material", world.materials)):
        wrong = next(word for word in words if word != getattr(thing, kind))
        found.append((kind, f"the {wrong} {thing.color} {thing.noun}"))
    if len(things) > 1:
        first, second = rng.sample(list(things), 2)
        found.append(("binding", f"the {first.color} {second.noun}"))
    for text in texts:
        where = next((name for name in CONVERSE if f" {name} " in text), None)
        if where is not None:
            found.append(("landmark", f"{text.rpartition(' ')[0]} {other_noun}"))
            found.append(("relation", text.replace(f" {where} ", f" {CONVERSE[where]} ")))
    return found


def ask(folder: Path, split: str, images: int) -> list[Asked]:
    """Return phrases of images and, as "all" and probes, absent ones."""
    stored = read_json(folder / "dataset.json")["parameters"]
    size, most = stored["image_size"], stored["max_objects"]
    recipe = SceneRecipe(stored["seed"], size, most, stored.get("varied", False))
    boxes: dict[int, list[tuple[float, ...]]] = {}
    for entry in read_json(folder / f"instances_{split}.json")["annotations"]:
        x, y, width, height = entry["bbox"]
        boxes.setdefault(entry["image_id"], []).append((x, y, x + width, y + height))
    pool: dict[str, list[str]] = {}
    for index in range(min(stored["counts"][split], 3 * images)):
        for text, kind in phrases_of(recipe, split, index):
            pool.setdefault(kind, []).append(text)
    rng, found = random.Random(0), []
    for index in range(images):
        things = recipe.scene(split, index).things
        path = str(folder / "images" / recipe.describe(split, index).file_name)
        for text, kind in dict(phrases_of(recipe, split, index)).items():
            parsed = meaning(recipe.world, text)
            if parsed is None:
                continue
            own = tuple(boxes[index][i] for i in named(things, parsed) or ())
            if not own:
                raise ValueError(f"{path}: {text!r} is a phrase of the image, but not true of it")
            found.append(Asked(path, text, "all", own))
            other = next(
                each
                for each in iter(lambda kind=kind: rng.choice(pool[kind]), None)
                if (read := meaning(recipe.world, each)) and named(things, read) == []
            )
            found.append(Asked(path, other, "all"))
        texts = [each.text for each in recipe.describe(split, index).expressions]
        for kind, text in probes_of(recipe.world, things, texts, rng):
            read = meaning(recipe.world, text)
            if read is not None and named(things, read) == []:
                found.append(Asked(path, text, kind))
    return found


def answers(
    model: Any, asked: Sequence[Asked], **options: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the best score and the presence of each phrase, and whether its box is right."""
    by_image: dict[str, list[int]] = {}
    for number, each in enumerate(asked):
        by_image.setdefault(each.image, []).append(number)
    scores, presence = np.zeros(len(asked)), np.full(len(asked), np.nan)
    right, images = np.zeros(len(asked), bool), list(by_image)
    settings = {"max_detections": 10_000, "score_threshold": 0.0, **options}
    for at in range(0, len(images), 16):
        some = images[at : at + 16]
        lists = [[asked[number].text for number in by_image[image]] for image in some]
        for image, found in zip(some, model.ground(some, lists, **settings), strict=True):
            numbers = by_image[image]
            if found.presence is not None:
                presence[numbers] = found.presence
            for box, score, index in zip(
                found.boxes_xyxy, found.scores, found.indices, strict=True
            ):
                number = numbers[int(index)]
                scores[number] = score
                truth = asked[number].boxes
                if truth:
                    right[number] = pairwise_iou(box[None], np.array(truth)).max() >= 0.5
    return scores, presence, right


def blind_scores(folder: Path, asked: Sequence[Asked]) -> np.ndarray:
    """Return how often each text was true on training images, of the times that it was asked."""
    true, total = _counts(folder)
    return np.array([(true[each.text] + 1) / (total[each.text] + 2) for each in asked])


@functools.cache
def _counts(folder: Path) -> tuple[Counter[str], Counter[str]]:
    asked = [each for each in ask(folder, "train", BLIND_IMAGES) if each.kind == "all"]
    return Counter(each.text for each in asked if each.boxes), Counter(each.text for each in asked)


def metrics_of(
    scores: np.ndarray, right: np.ndarray, asked: Sequence[Asked]
) -> dict[tuple[str, str], float]:
    """Return metrics by (kind, metric), of best scores."""
    main = np.array([each.kind == "all" for each in asked])
    present = np.array([bool(each.boxes) for each in asked])
    share, threshold = false_answers(scores[main], present[main], right[main])
    found = {
        ("all", "recall"): float(right[present].mean()),
        ("all", "false answers"): share,
        ("all", "score"): threshold,
        ("all", "auroc"): ranking_quality(scores[main], present[main]),
        ("all", "phrases"): float(main.sum()),
    }
    for kind in PROBES:
        own = np.array([each.kind == kind for each in asked])
        found[kind, "false answers"] = float((scores[own] >= threshold).mean())
        found[kind, "phrases"] = float(own.sum())
    return found


def measure(path: str, folder: Path) -> list[dict[str, Any]]:
    """Calibrate a model on val, and return its numbers on both splits."""
    model = fiber.load(path, device="cpu")
    model.presence, _ = calibrate_model(model, folder, "val", records=500)
    rows = []
    for split in SPLITS:
        asked = ask(folder, split, IMAGES)
        scores, presence, right = answers(model, asked)
        main = np.array([each.kind == "all" for each in asked])
        present = np.array([bool(each.boxes) for each in asked])
        numbers = metrics_of(scores, right, asked)
        own = model.presence.phrase
        if own is not None:
            numbers["all", "calibration error"] = calibration_error(presence[main], present[main])
            numbers["all", "default threshold"] = own.threshold
            answered = scores >= own.threshold
            numbers["all", "recall at default"] = float((answered & right)[present].mean())
            numbers["all", "false answers at default"] = float(answered[main & ~present].mean())
            for number, bin_ in enumerate(reliability(presence[main], present[main])):
                for name, value in zip(("presence", "share", "weight"), bin_, strict=True):
                    numbers[f"bin {number}", name] = value
        only = [each for each in asked if each.boxes]
        _, _, kept = answers(model, only, class_agnostic=True)
        numbers["all", "recall, class agnostic"] = float(kept.mean())
        blind = blind_scores(folder, asked)
        # A guess has no box: its recall is of presence.
        guessed = metrics_of(blind, present, asked)
        numbers["all", "false answers, blind"] = guessed["all", "false answers"]
        numbers["all", "auroc, blind"] = guessed["all", "auroc"]
        rows += [
            {"split": split, "kind": kind, "metric": metric, "value": round(value, 4)}
            for (kind, metric), value in numbers.items()
        ]
    return rows


def tables(rows: Sequence[dict[str, str]]) -> str:
    """Return tables in Markdown: means over the seeds of each arm, and their ranges."""
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    keys = [("all", m) for m in ("recall", "false answers", "auroc", "calibration error")]
    keys += [("all", m) for m in ("recall at default", "false answers at default")]
    keys += [("all", "recall, class agnostic")]
    keys += [(kind, "false answers") for kind in PROBES]
    keys += [("all", "false answers, blind"), ("all", "auroc, blind")]
    lines = [f"| phrases | metric | split | {' | '.join(arms)} |"]
    lines.append("| --- " * (3 + len(arms)) + "|")
    for kind, metric in keys:
        for split in SPLITS:
            cells = []
            for arm in arms:
                values = [
                    float(row["value"])
                    for row in rows
                    if (row["arm"], row["split"]) == (arm, split)
                    and (row["kind"], row["metric"]) == (kind, metric)
                ]
                text = f"{mean(values):.3f}" if values else "-"
                if len(values) > 1:
                    text += f" ({min(values):.3f} to {max(values):.3f})"
                cells.append(text)
            lines.append(f"| {kind} | {metric} | {split} | {' | '.join(cells)} |")
    return "\n".join(lines)


def bins_of(rows: Sequence[dict[str, str]], split: str) -> list[tuple[float, ...] | None]:
    """Return presence, share and weight of the bins of the packaged model; None for empty ones."""
    own = {
        (row["kind"], row["metric"]): float(row["value"])
        for row in rows
        if (row["arm"], row["seed"], row["split"]) == (ARM, SEED, split)
    }
    names = ("presence", "share", "weight")
    return [
        tuple(own[f"bin {number}", name] for name in names)
        if (f"bin {number}", names[0]) in own
        else None
        for number in range(BINS)
    ]


def reliability_table(rows: Sequence[dict[str, str]]) -> str:
    """Return the bins of the reliability diagram in Markdown."""
    lines = [
        "| val: presence | in the image | weight | novel: presence | in the image | weight |",
        "| --- " * 6 + "|",
    ]
    for bins in zip(*(bins_of(rows, split) for split in SPLITS), strict=True):
        texts = [f"{value:.3f}" if each else "-" for each in bins for value in each or (0,) * 3]
        lines.append(f"| {' | '.join(texts)} |")
    return "\n".join(lines)


def draw(rows: Sequence[dict[str, str]]) -> None:
    """Draw the reliability diagram: the share in the image by presence, and the weight of bins."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    panels = figure.subplots(1, len(SPLITS), sharey=True)
    for split, axes in zip(SPLITS, panels, strict=True):
        found = np.array([each for each in bins_of(rows, split) if each])
        axes.bar(found[:, 0], found[:, 2], 0.05, color="0.8", label="weight of the bin")
        axes.plot([0, 1], [0, 1], color="0.5", linewidth=1, label="perfect")
        axes.plot(found[:, 0], found[:, 1], "o-", label="measured")
        axes.set_title(split)
        axes.set_xlabel("presence")
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(0, 1.03)
        axes.set_aspect("equal")
    panels[0].set_ylabel("share in the image")
    panels[0].legend(frameon=False, loc="upper left")
    # The same rows make the same file.
    with rc_context({"svg.hashsalt": CHART.name}):
        FigureCanvasSVG(figure).print_svg(CHART, metadata={"Date": None})


def main() -> None:
    """Measure models, or print tables of those that were measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", nargs="?", type=Path, help="folder of `fiber data scenes`")
    parser.add_argument("models", nargs="*", metavar="ARM-SEED=MODEL")
    parser.add_argument("--tables", action="store_true", help="print tables of all rows")
    options = parser.parse_args()
    rows = Rows("presence", ("arm", "seed"))
    for given in options.models:
        name, _, path = given.partition("=")
        arm, _, seed = name.partition("-")
        if not rows.has(arm=arm, seed=seed):
            rows.add([{"arm": arm, "seed": seed, **row} for row in measure(path, options.data)])
            print(name, flush=True)
    if options.tables:
        print(tables(rows.rows), reliability_table(rows.rows), sep="\n\n")
        draw(rows.rows)


if __name__ == "__main__":
    main()
