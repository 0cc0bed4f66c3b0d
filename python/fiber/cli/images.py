"""`fiber ground`, `detect`, `answer`, `caption`, `match`, `entail` and `search`.

Each command prints a table to a terminal, and one JSON object per line otherwise.
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
    LIMITS,
    VOCABULARIES,
    add_options,
    char_spans,
    limits_of,
    naming_option,
    nonnegative_int,
    pick,
    score,
    semicolon_list,
)
from fiber.cli.models import choose_model, load_quietly
from fiber.data.image_file import ENDINGS, check_not_url
from fiber.messages import printable, shown_names
from fiber.terminal import is_terminal

if TYPE_CHECKING:
    import numpy as np

    from fiber.inference import Model
    from fiber.inference.boxes import PassCounts

#: Rows of a table to print to the terminal.
Rows = Sequence[tuple[str, ...]]

_IMAGE = {"image IMAGE": "image file, or a folder to search recursively for images"}
_IMAGES = {"images IMAGE": _IMAGE["image IMAGE"]}
_TEXT = {"text TEXT": 'text, such as "a red mug"'}
_BOX_OPTIONS = {
    "--threshold SCORE": "minimum box score, from 0 to 1 (default: 0.3 for detect, 0 for ground)",
    "--max-detections N": "maximum number of boxes per image (default: 100)",
}
_BOX_SETTINGS: dict[str, Any] = {
    "images": {"nargs": "+"},
    "threshold": {"type": score},
    "max_detections": {"default": 100},
}
#: Options for the texts of commands that take only images otherwise, and the arguments of others:
#: the name of the text, and the order.
_TEXT_OPTIONS = {"ground": "phrases", "detect": "classes"}
_TEXT_ORDERS = {
    "answer": ("question", "IMAGE QUESTION"),
    "match": ("text", "IMAGE TEXT"),
    "entail": ("hypothesis", "IMAGE HYPOTHESIS"),
    "search": ("text", "TEXT IMAGE"),
}
#: Number of images decoded and held in memory at a time.
_BATCH = 16
#: Maximum number of characters of a cell of a table.
_MAX_CELL = 1000


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the commands of this module to the table of commands."""
    ground = _command(commands, "ground", _ground, "find boxes for phrases or a caption")
    add_options(
        ground,
        {
            **_IMAGES,
            "--phrases LIST": "phrases to ground, separated by semicolons, such as"
            ' "a red mug; the laptop"; without --caption, they are grounded independently',
            "--caption CAPTION": 'sentence, such as "a red mug next to the laptop", whose noun'
            " phrases are grounded unless --phrases or --spans is given",
            "--spans LIST": "half-open character spans of phrases in the caption, instead of"
            ' --phrases, as in "2:12; 18:24", or "2:5,18:24" for a phrase in two parts',
            "--boxes-per-phrase N": "maximum number of boxes per phrase (default: 1)",
            **_BOX_OPTIONS,
        },
        phrases={"type": semicolon_list},
        spans={"type": char_spans},
        boxes_per_phrase={"default": 1},
        **_BOX_SETTINGS,
    )

    detect = _command(commands, "detect", _detect, "detect all objects of given classes")
    add_options(detect, _IMAGES, images={"nargs": "+"})
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
        },
        classes_per_prompt={"type": nonnegative_int, "default": 0},
        **_BOX_SETTINGS,
    )

    answer = _command(commands, "answer", _answer, "answer a question about an image")
    question = {"question QUESTION": 'question, such as "what color is the mug?"'}
    top_k = {"--top-k N": "number of answers to print (default: 3)"}
    add_options(answer, {**_IMAGE, **question, **top_k}, top_k={"default": 3})

    caption = _command(commands, "caption", _caption, "caption images")
    add_options(caption, _IMAGES, images={"nargs": "+"})
    add_options(
        caption.add_mutually_exclusive_group(),
        {
            "--num-beams N": "number of beams in beam search (default: 5)",
            "--sample": "sample tokens instead of using beam search",
        },
    )
    add_options(caption, {"--seed N": "random seed for --sample (default: 0)"}, seed={"type": int})

    match = _command(commands, "match", _match, "score how well a text matches an image")
    add_options(match, {**_IMAGE, **_TEXT})

    entail = _command(commands, "entail", _entail, "decide whether an image entails a hypothesis")
    hypothesis = {"hypothesis HYPOTHESIS": 'statement, such as "two dogs are playing"'}
    add_options(entail, {**_IMAGE, **hypothesis})

    search = _command(commands, "search", _search, "find the images that best match a text")
    add_options(
        search,
        {
            **_TEXT,
            **_IMAGES,
            "--top-k N": "number of images to return (default: 10)",
            "--no-rerank": "rank by ITC alone, without reranking by ITM",
        },
        images={"nargs": "+"},
        top_k={"default": 10},
    )


def _command(
    commands: argparse._SubParsersAction, name: str, run: Any, text: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    add_options(
        command,
        {
            "--model MODEL": "model folder or checkpoint file (default: the newest model in"
            " runs/ with the required head, or else the model in the package, scenes)",
            **VOCABULARIES,
            **DEVICE,
            **LIMITS,
            "--json": "print JSON even to a terminal",
            "--save DIR": "folder to write annotated images to",
        },
        tokenizer={"type": str},
        answers={"type": str},
    )
    command.set_defaults(run=run)
    return command


def _ground(options: argparse.Namespace) -> int:
    if options.phrases is None and options.caption is None:
        texts = [image for image in options.images[1:] if not _exists(image)]
        example = "; ".join(printable(text, _MAX_CELL) for text in texts) or "a red mug; the laptop"
        raise ValueError(
            "ground: expected --phrases, --caption or both, got neither; pass the phrases as"
            f' --phrases "{example}"'
        )
    if options.spans is not None and (options.caption is None or options.phrases is not None):
        raise ValueError("--spans requires --caption and cannot be combined with --phrases")
    arguments = pick(options, "boxes_per_phrase", "phrases", "caption", "spans")
    return _boxes(options, "ground", arguments)


def _detect(options: argparse.Namespace) -> int:
    if options.classes_file is not None:
        from fiber.data.prompts.classes import read_classes

        options.classes = list(read_classes(options.classes_file))
    return _boxes(options, "detect", pick(options, "classes", "classes_per_prompt"))


def _boxes(options: argparse.Namespace, method: str, arguments: dict[str, Any]) -> int:
    session = _Session(options, options.images, "grounding")
    model = session.model
    if method == "detect" and arguments["classes"] is None and model.classes:
        print(f"fiber: classes: {shown_names(model.classes)}", file=sys.stderr)
    arguments["max_detections"] = options.max_detections
    if options.threshold is not None:
        arguments["score_threshold"] = options.threshold
    for paths, images in session.read(session.paths):
        for path, found in zip(paths, getattr(model, method)(images, **arguments), strict=True):
            result = found.to_dict(image=str(path), model=session.name)
            rows = []
            for item in result["detections"]:
                box = " ".join(f"{edge:7.1f}" for edge in item["box_xyxy"])
                rows.append((f"{item['score']:.2f}", item["label"], box))
            session.print(result, rows or [("nothing found",)])
            if options.save:
                found.save(session.file_for(path))
    if method == "detect":
        classes = model.classes if arguments["classes"] is None else arguments["classes"]
        print(f"fiber: {_describe_cost(len(classes), model.passes)}", file=sys.stderr)
    return 0


def _describe_cost(classes: int, passes: PassCounts) -> str:
    """Describe the cost of detection. The fused layers run once per (image, prompt) pair."""
    from fiber.data.skip_report import counted

    return (
        f"{counted(classes, 'classes')} in"
        f" {counted(passes.pairs // max(passes.images, 1), 'prompts')},"
        f" {counted(passes.images, 'images')},"
        f" {counted(passes.encoder_passes, 'forward passes')} of the image encoder"
    )


def _answer(options: argparse.Namespace) -> int:
    session = _Session(options, [options.image], "vqa")
    for path, image in session.each():
        answers = session.model.answer(image, options.question, top_k=options.top_k)
        scored = [{"answer": text, "score": round(score, 4)} for text, score in answers]
        result = {"question": options.question, "answers": scored}
        rows = [(f"{score:.2f}", text) for text, score in answers]
        session.show(path, image, result, rows, f"{options.question}  {answers[0].answer}")
    return 0


def _caption(options: argparse.Namespace) -> int:
    if options.seed is not None and not options.sample:
        raise ValueError(f"--seed {options.seed} requires --sample")
    arguments = {
        "sample": options.sample,
        "seed": options.seed or 0,
        "num_beams": options.num_beams,
    }
    session = _Session(options, options.images, "caption")
    for paths, images in session.read(session.paths):
        texts = session.model.caption(images, **arguments)
        for path, image, text in zip(paths, images, texts, strict=True):
            session.show(path, image, {"caption": text}, [(text,)], text)
    return 0


def _match(options: argparse.Namespace) -> int:
    session = _Session(options, [options.image], "itm")
    for path, image in session.each():
        score = float(session.model.match([image], [options.text])[0, 0])
        result, row = (
            {"text": options.text, "score": round(score, 4)},
            (f"{score:.2f}", options.text),
        )
        session.show(path, image, result, [row], "  ".join(row))
    return 0


def _entail(options: argparse.Namespace) -> int:
    session = _Session(options, [options.image], "snli")
    for path, image in session.each():
        found = session.model.entail(image, options.hypothesis)
        scores = {
            name: round(score, 4) for name, score in found._asdict().items() if name != "label"
        }
        result = {"hypothesis": options.hypothesis, "label": found.label, **scores}
        rows = [(f"{score:.2f}", name) for name, score in scores.items()]
        session.show(path, image, result, rows, f"{options.hypothesis}  {found.label}")
    return 0


def _search(options: argparse.Namespace) -> int:
    rerank = not options.no_rerank
    session = _Session(options, options.images, "itc", *(["itm"] if rerank else []))
    files = [str(path) for path in session.paths]
    hits = session.model.search(options.text, files, options.top_k, rerank=rerank)
    for rank, hit in enumerate(hits, start=1):
        ((path,), (image,)), *_ = session.read([session.paths[hit.index]])
        result = {"text": options.text, "rank": rank, "score": round(hit.score, 4)}
        rows = [(f"{rank}.", f"{hit.score:.3f}")]
        session.show(path, image, result, rows, f"{rank}. {options.text}")
    return 0


def _paths(images: Sequence[str], options: argparse.Namespace) -> list[Path]:
    """List image files. Folders are searched recursively, without following links."""
    paths = []
    for image in images:
        check_not_url(image, "image")
        path = Path(image)
        if path.is_dir():
            inside = sorted(
                p for p in path.rglob("*") if p.suffix.lower() in ENDINGS and not p.is_dir()
            )
            if not inside:
                raise ValueError(
                    f"{path}: no image files in this folder; expected names that end in"
                    f" {', '.join(ENDINGS)}"
                )
            paths += inside
        elif path.exists():
            paths.append(path)
        else:
            raise FileNotFoundError(
                f"{path}: no such image file or folder{_hint_of_text(path, options)}"
            )
    return paths


def _hint_of_text(path: Path, options: argparse.Namespace) -> str:
    """Return where the text of a command belongs, if it may be in the place of an image."""
    command = options.command
    if command in _TEXT_OPTIONS and not path.suffix:
        return f"; {_TEXT_OPTIONS[command]} are passed as --{_TEXT_OPTIONS[command]}"
    name, order = _TEXT_ORDERS.get(command, ("", ""))
    return f"; expected the order {order}" if name and _exists(getattr(options, name)) else ""


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):
        # Too long for a name, or with a null character.
        return False


class _Session:
    """Images, model and output of a command.

    Results are printed to stdout as JSON lines or a table; annotated images go to `--save`.
    """

    def __init__(self, options: argparse.Namespace, images: Sequence[str], *heads: str) -> None:
        self.paths = _paths(images, options)
        self.name = choose_model(options.model, *heads)
        settings = pick(options, "tokenizer", "answers", "device")
        self.limits: dict[str, Any] = limits_of(options)
        self.model: Model = load_quietly(self.name, **settings, **self.limits)
        self.as_json = options.json or not is_terminal(sys.stdout)
        self.folder: Path | None = options.save
        self.names: set[str] = set()
        if self.folder is not None:
            if self.folder.exists() and not self.folder.is_dir():
                raise NotADirectoryError(
                    f"--save {self.folder} is a file; expected a folder for annotated images"
                )
            with naming_option("--save", self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)

    def read(self, paths: Sequence[Path]) -> Iterator[tuple[Sequence[Path], list[np.ndarray]]]:
        """Decode images in batches. Each is a uint8 array, (H, W, 3) or, with alpha, (H, W, 4)."""
        from fiber.data import load_image

        for start in range(0, len(paths), _BATCH):
            some = paths[start : start + _BATCH]
            yield some, [load_image(path, keep_alpha=True, **self.limits) for path in some]

    def each(self) -> Iterator[tuple[Path, np.ndarray]]:
        """Decode images one at a time."""
        for paths, images in self.read(self.paths):
            yield from zip(paths, images, strict=True)

    def print(self, result: dict[str, Any], rows: Rows) -> None:
        """Print one result as JSON, or as rows under the image's name."""
        if self.as_json:
            print(json.dumps(result, ensure_ascii=False), flush=True)
            return
        name = printable(result["image"], _MAX_CELL)
        print(f"{name}  ({result['width']} x {result['height']} pixels)")
        rows = [tuple(printable(cell, _MAX_CELL) for cell in row) for row in rows]
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

    def show(
        self, path: Path, image: np.ndarray, result: dict[str, Any], rows: Rows, text: str
    ) -> None:
        """Print a result. If `--save` was given, save the image with the text below it."""
        height, width = image.shape[:2]
        about = {"image": str(path), "width": width, "height": height, "model": self.name}
        self.print(about | result, rows)
        if self.folder is None:
            return
        from PIL import Image

        from fiber.data import load_image
        from fiber.postprocess.files import save_image
        from fiber.visualize import add_caption

        size = max(12, width // 30)
        captioned = add_caption(Image.fromarray(load_image(image)), [(text, (0, 0, 0))], size=size)
        save_image(lambda: captioned, self.file_for(path))
