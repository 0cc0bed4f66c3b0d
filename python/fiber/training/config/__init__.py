"""Configuration of a training run, including its tasks and image transforms."""
