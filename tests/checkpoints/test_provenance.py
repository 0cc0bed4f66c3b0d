"""Detection of evaluations on a model's training data."""

import json

import pytest

from fiber.checkpoints.provenance import TrainedOn, absolute, seen_before


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model": {}},
        {"data": {"split": "train"}},
        {"data_path": None, "data": {"split": "train"}},
        {"data_path": "/d"},
    ],
    ids=["nothing", "a saved model", "no data path", "records", "no split"],
)
def test_configs_without_training_data_are_unknown(config):
    assert TrainedOn.read(config) is None
    assert seen_before(None, "captions", "d", "train") is None


def test_config_of_a_run():
    config = {"data_path": "/d", "data": {"split": "train+val", "batch_size": 4}}
    assert TrainedOn.read(config) == TrainedOn("/d", "train+val")


@pytest.mark.parametrize(
    ("trained", "measured", "again"),
    [
        ("train", "val", None),
        ("train", "train", "train"),
        ("train+restval", "val+restval", "restval"),
        # Whole names are compared, not substrings.
        ("train", "train2", None),
    ],
)
def test_splits_of_a_folder(trained, measured, again, tmp_path, monkeypatch):
    told = seen_before(TrainedOn(absolute(tmp_path), trained), "captions", tmp_path, measured)
    assert (told is None) == (again is None)
    if again:
        assert f"trained on split {again!r} of {tmp_path}" in str(told)
    # The same folder under a different name, and a different folder.
    monkeypatch.chdir(tmp_path)
    here = TrainedOn(absolute(tmp_path), trained)
    assert (seen_before(here, "captions", ".", measured) is None) == (again is None)
    (tmp_path / "other").mkdir()
    assert seen_before(here, "captions", "other", measured) is None


def test_files_with_and_without_splits(tmp_path):
    line = {"image": "1.png", "text": "a dog"}
    path = tmp_path / "own.jsonl"
    trained = TrainedOn(absolute(path), "train")
    path.write_text("\n" + json.dumps(line) + "\n" + json.dumps(line) + "\n")
    for split in ("train", "val"):
        told = seen_before(trained, "captions", path, split)
        assert f"{path}, which has no splits" in str(told)
        assert 'the field "split" ("train" or "val")' in str(told)
    path.write_text(
        "".join(json.dumps(line | {"split": split}) + "\n" for split in ("train", "val"))
    )
    assert seen_before(trained, "captions", path, "val") is None
    assert "split 'train'" in str(seen_before(trained, "captions", path, "train"))
    # Karpathy's files give a split per image; COCO's own files are read whole.
    for name, whole in (("dataset_coco.json", False), ("captions_train2014.json", True)):
        trained = TrainedOn(absolute(tmp_path / name), "train")
        (tmp_path / name).touch()
        told = seen_before(trained, "captions", tmp_path / name, "val")
        assert (told is not None) == whole
