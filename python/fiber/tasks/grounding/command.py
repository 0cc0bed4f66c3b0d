"""`fiber ground`, `fiber detect` and `fiber calibrate`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fiber.cli.arguments import (
    DEVICE,
    add_options,
    char_spans,
    nonnegative_int,
    pick,
    score,
    semicolon_list,
)
from fiber.cli.asking import (
    IMAGES_AND_VIDEOS,
    MAX_CELL,
    AskingSession,
    add_asking_command,
    exists,
)
from fiber.messages import printable, shown_names
from fiber.terminal import is_terminal

if TYPE_CHECKING:
    from fiber.cli.detections import DetectionWriter
    from fiber.inference.boxes import PassCounts

_BOX_OPTIONS = {
    "--threshold SCORE": "minimum box score, from 0 to 1 (default: that of the model's"
    " calibration, or without one 0.3 for detect and 0 for ground)",
    "--presence P": "minimum probability, from 0 to 1, that the image shows a phrase or class"
    " (needs a calibrated model; see `fiber calibrate`)",
    "--negatives LIST": "phrases or classes that are not wanted, separated by semicolons; a box"
    " that fits one of them better is dropped",
    "--class-agnostic": "drop the worse of two boxes of the same region also if their labels"
    " differ",
    "--max-detections N": "maximum number of boxes per image (default: 100)",
}
#: Maximum number of phrases or classes without a box that a table names.
MAX_ABSENT = 20
_FORMATS = ("json", "coco", "labelstudio", "yolo")
_BOX_SETTINGS: dict[str, Any] = {
    "images": {"nargs": "+"},
    "threshold": {"type": score},
    "presence": {"type": score},
    "negatives": {"type": semicolon_list},
    "class_agnostic": {"action": "store_true"},
    "max_detections": {"default": 100},
}


def add_command(commands: argparse._SubParsersAction) -> None:
    """Add `ground` and `detect` to the table of commands."""
    help_text = "find boxes for phrases or a caption"
    example = 'photo.jpg --phrases "a red mug; the laptop"'
    ground = add_asking_command(commands, "ground", _ground, help_text, example)
    add_options(
        ground,
        {
            **IMAGES_AND_VIDEOS,
            "--phrases LIST": "phrases to ground, separated by semicolons, such as"
            ' "a red mug; the laptop"; without --caption, they are grounded independently',
            "--caption CAPTION": 'sentence, such as "a red mug next to the laptop", whose noun'
            " phrases are grounded unless --phrases or --spans is given",
            "--spans LIST": "half-open character spans of phrases in the caption, instead of"
            ' --phrases, as in "2:12; 18:24", or "2:5,18:24" for a phrase in two parts',
            "--boxes-per-phrase N": "maximum number of boxes per phrase (default: 1)",
            "--masks": "also find the mask of each box, by a model of the recipe scenes_fine_masks",
            **_BOX_OPTIONS,
        },
        phrases={"type": semicolon_list},
        spans={"type": char_spans},
        boxes_per_phrase={"default": 1},
        **_BOX_SETTINGS,
    )

    _add_calibrate(commands)
    help_text = "detect all objects of given classes"
    example = 'photo.jpg --classes "mug; traffic light"'
    detect = add_asking_command(commands, "detect", _detect, help_text, example)
    add_options(detect, IMAGES_AND_VIDEOS, images={"nargs": "+"})
    add_options(
        detect.add_mutually_exclusive_group(),
        {
            "--classes LIST": 'class names, as in "mug; traffic light" (default: the classes the'
            " model was trained on)",
            "--classes-file FILE": "text file with one class per line, or .json file with a list of"
            ' names or of {"prefix", "name", "suffix"} objects',
        },
        classes={"type": semicolon_list},
    )
    add_options(
        detect,
        {
            "--classes-per-prompt N": "maximum number of classes per prompt, or 0 for as many as"
            " fit (default: 0; the published LVIS evaluation uses 40)",
            **_BOX_OPTIONS,
            "--format FORMAT": "json (as --json), one JSON value for all images in the format of"
            " coco or labelstudio, or yolo, a label file for each image (without scores)",
            "--output FILE": "file for coco and labelstudio (default: print it), or new folder for"
            " yolo",
        },
        classes_per_prompt={"type": nonnegative_int, "default": 0},
        format={"choices": _FORMATS},
        **_BOX_SETTINGS,
    )


def _add_calibrate(commands: argparse._SubParsersAction) -> None:
    calibrate = commands.add_parser(
        "calibrate",
        help="calibrate the presence of phrases and classes on annotated data",
        description="Ask a model for phrases and classes of which half are not in the image, and"
        " store with it the probability that the image shows what a phrase names, and default"
        " thresholds.",
    )
    add_options(
        calibrate,
        {
            "model MODEL": "model folder, or scenes (the model in the package)",
            "--data DATA": "dataset folder or annotation file with referring expressions, captions"
            " with phrases, or boxes of classes",
            "--split SPLIT": "split to calibrate on (default: val)",
            "--output DIR": "folder to write the calibrated model to (default: the model's own"
            " folder gets presence.json)",
            "--precision P": "share of right boxes above the default thresholds (default: 0.9)",
            "--records N": "maximum number of records of each kind (default: 1000)",
            **DEVICE,
        },
        data={"required": True},
        split={"default": "val"},
        precision={"type": float},
        records={"type": nonnegative_int},
    )
    example = "`fiber calibrate runs/fine --data runs/scenes`"
    calibrate.set_defaults(run=_calibrate, example=example)


def _calibrate(options: argparse.Namespace) -> int:
    from fiber.cli.models import load_quietly
    from fiber.tasks.grounding.presence import calibrate_model, save_presence

    if options.output is not None and options.output.exists():
        raise FileExistsError(f"--output {options.output} already exists; expected a new folder")
    model = load_quietly(options.model, **pick(options, "device"))
    asked = pick(options, "precision", "records")
    given = {name: value for name, value in asked.items() if value is not None}
    presence, metrics = calibrate_model(model, options.data, options.split, **given)
    folder = save_presence(model, presence, options.output)
    if is_terminal(sys.stdout):
        width = max(map(len, metrics))
        for name, value in metrics.items():
            print(f"{name:<{width}}  {value:.4f}")
    else:
        print(json.dumps(metrics))
    print(f"fiber: wrote the calibrations to {folder}", file=sys.stderr)
    return 0


def _ground(options: argparse.Namespace) -> int:
    if options.phrases is None and options.caption is None:
        texts = [image for image in options.images[1:] if not exists(image)]
        example = "; ".join(printable(text, MAX_CELL) for text in texts) or "a red mug; the laptop"
        raise ValueError(
            "ground: expected --phrases, --caption or both, got neither; pass the phrases as"
            f' --phrases "{example}"'
        )
    if options.spans is not None and (options.caption is None or options.phrases is not None):
        raise ValueError("--spans requires --caption and cannot be combined with --phrases")
    session = _session(options, "phrases")
    arguments = pick(options, "boxes_per_phrase", "phrases", "caption", "spans", "masks")
    _print_boxes(options, session, partial(session.model.ground, **arguments))
    return 0


def _detect(options: argparse.Namespace) -> int:
    if options.classes_file is not None:
        from fiber.data.prompts.classes import read_classes

        options.classes = list(read_classes(options.classes_file))
    if options.output is not None and options.format in (None, "json"):
        raise ValueError("--output needs --format coco, labelstudio or yolo; JSON is printed")
    options.json = options.json or options.format == "json"
    session = _session(options, "classes")
    model, classes = session.model, options.classes
    if classes is None and model.classes:
        print(f"fiber: classes: {shown_names(model.classes)}", file=sys.stderr)
    arguments = pick(options, "classes", "classes_per_prompt")
    writer = None
    if options.format not in (None, "json"):
        from fiber.cli.detections import DetectionWriter

        given = classes or model.classes
        names = [each if isinstance(each, str) else each.name for each in given]
        writer = DetectionWriter(options.format, options.output, names, session.name)
    _print_boxes(options, session, partial(model.detect, **arguments), writer)
    number = len(model.classes if classes is None else classes)
    print(f"fiber: {_describe_cost(number, model.passes)}", file=sys.stderr)
    return 0


def _session(options: argparse.Namespace, texts: str) -> AskingSession:
    """Load the images and the model; `texts` is the option of texts that are no images."""

    def hint(path: Path) -> str:
        return "" if path.suffix else f"; {texts} are passed as --{texts}"

    return AskingSession(options, options.images, "grounding", hint=hint)


def _print_boxes(
    options: argparse.Namespace,
    session: AskingSession,
    find: Any,
    writer: DetectionWriter | None = None,
) -> None:
    """Print, and save, the boxes that `find` returns for lists of images; a writer gets all."""
    limits: dict[str, Any] = {"max_detections": options.max_detections}
    given = {
        "score_threshold": options.threshold,
        "presence_threshold": options.presence,
        "negatives": options.negatives,
        "class_agnostic": options.class_agnostic or None,
    }
    limits |= {name: value for name, value in given.items() if value is not None}
    for sources, images in session.read_frames(options.every):
        for asked, found in zip(sources, find(images, **limits), strict=True):
            if writer is None:
                result = found.to_dict(image=str(asked.path), model=session.name)
                result = asked.describe(result)
                rows = []
                for item in result["detections"]:
                    box = " ".join(f"{edge:7.1f}" for edge in item["box_xyxy"])
                    row = f"{item['score']:.2f}", item["label"], box
                    rows.append((*row, *_presence_of(item)))
                for item in result.get("absent", ())[:MAX_ABSENT]:
                    rows.append(("-", item["label"], "not found", *_presence_of(item)))
                session.print(result, rows or [("nothing found",)])
            elif asked.frame is not None:
                raise ValueError(
                    f"{asked.path}: --format {options.format} is for image files; pass --format"
                    " json for frames of a video"
                )
            else:
                writer.add(asked.path, found)
            if options.save:
                found.save(session.file_for(asked.path, asked.frame))
    if writer is not None:
        writer.close()


def _presence_of(item: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the last cell of a row: the presence of a label, if the model is calibrated."""
    return (f"presence {item['presence']:.2f}",) if "presence" in item else ()


def _describe_cost(classes: int, passes: PassCounts) -> str:
    """Describe the cost of detection. The fused layers run once per (image, prompt) pair."""
    from fiber.data.skip_report import counted

    return (
        f"{counted(classes, 'classes')} in"
        f" {counted(passes.pairs // max(passes.images, 1), 'prompts')},"
        f" {counted(passes.images, 'images')},"
        f" {counted(passes.encoder_passes, 'forward passes')} of the image encoder"
    )
