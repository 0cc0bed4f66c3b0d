"""Demo folder: parameters, stage times and evaluation results.

runs/demo/
  demo.json            parameters; duration of the data stage
  data/                dataset
  fine/ coarse/        runs of the plan
  measured.json        results with fingerprints of their inputs
  rows.json, contact_sheet.png, report.html
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fiber.atomic_io import read_json, remove_parts, write_json
from fiber.data.formats.generated import other_version
from fiber.messages import shown


class DemoFolder:
    """Files of one demo. Writes are atomic, so a file with its final name is complete."""

    def __init__(self, path: Path, parameters: Mapping[str, Any]) -> None:
        """Open or create the folder. `parameters` are JSON values that determine the result.

        Raises:
            ValueError: if the folder contains unrelated files, a demo with different parameters
                (the message lists the differences), or data of another version of the generator.
        """
        self.path = path
        self._own = path / "demo.json"
        wanted = json.loads(json.dumps(dict(parameters)))
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file; pass a folder with --output")
        if self._own.is_file():
            stored = read_json(self._own)
            changed = _differences(stored.get("parameters", {}), wanted)
            if changed:
                raise ValueError(
                    f"{path} contains a demo with different parameters (existing -> requested):"
                    f" {'; '.join(changed)}. Pass a different folder with --output, or delete"
                    " this one"
                )
            self._notes = stored
        else:
            if path.is_dir() and any(path.iterdir()):
                raise ValueError(
                    f"{path} exists but is not a demo folder ({self._own.name} is missing); pass a"
                    " new folder with --output"
                )
            path.mkdir(parents=True, exist_ok=True)
            self._notes = {"parameters": wanted}
            write_json(self._own, self._notes)
        remove_parts(path)
        #: Dataset folder.
        self.data = path / "data"
        if (problem := other_version(self.data)) is not None:
            raise ValueError(f"{problem}. Pass a different folder with --output, or delete {path}")
        self._measured_file = path / "measured.json"
        stored = read_json(self._measured_file) if self._measured_file.is_file() else {}
        self._measured: dict[str, Any] = stored

    def note(self, name: str, value: Any) -> None:
        """Store a JSON value in demo.json."""
        self._notes[name] = value
        write_json(self._own, self._notes)

    def noted(self, name: str) -> Any:
        """Return a value stored by `note`, or None."""
        return self._notes.get(name)

    def measured(
        self, name: str, made_from: str, measure: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Return stored values, or call `measure` if they are missing or outdated.

        `made_from` is a fingerprint of the inputs. Values must be JSON-serializable. The
        computation time is added as "seconds".
        """
        known = self.find(name, made_from)
        return known if known is not None else self.store(name, made_from, timed(measure))

    def find(self, name: str, made_from: str) -> dict[str, Any] | None:
        """Return stored values; None if they are missing or outdated."""
        known = self._measured.get(name)
        return known if known is not None and known["made_from"] == made_from else None

    def store(self, name: str, made_from: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Store values of `timed`; return them as `find` does."""
        self._measured[name] = {"made_from": made_from, **values}
        write_json(self._measured_file, self._measured)
        return self._measured[name]

    def known(self, name: str) -> dict[str, Any]:
        """Return stored values, or {} if there are none."""
        return self._measured.get(name, {})


def timed(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Call `measure`, and add the time that it takes as "seconds"."""
    began = time.monotonic()
    values = measure()
    return {**values, "seconds": time.monotonic() - began}


def fingerprint(*parts: Any) -> str:
    """Hash JSON values and the contents of files, which are given as `Path`."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.read_bytes() if isinstance(part, Path) else json.dumps(part).encode()
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:16]


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """List the differences between two nested mappings, labeled with dotted names."""
    changed = []
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changed += _differences(before, after, f"{prefix}{name}.")
        elif before != after:
            changed.append(f"{prefix}{name}: {shown(before)} -> {shown(after)}")
    return changed
