"""Data folders that are whole or not there: written under another name, renamed when finished.

`dataset.json` in the folder says what made it, so that a finished folder is kept and reused.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from os import PathLike
from pathlib import Path
from signal import SIG_IGN, SIGINT, signal
from typing import Any, TypeVar

from fiber.data.annotations import Picture, encode, write_split

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")

#: Called with (pictures done, pictures in all).
Progress = Callable[[int, int], None]

_DESCRIPTION = "dataset.json"
_TOKENIZER = "tokenizer.json"
_PICTURES_PER_JOB = 200
_PICTURES_PER_FOLDER = 1000


@dataclass(frozen=True)
class PictureJob:
    """Some pictures of one split, to be made by one process."""

    #: Where file names of pictures start.
    images: str
    split: str
    #: Pictures start, start + 1, .. stop - 1.
    start: int
    stop: int
    #: What the generator needs to make any of its pictures; it goes to other processes.
    recipe: Any


def check_arguments(counts: Mapping[str, int], image_size: int, max_objects: int) -> None:
    """Check what all generators are asked for.

    Raises:
        ValueError: for a value out of range, by name.
    """
    for split, count in counts.items():
        if not 0 <= count < 10**6:
            raise ValueError(f"{split} is {count} pictures; expected 0 to 999,999")
    if image_size < 48:
        raise ValueError(f"image_size is {image_size}; expected 48 pixels or more")
    if not 1 <= max_objects <= 9:
        raise ValueError(f"max_objects is {max_objects}; expected 1 to 9")


def file_name(split: str, index: int) -> str:
    """Return the path of a picture below the folder of pictures."""
    return f"{split}/{index // _PICTURES_PER_FOLDER:03d}/{index:06d}.jpg"


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
        ValueError: if it is none that models can read.
    """
    from fiber import _core

    if source is None:
        _core.Tokenizer.train(texts, vocab_size).save(str(folder / _TOKENIZER))
        return
    path = Path(source)
    found = path / _TOKENIZER if path.is_dir() else path
    if found.is_file():
        # Read first, so that a broken file fails here, and one that no model can be trained with.
        _core.Tokenizer.from_file(str(found)).check_for_models()
        shutil.copyfile(found, folder / _TOKENIZER)
    elif (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
        files = (str(path / "vocab.json"), str(path / "merges.txt"))
        _core.Tokenizer.from_vocabulary(*files).save(str(folder / _TOKENIZER))
    else:
        raise FileNotFoundError(
            f"{path} holds no tokenizer; expected {_TOKENIZER}, or vocab.json and merges.txt"
        )


def tokenizer_fingerprint(source: str | PathLike[str] | None, vocab_size: int) -> str:
    """Return what `dataset.json` says of the tokenizer.

    Raises:
        FileNotFoundError: if the source holds no tokenizer.
    """
    if source is None:
        return f"trained, at most {vocab_size} tokens"
    path = Path(source)
    names = (_TOKENIZER, "vocab.json", "merges.txt")
    files = [path] if path.is_file() else [path / n for n in names if (path / n).is_file()]
    if not files:
        raise FileNotFoundError(
            f"{path} holds no tokenizer; expected {_TOKENIZER}, or vocab.json and merges.txt"
        )
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def write_pictures(
    folder: Path,
    counts: Mapping[str, int],
    make_pictures: Callable[[PictureJob], list[Picture]],
    recipe: Any,
    *,
    class_names: Sequence[str],
    info: str,
    workers: int,
    progress: Progress | None,
) -> None:
    """Make the pictures of all splits and write their annotation files.

    Args:
        folder: where.
        counts: pictures of each split.
        make_pictures: writes the pictures of a job and describes them; a top-level function.
        recipe: the jobs' `recipe`.
        class_names: names of the classes 1, 2, ...
        info: one line on where the data come from.
        workers: as in `run_jobs`.
        progress: called after each job.
    """
    images = folder / "images"
    jobs = []
    for split, count in counts.items():
        for start in range(0, max(count, 1), _PICTURES_PER_FOLDER):
            (images / file_name(split, start)).parent.mkdir(parents=True)
        for start in range(0, count, _PICTURES_PER_JOB):
            stop = min(start + _PICTURES_PER_JOB, count)
            jobs.append(PictureJob(str(images), split, start, stop, recipe))
    done, results = 0, run_jobs(partial(_make_and_encode, make_pictures), jobs, workers)
    for split in counts:
        sections = encode([], split)
        for job in (job for job in jobs if job.split == split):
            for section, entries in next(results).items():
                sections[section] += entries
            done += job.stop - job.start
            if progress is not None:
                progress(done, sum(counts.values()))
        write_split(folder, split, sections, class_names, info)


def _make_and_encode(
    make_pictures: Callable[[PictureJob], list[Picture]], job: PictureJob
) -> dict[str, list[str]]:
    return encode(make_pictures(job), job.split)


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
