"""`fiber data dedup`, `score` and `filter`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from fiber.cli.arguments import (
    DEVICE,
    LIMITS,
    add_options,
    byte_count,
    limits_of,
    pick,
    positive_float,
)
from fiber.cli.bulk import READ, know_limits
from fiber.cli.models import choose_model

_DEDUP = """
Find near-duplicates among all images of a folder, a file or a URL by perceptual hashes, and by
embeddings with --similarity. Writes which images would go, and why, to rows.parquet, and some of
them to sheet.png. Nothing is deleted; `fiber data filter` writes a dataset without them.
"""
_SCORE = """
Score how well the text of each record fits its image, by ITC and ITM. Flags texts that do not match
their image and fit another one better. Writes rows.parquet, and some of the flagged to sheet.png.
"""
_FILTER = """
Write a packed dataset of the records for which a condition on columns is true, as of `fiber search
--where`. An image without such a record goes, with its boxes and questions. Without --output,
nothing is written but the counts, and --sheet.
"""
_SOURCE = (
    "as of `fiber map`: folder of images, dataset folder, annotation file, packed dataset, ..."
)
_WORK = {
    **LIMITS,
    **READ,
    "--threads N": "batches that are computed at a time (default: one per core)",
}


def add_kinds(kinds: argparse._SubParsersAction) -> None:
    """Add them to the subcommands of `fiber data`."""
    dedup = kinds.add_parser("dedup", help="find near-duplicate images", description=_DEDUP)
    add_options(
        dedup,
        {
            "source SOURCE": f"{_SOURCE}; or the folder that `fiber map --task hash` wrote",
            "--output DIR": "folder for the results: a new one, or one to go on with",
            "--distance D": "largest distance of two hashes, at most 0.5 (default: 0.1)",
            "--flips": "also compare with mirrored images",
            "--similarity S": "also compare embeddings: least cosine similarity, at most 1",
            "--model MODEL": "model of the embeddings (default: as of `fiber map`)",
            **DEVICE,
            **_WORK,
        },
        output={"required": True, "type": Path},
        distance={"type": positive_float},
        similarity={"type": positive_float},
    )
    dedup.set_defaults(
        run=_dedup,
        when_stopped="run the command again to go on",
        example="`fiber data dedup photos --output duplicates`",
    )
    score = kinds.add_parser("score", help="score texts of images", description=_SCORE)
    add_options(
        score,
        {
            "source SOURCE": _SOURCE,
            "--output DIR": "folder for the results: a new one, or one to go on with",
            "--model MODEL": "model with ITC and ITM (default: as of `fiber map`)",
            **DEVICE,
            **_WORK,
        },
        output={"required": True, "type": Path},
    )
    score.set_defaults(
        run=_score,
        when_stopped="run the command again to go on",
        example="`fiber data score my.jsonl --output scores`",
    )
    chosen = kinds.add_parser(
        "filter", help="write the records that a condition chooses", description=_FILTER
    )
    add_options(
        chosen,
        {
            "tables DIR": "folders that `fiber data score`, `dedup` or `fiber map` wrote",
            "--where CONDITION": 'condition on their columns, as in "itm > 0.3 and kept = true"',
            "--output DIR": "new folder to create",
            "--data SOURCE": "where the data are now (default: where they were)",
            "--sheet FILE": "save a contact sheet of what would go to this image file",
            "--shard-size SIZE": "maximum size of a tar file (default: 256MB)",
        },
        tables={"nargs": "+", "type": Path},
        where={"required": True},
        shard_size={"type": byte_count, "default": "256MB"},
    )
    chosen.set_defaults(
        run=_filter,
        when_stopped="the unfinished folder was deleted",
        example='`fiber data filter scores --where "itm > 0.3" --output clean`',
    )


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    settings = pick(options, "split", "threads") | {"source": options.records}
    return settings | limits_of(options)


def _dedup(options: argparse.Namespace) -> int:
    from fiber.bulk.cleaning.dedup import DISTANCE, find_duplicates
    from fiber.bulk.tasks import TASKS
    from fiber.progress import RateProgress

    settings = _settings(options)
    if options.similarity is not None:
        know_limits()
        settings["model"] = choose_model(options.model, *TASKS["embed"].heads)
        settings |= {} if options.device is None else {"device": options.device}
    elif options.model is not None or options.device is not None:
        name = "--model" if options.model is not None else "--device"
        raise ValueError(f"{name} is for embeddings; add --similarity S, as in --similarity 0.95")
    progress = RateProgress()
    try:
        found = find_duplicates(
            options.source,
            options.output,
            distance=DISTANCE if options.distance is None else options.distance,
            flips=options.flips,
            similarity=options.similarity,
            progress=progress,
            **settings,
        )
    finally:
        progress.close()
    return _end(found, options.output)


def _score(options: argparse.Namespace) -> int:
    from fiber.bulk.cleaning.scores import score_texts
    from fiber.progress import RateProgress

    know_limits()
    settings = _settings(options)
    settings |= {} if options.device is None else {"device": options.device}
    model = choose_model(options.model, "itm", "itc")
    progress = RateProgress()
    try:
        found = score_texts(
            options.source, options.output, model=model, progress=progress, **settings
        )
    finally:
        progress.close()
    return _end(found, options.output)


def _end(found: dict[str, Any], output: Path) -> int:
    print(json.dumps(found))
    print(f"fiber: {output / 'sheet.png'} has some of what would go", file=sys.stderr)
    return 0


def _filter(options: argparse.Namespace) -> int:
    from fiber.bulk.cleaning.filter import filter_records
    from fiber.progress import ImageProgress

    found = filter_records(
        options.tables,
        options.where,
        options.output,
        data=options.data,
        sheet=options.sheet,
        shard_bytes=options.shard_size,
        progress=ImageProgress(),
    )
    print(json.dumps(found))
    return 0
