"""Configuration of a training run: run, tasks, image transforms."""
