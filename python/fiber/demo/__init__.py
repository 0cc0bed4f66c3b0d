"""The main job: scenes, coarse training, fine training, evaluation and a page to look at."""
