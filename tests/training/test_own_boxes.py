"""Runs on a COCO-format folder of a user's: what is missing, empty or broken in it."""

import dataclasses
import json
import math

import pytest
from PIL import Image

from fiber.checkpoints.vocabulary.files import read_vocabulary
from fiber.config_io import replace_fields
from fiber.training.data import open_data
from fiber.training.task_loaders import training_transform
from fiber.training.train import train

from . import micro_runs

NAMES = ("mug", "traffic light")


def config(**changes):
    """A run of the micro model on boxes of classes."""
    small = {
        "tasks.grounding.sources": ("detection",),
        "data.train_tokenizer": True,
        "model.max_tokens": 64,
        "train.steps": 3,
    }
    return replace_fields(micro_runs.fine_config(), small | changes)


@pytest.fixture
def folder(tmp_path):
    """A function that writes pictures, each with the boxes given, as an export would be."""

    def write(boxes, *, missing=()):
        root = tmp_path / "own"
        (root / "images").mkdir(parents=True)
        content = {
            "images": [
                {"id": i, "file_name": f"{i}.png", "height": 48, "width": 64}
                for i in range(len(boxes))
            ],
            "annotations": [
                {"id": 100 * i + n, "image_id": i, "category_id": n % 2 + 1, "bbox": box}
                for i, own in enumerate(boxes)
                for n, box in enumerate(own)
            ],
            "categories": [{"id": i + 1, "name": name} for i, name in enumerate(NAMES)],
        }
        for i in range(len(boxes)):
            if i not in missing:
                Image.new("RGB", (64, 48), (20 * i, 90, 90)).save(root / "images" / f"{i}.png")
        # Both splits, so that nothing is divided.
        for split in ("train", "val"):
            (root / f"{split}.json").write_text(json.dumps(content))
        return root

    return write


def run(config, data, output):
    return train(config, data=data, output=output, device="cpu", threads=1)


BOX = [5, 6, 30, 20]


def test_batches_without_any_box_are_trained_on(folder, tmp_path):
    data = folder([[BOX], [], [], [], []])
    done = run(config(**{"data.batch_size": 1, "train.steps": 5}), data, tmp_path / "run")
    losses = [entry["losses"] for entry in done.metrics]
    assert all(math.isfinite(value) for each in losses for value in each.values())
    # Of the five batches of one picture four have no box: they teach the words alone.
    assert sum(each["box"] == 0 and each["centerness"] == 0 for each in losses) == 4
    assert all(each["alignment"] > 0 for each in losses)


def test_a_set_without_any_box_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"task 'grounding'.*boxes_xyxy"):
        run(config(), folder([[], []]), tmp_path / "run")


def test_a_missing_picture_stops_a_run_or_is_counted(folder, tmp_path, capsys):
    data = folder([[BOX]] * 4, missing=(2,))
    with pytest.raises(FileNotFoundError, match=r"record 'train/2'.*2\.png.*on_error=skip"):
        run(config(), data, tmp_path / "run")
    skipping = config(**{"data.on_error": "skip"})
    with pytest.warns(RuntimeWarning, match="record 'train/2'"):
        run(skipping, data, tmp_path / "other")
    assert "skipped, first 'train/2'" in capsys.readouterr().err


def test_a_box_outside_its_picture_stops_a_run_or_is_cut(folder, tmp_path, capsys):
    data = folder([[BOX], [[40, 6, 60, 20]]])
    with pytest.raises(ValueError, match=r"record 'train/1': box 0.*36"):
        run(config(), data, tmp_path / "run")
    run(config(**{"data.on_error": "skip"}), data, tmp_path / "other")
    assert "grounding: 1 clipped box was skipped or changed" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:task 'coco'. train.json is the only annotation file")
def test_a_file_in_place_of_the_folder_holds_nothing_out(folder, tmp_path, capsys):
    data = folder([[BOX]] * 4)
    measured = config(**{"validation.task": "coco"})
    run(measured, data / "train.json", tmp_path / "whole")
    said = capsys.readouterr().err
    assert "records: grounding 4" in said
    assert (
        "Pass the folder instead of the file, or pass validation records (--validation FILE" in said
    )
    (data / "val.json").unlink()
    run(measured, data, tmp_path / "divided")
    said = capsys.readouterr().err
    assert "records: grounding 3" in said and "coco on val" in said
    assert "train.json is the only annotation file, so 1 of its 4 images" in said


def test_the_classes_of_a_run_are_kept(folder, tmp_path):
    data = folder([[BOX, BOX]] * 2)
    first = run(config(), data, tmp_path / "first").folder
    words = read_vocabulary(first)
    assert words is not None and words.classes == NAMES
    # A run that goes on from it, on phrases alone, keeps them.
    records = micro_runs.all_records(tmp_path)["grounding"]
    again = open_data(config(), {"grounding": records}, known=words)
    assert again.vocabulary.classes == NAMES
    fresh = open_data(config(), {"grounding": records}, tokenizer=words.tokenizer)
    assert fresh.vocabulary.classes == ()


def test_a_tokenizer_is_trained_where_the_recipe_says_so_alone(folder, tmp_path):
    data = folder([[BOX]] * 2)
    with pytest.raises(FileNotFoundError, match=r"tokenizer.*tokenizer\.json.*exist"):
        open_data(config(**{"data.train_tokenizer": False}), data)
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json does not exist"):
        open_data(config(), data, from_scratch=False)
    assert "trained a tokenizer with" in "\n".join(open_data(config(), data).skipped)


def test_parts_are_cut_out_where_the_run_says_so(folder, tmp_path, capsys):
    cutting = config(**{"data.transform.crop_probability": 0.9, "train.steps": 12})
    described = training_transform(cutting.model, cutting.data.transform).describe()
    assert (described["crop_probability"], described["crop_scale"]) == (0.9, [0.5, 1.0])
    small = dataclasses.replace(cutting.data.transform, crop_scale=(0.1, 0.3))
    cutting = dataclasses.replace(cutting, data=dataclasses.replace(cutting.data, transform=small))
    data = folder([[[1, 2, 20, 20], [44, 20, 19, 25]]] * 4)
    run(cutting, data, tmp_path / "run")
    assert "were skipped, since the crop keeps too little" in capsys.readouterr().err
