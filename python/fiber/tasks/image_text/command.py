"""`fiber match` and `fiber search`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from fiber.cli.arguments import add_options
from fiber.cli.asking import IMAGE, IMAGES, AskingSession, add_asking_command, order_hint

_TEXT = {"text TEXT": 'text, such as "a red mug"'}


class _Instead(argparse.Action):
    """Option with which an argument is not required."""

    def __init__(self, option_strings: Sequence[str], dest: str, of: str, **keywords: Any) -> None:
        super().__init__(option_strings, dest, **keywords)
        self.of = of

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Set the option."""
        setattr(namespace, self.dest, values)
        for action in parser._actions:
            if action.dest == self.of:
                action.required = False
                action.nargs = "?" if action.nargs is None else "*"


def add_command(commands: argparse._SubParsersAction) -> None:
    """Add `match` and `search` to the table of commands."""
    help_text = "score how well a text matches an image"
    match = add_asking_command(commands, "match", _match, help_text, 'photo.jpg "a red mug"')
    add_options(match, {**IMAGE, **_TEXT})

    help_text = "find the images that best match a text"
    search = add_asking_command(commands, "search", _search, help_text, '"a red mug" photos')
    add_options(
        search,
        {
            "text TEXT": 'text, such as "a red mug"; none with --like',
            **IMAGES,
            "--index INDEX": "folder of `fiber index` to search instead of images",
            "--like IMAGE": "of an index, find images that resemble this one",
            "--where CONDITION": "of an index, only rows for which this is true, such as"
            ' "width > 800 and text is not null"',
            "--top-k N": "number of images to return (default: 10)",
            "--candidates N": "of an index, number of images to rerank (default: 100)",
            "--no-rerank": "rank by ITC alone, without reranking by ITM",
        },
        images={"nargs": "+"},
        index={"action": _Instead, "of": "images"},
        like={"action": _Instead, "of": "text"},
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
    _check_search(options)
    if options.index is not None:
        from fiber.cli.bulk import search_index

        return search_index(options)
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


def _check_search(options: argparse.Namespace) -> None:
    """Check that either images or an index are searched, by what it takes.

    Raises:
        ValueError: if not.
    """
    if options.index is None:
        for name in ("like", "where", "candidates"):
            if getattr(options, name) is not None:
                raise ValueError(f"--{name} is for an index; pass --index INDEX")
        return
    if options.images:
        raise ValueError(
            f"search: expected images or --index, got both; index {options.images[0]} by"
            f" `fiber index SOURCE --output {options.index}`"
        )
    if (options.text is None) == (options.like is None):
        raise ValueError("search: expected either a text or --like IMAGE")
    if options.like is not None and options.candidates is not None:
        raise ValueError("--candidates is for a text; hits of --like are not reranked")
    for name in ("runtime", "answers"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name} is not for --index, which has a model of its own")
