"""Fixtures of the training tests, since models are started from runs and resumed."""

from tests.training.conftest import no_curves, one_thread, pictures

__all__ = ["no_curves", "one_thread", "pictures"]
