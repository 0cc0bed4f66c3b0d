"""`fiber demo`, `train`, `recipes` and `eval`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from fiber.cli.arguments import (
    DEVICE,
    add_tokenizer_and_answers,
    candidates,
    key_values,
    nonnegative_int,
    positive_int,
)
from fiber.cli.models import RUNS
from fiber.training.config.run import CHOSEN_BY

_DATA = (
    "data set directory, or one annotation file, such as a .jsonl with"
    ' {"image": "1.jpg", "text": "a dog"} or'
    ' {"image": "1.jpg", "question": "what is it?", "answer": "a dog"} on each line'
)


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the commands of this file to the table."""
    _add_demo(commands)
    _add_train(commands)
    recipes = commands.add_parser("recipes", help="list the recipes, or describe one")
    recipes.add_argument(
        "name",
        nargs="?",
        metavar="RECIPE",
        help="print its command, data, hardware and expected metric",
    )
    recipes.set_defaults(run=_recipes)
    _add_eval(commands)


def _add_demo(commands: argparse._SubParsersAction) -> None:
    demo = commands.add_parser(
        "demo",
        help="train and evaluate a small FIBER on this machine",
        description="Generate images, train a small FIBER on captions and then on boxes, evaluate"
        " it on unseen compositions, and write report.html. Running an interrupted demo again"
        " resumes it.",
    )
    demo.add_argument(
        "--data",
        choices=("scenes", "stamps"),
        default="scenes",
        help="generated data set (default: scenes)",
    )
    demo.add_argument("--fast", action="store_true", help="two minutes instead of ten")
    demo.add_argument(
        "--ablations", action="store_true", help="also train without fusion and without captions"
    )
    demo.add_argument(
        "--output",
        type=Path,
        default=None,
        metavar="DIR",
        help="(default: runs/demo, runs/demo-fast, runs/demo-stamps, ...)",
    )
    demo.add_argument("--seed", type=int, default=0, help="(default: 0)")
    demo.add_argument(
        "--permute-pictures",
        action="store_true",
        help="evaluate with shuffled images: every metric must miss its floor, exit code 1",
    )
    demo.set_defaults(run=_demo, when_stopped="run the same command again to resume")


def _add_train(commands: argparse._SubParsersAction) -> None:
    train = commands.add_parser(
        "train",
        help="train a model with a recipe",
        description="Train a model with a recipe and write it to a directory.",
    )
    train.add_argument("recipe", metavar="RECIPE", help="a recipe name (see `fiber recipes`)")
    train.add_argument("--data", required=True, metavar="DATA", help=_DATA)
    train.add_argument(
        "--validation",
        metavar="DATA",
        help="data to select the best checkpoint on, if the recipe selects one (default: the split"
        " validation.split of --data)",
    )
    train.add_argument(
        "--init",
        metavar="MODEL",
        help="initial weights: a model directory, a published checkpoint, a Swin or RoBERTa file,"
        " or a directory of such files",
    )
    train.add_argument(
        "--tokenizer",
        metavar="DIR",
        help="tokenizer.json or its directory, a directory with vocab.json and merges.txt, or"
        " `train` to train one on the texts (default: that of --init or of the data)",
    )
    train.add_argument(
        "--answers",
        metavar="FILE",
        help="JSON list of the VQA head's answers, in the order of its logits (default: those of"
        " --init if the data have no others, else the most frequent answers of the data)",
    )
    train.add_argument("--output", type=Path, metavar="DIR", help="(default: runs/RECIPE)")
    train.add_argument(
        "--resume", action="store_true", help="resume from the newest checkpoint in --output"
    )
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a field of the recipe, as in train.steps=500; repeatable",
    )
    train.add_argument("--device", help=DEVICE)
    train.set_defaults(run=_train, when_stopped="add --resume to the same command to continue")


def _add_eval(commands: argparse._SubParsersAction) -> None:
    evaluate = commands.add_parser(
        "eval",
        help="evaluate a model on a task",
        description="Evaluate a model on a split of a data set and print the metrics.",
    )
    evaluate.add_argument("model", metavar="MODEL", help="model directory or checkpoint file")
    add_tokenizer_and_answers(evaluate)
    evaluate.add_argument("task", metavar="TASK", help=f"one of {', '.join(CHOSEN_BY)}, odinw")
    evaluate.add_argument("--data", required=True, metavar="DATA", help=_DATA)
    evaluate.add_argument(
        "--split", default="val", help="(default: val; a file without splits is read whole)"
    )
    evaluate.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="file to write predictions to; a directory for odinw",
    )
    evaluate.add_argument("--device", help=DEVICE)
    _add_eval_settings(evaluate)
    evaluate.set_defaults(run=_eval)


def _add_eval_settings(evaluate: argparse.ArgumentParser) -> None:
    evaluate.add_argument(
        "--rerank",
        type=candidates,
        metavar="N",
        help="retrieval: rerank the N best candidates of each query by ITM; 0: off, all: score"
        " every pair (default: 32; off without an ITM head, all without an ITC head)",
    )
    evaluate.add_argument(
        "--classes-per-prompt",
        type=nonnegative_int,
        metavar="N",
        help="coco, lvis, odinw: maximum number of classes in a prompt, 0: as many as fit (default:"
        " 40 for lvis, as published, else 0)",
    )
    evaluate.add_argument(
        "--classes-file",
        type=Path,
        metavar="FILE",
        help="coco, lvis: text of each class in a prompt, in the order of class ids: one per line,"
        ' or a JSON list such as ["fish", {"name": "puffin", "suffix": " with orange beaks"}];'
        " odinw: a directory with NAME.json for each data set (default: the class names)",
    )
    evaluate.add_argument(
        "--batch-size", type=positive_int, default=64, metavar="N", help="(default: 64)"
    )
    evaluate.add_argument(
        "--threads",
        type=positive_int,
        default=0,
        metavar="N",
        help="image decoding threads (default: one per core)",
    )
    evaluate.add_argument(
        "--image-size",
        type=positive_int,
        metavar="N",
        help="input height and width of a coarse model, in pixels (default: the model's)",
    )


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
    changes = key_values(options.set, "--set", "train.steps=500")
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
    settings: dict[str, Any] = {}
    if options.rerank is not None:
        if options.task != "retrieval":
            raise ValueError(f"--rerank: expected task retrieval, got {options.task!r}")
        settings = {"rerank": options.rerank > 0, "candidates": max(options.rerank, 1)}
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
        **settings,
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
        print(f"fiber: wrote predictions to {options.output}", file=sys.stderr)
    return 0
