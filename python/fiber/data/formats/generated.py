"""Version of the generator that made a data folder."""

from __future__ import annotations

from pathlib import Path

from fiber.atomic_io import read_json
from fiber.messages import shown

#: Description of a generated folder, with the parameters that determine its data.
DESCRIPTION = "dataset.json"
#: Maximum size of this file; those that are written have a few kilobytes.
MAX_DESCRIPTION_BYTES = 1 << 20
#: Versions of the generators. From the same seed, another version makes other images or texts.
VERSIONS = {"scenes": 5, "stamps": 3}


def other_version(folder: Path) -> str | None:
    """Return what to say if another version of a generator made a folder, or None.

    Raises:
        ValueError: if the description is not JSON.
    """
    file = folder / DESCRIPTION
    if not file.is_file():
        return None
    description = read_json(file, MAX_DESCRIPTION_BYTES)
    parameters = description.get("parameters") if isinstance(description, dict) else None
    if not isinstance(parameters, dict) or not isinstance(parameters.get("generator"), str):
        return None
    version, own = parameters.get("version"), VERSIONS.get(parameters["generator"])
    if own is None or version == own:
        return None
    return f"{folder} was made by version {shown(version)} of the generator; this is version {own}"
