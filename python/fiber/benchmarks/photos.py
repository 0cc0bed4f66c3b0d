"""Photographs that the benchmark's corpora are cut out of: given, beside a checkout, or Debian's.

Corpora of one machine can be made again elsewhere from the same photographs only: their names and
sizes are part of a corpus's fingerprint.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from fiber.synthetic.stamp_assets import cache_folder, unpacked

#: The word that stands for Debian's packages where folders are named: they are fetched if missing.
DEBIAN = "debian"
#: Photographs in Debian's packages; what else these hold is drawn, or the same one smaller.
DEBIAN_PHOTOGRAPHS = {
    "lomiri-wallpapers-16.04": (
        "usr/share/backgrounds",
        """
        Bridge_by_Sander_Klootwijk Dragonfly_by_Bolly Picture_0B_by_freespace
        Picture_1A_by_freespace Wine_by_Jakkub_Mede aitzgorri_by_Aitzol_Berasategi
        free_by_Peter_Nerlich friends_by_Aitzol_Berasategi greentock_by_Peter_Nerlich
        life_by_Aitzol_Berasategi picosdeeuropa_by_Aitzol_Berasategi
        seeding_by_Clements_Engelhardt sunset_by_Aitzol_Berasategi umang_by_Abhishek_Mudgal
        """,
    ),
    "lomiri-wallpapers-20.04": (
        "usr/share/backgrounds",
        "Fossa_by_Jasper_Roks Infinite-Sea_by_Aury88 Kleiber_by_Lukas_Baubkus",
    ),
    "mate-backgrounds": (
        "usr/share/backgrounds/mate",
        """
        abstract/Elephants_5640x3172 nature/Blinds nature/Dune nature/Garden nature/LadyBird
        nature/RainDrops nature/Storm nature/TwoWings nature/Wood nature/YellowFlower
        nature/GreenMeadow
        """,
    ),
    "plasma-workspace-wallpapers": (
        "usr/share/wallpapers",
        """
        Autumn/contents/images/2560x1600 BytheWater/contents/images/2560x1600
        ColdRipple/contents/images/2560x1600 ColorfulCups/contents/images/2560x1600
        EveningGlow/contents/images/2560x1600 FallenLeaf/contents/images/2560x1600
        Kite/contents/images/2560x1600 OneStandsOut/contents/images/2560x1600
        summer_1am/contents/images/2560x1600
        """,
    ),
}
#: Photographs that Python packages bring for their examples.
PACKAGE_PHOTOGRAPHS = {
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
    "skimage": ("data/astronaut.png", "data/coffee.png", "data/rocket.jpg", "data/chelsea.png"),
}
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff"}
HOW_TO_GET = (
    "name a folder of yours with --photos DIR, or let Debian's be fetched with --photos debian"
)


def find_photographs(sources: Sequence[str] = ()) -> list[Path]:
    """List photographs, in an order that does not depend on where they lie.

    Args:
        sources: folders, searched with what lies below them; the word "debian" stands for Debian's
            packages, which are fetched into the user's cache. None: what is found without asking
            anybody, which is a checkout's `../shared/assets/photos`, Debian's packages where they
            are installed or fetched already, and the example pictures of Python packages.

    Raises:
        FileNotFoundError: if a folder is missing or holds no picture, if Debian's packages cannot
            be fetched, or if nothing is named and nothing is found.
    """
    found: list[Path] = []
    if sources:
        for source in sources:
            found += _debian(fetch=True) if source == DEBIAN else _pictures_below(Path(source))
        return found
    beside = _beside_checkout()
    if beside is not None:
        found += _pictures_below(beside)
    found += _debian(fetch=False) + _of_python_packages()
    if not found:
        raise FileNotFoundError(f"there are no photographs to cut corpora out of; {HOW_TO_GET}")
    return found


def _pictures_below(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected one with photographs")
    found = sorted(
        (path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES),
        key=lambda path: path.relative_to(folder).as_posix(),
    )
    if not found:
        kinds = ", ".join(sorted(_SUFFIXES))
        raise FileNotFoundError(f"{folder} holds no photograph; expected files named {kinds}")
    return found


def _beside_checkout() -> Path | None:
    root = Path(__file__).parents[3]
    for above in (root.parent, Path.cwd().parent):
        folder = above / "shared" / "assets" / "photos"
        if folder.is_dir():
            return folder
    return None


def _debian(*, fetch: bool) -> list[Path]:
    found = []
    for package, (folder, names) in DEBIAN_PHOTOGRAPHS.items():
        paths = [f"{folder}/{name}.jpg" for name in names.split()]
        roots = [Path("/"), cache_folder() / package]
        root = next((r for r in roots if any((r / path).is_file() for path in paths)), None)
        if root is None and fetch:
            root = unpacked(package)
        if root is not None:
            found += [root / path for path in paths if (root / path).is_file()]
    return found


def _of_python_packages() -> list[Path]:
    found = []
    for package, names in PACKAGE_PHOTOGRAPHS.items():
        # Looked up, not imported: neither is needed for its pictures.
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin:
            root = Path(spec.origin).parent
            found += [root / name for name in names if (root / name).is_file()]
    return found
