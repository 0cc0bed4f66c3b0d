"""Select a few of Debian's stamps, one per kind of thing with a one-word name.

Command: python benches/stamp_subset.py runs/stamp-files

A small model learns almost nothing of hundreds of nouns in the minutes that `boxes.py` has for a
run; these are few enough. The generator holds one in eight out of its training images.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from fiber.synthetic.stamp_assets import debian_stamps, one_of_each, read_collection

#: Number of nouns, including held-out ones.
KINDS = 16


def main() -> None:
    """Copy the selected stamps and their captions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("output", type=Path, help="new directory")
    parser.add_argument("--stamps", type=Path, help="directory of PNG files with .txt captions")
    given = parser.parse_args()
    choose(given.stamps or debian_stamps(), given.output)
    print(given.output)


def choose(stamps: Path, output: Path, kinds: int = KINDS) -> None:
    """Copy one stamp per noun into a new directory, named by the noun.

    Raises:
        FileExistsError: if the directory exists.
        ValueError: if there are too few one-word nouns.
    """
    # `read_collection` requires photographs; any will do.
    cutouts = [c for c in read_collection(stamps, [stamps]).cutouts if " " not in c.noun]
    chosen = one_of_each(cutouts, kinds)
    output.mkdir(parents=True)
    for cutout in chosen:
        for suffix in (".png", ".txt"):
            shutil.copy(Path(cutout.path).with_suffix(suffix), output / f"{cutout.noun}{suffix}")


if __name__ == "__main__":
    main()
