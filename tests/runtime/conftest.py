"""Exported networks, those of the tests of the export."""

from tests.export.conftest import exported

__all__ = ["exported"]
