"""Stamps (cut-outs with captions) and photographs, from Debian packages or given folders.

Debian's tuxpaint-stamps-default has hundreds of RGBA cut-outs, each with a text file whose first
line is an English caption, such as "A great blue heron.". Packages are unpacked into the user's
cache without being installed.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from fiber.data.image_file import ENDINGS
from fiber.synthetic.panoptic import bounds

STAMPS_PACKAGE = "tuxpaint-stamps-default"
#: Packages with photographs, and the folder that contains them.
BACKGROUND_PACKAGES = {
    "mate-backgrounds": "usr/share/backgrounds/mate/nature",
    "lomiri-wallpapers-16.04": "usr/share/backgrounds",
}
#: Debian's photographs that show objects also found as stamps (a drum, flowers, dogs), which would
#: make answers to questions such as "is there a drum?" wrong.
_SHOWS_THINGS = (
    "backgrounds/mate/nature/FreshFlower.jpg",
    "backgrounds/mate/nature/Garden.jpg",
    "backgrounds/mate/nature/LadyBird.jpg",
    "backgrounds/mate/nature/YellowFlower.jpg",
    "backgrounds/Dragonfly_by_Bolly.jpg",
    "backgrounds/Picture_0B_by_freespace.jpg",
    "backgrounds/Picture_1A_by_freespace.jpg",
    "backgrounds/Wine_by_Jakkub_Mede.jpg",
    "backgrounds/free_by_Peter_Nerlich.jpg",
    "backgrounds/friends_by_Aitzol_Berasategi.jpg",
    "backgrounds/greentock_by_Peter_Nerlich.jpg",
    "backgrounds/seeding_by_Clements_Engelhardt.jpg",
)
_STAMPS_FOLDER = "usr/share/tuxpaint/stamps"

_CAPTION = re.compile(
    r"(an?) ([a-z]+(?:[-'][a-z]+)*(?: [a-z]+(?:[-'][a-z]+)*){0,3})(?: \(.*\))?[.!]?"
)
# Captions with these words are not plain noun phrases.
_NO_NOUN_WORDS = {"at", "being", "by", "called", "dancing", "for", "from", "holding", "in"}
_NO_NOUN_WORDS |= {"inside", "is", "made", "making", "of", "on", "pair", "playing", "that", "the"}
_NO_NOUN_WORDS |= {"to", "used", "very", "which", "with"}
# Families of nouns that do not share their last word.
_GRAVES = ("gravestone", "headstone", "tombstone", "marker", "monument stone", "graveyard")
_FAMILIES = {
    **dict.fromkeys(_GRAVES, "grave"),
    **dict.fromkeys(("hen", "rooster"), "chicken"),
    "bunny": "rabbit",
    "cep": "mushroom",
    "seagull": "gull",
    "fortress": "fort",
    "drake": "duck",
    "lime": "lemon",
    "peahen": "peacock",
    "orca": "whale",
    "tepee": "tent",
}
#: Cut-outs smaller than this (in pixels) are icons; those with fewer colors (out of 4096) are line
#: drawings.
_MIN_SIDE, _MIN_COLORS = 40, 24


class Cutout(NamedTuple):
    """A stamp's file, noun and size."""

    path: str
    noun: str
    #: (height, width) of the bounding box of the opaque pixels.
    size: tuple[int, int]


@dataclass(frozen=True)
class StampCollection:
    """All usable stamps and photographs."""

    cutouts: tuple[Cutout, ...]
    backgrounds: tuple[str, ...]
    #: Number of skipped files, by reason.
    skipped: tuple[tuple[str, int], ...] = ()

    @cached_property
    def nouns(self) -> tuple[str, ...]:
        """All nouns (the classes), in alphabetical order."""
        return tuple(sorted({cutout.noun for cutout in self.cutouts}))

    @cached_property
    def by_noun(self) -> dict[str, list[int]]:
        """Indices of the cut-outs of each noun."""
        nouns = [cutout.noun for cutout in self.cutouts]
        return {noun: [i for i, own in enumerate(nouns) if own == noun] for noun in self.nouns}

    def fingerprint(self) -> str:
        """Return a short hash of the names and sizes of all files."""
        paths = [cutout.path for cutout in self.cutouts] + list(self.backgrounds)
        lines = [f"{Path(path).name} {Path(path).stat().st_size}" for path in paths]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def noun_of(caption: str) -> str | None:
    """Return a caption's noun phrase, such as "peacock" for "A peacock (a male peafowl).".

    Captions other than "a" or "an" followed by up to four words return None.
    """
    words = " ".join(caption.lower().replace("\u2019", "'").split())
    found = _CAPTION.fullmatch(words)
    if found is None or _NO_NOUN_WORDS & set(found[2].split()):
        return None
    return found[2]


def family_of(noun: str) -> str:
    """Return the family of a noun, usually its last word. Objects of a family look alike."""
    last = noun.rpartition(" ")[2]
    return _FAMILIES.get(noun, _FAMILIES.get(last, last))


def read_collection(stamps: Path, backgrounds: Sequence[Path]) -> StampCollection:
    """Find the usable photographs, and the usable stamps (PNG files with a caption in a .txt file).

    Raises:
        FileNotFoundError: if a folder does not exist or contains no usable files.
    """
    for folder in (stamps, *backgrounds):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is not a folder; expected a folder with images")
    found = [_read_cutout(path) for path in sorted(stamps.rglob("*.png"))]
    cutouts = tuple(cutout for cutout in found if isinstance(cutout, Cutout))
    skipped = Counter(reason for reason in found if isinstance(reason, str))
    if not cutouts:
        raise FileNotFoundError(
            f"{stamps} has no usable stamps; expected PNG files with transparency, each with a"
            f' caption such as "A red mug." in a .txt file (skipped: {dict(skipped) or "nothing"})'
        )
    files = (path for folder in backgrounds for path in folder.rglob("*"))
    every = sorted(str(path) for path in files if path.suffix.lower() in ENDINGS)
    photos = tuple(path for path in every if not path.endswith(_SHOWS_THINGS))
    if len(photos) < len(every):
        skipped["photograph shows things"] = len(every) - len(photos)
    if not photos:
        raise FileNotFoundError(
            f"no photographs found in {', '.join(map(str, backgrounds))}; expected files that end"
            f" with {', '.join(ENDINGS)}"
        )
    return StampCollection(cutouts, photos, tuple(sorted(skipped.items())))


def one_of_each(cutouts: Sequence[Cutout], kinds: int, seed: int = 0) -> list[Cutout]:
    """Choose one cut-out from each of `kinds` noun families, largest first.

    The first cut-out of each family is a candidate. Up to 3 * `kinds` families are sampled, and
    those with the largest cut-outs (by shorter side) are chosen.

    Raises:
        ValueError: if there are fewer than `kinds` families.
    """
    by_family: dict[str, Cutout] = {}
    for cutout in cutouts:
        by_family.setdefault(family_of(cutout.noun), cutout)
    if len(by_family) < kinds:
        raise ValueError(
            f"the stamps show {len(by_family)} kinds of objects; expected {kinds} or more"
        )
    sampled = random.Random(seed).sample(sorted(by_family), min(len(by_family), 3 * kinds))
    largest = sorted(sampled, key=lambda family: -min(by_family[family].size))
    return [by_family[family] for family in largest[:kinds]]


def _read_cutout(path: Path) -> Cutout | str:
    """Read a stamp, or return the reason why it is unusable."""
    text = path.with_suffix(".txt")
    if not text.is_file():
        return "no caption"
    lines = text.read_text(encoding="utf-8", errors="replace").splitlines()
    noun = noun_of(lines[0]) if lines else None
    if noun is None:
        return "caption is no noun phrase"
    try:
        with Image.open(path) as image:
            if image.mode not in ("RGBA", "P"):
                return "grey or without transparency"
            pixels = np.asarray(image.convert("RGBA"))
    except OSError:
        return "cannot be decoded"
    opaque = pixels[:, :, 3] > 127
    box = bounds(opaque)
    if box is None:
        return "empty"
    x0, y0, x1, y1 = box
    if max(x1 - x0, y1 - y0) < _MIN_SIDE:
        return "small"
    colors = pixels[opaque][:, :3] // 16
    if len(np.unique(colors.astype(np.int32) @ np.array([256, 16, 1]))) < _MIN_COLORS:
        return "few colours"
    return Cutout(str(path), noun, (y1 - y0, x1 - x0))


def cache_folder() -> Path:
    """Return the folder for unpacked packages: fiber/debian in $XDG_CACHE_HOME or ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "fiber" / "debian"


def debian_stamps() -> Path:
    """Return the folder of Debian's stamps, downloading them into the cache if needed."""
    installed = Path("/") / _STAMPS_FOLDER
    return installed if installed.is_dir() else unpacked(STAMPS_PACKAGE) / _STAMPS_FOLDER


def debian_backgrounds() -> list[Path]:
    """Return the folders of Debian's photographs, downloaded into the cache if needed."""
    return [unpacked(package) / folder for package, folder in BACKGROUND_PACKAGES.items()]


def unpacked(package: str) -> Path:
    """Return the folder of a Debian package's files, downloading and unpacking it if needed.

    Raises:
        FileNotFoundError: if apt-get or dpkg-deb is missing or fails. The message lists manual
            steps.
    """
    folder = cache_folder() / package
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{package}.") as work:
        _run_tool(["apt-get", "download", package], work, folder)
        files = [str(path) for path in Path(work).glob("*.deb")]
        _run_tool(["dpkg-deb", "-x", *files, "files"], work, folder)
        shutil.move(Path(work) / "files", folder)
    return folder


def _run_tool(command: list[str], work: str, folder: Path) -> None:
    package = folder.name
    try:
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        output = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        reason = f"failed: {output}"
    except FileNotFoundError:
        reason = "is not installed"
    raise FileNotFoundError(
        f"cannot download Debian's {package}: {command[0]} {reason}. On a Debian or Ubuntu system,"
        f" run: apt-get update; apt-get download {package}; dpkg-deb -x {package}_*.deb {folder}."
        f" Elsewhere, download package {package} from https://packages.debian.org, unpack it, and"
        f" put its files (usr/...) into {folder}"
    )
