"""Files of a generated data folder other than images and annotations.

`dataset.json` has the parameters that determine the data, so that a finished folder is reused.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fiber import _core
from fiber.data.record import AnyPath

IMAGES_PER_FOLDER = 1000
_DESCRIPTION = "dataset.json"
_TOKENIZER = "tokenizer.json"


def file_name(split: str, index: int) -> str:
    """Return the path of an image, relative to the folder of images."""
    return f"{split}/{index // IMAGES_PER_FOLDER:03d}/{index:06d}.jpg"


def is_finished(folder: Path, parameters: Mapping[str, Any]) -> bool:
    """Return whether a folder already has the data set with these parameters.

    Raises:
        ValueError: if the folder has another data set, with the differences, or other files.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    description = folder / _DESCRIPTION
    if not description.is_file():
        raise ValueError(
            f"{folder} exists and is not a data folder (it has no {_DESCRIPTION});"
            " expected a folder that does not exist"
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
            " Use another folder or delete this one"
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
        source: tokenizer.json, or a folder with it or with vocab.json and merges.txt; None trains a
            byte-level BPE.
        texts: training texts.
        vocab_size: maximum size of a trained vocabulary.

    Raises:
        FileNotFoundError: if the source has no tokenizer.
        ValueError: if models do not support it.
    """
    if source is None:
        _core.Tokenizer.train(texts, vocab_size).save(str(folder / _TOKENIZER))
        return
    path = Path(source)
    found = path / _TOKENIZER if path.is_dir() else path
    vocab, merges = path / "vocab.json", path / "merges.txt"
    if found.is_file():
        # Fail early for a broken file, and for a tokenizer that models do not support.
        _core.Tokenizer.from_file(str(found)).check_for_models()
        shutil.copyfile(found, folder / _TOKENIZER)
    elif vocab.is_file() and merges.is_file():
        tokenizer = _core.Tokenizer.from_vocabulary(str(vocab), str(merges))
        tokenizer.save(str(folder / _TOKENIZER))
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
