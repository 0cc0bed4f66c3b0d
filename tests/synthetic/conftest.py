"""What several tests of generated data need."""

import pytest

from fiber.synthetic.scene_graph import SPLITS
from fiber.synthetic.scenes import SceneRecipe, generate

NUM_PICTURES = 2000


@pytest.fixture(scope="session")
def described():
    """Images of every split, described but not drawn: {split: [(image, scene)]}."""
    return {
        split: [
            (SceneRecipe().describe(split, i), SceneRecipe().scene(split, i))
            for i in range(NUM_PICTURES)
        ]
        for split in SPLITS
    }


@pytest.fixture(scope="session")
def scenes_folder(tmp_path_factory):
    """A small data folder of scenes."""
    return generate(tmp_path_factory.mktemp("scenes") / "data", train=30, val=12, novel=12)
