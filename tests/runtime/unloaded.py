"""Folders of graphs whose metadata.json is real, but whose graphs are no graphs.

Graphs are loaded when they are first run, so a model is opened from such a folder, without the
seconds that tracing takes.
"""

from __future__ import annotations

from pathlib import Path
from unittest import mock

from fiber.atomic_io import write_json
from fiber.export import export
from fiber.metrics.presence import PRESENCE_FILE, Calibration, Presence, to_json
from tests.export import networks

#: Calibrations of the model "fine".
PRESENCE = Presence(
    phrase=Calibration(
        slope=2.0, intercept=-1.0, threshold=0.4, precision=0.9, recall=0.8, present=50, absent=50
    ),
    data="a test",
)


def write(name: str, folder: Path) -> Path:
    """Export a network of `tests.export.networks`, but for its graphs; return the new folder."""
    networks.save(name, folder / "model")
    if name == "fine":
        write_json(folder / "model" / PRESENCE_FILE, to_json(PRESENCE))
    with (
        mock.patch.object(export, "trace"),
        mock.patch.object(export, "Graphs"),
        mock.patch.object(export, "check_graphs", return_value={}),
        mock.patch.object(export.formats, "need_packages"),
        mock.patch.object(export.formats, "drop_unused"),
        mock.patch.object(export.formats, "write_torch", _write_nothing),
    ):
        export.export_model(folder / "model", folder / "graphs", "torch")
    return folder / "graphs"


def _write_nothing(program: object, path: Path, mark: object) -> None:
    path.write_bytes(b"no graph")
