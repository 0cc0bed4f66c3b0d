"""`fiber demo`, `train`, `recipes` and `eval`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fiber.cli.arguments import (
    DEVICE,
    LIMITS,
    VOCABULARIES,
    add_options,
    candidates,
    key_values,
    limits_of,
    naming_option,
    node_range,
    nonnegative_int,
    path_text,
    pick,
    process_count,
)
from fiber.cli.launched import is_launched
from fiber.cli.models import RUNS, load_quietly
from fiber.config_io import nearest
from fiber.messages import printable
from fiber.tasks import all_evaluations
from fiber.terminal import is_terminal

if TYPE_CHECKING:
    from fiber.checkpoints.model_dir import StoredModel

_DATA = (
    "dataset folder, URL of a packed dataset, or a single annotation file, such as a .jsonl file"
    ' with {"image": "1.jpg", "text": "a dog"} or'
    ' {"image": "1.jpg", "question": "what is it?", "answer": "a dog"} on each line'
)
_DEMO = """
Generate images, train a small FIBER model on boxes and then on captions, evaluate it on unseen
compositions, and write report.html. Rerunning an interrupted demo resumes it.
"""


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add `demo`, `train`, `recipes` and `eval` to the table of commands."""
    demo = commands.add_parser(
        "demo", help="train and evaluate a small FIBER model on this machine", description=_DEMO
    )
    add_options(
        demo,
        {
            "--data": "dataset to generate (default: scenes)",
            "--fast": "run a shorter demo (about a quarter of the time)",
            "--output DIR": "output folder (default: runs/demo, runs/demo-fast, ...)",
            "--seed": "random seed (default: 0)",
            "--permute-pictures": "as a check, evaluate on permuted images, so that every metric"
            " should miss its floor; the exit code is always 1",
        },
        data={"choices": ("scenes", "stamps"), "default": "scenes"},
        seed={"type": int, "default": 0},
        permute_pictures={"action": "store_true", "dest": "permute_images"},
    )
    demo.set_defaults(run=_demo, when_stopped="rerun the same command to resume")
    _add_train(commands)
    recipes = commands.add_parser("recipes", help="list the recipes, or describe one")
    text = "recipe to describe (command, data, hardware and expected metric)"
    add_options(recipes, {"name RECIPE": text}, name={"nargs": "?"})
    recipes.set_defaults(run=_recipes)
    _add_eval(commands)


def _add_train(commands: argparse._SubParsersAction) -> None:
    train = commands.add_parser(
        "train",
        help="train a model with a recipe",
        description="Train a model with a recipe and write it to a folder.",
    )
    add_options(
        train,
        {
            "recipe RECIPE": "recipe name (see `fiber recipes`), or a .json file with a"
            " configuration, as of --print-config",
            "--data DATA": _DATA,
            "--validation DATA": "data for selecting the best checkpoint, if the recipe selects one"
            " (default: the validation.split split of --data, or a part that is held out)",
            "--keep DATA": "old data that the model of --init should still know: it is evaluated"
            " before and after training, and mixed in (a quarter of the samples; --set"
            " data.keep_share=0 only evaluates)",
            "--init MODEL": "initial weights: a model folder, a published checkpoint, a file of"
            " a Swin, CLIP, RoBERTa or BERT encoder, or a folder of such files",
            "--tokenizer DIR": "tokenizer.json, a folder that contains it, vocab.json and"
            " merges.txt or BERT's vocab.txt, or `train` to train one on the texts (default: from"
            " --init or the data)",
            "--answers FILE": "JSON file with a list of the VQA head's answers, in the order of the"
            " logits (default: those of --init if the data contain no others, else the most"
            " frequent answers in the data)",
            "--output DIR": "output folder (default: runs/RECIPE)",
            "--print-config": "print the whole configuration as JSON, as fitted to the data, and do"
            " not train",
            "--dry-run": "check data and model, and train until each task had a step, without a run"
            " folder",
            "--resume": "resume from the newest checkpoint in --output",
            "--workers N": "image decoding threads of each process (default: the cores of the"
            " machine divided by the processes on it)",
            "--cache DIR": "local folder for shards if --data is a URL (default: $FIBER_CACHE, or"
            " ~/.cache/fiber/packs)",
            "--cache-gb GB": "maximum size of the cache in GB (default: 100)",
            "--set KEY=VALUE": "override a recipe field, as in train.steps=500; repeatable",
            "--lora KEY=VALUE": "train low-rank adapters of --init, as in --lora r=8,alpha=16:"
            " r, alpha, dropout, lr_multiplier, or targets (names of linear layers, separated by"
            " semicolons; * matches anything); repeatable; needs the extra lora",
            "--track NAME": "also log metrics to tensorboard, trackio, wandb or mlflow (needs the"
            " extra of the same name); repeatable",
            **DEVICE,
            "--processes N": "train in N processes on this node, or auto for one per GPU",
            "--restarts K": "with --processes, how often processes are restarted after one died;"
            " the run goes on from its newest checkpoint (default: 3)",
            "--nodes I[:J]": "with --processes, the number of nodes, or the smallest and largest"
            " one; start the same command on each node (default: 1)",
            "--rendezvous HOST:PORT": "with --nodes, where the nodes meet: one of them",
            "--job ID": "with --nodes, an id that only this job has (default: the id of Slurm)",
        },
        data={"required": True},
        cache_gb={"type": float},
        tokenizer={"type": path_text},
        answers={"type": path_text},
        set={"action": "append", "default": []},
        lora={"action": "append", "default": []},
        processes={"type": process_count},
        restarts={"type": nonnegative_int},
        nodes={"type": node_range},
        job={"default": os.environ.get("SLURM_JOB_ID", "")},
        rendezvous={"default": ""},
        track={"action": "append", "default": []},
    )
    example = (
        "`fiber train scenes_fine --data runs/scenes`, on data of `fiber data scenes --output"
        " runs/scenes`; small_vqa, small_caption, small_retrieval, own_detection and others train"
        " on your own (`fiber recipes` lists all)"
    )
    train.set_defaults(
        run=_train,
        when_stopped="rerun the same command with --resume to continue",
        example=example,
    )


def _add_eval(commands: argparse._SubParsersAction) -> None:
    evaluate = commands.add_parser(
        "eval",
        help="evaluate a model on a task",
        description="Evaluate a model on a split of a dataset and print the metrics.",
    )
    add_options(
        evaluate,
        {
            "model MODEL": "model folder, checkpoint file, scenes (the model in the package), or a"
            " folder of exported graphs",
            **VOCABULARIES,
            "task TASK": f"task to evaluate: one of {', '.join(all_evaluations())}, odinw",
            "--data DATA": _DATA,
            "--split SPLIT": "split to evaluate (default: val, or the whole file if it has no"
            " splits)",
            "--output FILE": "file to write predictions to, or a folder for odinw",
            **DEVICE,
            "--rerank N": "for retrieval, the number of candidates per query to rerank by ITM; 0"
            " disables reranking, and all scores every pair (default: 32, or 0 without an ITM head,"
            " or all without an ITC head)",
            "--classes-per-prompt N": "for coco, lvis and odinw, the maximum number of classes per"
            " prompt, or 0 for as many as fit (default: 40 for lvis, as in the published"
            " evaluation, else 0)",
            "--classes-file FILE": "for coco and lvis, a file with the prompt text of each class in"
            " the order of class ids (one per line, or a JSON list such as"
            ' ["fish", {"name": "puffin", "suffix": " with orange beaks"}]); for odinw, a folder'
            " with NAME.json for each dataset (default: the class names)",
            "--batch-size N": "batch size (default: 64)",
            "--threads N": "image decoding threads (default: one per core)",
            "--image-size N": "input height and width in pixels, except for detectors (default:"
            " the model's own)",
            **LIMITS,
        },
        tokenizer={"type": path_text},
        answers={"type": path_text},
        data={"required": True},
        split={"default": "val"},
        rerank={"type": candidates},
        classes_per_prompt={"type": nonnegative_int},
        batch_size={"default": 64},
        threads={"default": 0},
    )
    example = "`fiber eval runs/fine refcoco --data runs/scenes --split novel`"
    evaluate.set_defaults(run=_eval, example=example)


def _demo(options: argparse.Namespace) -> int:
    from fiber.demo import run

    return run.main(**pick(options, "data", "fast", "output", "seed", "permute_images"))


def _train(options: argparse.Namespace) -> int:
    if options.print_config or options.dry_run:
        return _try(options)
    if options.processes is not None and not is_launched():
        return _launch(options)
    if options.processes is None:
        asked = pick(options, "nodes", "rendezvous", "restarts").items()
        if given := [name for name, value in asked if value not in (None, "")]:
            raise ValueError(f"--{given[0]} needs --processes N, the processes of a node")
    changes, output = _changes(options), _output(options)
    import fiber
    from fiber.training.tracking.trackers import open_trackers

    trackers = open_trackers(options.track)
    settings = pick(
        options, "data", "validation", "keep", "init", "tokenizer", "answers", "resume", "device"
    )
    settings |= {"threads": options.workers or 0, "callbacks": trackers, **_cached(options)}
    with naming_option("--output", output):
        fiber.train(options.recipe, output=output, set=changes, **settings)
    if os.environ.get("RANK", "0") == "0":
        print(output)
    return 0


def _try(options: argparse.Namespace) -> int:
    """Run `--print-config` or `--dry-run`, of which the latter prints to stderr only."""
    chosen = "--print-config" if options.print_config else "--dry-run"
    for name in ("resume", "processes", "track"):
        if getattr(options, name):
            raise ValueError(f"{chosen} writes no run and uses one process; remove --{name}")
    from fiber.config_io import to_dict
    from fiber.training.dry_run import dry_run, fitted_config

    settings = pick(options, "data", "validation", "keep", "init", "tokenizer", "answers")
    settings |= {**_cached(options), "set": _changes(options)}
    if options.print_config:
        print(json.dumps(to_dict(fitted_config(options.recipe, **settings)), indent=2))
        return 0
    settings |= {"threads": options.workers or 0, "device": options.device}
    output = _output(options)
    done = dry_run(options.recipe, output=output, **settings)
    from fiber.data.skip_report import counted
    from fiber.progress import say

    for name, loss in done.losses.items():
        chance = f"  (ignoring its inputs: {done.chance[name]:.4f})" if name in done.chance else ""
        say(f"{name} loss {loss:.4f}{chance}")
    say(f"gradient norm {done.gradient_norm:.4g}; {done.peak_bytes / 2**30:.2f} GiB at most")
    say(
        f"dry run: {counted(done.steps, 'steps')} of {done.config.train.steps:,} passed; nothing"
        f" was written to {output}"
    )
    return 0


def _changes(options: argparse.Namespace) -> dict[str, Any]:
    return key_values(options.set, "--set", "train.steps=500") | _lora(options.lora)


def _output(options: argparse.Namespace) -> Path:
    recipe = options.recipe
    return options.output or RUNS / (Path(recipe).stem if recipe.endswith(".json") else recipe)


def _lora(texts: Sequence[str]) -> dict[str, Any]:
    """Return the fields of a run that --lora sets."""
    pairs = [pair.strip() for text in texts for pair in text.split(",")]
    given = key_values(pairs, "--lora", "r=8")
    names = ("r", "alpha", "dropout", "lr_multiplier", "targets")
    for name in given:
        if name not in names:
            raise ValueError(f"--lora {name}={given[name]}: {nearest(name, names)}")
    changes: dict[str, Any] = dict(given)
    if "targets" in given:
        changes["targets"] = tuple(each.strip() for each in given["targets"].split(";"))
    return {f"lora.{name}": value for name, value in changes.items()}


def _cached(options: argparse.Namespace) -> dict[str, Any]:
    """Return the local folders of `data`, `validation` and `keep` that are URLs."""
    from fiber.data.storage.remote import is_url
    from fiber.data.storage.remote_pack import remote_pack

    given = pick(options, "data", "validation", "keep")
    urls = {name: value for name, value in given.items() if is_url(value)}
    if not urls and (options.cache or options.cache_gb):
        raise ValueError(f"--cache and --cache-gb need --data at a URL, got {options.data}")
    return {name: remote_pack(url, options.cache, options.cache_gb) for name, url in urls.items()}


def _graphs(folder: str, task: str, loading: dict[str, Any]) -> StoredModel:
    """Open the exported graphs for a task, to which nothing that `loading` sets applies."""
    from fiber.evaluation.evaluate import heads_of
    from fiber.export.network import load_graphs

    given = [f"--{name.replace('_', '-')}" for name, value in loading.items() if value is not None]
    if given:
        raise ValueError(f"{', '.join(given)}: {folder} has exported graphs, which are as exported")
    return load_graphs(folder, heads_of(task))


def _launch(options: argparse.Namespace) -> int:
    from fiber.training.distributed.launch import INTERRUPTED, Job, devices_on_node, launch

    settings = pick(options, "restarts", "nodes", "rendezvous")
    settings = {name: value for name, value in settings.items() if value is not None}
    processes = options.processes or devices_on_node()
    code = launch(options.arguments, Job(processes=processes, id=options.job, **settings))
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    return code


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
    if options.model in all_evaluations() and options.task not in all_evaluations():
        raise ValueError(
            f"expected the order MODEL TASK, as in `fiber eval {printable(options.task, 80)}"
            f" {options.model}`"
        )
    settings: dict[str, Any] = {}
    if options.rerank is not None:
        if options.task != "retrieval":
            raise ValueError(f"--rerank requires task 'retrieval', got {options.task!r}")
        settings = {"rerank": options.rerank > 0, "candidates": max(options.rerank, 1)}
    import fiber
    from fiber.runtime.loading import has_graphs

    loading = pick(options, "tokenizer", "answers", "device", "image_size")
    if has_graphs(options.model):
        model = _graphs(options.model, options.task, loading)
    else:
        # What the model knows is what its metrics tell.
        model = load_quietly(options.model, **loading)
    settings |= pick(
        options, "data", "split", "output", "classes_per_prompt", "batch_size", "threads"
    )
    settings |= limits_of(options)
    metrics = fiber.evaluate(model, options.task, classes=options.classes_file, **settings)
    if is_terminal(sys.stdout):
        width = max(map(len, metrics), default=0)
        for name, value in metrics.items():
            print(f"{printable(name, width):<{width}}  {value:.4f}")
    else:
        print(json.dumps(metrics))
    if options.output:
        print(f"fiber: wrote predictions to {options.output}", file=sys.stderr)
    return 0
