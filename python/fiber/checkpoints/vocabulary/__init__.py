"""Tokenizer, VQA answers and classes of a model: their files, and where a run takes them from."""
