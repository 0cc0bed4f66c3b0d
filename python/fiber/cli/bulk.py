"""`fiber map`."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from fiber.cli.arguments import (
    DEVICE,
    LIMITS,
    VOCABULARIES,
    add_options,
    limits_of,
    path_text,
    pick,
    score,
    semicolon_list,
)
from fiber.cli.models import RUNTIMES, choose_model, load_graphs
from fiber.config_io import nearest

if TYPE_CHECKING:
    from fiber.bulk.ranks import Rank

#: Tasks, as `fiber.bulk.tasks.TASKS`, which imports NumPy.
TASKS = ("embed", "caption", "ground", "detect", "answer", "match", "segment")
_MAP = """
Run one task of a model on all images of a folder, a file or a URL, and write the results as Parquet
files. The same command goes on where it was interrupted. Records that fail are listed with their
reason in errors.parquet. The last line is one JSON object with counts.
"""
#: Options of tasks with their keywords in `fiber.inference.Annotator`.
_KEYWORDS = {
    "question": "question",
    "text": "text",
    "caption": "caption",
    "phrases": "phrases",
    "classes": "classes",
    "top_k": "top_k",
    "num_beams": "num_beams",
    "threshold": "score_threshold",
    "max_detections": "max_detections",
    "boxes_per_phrase": "boxes_per_phrase",
    "classes_per_prompt": "classes_per_prompt",
    "stuff": "stuff",
    "kind": "kind",
}


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add `map` to the table of commands."""
    command = commands.add_parser(
        "map", help="run a task on all images of a dataset", description=_MAP
    )
    add_options(
        command,
        {
            "source SOURCE": "folder of images, dataset folder, annotation file, table, tar shard,"
            " or packed dataset, also at a URL",
            "--task TASK": f"one of {', '.join(TASKS)}",
            "--output DIR": "folder for the results: a new one, or one to go on with",
            "--model MODEL": "model folder, checkpoint file, or folder of exported graphs (default:"
            " the newest model in runs/ with the required head, or else the model in the package)",
            "--runtime": "library that runs exported graphs: onnx (onnxruntime) or openvino",
            **VOCABULARIES,
            **DEVICE,
            **LIMITS,
            "--records KIND": "kind of the records that are read, such as captions or questions"
            " (default: the first with the texts of the task)",
            "--split S": "splits to read, such as train+val (default: all)",
        },
        task={"required": True, "choices": TASKS},
        output={"required": False},
        runtime={"choices": tuple(RUNTIMES)},
        tokenizer={"type": path_text},
        answers={"type": path_text},
    )
    texts = command.add_argument_group("one text for all records, instead of their own")
    add_options(
        texts,
        {
            "--question QUESTION": "for answer",
            "--text TEXT": "for match",
            "--phrases LIST": 'for ground and segment, as in "a red mug; the laptop"',
            "--caption CAPTION": "for ground: sentence whose noun phrases are grounded",
            "--classes LIST": 'for detect and segment, as in "mug; traffic light"',
        },
        phrases={"type": semicolon_list},
        classes={"type": semicolon_list},
    )
    own = command.add_argument_group("options of tasks")
    add_options(
        own,
        {
            "--top-k N": "answer: number of answers (default: 1)",
            "--num-beams N": "caption: number of beams in beam search (default: 5)",
            "--threshold SCORE": "ground, detect, segment: minimum score, from 0 to 1",
            "--max-detections N": "ground, detect: maximum boxes of an image (default: 100)",
            "--boxes-per-phrase N": "ground: maximum number of boxes per phrase (default: 1)",
            "--classes-per-prompt N": "detect: maximum number of classes per prompt",
            "--stuff LIST": "segment: those of the classes that have no instances",
            "--kind": "segment: panoptic (default), semantic or instance",
        },
        threshold={"type": score},
        stuff={"type": semicolon_list},
        kind={"choices": ("panoptic", "semantic", "instance")},
    )
    work = command.add_argument_group("work")
    add_options(
        work,
        {
            "--batch-size N": "number of records of a batch (default: 16)",
            "--threads N": "batches that are computed at a time (default: one per core)",
            "--processes N": "processes on this machine that share the work (default: 1)",
            "--plan N": "instead of running, compute the first records and print the time, bytes"
            " and files of N images",
        },
        batch_size={"default": 16},
    )
    command.set_defaults(
        run=_map, when_stopped="what is done stays; run the command again to go on"
    )


def _map(options: argparse.Namespace) -> int:
    from fiber.bulk.ranks import PARENT, rank_of, run_processes

    given = {name: getattr(options, name) for name in _KEYWORDS}
    settings = {_KEYWORDS[name]: value for name, value in given.items() if value is not None}
    _check_options(options.task, given)
    if options.plan is None and options.output is None:
        raise ValueError("fiber map: expected --output DIR, or --plan N, got neither")
    rank = rank_of(os.environ)
    is_child = PARENT in os.environ
    if options.processes is not None and not is_child and options.plan is None:
        from fiber.bulk.map import summary

        code = run_processes(options.arguments, options.processes, rank)
        if code == 0:
            found = summary(options.output)
            print(json.dumps(found | {"ranks": rank.count * options.processes}))
        return code
    return _run(options, settings, rank)


def _run(options: argparse.Namespace, settings: dict[str, Any], rank: Rank) -> int:
    """Run, or plan, in this process."""
    from fiber.bulk import map as bulk_map
    from fiber.bulk.tasks import TASKS as KNOWN
    from fiber.progress import RateProgress

    limits = limits_of(options)
    loading = pick(options, "tokenizer", "answers", "device")
    model: Any = load_graphs(options.model, options.runtime, loading, limits)
    settings |= limits
    if model is None:
        # The first rank prints which model is used.
        quiet = (
            contextlib.redirect_stderr(io.StringIO()) if rank.number else contextlib.nullcontext()
        )
        with quiet:
            model = choose_model(options.model, *KNOWN[options.task].heads)
        from fiber.cli.models import PACKAGED
        from fiber.inference.load import KNOWN_LIMITS

        KNOWN_LIMITS.add(PACKAGED)
        settings |= {name: value for name, value in loading.items() if value is not None}
    settings |= {"model": model, "source": options.records, "split": options.split}
    settings["batch_size"] = options.batch_size
    if options.plan is not None:
        from fiber.bulk.plan import plan

        print(json.dumps(plan(options.source, options.task, options.plan, **settings)))
        return 0
    prefix = f"rank {rank.number} of {rank.count}: " if rank.count > 1 else ""
    progress = None if rank.number else RateProgress(prefix=prefix)
    try:
        found = bulk_map.map(
            options.source,
            options.task,
            options.output,
            threads=options.threads,
            rank=rank.number,
            ranks=rank.count,
            progress=progress,
            **settings,
        )
    finally:
        if progress is not None:
            progress.close()
    print(json.dumps(found))
    if errors := found.get("total", {}).get("errors"):
        where = options.output / "errors.parquet"
        print(f"fiber: {errors} records failed; {where} has the reasons", file=sys.stderr)
    return 0


def _check_options(task: str, given: dict[str, Any]) -> None:
    """Raise ValueError if an option is not for the task."""
    from fiber.bulk.tasks import TASKS as KNOWN

    own = (*KNOWN[task].texts, *KNOWN[task].options)
    for name, value in given.items():
        if value is not None and _KEYWORDS[name] not in own:
            known = [f"--{n.replace('_', '-')}" for n, key in _KEYWORDS.items() if key in own]
            option = f"--{name.replace('_', '-')}"
            hint = nearest(option, known) if known else "it takes no text and no option"
            raise ValueError(f"{option} is not for --task {task}; {hint}")
