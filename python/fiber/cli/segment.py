"""`fiber segment`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from fiber.cli.arguments import add_options, pick, score, semicolon_list
from fiber.cli.asking import IMAGES_AND_VIDEOS, AskingSession, add_asking_command
from fiber.messages import shown_names

if TYPE_CHECKING:
    from pathlib import Path

    from fiber.inference.masks.class_vectors import ClassVectors
    from fiber.inference.masks.segment import MaskMethods

#: Options of classes, and how messages call them.
_CLASS_OPTIONS = {
    "classes": "--classes",
    "classes_file": "--classes-file",
    "vectors": "--vectors",
    "stuff": "--stuff",
    "kind": "--kind",
    "threshold": "--threshold",
    "overlap": "--overlap",
    "max_instances": "--max-instances",
}
#: Keywords of `Model.segment` of options with other names.
_KEYWORDS = {"threshold": "score_threshold", "overlap": "overlap_threshold"}


def add_command(commands: argparse._SubParsersAction) -> None:
    """Add `segment` to the table of commands."""
    help_text = "find masks of classes, or a mask for each phrase"
    example = 'photo.jpg --classes "zebra; grass"'
    segment = add_asking_command(commands, "segment", _segment, help_text, example)
    add_options(segment, IMAGES_AND_VIDEOS, images={"nargs": "+"})
    add_options(
        segment.add_mutually_exclusive_group(),
        {
            "--classes LIST": 'class names, as in "zebra; grass" (default: the classes that the'
            " model was trained on)",
            "--classes-file FILE": "text file with one class per line, or .json file with a list of"
            " names",
            "--phrases LIST": 'instead of classes, phrases, such as "the left zebra; the tree", of'
            " which each has a mask",
        },
        classes={"type": semicolon_list},
        phrases={"type": semicolon_list},
    )
    add_options(
        segment,
        {
            "--alone": "ask each phrase alone; otherwise, those of an image influence one another",
            "--stuff LIST": 'those of the classes that have no instances, as in "grass; sky"',
            "--kind": "panoptic (each pixel belongs to one segment or none), semantic (each pixel"
            " belongs to a class) or instance (masks may overlap); default: panoptic",
            "--threshold SCORE": "minimum score, from 0 to 1 (default: 0.8 for panoptic, 0 for"
            " instance)",
            "--overlap SHARE": "of a panoptic segment, least share of its mask that no better mask"
            " takes (default: 0.8)",
            "--max-instances N": "maximum number of instances of an image (default: 100)",
            "--vectors FILE": ".safetensors file with the vectors of the classes, which is read if"
            " it exists and else written",
        },
        stuff={"type": semicolon_list},
        kind={"choices": ("panoptic", "semantic", "instance")},
        threshold={"type": score},
        overlap={"type": score},
    )


def _segment(options: argparse.Namespace) -> int:
    if options.phrases is not None:
        for name, option in _CLASS_OPTIONS.items():
            if getattr(options, name) is not None:
                raise ValueError(f"{option} is for classes and cannot be combined with --phrases")
    elif options.alone:
        raise ValueError("--alone is for --phrases")
    if options.classes_file is not None:
        from fiber.data.prompts.classes import read_classes

        options.classes = [each.name for each in read_classes(options.classes_file)]
    session = AskingSession(options, options.images, "mask")
    model: Any = session.model
    if options.phrases is not None:
        arguments: dict[str, Any] = {"phrases": options.phrases, "together": not options.alone}
    else:
        given = pick(options, "stuff", "kind", "threshold", "overlap", "max_instances")
        arguments = {_KEYWORDS.get(name, name): value for name, value in given.items()}
        if options.vectors is not None:
            arguments["classes"] = _read_or_write(model, options.vectors, options.classes)
        else:
            arguments["classes"] = options.classes
            if options.classes is None and getattr(model, "classes", ()):
                print(f"fiber: classes: {shown_names(model.classes)}", file=sys.stderr)
    for sources, images in session.read_frames(options.every):
        for asked, found in zip(sources, model.segment(images, **arguments), strict=True):
            result = found.to_dict(image=str(asked.path), model=session.name)
            result = asked.describe(result)
            rows = [
                (str(each["id"]), f"{each['score']:.2f}", f"{each['area']} pixels", each["label"])
                for each in result["segments"]
            ]
            session.print(result, rows or [("nothing found",)])
            if options.save:
                found.save(session.file_for(asked.path, asked.frame))
    return 0


def _read_or_write(model: MaskMethods, file: Path, classes: list[str] | None) -> ClassVectors:
    """Read the vectors of classes, or compute and write them."""
    from fiber.inference.masks.class_vectors import ClassVectors

    if not file.exists():
        if classes is None:
            raise FileNotFoundError(
                f"--vectors {file} does not exist; pass --classes or --classes-file to compute the"
                " vectors of these classes"
            )
        vectors = model.class_vectors(classes)
        vectors.save(file)
        return vectors
    vectors = ClassVectors.load(file)
    if classes is not None and tuple(classes) != vectors.classes:
        raise ValueError(
            f"--vectors {file} has the classes {shown_names(vectors.classes)}, expected"
            f" {shown_names(classes)}; pass a new file for other classes"
        )
    return vectors
