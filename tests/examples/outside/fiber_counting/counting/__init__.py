"""The task "counting": the number of objects in an image."""
