"""What the commands that ask a model share: their options, images, model and output.

Each prints a table to a terminal, and one JSON object per line otherwise. The commands are in the
`command.py` of their task.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fiber.cli.arguments import (
    DEVICE,
    LIMITS,
    VOCABULARIES,
    add_options,
    limits_of,
    naming_option,
    path_text,
    pick,
)
from fiber.cli.models import RUNTIMES, choose_model, load_graphs, load_quietly
from fiber.data.image_file import ENDINGS, check_not_url, missing_advice
from fiber.messages import printable
from fiber.terminal import is_terminal

if TYPE_CHECKING:
    import numpy as np

    from fiber.inference.boxes import BoxMethods

#: Rows of a table to print to the terminal.
Rows = Sequence[tuple[str, ...]]

#: An image argument, and one that takes several, as entries of `add_options`.
IMAGE = {"image IMAGE": "image file, or a folder to search recursively for images"}
IMAGES = {"images IMAGE": IMAGE["image IMAGE"]}
#: Of commands that also take videos.
IMAGES_AND_VIDEOS = {
    "images IMAGE": f"{IMAGE['image IMAGE']}; or a video, of which frames are images (needs the"
    " extra video)",
    "--every N": "of a video, the first frame and then each N-th (default: 1)",
}
#: Maximum number of characters of a cell of a table.
MAX_CELL = 1000
#: Number of images decoded and held in memory at a time.
_BATCH = 16


def add_asking_command(
    commands: argparse._SubParsersAction,
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
    example: str = "",
) -> argparse.ArgumentParser:
    """Add a command with the options of all that ask a model, and return its parser.

    `run` maps the parsed options to an exit code. `text` is the help of the command. An error about
    missing arguments shows the `example`, the arguments of a command line.
    """
    command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    add_options(
        command,
        {
            "--model MODEL": "model folder, checkpoint file, or folder of exported graphs, which"
            " need no torch (default: the newest model in runs/ with the required head, or else the"
            " model in the package, scenes)",
            "--runtime": "library that runs exported graphs: onnx (onnxruntime) or openvino"
            " (default: onnxruntime for ONNX)",
            **VOCABULARIES,
            **DEVICE,
            **LIMITS,
            "--json": "print JSON even to a terminal",
            "--save DIR": "folder to write annotated images to, as NAME.png; replaces files of"
            " these names, except images that the command reads",
        },
        tokenizer={"type": path_text},
        answers={"type": path_text},
        runtime={"choices": tuple(RUNTIMES)},
    )
    command.set_defaults(run=run, example=example and f"`fiber {name} {example}`")
    return command


def exists(text: str) -> bool:
    """Check whether a text is the path of a file or folder."""
    try:
        return Path(text).exists()
    except (OSError, ValueError):
        # Too long for a name, or with a null character.
        return False


def order_hint(text: str, order: str) -> str:
    """Return a hint for an image that does not exist: the order, if the text is a path."""
    return f"; expected the order {order}" if exists(text) else ""


def image_heading(name: str, size: Sequence[int]) -> str:
    """Return the line above the rows of an image; `size` starts with height and width."""
    return f"{printable(name, MAX_CELL)}  ({size[1]} x {size[0]} pixels)"


class AskedImage(NamedTuple):
    """Image file, or a frame of a video with its number and time."""

    path: Path
    frame: int | None = None
    seconds: float | None = None

    def describe(self, result: dict[str, Any]) -> dict[str, Any]:
        """Add the number and time of a frame to the JSON object of an image, after its name."""
        if self.frame is None or self.seconds is None:
            return result
        place = {"frame": self.frame, "seconds": round(self.seconds, 3)}
        return {"image": result["image"]} | place | result


class AskingSession:
    """Images, model and output of a command.

    Results are printed to stdout as JSON lines or a table; annotated images go to `--save`.

    Args:
        options: parsed options of a command of `add_asking_command`.
        images: image files, and folders to search.
        heads: heads of which a model needs one, for the default model.
        hint: added to the error about an image that does not exist; a function of its path.

    Raises:
        FileNotFoundError: if an image, or a default model with one of the heads, does not exist.
        NotADirectoryError: if `--save` is a file.
        ValueError: if a folder has no images, `--save` has the suffix of an image, the model cannot
            be loaded, or an option is for networks and the model is exported graphs.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        images: Sequence[str],
        *heads: str,
        hint: str | Callable[[Path], str] = "",
    ) -> None:
        self.paths = _list_images(images, hint)
        settings = pick(options, "tokenizer", "answers", "device")
        self.limits: dict[str, Any] = limits_of(options)
        graphs = load_graphs(options.model, options.runtime, settings, self.limits)
        self.model: BoxMethods
        if graphs is not None:
            self.name, self.model = options.model, graphs
        else:
            self.name = choose_model(options.model, *heads)
            self.model = load_quietly(self.name, **settings, **self.limits)
        self.as_json = options.json or not is_terminal(sys.stdout)
        self.folder: Path | None = options.save
        self.names: set[str] = set()
        if self.folder is not None:
            if self.folder.exists() and not self.folder.is_dir():
                raise NotADirectoryError(
                    f"--save {self.folder} is a file; expected a folder for annotated images"
                )
            if not self.folder.exists() and self.folder.suffix.lower() in ENDINGS:
                raise ValueError(
                    f"--save {self.folder} is the name of an image; expected a folder for annotated"
                    " images, such as --save annotated"
                )
            with naming_option("--save", self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
            # Images that are asked about, also by links, are not replaced. Other files are, so that
            # the same command writes the same files.
            own = self.folder.resolve()
            asked = {path.parent.resolve() / path.name for path in self.paths}
            asked |= {path.resolve() for path in self.paths}
            self.names.update(
                path.stem for path in asked if path.parent == own and path.suffix == ".png"
            )

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

    def read_frames(
        self, every: int | None
    ) -> Iterator[tuple[Sequence[AskedImage], list[np.ndarray]]]:
        """Decode images, and each `every`-th frame of videos, in batches, as `read`.

        Raises:
            ValueError: if `every` is given and there is no video, or one has no frames.
            ModuleNotFoundError: if torchcodec is not installed.
        """
        from fiber.data import load_image, video_frames
        from fiber.data.storage.video import ENDINGS as VIDEO_ENDINGS

        videos = {path for path in self.paths if path.suffix.lower() in VIDEO_ENDINGS}
        if every is not None and not videos:
            raise ValueError(
                f"--every {every} is for videos; expected a file that ends in"
                f" {', '.join(VIDEO_ENDINGS)}"
            )
        pixels = {name: value for name, value in self.limits.items() if name == "max_pixels"}

        def each() -> Iterator[tuple[AskedImage, np.ndarray]]:
            for path in self.paths:
                if path not in videos:
                    yield AskedImage(path), load_image(path, keep_alpha=True, **self.limits)
                    continue
                for frame in video_frames(path, every=every or 1, **pixels):
                    yield AskedImage(path, frame.number, frame.seconds), frame.image

        found = each()
        while batch := list(itertools.islice(found, _BATCH)):
            yield [asked for asked, _ in batch], [image for _, image in batch]

    def print(self, result: dict[str, Any], rows: Rows, headings: Sequence[str] = ()) -> None:
        """Print one result as JSON, or as rows under headings, by default that of its image."""
        if self.as_json:
            print(json.dumps(result, ensure_ascii=False), flush=True)
            return
        if not headings:
            name = result["image"]
            if "frame" in result:
                name += f", frame {result['frame']} at {result['seconds']:.2f} s"
            headings = [image_heading(name, (result["height"], result["width"]))]
        print(*headings, sep="\n")
        rows = [tuple(printable(cell, MAX_CELL) for cell in row) for row in rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)))

    def file_for(self, path: Path, frame: int | None = None) -> Path:
        """Return a unique path for the annotated copy of an image, or of a frame of a video."""
        assert self.folder is not None
        # Sorted by name, frames are in order.
        stem = path.stem if frame is None else f"{path.stem}-{frame:06}"
        name, number = stem, 2
        while name in self.names:
            name, number = f"{stem}-{number}", number + 1
        self.names.add(name)
        return self.folder / f"{name}.png"

    def show(
        self, path: Path, image: np.ndarray, result: dict[str, Any], rows: Rows, text: str
    ) -> None:
        """Print a result. If `--save` was given, save the image with the text below it."""
        from fiber.postprocess.json_objects import about_image

        about = about_image(str(path), image.shape, self.name)
        self.print(about | result, rows)
        self.save(path, image, text)

    def save(self, path: Path, image: np.ndarray, text: str) -> None:
        """If `--save` was given, save a copy of an image with the text below it."""
        if self.folder is None:
            return
        from PIL import Image

        from fiber.data import load_image
        from fiber.postprocess.files import save_image
        from fiber.visualize import add_caption

        size = max(12, image.shape[1] // 30)
        captioned = add_caption(Image.fromarray(load_image(image)), [(text, (0, 0, 0))], size=size)
        save_image(lambda: captioned, self.file_for(path))


def _list_images(images: Sequence[str], hint: str | Callable[[Path], str]) -> list[Path]:
    """List image files. Folders are searched recursively, without following links."""
    paths = []
    for image in images:
        check_not_url(image, "image")
        if image == "-" and not exists(image):
            raise ValueError(
                "image '-': images are not read from standard input; pass the path of a file"
            )
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
            more = hint if isinstance(hint, str) else hint(path)
            advice = missing_advice(path)
            if not more or advice.startswith("did you mean"):
                more = f"; {advice}"
            raise FileNotFoundError(f"{path}: no such image file or folder{more}")
    return paths
