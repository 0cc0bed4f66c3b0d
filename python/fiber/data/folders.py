"""Data folders that are whole or not there: written under another name, renamed when finished.

`dataset.json` in the folder says what made it, so that a finished folder is kept and reused.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from os import PathLike
from pathlib import Path
from signal import SIG_IGN, SIGINT, signal
from typing import Any, TypeVar

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")

#: Called with (pictures done, pictures in all).
Progress = Callable[[int, int], None]

_DESCRIPTION = "dataset.json"
_TEXTS_FILE = "tokenizer.json"


def is_finished(folder: Path, parameters: Mapping[str, Any]) -> bool:
    """Tell whether a folder already holds the data set that the parameters ask for.

    Raises:
        ValueError: if the folder holds another data set, naming the differences, or other files.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    description = folder / _DESCRIPTION
    if not description.is_file():
        raise ValueError(
            f"{folder} exists and is no data folder (it has no {_DESCRIPTION});"
            " name a folder that does not exist yet"
        )
    found = json.loads(description.read_text(encoding="utf-8")).get("parameters", {})
    wanted = json.loads(json.dumps(dict(parameters)))
    differences = [
        f"{name} is {found.get(name)!r}, asked for {wanted.get(name)!r}"
        for name in sorted({*found, *wanted})
        if found.get(name) != wanted.get(name)
    ]
    if differences:
        raise ValueError(
            f"{folder} holds another data set: {'; '.join(differences)}."
            " Name another folder or delete this one"
        )
    return True


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to write into, which gets its final name only when the block ends well.

    Whatever stops the block (an error, a full disk, Ctrl-C), the half-written folder is deleted.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial")
    # Left by a process that was killed.
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_description(folder: Path, parameters: Mapping[str, Any], **facts: Any) -> None:
    """Write `dataset.json`: the parameters that decide every byte, and facts for people."""
    text = json.dumps({"parameters": dict(parameters), **facts}, indent=1)
    (folder / _DESCRIPTION).write_text(text + "\n", encoding="utf-8")


def write_tokenizer(
    folder: Path, source: str | PathLike[str] | None, texts: list[str], vocab_size: int
) -> None:
    """Write `tokenizer.json`: a copy of a tokenizer, or one trained on the texts.

    Args:
        folder: where.
        source: a tokenizer.json, or a folder with one or with vocab.json and merges.txt; None
            trains one.
        texts: what a byte-level BPE is trained on.
        vocab_size: tokens of the trained tokenizer.

    Raises:
        FileNotFoundError: if the source holds no tokenizer.
    """
    from fiber import _core

    if source is None:
        _core.Tokenizer.train(texts, vocab_size).save(str(folder / _TEXTS_FILE))
        return
    path = Path(source)
    found = path / _TEXTS_FILE if path.is_dir() else path
    if found.is_file():
        # Read first, so that a broken file fails here.
        _core.Tokenizer.from_file(str(found))
        shutil.copyfile(found, folder / _TEXTS_FILE)
    elif (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
        files = (str(path / "vocab.json"), str(path / "merges.txt"))
        _core.Tokenizer.from_vocabulary(*files).save(str(folder / _TEXTS_FILE))
    else:
        raise FileNotFoundError(
            f"{path} holds no tokenizer; expected {_TEXTS_FILE}, or vocab.json and merges.txt"
        )


def run_jobs(
    function: Callable[[JobT], ResultT], jobs: list[JobT], workers: int
) -> Iterator[ResultT]:
    """Yield function(job) for every job, in order.

    Args:
        function: at the top level of a module; it must not depend on which process runs it.
        jobs: its arguments.
        workers: processes; 0 runs everything in this one. Processes are spawned, so a script that
            asks for them needs the usual `if __name__ == "__main__":`.
    """
    if workers <= 0 or len(jobs) < 2:
        yield from map(function, jobs)
        return
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)),
        mp_context=get_context("spawn"),
        # Ctrl-C reaches the whole group; only this process answers it.
        initializer=signal,
        initargs=(SIGINT, SIG_IGN),
    )
    try:
        yield from pool.map(function, jobs)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
