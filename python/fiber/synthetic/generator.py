"""Dataset generation from a recipe, shared by `scenes` and `stamps`.

`dataset.json` stores the parameters that determine the data, so a finished folder can be reused.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from signal import SIG_IGN, SIGINT, signal
from typing import Any

from fiber import _core
from fiber.atomic_io import DISK_FULL, explain_write_errors, new_directory
from fiber.data.formats.generated import DESCRIPTION, other_version
from fiber.data.record import AnyPath
from fiber.messages import shown
from fiber.synthetic.annotations import encode, write_split
from fiber.synthetic.panoptic import map_name, save_map, segments_of
from fiber.synthetic.recipe import IMAGES_PER_FOLDER, Recipe, file_name
from fiber.synthetic.rendering import save_jpeg

#: Called with (images done, total images).
Progress = Callable[[int, int], None]
#: Split, and indices of the images to generate in one job.
_Job = tuple[str, range]

_IMAGES_PER_JOB = 200
_TOKENIZER = "tokenizer.json"


def generate_dataset(
    output: AnyPath,
    recipe: Recipe,
    counts: Mapping[str, int],
    *,
    workers: int = 0,
    tokenizer: AnyPath | None = None,
    progress: Progress | None = None,
) -> Path:
    """Generate a dataset, or keep an existing one with the same parameters. Return its folder.

    Args:
        output: folder; written atomically.
        recipe: recipe of the images.
        counts: number of images per split. `val` has the same distribution as `train`. Every image
            of `novel` shows something that is held out.
        workers: number of processes, or 0 to use this process. The output does not depend on the
            number of workers.
        tokenizer: tokenizer to copy (file or folder). None trains a tokenizer on the texts.
        progress: called with (images done, total images) after each job.

    Raises:
        ValueError: if a count is out of range, or the folder contains a different dataset.
        FileNotFoundError: if there is no tokenizer at `tokenizer`, or stamps or photographs are
            missing.
    """
    for split, count in counts.items():
        if not 0 <= count < 10**6:
            raise ValueError(
                f"{split}: the number of images must be between 0 and 999,999, got {count}"
            )
    folder = Path(output)
    parameters = {
        "generator": recipe.name,
        "version": recipe.version,
        "seed": recipe.seed,
        "counts": dict(counts),
        "image_size": recipe.image_size,
        "max_objects": recipe.max_objects,
        **recipe.parameters(),
        "tokenizer": _tokenizer_fingerprint(tokenizer, recipe.vocab_size),
    }
    if _is_finished(folder, parameters):
        return folder
    with explain_write_errors(folder, DISK_FULL), new_directory(folder) as partial_folder:
        images = (recipe.describe("train", index) for index in range(recipe.tokenizer_images))
        texts = [text for image in images for text in image.texts]
        _write_tokenizer(partial_folder, tokenizer, texts, recipe.vocab_size)
        _write_images(partial_folder, recipe, counts, workers, progress)
        text = json.dumps({"parameters": parameters, **recipe.facts()}, indent=1)
        (partial_folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
    return folder


def _is_finished(folder: Path, parameters: dict[str, Any]) -> bool:
    """Return whether a folder contains the dataset. Raises ValueError for a different dataset."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    description = folder / DESCRIPTION
    if not description.is_file():
        raise ValueError(
            f"{folder} already exists and is not a data folder (it has no {DESCRIPTION});"
            " expected a new folder"
        )
    stored = json.loads(description.read_text(encoding="utf-8")).get("parameters", {})
    wanted = json.loads(json.dumps(parameters))
    problem = other_version(folder)
    if problem is not None and stored.get("generator") == wanted["generator"]:
        raise ValueError(f"{problem}. Use a different folder, or delete this one")
    differences = [
        f"{name} is {shown(stored.get(name))}, but {shown(wanted.get(name))} was requested"
        for name in sorted({*stored, *wanted})
        if stored.get(name) != wanted.get(name)
    ]
    if differences:
        raise ValueError(
            f"{folder} contains a different dataset: {'; '.join(differences)}."
            " Use a different folder, or delete this one"
        )
    return True


def _tokenizer_fingerprint(source: AnyPath | None, vocab_size: int) -> str:
    """Return the tokenizer's entry in `dataset.json`."""
    if source is None:
        return f"trained, at most {vocab_size} tokens"
    path = Path(source)
    names = (_TOKENIZER, "vocab.json", "merges.txt")
    files = [path] if path.is_file() else [path / n for n in names if (path / n).is_file()]
    if not files:
        raise _no_tokenizer(path)
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _write_tokenizer(
    folder: Path, source: AnyPath | None, texts: list[str], vocab_size: int
) -> None:
    """Write `tokenizer.json`, copied from `source` or trained on the texts (byte-level BPE)."""
    if source is None:
        _core.Tokenizer.train(texts, vocab_size).save(str(folder / _TOKENIZER))
        return
    path = Path(source)
    file = path / _TOKENIZER if path.is_dir() else path
    vocab, merges = path / "vocab.json", path / "merges.txt"
    if file.is_file():
        # Fail early if the file is broken or models do not support the tokenizer.
        _core.Tokenizer.from_file(str(file)).check_for_models()
        shutil.copyfile(file, folder / _TOKENIZER)
    elif vocab.is_file() and merges.is_file():
        tokenizer = _core.Tokenizer.from_vocabulary(str(vocab), str(merges))
        tokenizer.save(str(folder / _TOKENIZER))
    else:
        raise _no_tokenizer(path)


def _no_tokenizer(path: Path) -> FileNotFoundError:
    return FileNotFoundError(
        f"{path} has no tokenizer; expected {_TOKENIZER}, or vocab.json and merges.txt"
    )


def _write_images(
    folder: Path, recipe: Recipe, counts: Mapping[str, int], workers: int, progress: Progress | None
) -> None:
    """Write the images and annotation files of all splits."""
    root = folder / "images"
    jobs: list[_Job] = []
    for split, count in counts.items():
        for start in range(0, max(count, 1), IMAGES_PER_FOLDER):
            name = file_name(split, start)
            for path in (root / name, folder / f"panoptic_{split}" / map_name(name)):
                path.parent.mkdir(parents=True)
        indices = range(count)
        jobs += [(split, indices[i : i + _IMAGES_PER_JOB]) for i in indices[::_IMAGES_PER_JOB]]
    info = f"fiber {recipe.name}, version {recipe.version}, seed {recipe.seed}"
    done, results = 0, _run_jobs(recipe, root, jobs, workers)
    for split in counts:
        sections = encode([], split)
        for indices in (indices for own, indices in jobs if own == split):
            for section, entries in next(results).items():
                sections[section] += entries
            done += len(indices)
            if progress is not None:
                progress(done, sum(counts.values()))
        write_split(folder, split, sections, recipe.world.nouns, info, recipe.stuff_names)


def _run_job(recipe: Recipe, root: Path, job: _Job) -> dict[str, list[str]]:
    """Write the images of a job, and return their JSON-encoded annotations."""
    split, indices = job
    images = []
    for index in indices:
        image = recipe.describe(split, index)
        drawn = recipe.render(split, index)
        image.boxes_xyxy = drawn.boxes
        save_jpeg(drawn.pixels, f"{root}/{image.file_name}")
        nouns, stuff = len(recipe.world.nouns), recipe.stuff_names
        image.segments = segments = segments_of(drawn, image.category_ids, nouns)
        if len(stuff) > 1:
            of_stuff = (each for each in segments if each.thing < 0)
            image.stuff = {each.id: stuff[each.category_id - nouns - 1] for each in of_stuff}
        maps = root.parent / f"panoptic_{split}"
        save_map(drawn, segments, f"{maps}/{map_name(image.file_name)}")
        images.append(image)
    return encode(images, split)


def _run_jobs(
    recipe: Recipe, root: Path, jobs: list[_Job], workers: int
) -> Iterator[dict[str, list[str]]]:
    """Yield the result of every job, in order.

    Processes are spawned, so a script that uses workers needs `if __name__ == "__main__":`.
    """
    run = partial(_run_job, recipe, root)
    if workers <= 0 or len(jobs) < 2:
        yield from map(run, jobs)
        return
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)),
        mp_context=get_context("spawn"),
        # Ctrl-C is sent to the whole process group; only this process handles it.
        initializer=signal,
        initargs=(SIGINT, SIG_IGN),
    )
    try:
        yield from pool.map(run, jobs)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
