"""`fiber match` and `fiber search`."""

from __future__ import annotations

import argparse

from fiber.cli.arguments import add_options
from fiber.cli.asking import IMAGE, IMAGES, AskingSession, add_asking_command, order_hint

_TEXT = {"text TEXT": 'text, such as "a red mug"'}


def add_command(commands: argparse._SubParsersAction) -> None:
    """Add `match` and `search` to the table of commands."""
    match = add_asking_command(commands, "match", _match, "score how well a text matches an image")
    add_options(match, {**IMAGE, **_TEXT})

    help_text = "find the images that best match a text"
    search = add_asking_command(commands, "search", _search, help_text)
    add_options(
        search,
        {
            **_TEXT,
            **IMAGES,
            "--top-k N": "number of images to return (default: 10)",
            "--no-rerank": "rank by ITC alone, without reranking by ITM",
        },
        images={"nargs": "+"},
        top_k={"default": 10},
    )


def _match(options: argparse.Namespace) -> int:
    from fiber.postprocess.json_objects import match_object

    hint = order_hint(options.text, "IMAGE TEXT")
    session = AskingSession(options, [options.image], "itm", hint=hint)
    for path, image in session.each():
        score = float(session.model.match([image], [options.text])[0, 0])
        result, row = match_object(options.text, score), (f"{score:.2f}", options.text)
        session.show(path, image, result, [row], "  ".join(row))
    return 0


def _search(options: argparse.Namespace) -> int:
    from fiber.postprocess.json_objects import hit_object

    rerank = not options.no_rerank
    heads = ("itc", "retrieval", "itm") if rerank else ("itc", "retrieval")
    hint = order_hint(options.text, "TEXT IMAGE")
    session = AskingSession(options, options.images, *heads, hint=hint)
    files = [str(path) for path in session.paths]
    hits = session.model.search(options.text, files, options.top_k, rerank=rerank)
    for rank, hit in enumerate(hits, start=1):
        ((path,), (image,)), *_ = session.read([session.paths[hit.index]])
        result = hit_object(options.text, rank, hit.score)
        rows = [(f"{rank}.", f"{hit.score:.3f}")]
        session.show(path, image, result, rows, f"{rank}. {options.text}")
    return 0
