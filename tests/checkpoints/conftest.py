"""Fixtures for checkpoint tests that start runs, shared with the training tests."""

from tests.training.conftest import models, no_curves, one_thread, pictures, tokenizer

__all__ = ["models", "no_curves", "one_thread", "pictures", "tokenizer"]
