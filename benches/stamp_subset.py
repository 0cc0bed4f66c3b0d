"""Choose a few of Debian's stamps, one of each kind of things with a name of one word.

Command: python benches/stamp_subset.py runs/stamp-files

Of hundreds of nouns a small model learns next to nothing in the minutes that `boxes.py` has for a
run; these are few enough. The generator holds one in eight out of its training pictures.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from fiber.synthetic.stamp_assets import debian_stamps, one_of_each, read_collection

#: Kinds of things, those that are held out among them.
KINDS = 16


def main() -> None:
    """Copy the chosen ones, each with its caption."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("output", type=Path, help="folder that does not exist yet")
    parser.add_argument("--stamps", type=Path, help="folder of PNG files beside .txt captions")
    given = parser.parse_args()
    choose(given.stamps or debian_stamps(), given.output)
    print(given.output)


def choose(stamps: Path, output: Path, kinds: int = KINDS) -> None:
    """Copy one stamp of each of some kinds into a new folder, named by its noun.

    Raises:
        FileExistsError: if the folder exists.
        ValueError: if there are too few kinds whose name is one word.
    """
    # Photographs do not matter here, but there must be some.
    cutouts = [c for c in read_collection(stamps, [stamps]).cutouts if " " not in c.noun]
    chosen = one_of_each(cutouts, kinds)
    output.mkdir(parents=True)
    for cutout in chosen:
        for suffix in (".png", ".txt"):
            shutil.copy(Path(cutout.path).with_suffix(suffix), output / f"{cutout.noun}{suffix}")


if __name__ == "__main__":
    main()
