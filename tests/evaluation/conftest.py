"""Fixtures of the evaluation tests, shared with those of inference and training."""

from tests.inference.conftest import coarse, fine, with_heads
from tests.training.conftest import models, one_thread, pictures, tokenizer

__all__ = ["coarse", "fine", "models", "one_thread", "pictures", "tokenizer", "with_heads"]
