"""What several tests of data need."""

import pytest

from fiber.data.scene_graphs import SPLITS
from fiber.data.scenes import SceneRecipe, describe_picture, generate

NUM_PICTURES = 2000


@pytest.fixture(scope="session")
def described():
    """Pictures of every split, not drawn: {split: [(picture, scene)]}."""
    return {
        split: [describe_picture(SceneRecipe(), split, i) for i in range(NUM_PICTURES)]
        for split in SPLITS
    }


@pytest.fixture(scope="session")
def scenes_folder(tmp_path_factory):
    """A small data folder of scenes."""
    return generate(tmp_path_factory.mktemp("scenes") / "data", train=30, val=12, novel=12)
