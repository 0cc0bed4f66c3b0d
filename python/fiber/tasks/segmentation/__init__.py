"""The task "segmentation": masks of classes and of phrases."""
