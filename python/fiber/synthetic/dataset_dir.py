"""Files of a generated data folder apart from images and annotations.

`dataset.json` has the parameters that determine the data, so that a finished folder is reused.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fiber.data.record import AnyPath

IMAGES_PER_FOLDER = 1000
_DESCRIPTION = "dataset.json"
_TOKENIZER = "tokenizer.json"


def check_arguments(counts: Mapping[str, int], image_size: int, max_objects: int) -> None:
    """Check arguments of a generator; raise ValueError for one out of range, by name."""
    for split, count in counts.items():
        if not 0 <= count < 10**6:
            raise ValueError(f"{split} is {count} images; expected 0 to 999,999")
    if image_size < 48:
        raise ValueError(f"image_size is {image_size}; expected 48 pixels or more")
    if not 1 <= max_objects <= 9:
        raise ValueError(f"max_objects is {max_objects}; expected 1 to 9")


def file_name(split: str, index: int) -> str:
    """Return the path of an image, relative to the folder of images."""
    return f"{split}/{index // IMAGES_PER_FOLDER:03d}/{index:06d}.jpg"


def is_finished(folder: Path, parameters: Mapping[str, Any]) -> bool:
    """Return whether a folder already has the data set of these parameters.

    Raises:
        ValueError: if the folder has another data set, naming the differences, or other files.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    description = folder / _DESCRIPTION
    if not description.is_file():
        raise ValueError(
            f"{folder} exists and is not a data folder (it has no {_DESCRIPTION});"
            " name a folder that does not exist yet"
        )
    found = json.loads(description.read_text(encoding="utf-8")).get("parameters", {})
    wanted = json.loads(json.dumps(dict(parameters)))
    differences = [
        f"{name} is {found.get(name)!r}, requested {wanted.get(name)!r}"
        for name in sorted({*found, *wanted})
        if found.get(name) != wanted.get(name)
    ]
    if differences:
        raise ValueError(
            f"{folder} has another data set: {'; '.join(differences)}."
            " Name another folder or delete this one"
        )
    return True


def write_description(folder: Path, parameters: Mapping[str, Any], **facts: Any) -> None:
    """Write `dataset.json`: the parameters that determine the data, and other information."""
    text = json.dumps({"parameters": dict(parameters), **facts}, indent=1)
    (folder / _DESCRIPTION).write_text(text + "\n", encoding="utf-8")


def write_tokenizer(
    folder: Path, source: AnyPath | None, texts: list[str], vocab_size: int
) -> None:
    """Write `tokenizer.json`: a copy of a tokenizer, or one trained on the texts.

    Args:
        folder: data folder.
        source: a tokenizer.json, or a folder with one or with vocab.json and merges.txt; None
            trains a byte-level BPE.
        texts: training texts.
        vocab_size: size of a trained vocabulary.

    Raises:
        FileNotFoundError: if the source has no tokenizer.
        ValueError: if models do not support it.
    """
    from fiber import _core

    if source is None:
        _core.Tokenizer.train(texts, vocab_size).save(str(folder / _TOKENIZER))
        return
    path = Path(source)
    found = path / _TOKENIZER if path.is_dir() else path
    if found.is_file():
        # Fails early for a broken file, and for a tokenizer that no model can be trained with.
        _core.Tokenizer.from_file(str(found)).check_for_models()
        shutil.copyfile(found, folder / _TOKENIZER)
    elif (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
        files = (str(path / "vocab.json"), str(path / "merges.txt"))
        _core.Tokenizer.from_vocabulary(*files).save(str(folder / _TOKENIZER))
    else:
        raise _no_tokenizer(path)


def tokenizer_fingerprint(source: AnyPath | None, vocab_size: int) -> str:
    """Return the entry of `dataset.json` for the tokenizer.

    Raises:
        FileNotFoundError: if the source has no tokenizer.
    """
    if source is None:
        return f"trained, at most {vocab_size} tokens"
    path = Path(source)
    names = (_TOKENIZER, "vocab.json", "merges.txt")
    files = [path] if path.is_file() else [path / n for n in names if (path / n).is_file()]
    if not files:
        raise _no_tokenizer(path)
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _no_tokenizer(path: Path) -> FileNotFoundError:
    return FileNotFoundError(
        f"{path} has no tokenizer; expected {_TOKENIZER}, or vocab.json and merges.txt"
    )
