"""`fiber map`, `fiber index`, and the search in an index."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fiber.cli.arguments import (
    DEVICE,
    LIMITS,
    MAX_MESSAGE,
    VOCABULARIES,
    add_options,
    limits_of,
    naming_option,
    path_text,
    pick,
    score,
    semicolon_list,
)
from fiber.cli.models import RUNTIMES, choose_model, load_graphs
from fiber.config_io import nearest
from fiber.messages import printable

if TYPE_CHECKING:
    from fiber.bulk.ranks import Rank
    from fiber.bulk.ray_engine import RayEngine

#: Tasks, as `fiber.bulk.tasks.TASKS`, which imports NumPy.
TASKS = ("embed", "hash", "caption", "ground", "detect", "answer", "match", "segment")
_MAP = """
Run one task of a model on all images of a folder, a file or a URL, and write the results as Parquet
files. The same command goes on where it was interrupted. Records that fail are listed with their
reason in errors.parquet. The last line is one JSON object with counts.
"""
_INDEX = """
Embed all images of a folder, a file or a URL, or take what `fiber map --task embed` wrote, and add
them to an index, which `fiber search --index` searches. Images that are in the index are skipped.
"""
#: Height and width of an image of a sheet of hits, and number of images in a row.
_TILE, _COLUMNS = 192, 5
#: Options of reading a source, and of its batches.
READ = {
    "--records KIND": "kind of the records that are read, such as captions or questions (default:"
    " the first with the texts of the task)",
    "--split S": "splits to read, such as train+val (default: all)",
}
_BATCHES = {
    "--batch-size N": "number of records of a batch (default: 16)",
    "--threads N": "batches that are computed at a time (default: one per core)",
}
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
    """Add `map` and `index` to the table of commands."""
    _add_map(commands)
    _add_index(commands)


def _add_map(commands: argparse._SubParsersAction) -> None:
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
            **READ,
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
            **_BATCHES,
            "--processes N": "processes on this machine that share the work (default: 1)",
            "--engine": "ray: share the work among machines of a Ray cluster, or workers on this"
            " one (extra ray)",
            "--address ADDRESS": "of the head of the Ray cluster (default: RAY_ADDRESS, or else"
            " workers on this machine)",
            "--workers N": "maximum number of Ray workers (default: as many as there is room for)",
            "--worker-cpus N": "cores of each of them (default: 1)",
            "--worker-gpus N": "GPUs of each of them (default: 0)",
            "--plan N": "instead of running, compute the first records and print the time, bytes"
            " and files of N images",
        },
        batch_size={"default": 16},
        engine={"choices": ("ray",)},
        worker_cpus={"type": float},
        worker_gpus={"type": float},
    )
    command.set_defaults(
        run=_map,
        when_stopped="what is done stays; run the command again to go on",
        example="`fiber map photos --task caption --output captions`",
    )


def _add_index(commands: argparse._SubParsersAction) -> None:
    index = commands.add_parser(
        "index", help="embed all images of a dataset for search", description=_INDEX
    )
    add_options(
        index,
        {
            "source SOURCE": "as of `fiber map`, or the folder that `fiber map --task embed` wrote",
            "--output INDEX": "folder of the index: a new one, or one to add to",
            "--model MODEL": "model folder or checkpoint file (default: as of `fiber map`)",
            **DEVICE,
            **LIMITS,
            **READ,
            **_BATCHES,
        },
        output={"required": True, "type": Path},
        batch_size={"default": 16},
    )
    index.set_defaults(
        run=_index,
        when_stopped="run the command again to go on",
        example="`fiber index photos --output my-index`",
    )


def _map(options: argparse.Namespace) -> int:
    from fiber.bulk.ranks import PARENT, rank_of, run_processes

    given = {name: getattr(options, name) for name in _KEYWORDS}
    settings = {_KEYWORDS[name]: value for name, value in given.items() if value is not None}
    _check_options(options.task, given)
    if options.plan is None and options.output is None:
        raise ValueError("fiber map: expected --output DIR, or --plan N, got neither")
    engine = _engine_of(options)
    # Ray's own workers are the ranks.
    rank = rank_of(os.environ if engine is None else {})
    is_child = PARENT in os.environ
    if options.processes is not None and not is_child and options.plan is None:
        from fiber.bulk.map import summary

        code = run_processes(options.arguments, options.processes, rank)
        if code == 0:
            found = summary(options.output)
            print(json.dumps(found | {"ranks": rank.total * options.processes}))
        return code
    return _run(options, settings, rank, engine)


def _engine_of(options: argparse.Namespace) -> RayEngine | None:
    given = pick(options, "address", "workers", "worker_cpus", "worker_gpus")
    given = {name: value for name, value in given.items() if value is not None}
    if options.engine is None:
        if given:
            option = f"--{min(given).replace('_', '-')}"
            raise ValueError(f"{option} is for --engine ray, which was not given")
        return None
    for option in ("processes", "plan", "runtime"):
        if getattr(options, option) is not None:
            raise ValueError(f"--{option} is not for --engine ray")
    from fiber.bulk.ray_engine import RayEngine

    return RayEngine(**{name.removeprefix("worker_"): value for name, value in given.items()})


def _run(
    options: argparse.Namespace, settings: dict[str, Any], rank: Rank, engine: RayEngine | None
) -> int:
    """Run, or plan, in this process."""
    from fiber.bulk import map as bulk_map
    from fiber.bulk.tasks import TASKS as KNOWN
    from fiber.progress import RateProgress

    limits = limits_of(options)
    loading = pick(options, "tokenizer", "answers", "device")
    if KNOWN[options.task].method is None:
        for name, value in ({"model": options.model, "runtime": options.runtime} | loading).items():
            if value is not None:
                raise ValueError(f"--{name} is not for --task {options.task}, which has no model")
    model: Any = load_graphs(options.model, options.runtime, loading, limits)
    settings |= limits
    if model is None and KNOWN[options.task].method is not None:
        # The first rank prints which model is used.
        quiet = (
            contextlib.redirect_stderr(io.StringIO()) if rank.number else contextlib.nullcontext()
        )
        with quiet:
            model = choose_model(options.model, *KNOWN[options.task].heads)
        know_limits()
        settings |= {name: value for name, value in loading.items() if value is not None}
    settings |= {"model": model, "source": options.records, "split": options.split}
    settings["batch_size"] = options.batch_size
    if options.plan is not None:
        from fiber.bulk.plan import plan

        print(json.dumps(plan(options.source, options.task, options.plan, **settings)))
        return 0
    prefix = f"rank {rank.number} of {rank.total}: " if rank.total > 1 else ""
    progress = None if rank.number else RateProgress(prefix=prefix)
    try:
        found = bulk_map.map(
            options.source,
            options.task,
            options.output,
            threads=options.threads,
            rank=rank.number,
            ranks=rank.total,
            engine=engine,
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


def _index(options: argparse.Namespace) -> int:
    import fiber
    from fiber.bulk.index import Index
    from fiber.bulk.output import DESCRIPTION
    from fiber.bulk.tasks import TASKS as KNOWN
    from fiber.progress import RateProgress

    know_limits()
    embedded, own = Path(options.source), None
    if not (embedded / DESCRIPTION).exists():
        own = embedded = options.output / ".embedded"
        progress = RateProgress()
        model = _model_of(options.output, options.model) or choose_model(
            None, *KNOWN["embed"].heads
        )
        settings: dict[str, Any] = pick(options, "split", "batch_size", "threads")
        settings |= limits_of(options)
        if options.device is not None:
            settings["device"] = options.device
        try:
            fiber.map(
                options.source,
                "embed",
                embedded,
                model=model,
                source=options.records,
                progress=progress,
                **settings,
            )
        finally:
            progress.close()
    before = len(Index(options.output)) if _model_of(options.output, None) else 0
    index = Index.create(options.output, embedded)
    found = {"output": str(options.output), "rows": len(index), "new": len(index) - before}
    found["errors"] = summary_errors(embedded)
    if own is not None:
        shutil.rmtree(own)
    print(json.dumps(found))
    return 0


def summary_errors(embedded: Path) -> int:
    """Return the number of records that failed."""
    from fiber.bulk.map import summary

    return int(summary(embedded).get("total", {}).get("errors", 0))


def _model_of(folder: Path, named: str | None) -> str | None:
    """Return the model that is named, or else that of an index that exists."""
    from fiber.bulk.store import FILE, Store

    if named is not None or not (folder / FILE).exists():
        return named
    return Store(folder).about["model"]["name"]


def know_limits() -> None:
    """Print no warning of the model in the package."""
    from fiber.cli.models import PACKAGED
    from fiber.inference.load import KNOWN_LIMITS

    KNOWN_LIMITS.add(PACKAGED)


def search_index(options: argparse.Namespace) -> int:
    """Run `fiber search --index`."""
    from fiber.bulk.index import Index, IndexHit
    from fiber.terminal import is_terminal

    know_limits()
    loading = pick(options, "tokenizer", "device") | limits_of(options)
    settings = {name: value for name, value in loading.items() if value is not None}
    index = Index(options.index, options.model, **settings)
    rerank = False if options.no_rerank or options.like is not None else None
    hits: list[IndexHit] = index.search(
        options.text,
        options.top_k,
        like=options.like,
        where=options.where,
        rerank=rerank,
        candidates=options.candidates,
    )
    as_json = options.json or not is_terminal(sys.stdout)
    asked = {"query": options.text} if options.like is None else {"like": options.like}
    for rank, hit in enumerate(hits, start=1):
        if as_json:
            result = {**asked, "rank": rank, "score": round(hit.score, 4), "key": hit.key}
            print(json.dumps(result | dict(hit.columns), ensure_ascii=False))
        else:
            name = printable(hit.image or hit.key, MAX_MESSAGE)
            print(f"  {rank:>3}.  {hit.score:.3f}  {name}")
    if options.save is not None and hits:
        save_sheet(index, hits, options.text or f"like {options.like}", options.save)
    return 0


def save_sheet(index: Any, hits: Any, title: str, folder: Path) -> None:
    """Write the images of hits, with their ranks and scores, to sheet.png in a folder."""
    from PIL import Image, ImageOps

    from fiber.data import load_image
    from fiber.postprocess.files import save_image
    from fiber.visualize import add_caption

    with naming_option("--save", folder):
        folder.mkdir(parents=True, exist_ok=True)
    tiles = []
    for rank, hit in enumerate(hits, start=1):
        image = Image.fromarray(load_image(index.image(hit)))
        image = ImageOps.contain(image, (_TILE - 8, _TILE - 8))
        tile = Image.new("RGB", (_TILE, _TILE), "white")
        tile.paste(image, ((_TILE - image.width) // 2, (_TILE - image.height) // 2))
        tiles.append(add_caption(tile, [(f"{rank}.  {hit.score:.3f}", (0, 0, 0))], size=14))
    width, height = tiles[0].size
    columns = min(_COLUMNS, len(tiles))
    sheet = Image.new("RGB", (columns * width, -(-len(tiles) // columns) * height), "white")
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (number % columns * width, number // columns * height))
    captioned = add_caption(sheet, [(title, (0, 0, 0))], size=16)
    save_image(lambda: captioned, folder / "sheet.png")


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
