"""Read the corpus of a target and some mutants, without coverage and within limits.

Command: python -m tests.fuzz.replay TARGET MUTANTS
The limits turn an input that would fill the memory or never end into a failure of this process. The
number of a mutant is that of its random generator, so it can be made again.
"""

from __future__ import annotations

import argparse
import random
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.fuzz.targets import RUST_TARGETS, TARGETS, Target, corpus

#: Memory that reading an input may add, in bytes.
_MOST_MEMORY = 1 << 30
#: CPU time of a replay, in seconds.
_MOST_SECONDS = 300


def main(arguments: list[str] | None = None) -> None:
    """Read every input; print its name before, so that the last line names one that fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("target", choices=[*TARGETS, *RUST_TARGETS])
    parser.add_argument("mutants", type=int)
    options = parser.parse_args(arguments)
    target = (TARGETS | RUST_TARGETS)[options.target]
    count = found = 0
    with tempfile.TemporaryDirectory() as folder:
        sound = target.seeds()
        for number, seed in enumerate(sound):
            print("seed", number, flush=True)
            accepted = target.read(seed, Path(folder))
            assert accepted, "a sound input is rejected"
        _limit()
        for name, data in _inputs(options.target, target, sound, options.mutants):
            print(name, flush=True)
            found += target.read(data, Path(folder))
            count += 1
    print(f"{count} inputs, {count - found} rejected")


def _inputs(
    name: str, target: Target, sound: list[bytes], mutants: int
) -> Iterator[tuple[str, bytes]]:
    stored = corpus(name)
    yield from stored.items()
    yield "empty", b""
    originals = [*sound, *stored.values()]
    for number in range(mutants):
        yield f"mutant {number}", target.mutate(random.Random(number), originals)


def _limit() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + _MOST_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (_MOST_SECONDS, _MOST_SECONDS))


if __name__ == "__main__":
    main()
