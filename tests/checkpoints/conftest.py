"""Fixtures of the checkpoint tests that start runs, shared with those of training."""

from tests.training.conftest import models, no_curves, one_thread, pictures, tokenizer

__all__ = ["models", "no_curves", "one_thread", "pictures", "tokenizer"]
