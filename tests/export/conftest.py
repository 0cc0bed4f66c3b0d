"""Exported networks, each made once."""

import pytest

from fiber.export.export import export_model
from tests.export import networks


@pytest.fixture(scope="session")
def exported(made_once):
    """A function that exports a network once and returns the folder of its graphs."""

    def export(name: str, to: str, *, int8: bool = False):
        def make(folder):
            networks.save(name, folder / "model")
            export_model(folder / "model", folder / "graphs", to, int8=int8)

        key = f"export_{name}_{to}_int8_{int8}".replace(" ", "_")
        return made_once(key, make) / "graphs"

    return export
