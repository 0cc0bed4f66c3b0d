"""Hostile files and mutants of them, read by forked processes with limits.

Command: python -m tests.hostile_files [--mutants N] [--seed S] [--only KIND] [--every N]
A file may be refused with a ValueError or an OSError, or be read. It must take neither more than 5
s of processor time nor 500 MB, and must not end the process; its message must name the file. What
the generator makes must not take more than 2.5 times as long when it is twice as large, which is
measured from .3 s on. Prints the counts by outcome; exit code 1 if a limit is broken.
"""

from __future__ import annotations

import argparse
import collections
import gc
import io
import itertools
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import fiber
import fiber.inference.model  # imported before the processes are forked
from fiber.checkpoints.convert import convert
from fiber.checkpoints.load import read_model
from fiber.data import Tokenizer
from tests import hostile_cases, hostile_masks
from tests.conftest import save_micro_models
from tests.fuzz.forked import Ended, limit, run_forked
from tests.fuzz.generated import cases as generator
from tests.fuzz.generated.documents import Document
from tests.fuzz.generated.verdict import ALLOWED, verdict
from tests.fuzz.structured import GROWTH_SECONDS, MAX_GROWTH, Steered, growth_of, prepared

MAX_SECONDS, MAX_BYTES = 5, 500_000_000
#: Sizes of the generator's cases.
SIZES = (1, 1, 30, 300, 3000)
#: Number of files that a process reads, unless one of them ends it.
CASES_PER_PROCESS = 50
#: Maximum size of a file; the hostile ones have at most 2 MB.
MAX_FILE_BYTES = 4_000_000

Write = Callable[[Path], None]


class Case(NamedTuple):
    """A file or folder to write, and how to read it."""

    kind: str
    name: str
    write: Write
    read: Callable[[Path], object]
    #: Measures, after `write`, how much longer twice the size takes; None if there are no sizes.
    growth: Callable[[Path], float] | None = None


class Result(NamedTuple):
    """How reading a file ended."""

    outcome: str
    seconds: float
    extra_bytes: int
    is_allowed: bool


def main(arguments: list[str] | None = None) -> int:
    """Read all cases and their mutants; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mutants", type=int, default=20, help="mutants of each case")
    parser.add_argument("--seed", type=int, default=0)
    kinds = (
        "pickle",
        "zip",
        "tokenizer",
        "folder",
        "masks",
        *(each.kind for each in generator.documents()),
    )
    parser.add_argument("--only", choices=dict.fromkeys(kinds), help="kind of file")
    parser.add_argument("--every", type=int, default=1, help="read only each Nth file")
    parser.add_argument(
        "--places", action="store_true", help="hostile values at every place, instead of some drawn"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    # Garbage collection in a child would copy every page of the objects that exist here.
    gc.freeze()
    results: dict[str, list[tuple[str, Result]]] = collections.defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        mutants = None if options.places else options.mutants
        cases = all_cases(Path(folder), mutants, options.seed, options.only)
        chosen = itertools.islice(cases, 0, None, options.every)
        while batch := list(itertools.islice(chosen, CASES_PER_PROCESS)):
            found = read_limited(batch, Path(folder) / "case")
            for case, result in zip(batch, found, strict=True):
                results[case.kind].append((case.name, result))
    broken = 0
    for kind, found in results.items():
        broken += report(kind, found)
    gc.unfreeze()
    return 1 if broken or not results else 0


def report(kind: str, found: list[tuple[str, Result]]) -> int:
    """Print a summary of a kind of file; return the number of files that broke a limit."""
    counts = collections.Counter(result.outcome for _, result in found)
    slowest = max(found, key=lambda entry: entry[1].seconds)
    largest = max(found, key=lambda entry: entry[1].extra_bytes)
    print(f"{kind}: {len(found)} files")
    print("  " + ", ".join(f"{outcome} {count}" for outcome, count in counts.most_common()))
    print(f"  slowest {slowest[1].seconds:.2f} s ({slowest[0]})")
    print(f"  largest {largest[1].extra_bytes / 1e6:.0f} MB ({largest[0]})")
    broken = [(name, result) for name, result in found if not result.is_allowed]
    for name, result in broken[:20]:
        print(f"  BROKEN {name}: {result.outcome}, {result.seconds:.2f} s")
    return len(broken)


def read_limited(cases: Sequence[Case], path: Path) -> Iterator[Result]:
    """Write and read cases in forked processes."""
    for found in run_forked(cases, lambda case: measure(case, path)):
        yield (
            checked(found.reason, found.seconds, 0) if isinstance(found, Ended) else checked(*found)
        )


def checked(outcome: str, seconds: float, extra_bytes: int) -> Result:
    within = seconds <= MAX_SECONDS and extra_bytes < MAX_BYTES
    return Result(outcome, seconds, extra_bytes, outcome in ALLOWED and within)


def measure(case: Case, path: Path) -> tuple[str, float, int]:
    """Read a file within limits.

    Returns:
        The outcome, see `verdict`; the processor time in seconds; the memory in bytes over that
        before, or 0 if an earlier case of the process took more.
    """
    clear(path)
    case.write(path)
    os.chdir(path.parent)
    sys.stderr = sys.stdout = io.StringIO()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    warnings.simplefilter("ignore")
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    before = resource.getrusage(resource.RUSAGE_SELF)
    used = before.ru_utime + before.ru_stime
    limit(MAX_SECONDS + 2, MAX_BYTES)
    outcome = verdict(case.read, path)
    if (path.parent / "ran").exists():
        outcome = "a function ran"
    after = resource.getrusage(resource.RUSAGE_SELF)
    extra = after.ru_maxrss * 1024 - resident if after.ru_maxrss > before.ru_maxrss else 0
    seconds = after.ru_utime + after.ru_stime - used
    if case.growth is not None and outcome in ALLOWED and seconds >= GROWTH_SECONDS:
        # To write the cases takes longer than to read them.
        limit(60 * MAX_SECONDS, MAX_BYTES)
        if (growth := case.growth(path)) > MAX_GROWTH:
            outcome = f"{growth:.1f} times the time for twice the size"
    return outcome, seconds, extra


def clear(path: Path) -> None:
    """Remove a file, a link or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def all_cases(folder: Path, mutants: int | None, seed: int, only: str | None) -> Iterator[Case]:
    """Yield every case, of one kind if that is given, each followed by its mutants.

    Without a number of mutants: hostile values at every place of the generator's documents.
    """
    if mutants is None:
        for document in generator.documents():
            if only in (None, document.kind):
                sources = prepared(document, folder / "prepared")
                for number, case in enumerate(generator.small_cases(document)):
                    yield generated_case(case, sources, 1, number)
                for number, case in enumerate(generator.probing_cases(document)):
                    yield generated_case(case, sources, max(SIZES), number)
        return
    if only in (None, "masks"):
        for name in hostile_masks.cases():
            yield Case("masks", name, writer(name.encode()), hostile_masks.read)
    save_micro_models(folder)
    kinds = {"pickle": pickles, "zip": archives, "tokenizer": tokenizers, "folder": folders}
    for kind, cases in kinds.items():
        if only in (None, kind):
            yield from cases(folder, mutants, random.Random(seed))
    for document in generator.documents():
        if only in (None, document.kind):
            yield from generated(document, folder / "prepared", mutants, random.Random(seed))


def pickles(folder: Path, mutants: int, rng: random.Random) -> Iterator[Case]:
    """Yield pickles in each container, then mutants in any of them."""
    for name, pickled in (hostile_cases.PICKLES | hostile_cases.probing_pickles()).items():
        for number in range(mutants + 3):
            wrap = hostile_cases.CONTAINERS[number] if number < 3 else None
            data = pickled if wrap else mutate(pickled, rng)
            data = (wrap or rng.choice(hostile_cases.CONTAINERS))(data)
            yield Case("pickle", f"{name} #{number}", writer(data), read_model)
    weights = published(folder)
    for number in range(mutants + 1):
        data = with_mutated_pickle(weights, rng) if number else weights
        yield Case("pickle", f"weights #{number}", writer(data), read_model)


def published(folder: Path) -> bytes:
    """The weights of a small model, as a published file."""
    path = folder / "published.ckpt"
    if not path.exists():
        convert(folder / "coarse", path, "published")
    return path.read_bytes()


def with_mutated_pickle(archive: bytes, rng: random.Random) -> bytes:
    """A file of torch.save whose pickle is mutated; the rest stays intact."""
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(changed, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, mutate(content, rng) if name.endswith("data.pkl") else content)
    return changed.getvalue()


def archives(folder: Path, mutants: int, rng: random.Random) -> Iterator[Case]:
    """Yield hostile archives, some with the weights of a model."""
    program = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(hostile_cases.Program(str(folder / "ran"))), program)
    for name, data in hostile_cases.zip_files(program.getvalue(), published(folder)).items():
        for number in range(mutants + 1):
            mutant = mutate(data, rng) if number else data
            yield Case("zip", f"{name} #{number}", writer(mutant), read_model)


def tokenizers(folder: Path, mutants: int, rng: random.Random) -> Iterator[Case]:
    """Yield hostile tokenizers."""
    whole = json.loads((folder / "fine" / "tokenizer.json").read_text())
    for name, content in hostile_cases.tokenizers(whole).items():
        for number in range(mutants + 1):
            data = json.dumps(content).encode()
            if number % 2:
                data = mutate(data, rng)
            elif number:
                data = json.dumps(mutate_json(content, rng)).encode()[:MAX_FILE_BYTES]
            yield Case("tokenizer", f"{name} #{number}", writer(data), read_tokenizer)


def folders(folder: Path, mutants: int, rng: random.Random) -> Iterator[Case]:
    """Yield model folders with hostile files."""
    files = {file.name: file.read_bytes() for file in (folder / "fine").iterdir()}
    config = json.loads(files["config.json"])
    for text in hostile_cases.CONFIG_TEXTS:
        changed = files | {"config.json": text.encode()}
        yield Case("folder", f"config.json {text[:20]}", folder_writer(changed), read_folder)
    for name, value in fields(config["model"]):
        for new in hostile_cases.CONFIG_VALUES:
            if type(new) is type(value) and new == value:
                continue
            content = json.loads(files["config.json"])
            set_field(content["model"], name, new)
            changed = files | {"config.json": json.dumps(content).encode()}
            case = f"{'.'.join(map(str, name))} = {str(new)[:20]}"
            yield Case("folder", case, folder_writer(changed), read_folder)
    for name, data in files.items():
        for number in range(mutants):
            changed = files | {name: mutate(data, rng)}
            yield Case("folder", f"{name} #{number}", folder_writer(changed), read_folder)
        for special in ("pipe", "/dev/zero", "folder"):
            write = folder_writer(files, {name: special})
            yield Case("folder", f"{name} is a {special}", write, read_folder)


def generated(document: Document, folder: Path, mutants: int, rng: random.Random) -> Iterator[Case]:
    """Yield a sound document, integers that probe and, in place of mutants, drawn cases."""
    sources = prepared(document, folder)
    for number, case in enumerate(generator.probing_cases(document)):
        yield generated_case(case, sources, max(SIZES), number)
    for number in range(mutants + 1):
        draw = random.Random(rng.getrandbits(32)) if number else Steered(b"")
        case = generator.random_case(draw, document)
        yield generated_case(case, sources, draw.choice(SIZES) if number else 1, number)


def generated_case(case: generator.Case, sources: Path, size: int, number: int) -> Case:
    """Make a case of a generated one, of a size at which its files are not too large."""
    fitting = size

    def write(path: Path) -> None:
        nonlocal fitting
        path.symlink_to(sources)
        if size > 30:
            small, larger = (written_bytes(case, path, each) for each in (1, 8))
            fitting = max(min(size, (MAX_FILE_BYTES - small) * 7 // max(larger - small, 1)), 1)
        case.write(path, fitting)

    def growth(path: Path) -> float:
        return growth_of(case, path, max(fitting // 2, 1))

    name = f"{case.document.name} #{number}, {size} x: {case.name}"
    return Case(case.document.kind, name, write, case.document.read, growth)


def written_bytes(case: generator.Case, path: Path, size: int) -> int:
    """Write a case and return the size of all files in its folder."""
    case.write(path, size)
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def fields(values: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield the numbers and lists in a config, with their places."""
    items = values.items() if isinstance(values, dict) else enumerate(values)
    for name, value in items:
        yield (*prefix, name), value
        if isinstance(value, dict | list):
            yield from fields(value, (*prefix, name))


def set_field(values: Any, name: tuple[Any, ...], value: object) -> None:
    for part in name[:-1]:
        values = values[part]
    values[name[-1]] = value


def writer(data: bytes) -> Write:
    return lambda path: void(path.write_bytes(data))


def void(_: object) -> None:
    """Drop a value."""


def folder_writer(files: dict[str, bytes], special: dict[str, str] | None = None) -> Write:
    def write(path: Path) -> None:
        path.mkdir()
        for name, data in files.items():
            kind = (special or {}).get(name)
            if kind == "pipe":
                os.mkfifo(path / name)
            elif kind == "folder":
                (path / name).symlink_to(path.parent)
            elif kind is not None:
                (path / name).symlink_to(kind)
            else:
                (path / name).write_bytes(data)

    return write


def read_tokenizer(path: Path) -> None:
    tokenizer = Tokenizer.from_file(path)
    ids, _ = tokenizer.encode("a small red circle, aaaa")
    tokenizer.decode(ids[:100])


def read_folder(path: Path) -> None:
    model = fiber.load(path, device="cpu")
    model.ground(np.zeros((64, 64, 3), np.uint8), ["a circle"])


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Change, remove, repeat or insert bytes in a few places."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(out) + 1)
        length = min(int(rng.paretovariate(0.7)), 4096)
        kind = rng.randrange(5)
        if kind == 0:
            out[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            del out[at : at + length]
        elif kind == 2:
            out[at:at] = out[at : at + length] * rng.choice((1, 2, 50))
        elif kind == 3:
            out[at : at + 4] = rng.choice((2**31 - 1, 2**32 - 1, 0, 1, 65536)).to_bytes(4, "little")
        else:
            other = rng.randrange(len(out) + 1)
            out[at:at] = out[other : other + length]
    return bytes(out[:MAX_FILE_BYTES])


def mutate_json(content: Any, rng: random.Random) -> Any:
    """Change one value of a JSON document, at a random depth."""
    copy = json.loads(json.dumps(content))
    parent: Any = copy
    for _ in range(rng.randrange(1, 6)):
        keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
        if not keys:
            break
        # Parts that steer the work, rather than one of many tokens.
        key = rng.choice([key for key in keys if key not in ("model", "vocab")] or keys)
        value = parent[key]
        if isinstance(value, dict | list) and value and rng.random() < 0.7:
            parent = value
            continue
        parent[key] = changed_value(value, rng)
        break
    return copy


def changed_value(value: Any, rng: random.Random) -> Any:
    if isinstance(value, str):
        return rng.choice((value * 50, value + "(a+)+$", "", "a", value[::-1], None))
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return rng.choice((0, -1, 2**31, 2**32 - 1, 10**12, value + 1))
    if isinstance(value, list):
        return rng.choice((value * 3, value[:1], [value], None))
    if isinstance(value, dict):
        return rng.choice(({}, [value], {"type": "Sequence", "normalizers": [value] * 5}, None))
    return rng.choice(({}, [], "a", 1))


if __name__ == "__main__":
    sys.exit(main())
