"""Find photographs to crop corpora from, in the user's folders, next to a checkout, or in packages.

The names and file sizes of the photographs are part of a corpus's fingerprint.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from fiber.synthetic.stamp_assets import cache_folder, unpacked

#: Source name that selects Debian's packages, which are downloaded if missing.
DEBIAN = "debian"
#: Photographs in Debian's packages, excluding drawings and smaller copies.
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
#: Sample photographs in Python packages.
PACKAGE_PHOTOGRAPHS = {
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
    "skimage": ("data/astronaut.png", "data/coffee.png", "data/rocket.jpg", "data/chelsea.png"),
}
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff"}
HOW_TO_GET = "pass a folder with --photos DIR, or download Debian's with --photos debian"


def find_photographs(sources: Sequence[str] = ()) -> list[Path]:
    """List photographs, in an order that does not depend on their location.

    `sources` are folders to search recursively; "debian" means Debian's packages, which are
    downloaded into the user's cache. The default sources are `../shared/assets/photos` of a
    checkout, Debian's packages if installed or downloaded, and the sample images of Python
    packages.

    Raises:
        FileNotFoundError: if a folder is missing or has no images, if Debian's packages cannot be
            downloaded, or if nothing is found.
    """
    found: list[Path] = []
    for source in sources:
        found += _debian(fetch=True) if source == DEBIAN else _images_below(Path(source))
    if sources:
        return found
    folder = _next_to_checkout()
    found = _images_below(folder) if folder else []
    found += _debian(fetch=False) + _package_examples()
    if not found:
        raise FileNotFoundError(f"no photographs found to crop corpora from; {HOW_TO_GET}")
    return found


def _images_below(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected a folder of photographs")
    found = sorted(
        (path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES),
        key=lambda path: path.relative_to(folder).as_posix(),
    )
    if not found:
        kinds = ", ".join(sorted(_SUFFIXES))
        raise FileNotFoundError(f"{folder}: no photographs found; expected {kinds} files")
    return found


def _next_to_checkout() -> Path | None:
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


def _package_examples() -> list[Path]:
    found = []
    for package, names in PACKAGE_PHOTOGRAPHS.items():
        # Locate the package without importing it.
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin:
            root = Path(spec.origin).parent
            found += [root / name for name in names if (root / name).is_file()]
    return found
