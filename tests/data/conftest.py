"""What several tests of data need."""

import json

import pytest

from fiber.synthetic.scene_graph import SPLITS
from fiber.synthetic.scenes import SceneRecipe

NUM_PICTURES = 2000


@pytest.fixture(scope="session")
def described():
    """Pictures of every split, not drawn: {split: [(picture, scene)]}."""
    return {
        split: [
            (SceneRecipe().describe(split, i), SceneRecipe().scene(split, i))
            for i in range(NUM_PICTURES)
        ]
        for split in SPLITS
    }


@pytest.fixture(scope="session")
def scenes_folder(small_scenes):
    """A small data folder of scenes."""
    return small_scenes


@pytest.fixture
def data(tmp_path):
    """A folder with `images`, and a function that writes JSON files into it."""
    (tmp_path / "images").mkdir()

    def write(name, content):
        path = tmp_path / name
        if isinstance(content, list) and name.endswith(".jsonl"):
            path.write_text("".join(json.dumps(line) + "\n" for line in content))
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    write.folder = tmp_path
    write.images = str(tmp_path / "images")
    return write
