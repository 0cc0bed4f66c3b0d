"""`fiber entail`."""

from __future__ import annotations

import argparse

from fiber.cli.arguments import add_options
from fiber.cli.asking import IMAGE, AskingSession, add_asking_command, order_hint
from fiber.data.datasets.snli_ve import ENTAILMENT


def add_command(commands: argparse._SubParsersAction) -> None:
    """Add `entail` to the table of commands."""
    help_text = "decide whether an image entails a hypothesis"
    example = 'photo.jpg "two dogs are playing"'
    entail = add_asking_command(commands, "entail", _entail, help_text, example)
    hypothesis = {"hypothesis HYPOTHESIS": 'statement, such as "two dogs are playing"'}
    add_options(entail, {**IMAGE, **hypothesis})


def _entail(options: argparse.Namespace) -> int:
    from fiber.postprocess.json_objects import entailment_object

    hint = order_hint(options.hypothesis, "IMAGE HYPOTHESIS")
    session = AskingSession(options, [options.image], "snli", hint=hint)
    for path, image in session.each():
        found = session.model.entail(image, options.hypothesis)
        result = entailment_object(options.hypothesis, **found._asdict())
        rows = [(f"{result[name]:.2f}", name) for name in ENTAILMENT]
        session.show(path, image, result, rows, f"{options.hypothesis}  {found.label}")
    return 0
