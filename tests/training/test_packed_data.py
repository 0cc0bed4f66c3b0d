"""A packed folder trains and measures as the folder that it was made of."""

import json

import fsspec
import pytest

import fiber
from fiber import env
from fiber.data.tools.pack import pack
from fiber.synthetic.scenes import generate
from fiber.training import train

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


@pytest.fixture
def url(folders, tmp_path, monkeypatch):
    """The packed folder at a URL, with a cache of its own."""
    monkeypatch.setenv("FIBER_CACHE", str(tmp_path / "cache"))
    fsspec.filesystem("memory").put(str(folders[1]), "/scenes", recursive=True)
    yield "memory://scenes"
    fsspec.filesystem("memory").rm("/scenes", recursive=True)


def short_run(data, output, **changes):
    settings = {"train.steps": 2, "data.batch_size": 2, "validation.pictures": 2, **changes}
    run = fiber.train("scenes_coarse", data=data, output=output, set=settings)
    config = json.loads((run.folder / "config.json").read_text())
    return (run.folder / "model.safetensors").read_bytes(), config


@pytest.mark.parametrize("order", ["uniform", "shards"])
def test_data_at_a_url_trains_as_local_data_does(order, folders, url, tmp_path, micro_models):
    changes = {"data.order": order, "validation.task": "vqa"}
    local, config = short_run(folders[1], tmp_path / "local", **changes)
    remote, remote_config = short_run(url, tmp_path / "remote", **changes)
    assert local == remote and config["data"]["order"] == order
    assert (config["data_path"], remote_config["data_path"]) == (str(folders[1].resolve()), url)
    model = fiber.load(tmp_path / "remote")
    with pytest.warns(RuntimeWarning, match=r"trained on split 'train' of memory://scenes"):
        fiber.evaluate(model, "vqa", data=url, split="train", threads=1)
    found = [fiber.evaluate(model, "vqa", data=d, split="val") for d in (folders[1], url)]
    assert found[0] == found[1]


def test_an_order_by_shards_needs_a_packed_folder(folders, tmp_path):
    with pytest.raises(ValueError, match=r"order 'shards' needs .*packed folder"):
        short_run(folders[0], tmp_path / "run", **{"data.order": "shards"})


def test_another_order_is_not_resumed(folders, tmp_path):
    short_run(folders[1], tmp_path / "run", **{"train.checkpoint_every": 1})
    with pytest.raises(ValueError, match=r"data\.order: 'uniform' -> 'shards'"):
        fiber.train(
            "scenes_coarse",
            data=folders[1],
            output=tmp_path / "run",
            resume=True,
            set={"train.steps": 2, "data.batch_size": 2, "data.order": "shards"},
        )


@pytest.mark.parametrize(("processes", "threads"), [(None, 6), ("2", 3), ("4", 1), ("9", 1)])
def test_threads_are_the_cores_of_a_process(processes, threads, folders, tmp_path, monkeypatch):
    seen = []

    class StopError(Exception):
        """Raised where training begins."""

    def stop(*arguments, threads, **settings):
        seen.append(threads)
        raise StopError

    monkeypatch.setattr(env, "usable_cores", lambda: 6)
    monkeypatch.setattr(train, "Trainer", stop)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    for index, given in enumerate((0, 5)):
        with pytest.raises(StopError):
            fiber.train(
                "scenes_coarse",
                data=folders[1],
                output=tmp_path / str(index),
                set={"validation.task": None},
                threads=given,
            )
    assert seen == [threads, 5]


@pytest.mark.parametrize("processes", ["0", "-1", "two"])
def test_a_wrong_number_of_processes(processes, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    with pytest.raises(ValueError, match=rf"LOCAL_WORLD_SIZE is '{processes}'"):
        env.cores_per_process()
