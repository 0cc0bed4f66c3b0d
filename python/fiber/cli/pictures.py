"""`fiber ground`, `detect`, `answer`, `caption`, `match` and `search`.

Each prints a table to a terminal and one JSON object per line otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fiber.cli.arguments import (
    DEVICE,
    add_tokenizer_and_answers,
    char_spans,
    nonnegative_int,
    positive_int,
    semicolon_list,
)
from fiber.cli.models import choose_model
from fiber.data.image_file import ENDINGS

if TYPE_CHECKING:
    import numpy as np

    from fiber.inference import Model
    from fiber.inference.boxes import PassCounts

_IMAGES = "image file, or a directory: all images in it, recursively"
#: Images decoded and held at once.
_BATCH = 16
#: Maximum number of class names in a line.
_MAX_LISTED = 12


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the commands of this file to the table."""
    _add_ground(commands)
    _add_detect(commands)

    answer = _command(commands, "answer", _answer, "answer a question about an image")
    answer.add_argument("image", metavar="IMAGE", help="image file")
    answer.add_argument("question", metavar="QUESTION", help='such as "what color is the mug?"')
    answer.add_argument(
        "--top-k", type=positive_int, default=3, metavar="N", help="number of answers (default: 3)"
    )

    caption = _command(commands, "caption", _caption, "caption images")
    caption.add_argument("images", nargs="+", metavar="IMAGE", help=_IMAGES)
    ways = caption.add_mutually_exclusive_group()
    ways.add_argument(
        "--num-beams", type=positive_int, metavar="N", help="beams of beam search (default: 5)"
    )
    ways.add_argument("--sample", action="store_true", help="sample tokens, without beam search")
    caption.add_argument("--seed", type=int, metavar="N", help="seed of --sample (default: 0)")

    match = _command(commands, "match", _match, "score how well a text matches an image")
    match.add_argument("image", metavar="IMAGE", help="image file")
    match.add_argument("text", metavar="TEXT", help='such as "a red mug"')

    search = _command(commands, "search", _search, "find the images that match a text best")
    search.add_argument("text", metavar="TEXT", help='such as "a red mug"')
    search.add_argument("images", nargs="+", metavar="IMAGE", help=_IMAGES)
    search.add_argument(
        "--top-k", type=positive_int, default=10, metavar="N", help="number of images (default: 10)"
    )
    search.add_argument(
        "--no-rerank", action="store_true", help="rank by ITC alone, without reranking by ITM"
    )


def _add_ground(commands: argparse._SubParsersAction) -> None:
    ground = _command(commands, "ground", _ground, "find boxes for phrases or a caption")
    ground.add_argument("images", nargs="+", metavar="IMAGE", help=_IMAGES)
    ground.add_argument(
        "--phrases",
        type=semicolon_list,
        metavar="LIST",
        help='"a red mug; the laptop": phrases, each grounded by itself',
    )
    ground.add_argument(
        "--caption",
        help='"a red mug next to the laptop": its noun phrases, or those of --phrases in it',
    )
    ground.add_argument(
        "--spans",
        type=char_spans,
        metavar="LIST",
        help='character spans of phrases in the caption, instead of --phrases: "2:12; 18:24", or'
        ' "2:5,18:24" for a phrase in two parts; half-open, from 0',
    )
    ground.add_argument(
        "--boxes-per-phrase",
        type=positive_int,
        default=1,
        metavar="N",
        help="maximum number of boxes of a phrase (default: 1)",
    )
    _add_box_options(ground)


def _add_detect(commands: argparse._SubParsersAction) -> None:
    detect = _command(commands, "detect", _detect, "detect all objects of given classes")
    detect.add_argument("images", nargs="+", metavar="IMAGE", help=_IMAGES)
    classes = detect.add_mutually_exclusive_group()
    classes.add_argument(
        "--classes",
        type=semicolon_list,
        metavar="LIST",
        help='"mug; traffic light" (default: the classes that the model was trained on)',
    )
    classes.add_argument(
        "--classes-file",
        type=Path,
        metavar="FILE",
        help='one class per line; or a .json list of names or of {"prefix", "name", "suffix"}',
    )
    detect.add_argument(
        "--classes-per-prompt",
        type=nonnegative_int,
        default=0,
        metavar="N",
        help="maximum number of classes in a prompt, 0: as many as fit (default: 0; published for"
        " LVIS: 40)",
    )
    _add_box_options(detect)


def _command(
    commands: argparse._SubParsersAction, name: str, run: Any, text: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    command.add_argument(
        "--model",
        help="model directory or checkpoint file (default: the newest model in runs/ with the"
        " required head)",
    )
    add_tokenizer_and_answers(command)
    command.add_argument("--device", help=DEVICE)
    command.add_argument("--json", action="store_true", help="print JSON on a terminal, too")
    command.add_argument(
        "--save", type=Path, metavar="DIR", help="directory to save annotated images to"
    )
    command.set_defaults(run=run)
    return command


def _add_box_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--threshold",
        type=float,
        default=None,
        metavar="SCORE",
        help="minimum score of a box, from 0 to 1 (default: 0.3 for detect, 0 for ground)",
    )
    command.add_argument(
        "--max-detections",
        type=positive_int,
        default=100,
        metavar="N",
        help="maximum number of boxes per image (default: 100)",
    )


def _ground(options: argparse.Namespace) -> int:
    if options.phrases is None and options.caption is None:
        raise ValueError("ground: expected --phrases, --caption or both, got neither")
    asked: dict[str, Any] = {"boxes_per_phrase": options.boxes_per_phrase}
    if options.phrases is not None:
        asked["phrases"] = list(options.phrases)
    if options.caption is not None:
        asked["caption"] = options.caption
    if options.spans is not None:
        if options.caption is None or options.phrases is not None:
            raise ValueError("--spans: expected --caption and no --phrases")
        asked["spans"] = options.spans
    return _boxes(options, "ground", asked)


def _detect(options: argparse.Namespace) -> int:
    classes: list[Any] | None = None
    if options.classes_file is not None:
        from fiber.data.prompts.classes import read_classes

        classes = list(read_classes(options.classes_file))
    elif options.classes is not None:
        classes = list(options.classes)
    asked = {"classes": classes, "classes_per_prompt": options.classes_per_prompt}
    return _boxes(options, "detect", asked)


def _boxes(options: argparse.Namespace, method: str, asked: dict[str, Any]) -> int:
    paths = _paths(options.images)
    model, name = _load(options, "grounding")
    if method == "detect" and asked["classes"] is None and model.classes:
        print(f"fiber: classes: {_first_names(model.classes)}", file=sys.stderr)
    asked = asked | {"max_detections": options.max_detections}
    if options.threshold is not None:
        asked["score_threshold"] = options.threshold
    show = _Output(options)
    for some, pictures in _read(paths):
        found_in = getattr(model, method)(pictures, **asked)
        for path, found in zip(some, found_in, strict=True):
            result = found.to_dict(image=str(path), model=name)
            rows = [
                (f"{item['score']:.2f}", item["label"], _box_text(item["box_xyxy"]))
                for item in result["detections"]
            ]
            show.line(result, rows or [("nothing found",)])
            if options.save:
                found.save(show.file_for(path))
    if method == "detect":
        classes = model.classes if asked["classes"] is None else asked["classes"]
        print(f"fiber: {_describe_cost(len(classes), model.passes)}", file=sys.stderr)
    return 0


def _describe_cost(classes: int, passes: PassCounts) -> str:
    """Describe the cost of a detection: after the trunk, each prompt runs with each image."""
    from fiber.data.skip_report import counted

    return (
        f"{counted(classes, 'classes')} in"
        f" {counted(passes.pairs // max(passes.pictures, 1), 'prompts')},"
        f" {counted(passes.pictures, 'images')},"
        f" {counted(passes.trunk_passes, 'forward passes')} of the image trunk"
    )


def _answer(options: argparse.Namespace) -> int:
    paths = _paths([options.image])
    model, name = _load(options, "vqa")
    show = _Output(options)
    for (path,), (picture,) in _read(paths):
        answers = model.answer(picture, options.question, top_k=options.top_k)
        show.line(
            _about(path, picture, name)
            | {
                "question": options.question,
                "answers": [{"answer": text, "score": round(score, 4)} for text, score in answers],
            },
            [(f"{score:.2f}", text) for text, score in answers],
        )
        show.picture(path, picture, f"{options.question}  {answers[0].answer}")
    return 0


def _caption(options: argparse.Namespace) -> int:
    if options.seed is not None and not options.sample:
        raise ValueError(f"--seed {options.seed}: expected --sample with it")
    asked = {"sample": options.sample, "seed": options.seed or 0, "num_beams": options.num_beams}
    paths = _paths(options.images)
    model, name = _load(options, "caption")
    show = _Output(options)
    for some, pictures in _read(paths):
        texts = model.caption(pictures, **asked)
        for path, picture, text in zip(some, pictures, texts, strict=True):
            show.line(_about(path, picture, name) | {"caption": text}, [(text,)])
            show.picture(path, picture, text)
    return 0


def _match(options: argparse.Namespace) -> int:
    paths = _paths([options.image])
    model, name = _load(options, "itm")
    show = _Output(options)
    for (path,), (picture,) in _read(paths):
        score = float(model.match([picture], [options.text])[0, 0])
        show.line(
            _about(path, picture, name) | {"text": options.text, "score": round(score, 4)},
            [(f"{score:.2f}", options.text)],
        )
        show.picture(path, picture, f"{score:.2f}  {options.text}")
    return 0


def _search(options: argparse.Namespace) -> int:
    paths = _paths(options.images)
    model, name = _load(options, "itc", *([] if options.no_rerank else ["itm"]))
    show = _Output(options)
    hits = model.search(
        options.text, [str(path) for path in paths], options.top_k, rerank=not options.no_rerank
    )
    for rank, hit in enumerate(hits, start=1):
        path = paths[hit.index]
        (_, (picture,)), *_ = _read([path])
        found = {"text": options.text, "rank": rank, "score": round(hit.score, 4)}
        show.line(_about(path, picture, name) | found, [(f"{rank}.", f"{hit.score:.3f}")])
        show.picture(path, picture, f"{rank}. {options.text}")
    return 0


def _load(options: argparse.Namespace, *heads: str) -> tuple[Model, str]:
    path = choose_model(options.model, *heads)
    import fiber

    return fiber.load(path, options.tokenizer, options.answers, options.device), path


def _first_names(names: Sequence[str]) -> str:
    """List the first names: "mug, laptop and 78 others"."""
    more = len(names) - _MAX_LISTED
    return ", ".join(names[:_MAX_LISTED]) + (f" and {more} others" if more > 0 else "")


def _paths(images: Sequence[str]) -> list[Path]:
    """List image files; directories are searched recursively, without following links."""
    paths = []
    for image in images:
        path = Path(image)
        if path.is_dir():
            inside = sorted(
                p for p in path.rglob("*") if p.suffix.lower() in ENDINGS and not p.is_dir()
            )
            if not inside:
                raise ValueError(f"{path}: no {', '.join(ENDINGS)} file in this directory or below")
            paths += inside
        elif path.exists():
            paths.append(path)
        else:
            raise FileNotFoundError(f"{path}: no such image")
    return paths


def _read(paths: Sequence[Path]) -> Iterator[tuple[Sequence[Path], list[np.ndarray]]]:
    """Decode images in batches; each is (H, W, 3) uint8."""
    from fiber.data import load_image

    for start in range(0, len(paths), _BATCH):
        some = paths[start : start + _BATCH]
        yield some, [load_image(path) for path in some]


def _about(path: Path, picture: np.ndarray, model: str) -> dict[str, Any]:
    height, width = picture.shape[:2]
    return {"image": str(path), "width": width, "height": height, "model": model}


def _box_text(box: Sequence[float]) -> str:
    return " ".join(f"{value:7.1f}" for value in box)


class _Output:
    """Output of results: JSON lines or a table to stdout, annotated images to a folder."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.as_json = options.json or not sys.stdout.isatty()
        self.folder: Path | None = options.save
        self.names: set[str] = set()
        if self.folder is not None:
            if self.folder.exists() and not self.folder.is_dir():
                raise NotADirectoryError(
                    f"--save {self.folder} is a file; name a folder for the annotated pictures"
                )
            self.folder.mkdir(parents=True, exist_ok=True)

    def line(self, result: dict[str, Any], rows: Sequence[tuple[str, ...]]) -> None:
        """Print one result as JSON, or as rows under the image's name."""
        if self.as_json:
            print(json.dumps(result, ensure_ascii=False), flush=True)
            return
        print(f"{result['image']}  ({result['width']} x {result['height']} pixels)")
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)))

    def file_for(self, path: Path) -> Path:
        """Return a unique path for the annotated copy of an image."""
        assert self.folder is not None
        name, number = path.stem, 2
        while name in self.names:
            name, number = f"{path.stem}-{number}", number + 1
        self.names.add(name)
        return self.folder / f"{name}.png"

    def picture(self, path: Path, picture: np.ndarray, text: str) -> None:
        """Save an image with a text below it, if `--save` was given."""
        if self.folder is None:
            return
        from PIL import Image

        from fiber.postprocess.files import save_image
        from fiber.visualize import add_caption

        image, size = Image.fromarray(picture), max(12, picture.shape[1] // 30)
        captioned = add_caption(image, [(text, (0, 0, 0))], size=size)
        save_image(lambda: captioned, self.file_for(path))
