"""The commands that look at pictures: ground, detect, answer, caption, match, search.

Each prints one JSON object a line when nobody reads the output on a terminal, else a table.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fiber.cli.arguments import add_words, count, whole_number
from fiber.cli.models import choose_model
from fiber.data.image_file import ENDINGS

if TYPE_CHECKING:
    import numpy as np

    from fiber.inference import Model
    from fiber.inference.boxes import PassCounts

_IMAGES = "a picture, or a folder: every picture in it, at any depth"
#: Pictures that are decoded and held at once.
_AT_ONCE = 16
#: Names of classes that one line lists.
_NAMES = 12


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the commands of this file to the table."""
    ground = _command(commands, "ground", _ground, "find the boxes of phrases or of a caption")
    ground.add_argument("images", nargs="+", metavar="IMAGE", help=_IMAGES)
    ground.add_argument("--phrases", help='"a red mug; the laptop": each by itself')
    ground.add_argument(
        "--caption", help='"a red mug next to the laptop": its phrases, or those of --phrases in it'
    )
    ground.add_argument(
        "--spans",
        metavar="S",
        help='characters of the caption that name things, in place of --phrases: "2:12; 18:24", or'
        ' "2:5,18:24" for a phrase in two parts; counted from 0, the end not counted in',
    )
    ground.add_argument(
        "--boxes-per-phrase", type=count, default=1, help="best boxes of a phrase (default: 1)"
    )
    _box_options(ground)

    detect = _command(commands, "detect", _detect, "find every object of some classes")
    detect.add_argument("images", nargs="+", metavar="IMAGE", help=_IMAGES)
    classes = detect.add_mutually_exclusive_group()
    classes.add_argument(
        "--classes", help='"mug; traffic light" (default: those that the model was trained on)'
    )
    classes.add_argument(
        "--classes-file",
        type=Path,
        help='one class a line; or a .json list of names or of {"prefix", "name", "suffix"}',
    )
    detect.add_argument(
        "--classes-per-prompt",
        type=whole_number,
        default=0,
        metavar="N",
        help="classes of a text at most, 0: as many as fit (default: 0; published for LVIS: 40)",
    )
    _box_options(detect)

    answer = _command(commands, "answer", _answer, "answer a question about a picture")
    answer.add_argument("image", metavar="IMAGE")
    answer.add_argument("question", metavar="QUESTION")
    answer.add_argument("--top-k", type=count, default=3, help="answers to give (default: 3)")

    caption = _command(commands, "caption", _caption, "describe pictures in words")
    caption.add_argument("images", nargs="+", metavar="IMAGE", help=_IMAGES)
    ways = caption.add_mutually_exclusive_group()
    ways.add_argument("--num-beams", type=count, help="width of the search (default: 5)")
    ways.add_argument("--sample", action="store_true", help="draw the words instead of searching")
    caption.add_argument(
        "--seed", type=int, metavar="N", help="of the draws of --sample (default: 0)"
    )

    match = _command(commands, "match", _match, "say how well a text fits a picture")
    match.add_argument("image", metavar="IMAGE")
    match.add_argument("text", metavar="TEXT")

    search = _command(commands, "search", _search, "find the pictures that fit a text best")
    search.add_argument("text", metavar="TEXT")
    search.add_argument("images", nargs="+", metavar="IMAGE", help=_IMAGES)
    search.add_argument("--top-k", type=count, default=10, help="pictures to give (default: 10)")
    search.add_argument(
        "--no-rerank",
        action="store_true",
        help="order by the two towers alone, without matching text and picture together",
    )


def _command(
    commands: argparse._SubParsersAction, name: str, run: Any, text: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    command.add_argument(
        "--model",
        help="folder or file of a model (default: the newest one under runs/ with the right head)",
    )
    add_words(command)
    command.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: a GPU if there is one)")
    command.add_argument("--json", action="store_true", help="print JSON on a terminal too")
    command.add_argument("--save", type=Path, metavar="DIR", help="write annotated pictures here")
    command.set_defaults(run=run)
    return command


def _box_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--threshold",
        type=float,
        default=None,
        help="lowest score of a box, from 0 to 1 (default: 0.3 for detect, 0 for ground)",
    )
    command.add_argument("--max-detections", type=count, default=100, help="boxes of a picture")


def _ground(options: argparse.Namespace) -> int:
    if options.phrases is None and options.caption is None:
        raise ValueError("ground: give --phrases, --caption or both")
    asked: dict[str, Any] = {"boxes_per_phrase": options.boxes_per_phrase}
    if options.phrases is not None:
        asked["phrases"] = _items(options.phrases, "--phrases")
    if options.caption is not None:
        asked["caption"] = options.caption
    if options.spans is not None:
        if options.caption is None or options.phrases is not None:
            raise ValueError("--spans: give --caption, and no --phrases")
        asked["spans"] = _spans(options.spans)
    return _boxes(options, "ground", asked)


def _detect(options: argparse.Namespace) -> int:
    classes: list[Any] | None = None
    if options.classes_file is not None:
        from fiber.data.prompts.classes import read_classes

        classes = list(read_classes(options.classes_file))
    elif options.classes is not None:
        classes = _items(options.classes, "--classes")
    asked = {"classes": classes, "classes_per_prompt": options.classes_per_prompt}
    return _boxes(options, "detect", asked)


def _boxes(options: argparse.Namespace, method: str, asked: dict[str, Any]) -> int:
    paths = _paths(options.images)
    model, name = _load(options, "grounding")
    if method == "detect" and asked["classes"] is None and model.classes:
        print(f"fiber: looking for {_some(model.classes)}", file=sys.stderr)
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
        print(f"fiber: {_taken(len(classes), model.passes)}", file=sys.stderr)
    return 0


def _taken(classes: int, passes: PassCounts) -> str:
    """Say what detection took: every picture meets every prompt, after the trunk."""
    from fiber.data.skip_report import counted

    return (
        f"{counted(classes, 'classes')} in"
        f" {counted(passes.pairs // max(passes.pictures, 1), 'prompts')},"
        f" {counted(passes.pictures, 'pictures')},"
        f" {counted(passes.trunk_passes, 'passes')} of the image trunk"
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
        raise ValueError(f"--seed {options.seed}: nothing is drawn without --sample")
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


def _some(names: Sequence[str]) -> str:
    """List names, of many the first ones: "mug, laptop and 78 others"."""
    more = len(names) - _NAMES
    return ", ".join(names[:_NAMES]) + (f" and {more} others" if more > 0 else "")


def _items(text: str, option: str) -> list[str]:
    """Split at semicolons: names of classes hold commas."""
    items = [item.strip() for item in text.split(";") if item.strip()]
    if not items:
        raise ValueError(f'{option} is empty; expected one or more, as in "a red mug; the laptop"')
    return items


def _spans(text: str) -> list[list[tuple[int, int]]]:
    """Read spans: those of phrases apart by semicolons, those of a phrase's parts by commas.

    Raises:
        ValueError: for one that is no two numbers.
    """
    spans = []
    for item in _items(text, "--spans"):
        found = [re.fullmatch(r"\s*(\d+):(\d+)\s*", part) for part in item.split(",")]
        parts = [(int(match[1]), int(match[2])) for match in found if match]
        if len(parts) < len(found):
            raise ValueError(f"--spans: {item!r} is no span; expected START:END, as in 2:12")
        spans.append(parts)
    return spans


def _paths(images: Sequence[str]) -> list[Path]:
    """Turn what was named into files: a folder stands for the pictures in it, at any depth.

    Linked folders inside it are not entered.
    """
    paths = []
    for image in images:
        path = Path(image)
        if path.is_dir():
            inside = sorted(
                p for p in path.rglob("*") if p.suffix.lower() in ENDINGS and not p.is_dir()
            )
            if not inside:
                raise ValueError(f"{path}: no {', '.join(ENDINGS)} file in this folder or below it")
            paths += inside
        elif path.exists():
            paths.append(path)
        else:
            raise FileNotFoundError(f"{path}: no such picture")
    return paths


def _read(paths: Sequence[Path]) -> Iterator[tuple[Sequence[Path], list[np.ndarray]]]:
    """Decode some pictures at a time: (H, W, 3) uint8 each."""
    from fiber.data import load_image

    for start in range(0, len(paths), _AT_ONCE):
        some = paths[start : start + _AT_ONCE]
        yield some, [load_image(path) for path in some]


def _about(path: Path, picture: np.ndarray, model: str) -> dict[str, Any]:
    height, width = picture.shape[:2]
    return {"image": str(path), "width": width, "height": height, "model": model}


def _box_text(box: Sequence[float]) -> str:
    return " ".join(f"{value:7.1f}" for value in box)


class _Output:
    """Where results go: JSON lines or a table to standard output, pictures to a folder."""

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
        """Print one result: all of it as JSON, or its rows under the picture's name."""
        if self.as_json:
            print(json.dumps(result, ensure_ascii=False), flush=True)
            return
        print(f"{result['image']}  ({result['width']} x {result['height']} pixels)")
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)))

    def file_for(self, path: Path) -> Path:
        """Name the annotated copy of a picture; two pictures of one name stay apart."""
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

        from fiber.postprocess.files import save_picture
        from fiber.visualize import add_caption

        image, size = Image.fromarray(picture), max(12, picture.shape[1] // 30)
        captioned = add_caption(image, [(text, (0, 0, 0))], size=size)
        save_picture(lambda: captioned, self.file_for(path))
