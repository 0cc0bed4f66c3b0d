"""The commands that train and measure: demo, train, recipes, eval."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from fiber.cli.arguments import add_words, candidates, count, whole_number
from fiber.cli.models import RUNS
from fiber.training.config.run import CHOSEN_BY

_DATA = (
    "folder of a data set; or one annotation file, such as a .jsonl with"
    ' {"image": "1.jpg", "text": "a dog"} or'
    ' {"image": "1.jpg", "question": "what is it?", "answer": "a dog"} on each line'
)


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the commands of this file to the table."""
    _add_demo(commands)
    _add_train(commands)
    recipes = commands.add_parser("recipes", help="list the recipes, or describe one")
    recipes.add_argument(
        "name", nargs="?", metavar="RECIPE", help="print its command, data, hardware and metric"
    )
    recipes.set_defaults(run=_recipes)
    _add_eval(commands)


def _add_demo(commands: argparse._SubParsersAction) -> None:
    demo = commands.add_parser(
        "demo",
        help="the whole of FIBER on this machine",
        description="Make pictures, train a small FIBER on captions and then on boxes, measure it"
        " on compositions it has never seen, and write report.html. Stopped, it goes on where it"
        " was when it is started again.",
    )
    demo.add_argument("--data", choices=("scenes", "stamps"), default="scenes")
    demo.add_argument("--fast", action="store_true", help="two minutes instead of ten")
    demo.add_argument(
        "--ablations", action="store_true", help="also train without fusion and without captions"
    )
    demo.add_argument("--output", type=Path, default=None, metavar="DIR")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument(
        "--permute-pictures",
        action="store_true",
        help="measure with the pictures exchanged: every floor must fall, exit code 1",
    )
    demo.set_defaults(run=_demo, when_stopped="the same command goes on from here")


def _add_train(commands: argparse._SubParsersAction) -> None:
    train = commands.add_parser(
        "train",
        help="train a model by a recipe",
        description="Train a model by a recipe on a data set, and write it to a folder.",
    )
    train.add_argument("recipe", metavar="RECIPE", help="one of `fiber recipes`")
    train.add_argument("--data", required=True, metavar="DATA", help=_DATA)
    train.add_argument(
        "--validation",
        metavar="DATA",
        help="what the best step is chosen by, where the recipe chooses one (default: the split of"
        " --data that its validation.split names)",
    )
    train.add_argument(
        "--init",
        metavar="MODEL",
        help="what to start from: folder of a model, published checkpoint, file of a Swin or a"
        " RoBERTa, or a folder with such files",
    )
    train.add_argument(
        "--tokenizer",
        metavar="DIR",
        help="instead of the one of --init or of the data: tokenizer.json, or a folder with it or"
        " with vocab.json and merges.txt; or the word train, which trains one on the texts",
    )
    train.add_argument(
        "--answers",
        metavar="FILE",
        help="JSON list of the VQA head's answers, in the order of its logits (default: those of"
        " --init if the data have no others, else the most frequent ones of the data)",
    )
    train.add_argument("--output", type=Path, metavar="DIR", help="(default: runs/RECIPE)")
    train.add_argument(
        "--resume", action="store_true", help="go on from the newest checkpoint in --output"
    )
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a field of the recipe, as in train.steps=500; may be repeated",
    )
    train.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: a GPU if there is one)")
    train.set_defaults(run=_train, when_stopped="the same command with --resume goes on")


def _add_eval(commands: argparse._SubParsersAction) -> None:
    evaluate = commands.add_parser(
        "eval",
        help="measure a model on a task",
        description="Measure a model on a split of a data set, and print the task's metrics.",
    )
    evaluate.add_argument("model", metavar="MODEL", help="folder or file of a finished model")
    add_words(evaluate)
    evaluate.add_argument("task", metavar="TASK", help=f"one of {', '.join(CHOSEN_BY)}, odinw")
    evaluate.add_argument("--data", required=True, metavar="DATA", help=_DATA)
    evaluate.add_argument(
        "--split", default="val", help="(default: val; a file without splits is read whole)"
    )
    evaluate.add_argument(
        "--output", type=Path, metavar="FILE", help="write the predictions here; odinw: a folder"
    )
    evaluate.add_argument(
        "--rerank",
        type=candidates,
        metavar="N",
        help="retrieval: order the N best of each query again by matching picture and text"
        " together; 0: none, all: every pair (default: 32; a model that cannot match ranks without,"
        " one that can match alone matches every pair)",
    )
    evaluate.add_argument(
        "--classes-per-prompt",
        type=whole_number,
        metavar="N",
        help="coco, lvis, odinw: classes that a text asks for at most, 0: as many as fit"
        " (default: 40 for lvis, as published, else 0)",
    )
    evaluate.add_argument(
        "--classes-file",
        type=Path,
        metavar="FILE",
        help="coco, lvis: what a text says for each class, by their ids: one a line, or a JSON list"
        ' such as ["fish", {"name": "puffin", "suffix": " with orange beaks"}]; odinw: a folder'
        " with NAME.json for each data set (default: the names of the classes)",
    )
    evaluate.add_argument(
        "--batch-size",
        type=count,
        default=64,
        metavar="N",
        help="records that the model looks at together (default: 64)",
    )
    evaluate.add_argument(
        "--threads",
        type=count,
        default=0,
        metavar="N",
        help="that decode pictures (default: one for each core)",
    )
    evaluate.add_argument(
        "--image-size",
        type=count,
        metavar="N",
        help="side in pixels of the pictures that a coarse model looks at (default: its own)",
    )
    evaluate.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: a GPU if there is one)")
    evaluate.set_defaults(run=_eval)


def _demo(options: argparse.Namespace) -> int:
    from fiber.demo import run

    return run.main(
        data=options.data,
        fast=options.fast,
        ablations=options.ablations,
        output=options.output,
        seed=options.seed,
        permute_pictures=options.permute_pictures,
    )


def _train(options: argparse.Namespace) -> int:
    changes = {}
    for change in options.set:
        key, equals, value = change.partition("=")
        if not equals or not key:
            raise ValueError(f"--set {change!r}: expected KEY=VALUE, as in train.steps=500")
        changes[key.strip()] = value.strip()
    output = options.output or RUNS / options.recipe
    import fiber

    fiber.train(
        options.recipe,
        data=options.data,
        output=output,
        validation=options.validation,
        set=changes,
        init=options.init,
        tokenizer=options.tokenizer,
        answers=options.answers,
        resume=options.resume,
        device=options.device,
    )
    print(output)
    return 0


def _recipes(options: argparse.Namespace) -> int:
    from fiber import recipes

    if options.name is not None:
        print(recipes.describe(options.name))
        return 0
    width = max(map(len, recipes.names()))
    for family, names in recipes.families().items():
        print(f"\n{family}" if family != "small" else "small (two CPU cores, minutes)")
        for name in names:
            print(f"  {name:<{width}}  {recipes.describe(name).splitlines()[0]}")
    return 0


def _eval(options: argparse.Namespace) -> int:
    asked: dict[str, Any] = {}
    if options.rerank is not None:
        if options.task != "retrieval":
            raise ValueError(f"--rerank: task {options.task!r} ranks nothing")
        asked = {"rerank": options.rerank > 0, "candidates": max(options.rerank, 1)}
    import fiber

    model = fiber.load(
        options.model,
        options.tokenizer,
        options.answers,
        options.device,
        image_size=options.image_size,
    )
    metrics = fiber.evaluate(
        model,
        options.task,
        data=options.data,
        split=options.split,
        output=options.output,
        **asked,
        classes_per_prompt=options.classes_per_prompt,
        classes=options.classes_file,
        batch_size=options.batch_size,
        threads=options.threads,
    )
    if sys.stdout.isatty():
        width = max(map(len, metrics), default=0)
        for name, value in metrics.items():
            print(f"{name:<{width}}  {value:.4f}")
    else:
        print(json.dumps(metrics))
    if options.output:
        print(f"fiber: predictions are in {options.output}", file=sys.stderr)
    return 0
