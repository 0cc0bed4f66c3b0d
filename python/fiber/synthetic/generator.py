"""Generate a data set from a recipe: shared by `scenes` and `stamps`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from signal import SIG_IGN, SIGINT, signal
from typing import NamedTuple

from fiber.atomic_io import DISK_FULL, explain_write_errors, new_directory
from fiber.data.record import AnyPath
from fiber.synthetic.annotations import encode, write_split
from fiber.synthetic.dataset_dir import (
    IMAGES_PER_FOLDER,
    file_name,
    is_finished,
    tokenizer_fingerprint,
    write_description,
    write_tokenizer,
)
from fiber.synthetic.recipe import Recipe
from fiber.synthetic.rendering import save_jpeg

#: Called with (images done, images in total).
Progress = Callable[[int, int], None]

_IMAGES_PER_JOB = 200


def generate_dataset(
    output: AnyPath,
    recipe: Recipe,
    counts: Mapping[str, int],
    *,
    workers: int,
    tokenizer: AnyPath | None,
    vocab_size: int,
    progress: Progress | None,
) -> Path:
    """Generate a data folder, or keep the one that is there.

    Args:
        output: the folder; written atomically.
        recipe: of the images.
        counts: number of images of each split.
        workers: number of processes; 0 renders in this one. The files are the same.
        tokenizer: tokenizer to copy (file or folder); None trains one on the texts.
        vocab_size: maximum size of a trained vocabulary.
        progress: called after each job.

    Returns:
        The folder.

    Raises:
        ValueError: if the folder has another data set.
        FileNotFoundError: if `tokenizer` has no tokenizer.
    """
    folder = Path(output)
    parameters = {
        "generator": recipe.name,
        "version": recipe.version,
        "seed": recipe.seed,
        "counts": dict(counts),
        "image_size": recipe.image_size,
        "max_objects": recipe.max_objects,
        **recipe.parameters(),
        "tokenizer": tokenizer_fingerprint(tokenizer, vocab_size),
    }
    if is_finished(folder, parameters):
        return folder
    with explain_write_errors(folder, DISK_FULL), new_directory(folder) as partial_folder:
        images = (recipe.describe("train", index) for index in range(recipe.tokenizer_images))
        texts = [text for image in images for text in image.texts]
        write_tokenizer(partial_folder, tokenizer, texts, vocab_size)
        _write_images(partial_folder, recipe, counts, workers, progress)
        write_description(partial_folder, parameters, **recipe.facts())
    return folder


class _Job(NamedTuple):
    """Images start .. stop - 1 of a split, made by one process."""

    recipe: Recipe
    #: Folder that image file names are relative to.
    root: str
    split: str
    start: int
    stop: int


def _write_images(
    folder: Path,
    recipe: Recipe,
    counts: Mapping[str, int],
    workers: int,
    progress: Progress | None,
) -> None:
    """Write the images and annotation files of all splits."""
    root = folder / "images"
    jobs = []
    for split, count in counts.items():
        for start in range(0, max(count, 1), IMAGES_PER_FOLDER):
            (root / file_name(split, start)).parent.mkdir(parents=True)
        for start in range(0, count, _IMAGES_PER_JOB):
            stop = min(start + _IMAGES_PER_JOB, count)
            jobs.append(_Job(recipe, str(root), split, start, stop))
    info = f"fiber {recipe.name}, version {recipe.version}, seed {recipe.seed}"
    done, results = 0, _run_jobs(jobs, workers)
    for split in counts:
        sections = encode([], split)
        for job in (job for job in jobs if job.split == split):
            for section, entries in next(results).items():
                sections[section] += entries
            done += job.stop - job.start
            if progress is not None:
                progress(done, sum(counts.values()))
        write_split(folder, split, sections, recipe.world.nouns, info)


def _run_job(job: _Job) -> dict[str, list[str]]:
    """Write the images of a job; return their annotations as JSON."""
    images = []
    for index in range(job.start, job.stop):
        image = job.recipe.describe(job.split, index)
        pixels, image.boxes_xyxy = job.recipe.render(job.split, index)
        save_jpeg(pixels, f"{job.root}/{image.file_name}")
        images.append(image)
    return encode(images, job.split)


def _run_jobs(jobs: Sequence[_Job], workers: int) -> Iterator[dict[str, list[str]]]:
    """Yield the result of every job, in order.

    Processes are spawned, so a script that uses workers needs `if __name__ == "__main__":`.
    """
    if workers <= 0 or len(jobs) < 2:
        yield from map(_run_job, jobs)
        return
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)),
        mp_context=get_context("spawn"),
        # Ctrl-C is sent to the whole process group; only this process handles it.
        initializer=signal,
        initargs=(SIGINT, SIG_IGN),
    )
    try:
        yield from pool.map(_run_job, jobs)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
