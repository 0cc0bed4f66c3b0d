"""`fiber answer`."""

from __future__ import annotations

import argparse

from fiber.cli.arguments import add_options
from fiber.cli.asking import IMAGE, AskingSession, add_asking_command, order_hint


def add_command(commands: argparse._SubParsersAction) -> None:
    """Add `answer` to the table of commands."""
    help_text = "answer a question about an image"
    example = 'photo.jpg "what color is the mug?"'
    answer = add_asking_command(commands, "answer", _answer, help_text, example)
    question = {"question QUESTION": 'question, such as "what color is the mug?"'}
    top_k = {"--top-k N": "number of answers to print (default: 3)"}
    add_options(answer, {**IMAGE, **question, **top_k}, top_k={"default": 3})


def _answer(options: argparse.Namespace) -> int:
    from fiber.postprocess.json_objects import answers_object

    hint = order_hint(options.question, "IMAGE QUESTION")
    session = AskingSession(options, [options.image], "vqa", hint=hint)
    for path, image in session.each():
        answers = session.model.answer(image, options.question, top_k=options.top_k)
        result = answers_object(options.question, answers)
        rows = [(f"{score:.2f}", text) for text, score in answers]
        session.show(path, image, result, rows, f"{options.question}  {answers[0].answer}")
    return 0
