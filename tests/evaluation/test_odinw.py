"""ODinW-13 on made-up pictures in the published layout."""

import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from fiber.checkpoints.model_dir import StoredModel
from fiber.cli import main
from fiber.config import preset
from fiber.data import Tokenizer
from fiber.data.datasets.odinw import ODINW_13, find_set, open_set
from fiber.data.prompts.classes import ClassName
from fiber.evaluation.evaluate import evaluate
from fiber.models.registry import build_model
from fiber.tasks.grounding import detection


@pytest.fixture(scope="module")
def model():
    # Each class with its words fits the 16 tokens of the smallest model.
    texts = ["penguin , which is black and white", "puffin with orange beaks"]
    texts += ["stingray which is flat and round", "Cottontail-Rabbit"]
    tokenizer = Tokenizer.train(texts * 10, 400)
    torch.manual_seed(0)
    network = build_model(preset("micro", stage="fine").with_vocabulary(tokenizer.vocab_size))
    for layer in (network.head.centerness, network.head.text_projection):
        torch.nn.init.normal_(layer.weight, std=0.5)
    torch.nn.init.zeros_(network.head.bias)
    return StoredModel(network=network, tokenizer=tokenizer, answers=())


def write_set(root, name, split="test", place=None, classes=None):
    """One picture with a box of each class; the file's own names are others."""
    place = place or f"{ODINW_13[name].folder}/{split}/annotations_without_background.json"
    file = root / place
    pictures = file.parent / "images" if file.name.startswith("instances") else file.parent
    pictures.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(len(name))
    pixels = random.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(pictures / "1.png")
    count = classes or len(ODINW_13[name].classes)
    boxes = [[float(2 * i), 1.0, 20.0, 30.0] for i in range(count)]
    content = {
        "images": [{"id": 1, "file_name": "1.png", "width": 64, "height": 64}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 10 * i, "bbox": box, "area": 600.0}
            for i, box in enumerate(boxes, 1)
        ],
        "categories": [{"id": 10 * i, "name": f"own {i}"} for i in range(1, count + 1)],
    }
    file.write_text(json.dumps(content))
    return file


def evaluate_sets(model, data, split="test", **options):
    return evaluate(model, "odinw", data, split, threads=1, **options)


def test_there_are_thirteen_sets():
    assert len(ODINW_13) == 13
    assert sum(len(own.classes) for own in ODINW_13.values()) == 50


@pytest.mark.parametrize(
    ("name", "split", "place"),
    [
        ("Raccoon", "test", "Raccoon/Raccoon.v2-raw.coco/test/annotations_without_background.json"),
        ("pistols", "val", "pistols/export/val_annotations_without_background.json"),
        ("PascalVOC", "test", "PascalVOC/valid/annotations_without_background.json"),
        ("pothole", "val", "pothole/valid/annotations_without_background.json"),
        (
            "EgoHands_generic",
            "val",
            "EgoHands/generic/mini_val/annotations_without_background.json",
        ),
        ("Aquarium", "test", "Aquarium/instances_test.json"),
        ("Packages", "test", "Packages/test/_annotations.coco.json"),
    ],
)
def test_sets_are_found_where_they_lie(tmp_path, name, split, place):
    assert find_set(tmp_path, name, split) is None and open_set(tmp_path, name, split) is None
    file = write_set(tmp_path, name, place=place)
    assert find_set(tmp_path, name, split) == file
    (record,) = open_set(tmp_path, name, split)
    # The published names in the order of the ids, which result files still have.
    assert record.labels == ODINW_13[name].classes
    assert record.label_ids == tuple(10 * i for i in range(1, len(record.labels) + 1))


def test_a_part_of_the_training_pictures_is_no_split(tmp_path):
    write_set(tmp_path, "Raccoon", place="Raccoon/train/_annotations.coco.json")
    assert find_set(tmp_path, "Raccoon", "val") is None


def test_all_thirteen_give_the_average(model, tmp_path):
    for name in ODINW_13:
        write_set(tmp_path, name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        numbers = evaluate_sets(model, tmp_path, output=tmp_path / "results")
    own = [numbers[f"{name}/ap"] for name in ODINW_13]
    assert numbers["ap"] == pytest.approx(sum(own) / 13) and max(own) > 0
    results = json.loads((tmp_path / "results" / "Packages.json").read_text())
    assert {entry["category_id"] for entry in results} == {10}


def test_missing_sets_are_named_and_change_the_name_of_the_average(model, tmp_path):
    for name in ("Raccoon", "Packages"):
        write_set(tmp_path, name)
    with pytest.warns(
        RuntimeWarning, match="11 of 13 datasets are missing from .*: AerialMaritimeDrone_lar"
    ):
        numbers = evaluate_sets(model, tmp_path)
    assert "ap" not in numbers
    average = (numbers["Raccoon/ap"] + numbers["Packages/ap"]) / 2
    assert numbers["ap_of_2_of_13"] == pytest.approx(average)
    with pytest.raises(
        FileNotFoundError, match=r"none of the ODinW-13 datasets.*AerialMaritimeDrone/l"
    ):
        evaluate_sets(model, tmp_path, split="val")


def test_the_published_words_are_asked_unless_others_are_given(model, tmp_path, monkeypatch):
    for name in ("Aquarium", "thermalDogsAndPeople"):
        write_set(tmp_path, name)
    texts = []
    ask = detection.detect
    monkeypatch.setattr(
        detection,
        "detect",
        lambda context, records, prompts: (
            texts.extend(prompt.text for prompt in prompts),
            ask(context, records, prompts),
        )[1],
    )
    with pytest.warns(RuntimeWarning, match="11 of 13"):
        evaluate_sets(model, tmp_path)
    asked = ". ".join(texts)
    assert asked.startswith(" fish. jellyfish. penguin , which is black and white. puffin with ora")
    assert asked.endswith(" which is flat and round. dog. person")
    texts.clear()
    words = {"thermalDogsAndPeople": [ClassName("hound"), ClassName("human")]}
    with pytest.warns(RuntimeWarning, match="11 of 13"):
        evaluate_sets(model, tmp_path, classes=words)
    assert ". ".join(texts).endswith("hound. human")


def test_wrong_input_is_named(model, tmp_path):
    with pytest.raises(TypeError, match="data has type list; expected the path of a folder"):
        evaluate_sets(model, [])
    with pytest.raises(ValueError, match="unknown dataset 'Aquariums'; expected one of Aerial"):
        evaluate_sets(model, tmp_path, classes={"Aquariums": []})
    write_set(tmp_path, "Aquarium", classes=3)
    with pytest.raises(ValueError, match=r"3 classes.*1.*7"):
        open_set(tmp_path, "Aquarium", "test")
    records = list(open_set(write_set(tmp_path, "Raccoon").parents[3], "Raccoon", "test"))
    with pytest.raises(ValueError, match=r"got 2 classes, expected 1 .*: raccoon"):
        words = [ClassName("a"), ClassName("b")]
        evaluate(model, "coco", data=records, classes=words)
    with pytest.raises(ValueError, match=r"classes.*task 'flickr'"):
        evaluate(model, "flickr", data=records, classes=words)


def test_from_the_command_line(micro_models, tmp_path, capsys):
    write_set(tmp_path, "Raccoon")
    words = tmp_path / "words"
    words.mkdir()
    (words / "Raccoon.json").write_text(json.dumps([{"name": "star", "prefix": "a "}]))
    model, output = str(micro_models["fine"]), tmp_path / "results"
    command = ["eval", model, "odinw", "--data", str(tmp_path), "--split", "test"]
    assert main([*command, "--classes-file", str(words), "--output", str(output)]) == 0
    out, messages = capsys.readouterr()
    assert "12 of 13 datasets are missing from" in messages
    printed = json.loads(out)
    assert {"ap_of_1_of_13", "Raccoon/ap", "Raccoon/ap50"} <= printed.keys()
    assert isinstance(json.loads((output / "Raccoon.json").read_text()), list)
