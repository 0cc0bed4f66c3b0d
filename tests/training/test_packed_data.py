"""A packed folder trains and measures as the folder that it was made of."""

import pytest

import fiber
from fiber.data.tools.pack import pack
from fiber.synthetic.scenes import generate

COARSE = ("retrieval", "matching", "vqa", "nlvr2", "caption", "winoground")
FINE = ("refcoco", "flickr", "coco")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A small data folder and what it is packed into."""
    root = tmp_path_factory.mktemp("data")
    folder = generate(root / "scenes", train=8, val=6, novel=2)
    pack(folder, root / "packed", shard_bytes=20_000)
    return folder, root / "packed"


@pytest.mark.parametrize("task", [*COARSE, *FINE])
def test_measures_are_the_same(task, folders, micro_models):
    model = fiber.load(micro_models["fine" if task in FINE else "coarse"])
    found = [fiber.evaluate(model, task, data=data, split="val", threads=2) for data in folders]
    assert found[0] == found[1] and found[0]


@pytest.mark.parametrize("recipe", ["scenes_coarse", "scenes_fine"])
def test_training_is_the_same(recipe, folders, tmp_path):
    weights = []
    for number, data in enumerate(folders):
        run = fiber.train(
            recipe,
            data=data,
            output=tmp_path / str(number),
            set={"train.steps": 2, "data.batch_size": 2, "validation.task": None},
        )
        weights.append((run.folder / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
