"""Detection from the model to the numbers: result files, prompts asked once, protocols."""

import contextlib
import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from fiber import _core
from fiber.checkpoints.model_dir import StoredModel
from fiber.config import preset
from fiber.data import Tokenizer, load_image
from fiber.data.datasets.resolve import open_source
from fiber.data.record import Record, TrueObjects
from fiber.evaluation.context import EvalContext
from fiber.evaluation.evaluate import evaluate
from fiber.inference import boxes, text_feature_cache
from fiber.metrics.lvis import BestOfClasses, FederatedTruth, fixed_average_precision
from fiber.models.registry import build_model, inference_transform
from fiber.postprocess import FoundBoxes
from fiber.tasks.grounding import detection
from fiber.tasks.grounding.detection import (
    _lvis_boxes,
    detect,
    detection_records,
    prompts_of,
)

pytestmark = pytest.mark.oldest

#: Ids as in COCO: with gaps, and not in the order of the file.
CLASSES = {17: "cat", 3: "car", 88: "teddy bear"}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["a cat and a car beside a teddy bear"] * 10, 300)


@pytest.fixture(scope="module")
def model(tokenizer):
    """A new fine model whose scores are far apart."""
    torch.manual_seed(0)
    network = build_model(preset("micro", stage="fine").with_vocabulary(tokenizer.vocab_size))
    for layer in (network.head.centerness, network.head.text_projection):
        torch.nn.init.normal_(layer.weight, std=0.5)
    torch.nn.init.zeros_(network.head.bias)
    return StoredModel(network=network, tokenizer=tokenizer, answers=())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """COCO instances of twelve pictures in three sizes, ids falling."""
    folder = tmp_path_factory.mktemp("instances")
    (folder / "images").mkdir()
    random = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(12):
        width, height = [(64, 64), (96, 64), (64, 128)][number % 3]
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        image = {"id": 1000 - number, "file_name": f"{number}.png"}
        images.append(image | {"width": width, "height": height})
        for _ in range(random.integers(0, 5) if number else 0):
            box = random.uniform(0, 4, 2).round(2).tolist()
            box += random.uniform(30, 60, 2).round(2).tolist()
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image["id"], "bbox": box}
                | {"category_id": int(random.choice(list(CLASSES)))}
                | {"area": box[2] * box[3] / 2, "iscrowd": int(random.random() < 0.2)}
            )
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in CLASSES.items()],
    }
    (folder / "instances_val.json").write_text(json.dumps(content))
    return folder


def pycocotools_numbers(annotations, results):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(annotations))
        evaluation = COCOeval(coco, coco.loadRes(str(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    names += ("ar_at_1", "ar_at_10", "ar_at_100", "ar_small", "ar_medium", "ar_large")
    numbers = dict(zip(names, evaluation.stats.tolist(), strict=True))
    return {name: value for name, value in numbers.items() if value != -1}


@pytest.mark.parametrize("batch_size", [1, 5])
def test_pycocotools_scores_the_results_file_alike(model, folder, tmp_path, batch_size):
    pytest.importorskip("pycocotools", reason="pycocotools is not installed (extra `dev`)")
    path = tmp_path / "results.json"
    metrics = evaluate(model, "coco", data=folder, output=path, batch_size=batch_size, threads=1)
    results = json.loads(path.read_text())
    assert {entry["category_id"] for entry in results} == set(CLASSES)
    assert {entry["image_id"] for entry in results} == set(range(1000, 988, -1))
    assert all(entry.keys() == {"image_id", "category_id", "bbox", "score"} for entry in results)
    expected = pycocotools_numbers(folder / "instances_val.json", path)
    assert expected["ap50"] > 0 and {"ap_small", "ap_medium"} <= expected.keys()
    assert ours(metrics) == pytest.approx(expected, abs=1e-9)


def ours(metrics):
    return {name: v for name, v in metrics.items() if not name.startswith("published_")}


@pytest.mark.parametrize(
    ("task", "right", "expected"), [("coco", 19.5, (0.9, 1.0)), ("lvis", 20.5, (0.9, 1.0))]
)
def test_corners_of_the_published_code(model, folder, monkeypatch, task, right, expected):
    """A box whose last pixel the model saw at half the size of one of the original picture.

    Published for COCO is a whole pixel there, half of one more; for LVIS none, half of one less.
    Either makes the box found the true one; as it is it overlaps that by 0.9025 (9.5 x 9.5 of 100)
    or by 0.907 (100 of 10.5 x 10.5), which 9 of 10 thresholds allow.
    """
    record = Record(
        key="instances/1",
        images=(str(folder / "images" / "0.png"),),
        text="cat",
        labels=("cat",),
        label_spans=(((0, 3),),),
        objects=TrueObjects(
            boxes_xyxy=((10.0, 10.0, 20.0, 20.0),),
            labels=(0,),
            areas=(100.0,),
            crowd=(False,),
            absent=frozenset(),
        ),
    )
    box = torch.tensor([[10.0, 10.0, right, right]])
    found = FoundBoxes(box, torch.tensor([0.5]), torch.tensor([0]))
    seen = detection.FoundInImage(0, found, (0.5, 0.5))
    monkeypatch.setattr(detection, "detect", lambda *_: [seen])
    metrics = evaluate(model, task, data=[record])
    assert (metrics["ap"], metrics["published_ap"]) == pytest.approx(expected)


def test_a_pixel_of_the_picture_that_the_model_saw(model, folder, tokenizer):
    context = EvalContext.of(model, threads=1)
    asked = detection_records(open_source("detection", folder, "val"))
    with torch.no_grad():
        found = list(detect(context, asked, prompts_of(context, ["cat"])))
    assert sorted(each.place for each in found) == list(range(12))
    for each in found:
        pixels = load_image(asked[each.place].images[0])
        _, _, seen = _core.apply_transform(pixels, inference_transform(model.network.config))
        height, width = pixels.shape[:2]
        assert each.pixel == pytest.approx((width / seen[1], height / seen[0]))
    # Some pictures are seen at another size than their own.
    assert len({round(each.pixel[0], 3) for each in found}) > 1


def test_ids_of_ones_own_records_count_from_one(model, folder, tmp_path):
    records = [
        dataclasses.replace(record, label_ids=(), objects=None)
        for record in open_source("detection", folder, "val")
    ]
    path = tmp_path / "results.json"
    evaluate(model, "coco", data=records, output=path, threads=1)
    assert {entry["category_id"] for entry in json.loads(path.read_text())} == {1, 2, 3}


def test_trunks_run_once(model, folder, tokenizer, monkeypatch):
    """The image trunk once for a batch, whatever the prompts; a text once for all pictures.

    The fused layers have one prompt at a time, and no more pairs than their pixels allow.
    """
    monkeypatch.setattr(text_feature_cache, "MAX_KEPT_TOKENS", 1)
    monkeypatch.setattr(boxes, "PAIR_PIXELS", 3 * 64 * 64)
    backbone = model.network.backbone
    calls = {"image_prefix": [], "text_prefix": [], "fuse": []}
    for name, seen in calls.items():
        run = getattr(backbone, name)
        monkeypatch.setattr(
            backbone,
            name,
            lambda *given, run=run, seen=seen: (seen.append(given[0]), run(*given))[1],
        )
    context = EvalContext(
        network=model.network.eval(), tokenizer=tokenizer, batch_size=12, threads=1
    )
    asked = detection_records(open_source("detection", folder, "val"))
    with torch.no_grad():
        prompts = [
            dataclasses.replace(prompts_of(context, [name])[0], first_label=label)
            for label, name in enumerate(CLASSES.values())
        ]
        found = list(detect(context, asked, prompts))
    assert sorted(each.place for each in found) == list(range(12))
    assert {label for each in found for label in each.boxes.label_indices.tolist()} == {0, 1, 2}
    assert [len(ids) for ids in calls["text_prefix"]] == [1, 1, 1]
    assert sum(map(len, calls["image_prefix"])) == 12
    # Of the four pictures of each size, three small ones fit, or two of 64 x 96 and 96 x 64.
    sizes = sorted(len(prefix.tokens) for prefix in calls["fuse"])
    assert sizes == sorted(3 * [3, 1, 2, 2, 2, 2])


def federated(folder, path):
    """The same pictures as LVIS writes them: what is absent and what is not exhaustive."""
    content = json.loads((folder / "instances_val.json").read_text())
    for category, frequency in zip(content["categories"], "rcf", strict=True):
        category["frequency"] = frequency
    for number, image in enumerate(content["images"]):
        there = {a["category_id"] for a in content["annotations"] if a["image_id"] == image["id"]}
        image["neg_category_ids"] = sorted(set(CLASSES) - there)[: number % 3]
        image["not_exhaustive_category_ids"] = sorted(there)[: number % 2]
        image["coco_url"] = f"http://images.cocodataset.org/val2017/{image.pop('file_name')}"
    for annotation in content["annotations"]:
        del annotation["iscrowd"]
    path.write_text(json.dumps(content))
    (path.parent / "images").mkdir()
    (path.parent / "images" / "val2017").symlink_to(folder / "images")
    return path


def test_lvis_by_its_results_file(model, folder, tmp_path):
    """The file written gives the numbers again, by the truths of the annotation file."""
    path, output = federated(folder, tmp_path / "lvis_v1_minival.json"), tmp_path / "out.json"
    metrics = evaluate(model, "lvis", data=path, output=output, threads=1)
    assert {"ap", "ap50", "ap75", "apr", "apc", "apf", "ap_small"} <= metrics.keys()
    content, results = json.loads(path.read_text()), json.loads(output.read_text())
    images = sorted(content["images"], key=lambda image: image["id"])
    places = {image["id"]: place for place, image in enumerate(images)}
    ids = sorted(CLASSES)
    truths = []
    for image in images:
        own = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        truths.append(
            FederatedTruth(
                [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in own)],
                [ids.index(a["category_id"]) for a in own],
                frozenset(map(ids.index, image["neg_category_ids"])),
                frozenset(map(ids.index, image["not_exhaustive_category_ids"])),
                [a["area"] for a in own],
            )
        )
    best = BestOfClasses(3)
    for entry in results:
        x, y, width, height = entry["bbox"]
        box = [x, y, x + width, y + height]
        label = ids.index(entry["category_id"])
        best.add(places[entry["image_id"]], [box], [entry["score"]], [label])
    # By id: car, cat, teddy bear; the file names cat rare, car common and teddy bear frequent.
    expected = fixed_average_precision(best.table(), truths, ["c", "r", "f"])
    assert 0 < expected["ap"] < 1
    assert ours(metrics) == pytest.approx({k: v for k, v in expected.items() if v == v}, abs=1e-9)


def test_lvis_asks_for_forty_classes_at_a_time(model, tokenizer):
    context = EvalContext.of(model, threads=1)
    names = [f"c{number}" for number in range(7)]
    published, whole = prompts_of(context, names, 3), prompts_of(context, names)
    # Blocks of three, each in as many prompts as it needs.
    assert {prompt.first_label for prompt in published} >= {0, 3, 6}
    assert all(len(prompt.labels) <= 3 for prompt in published)
    assert sum(len(prompt.labels) for prompt in whole) == 7
    assert max(len(prompt.labels) for prompt in whole) > 3
    assert [_lvis_boxes(classes) for classes in (3, 40, 60, 80)] == [300, 300, 450, 600]


def test_lvis_needs_to_know_what_is_absent(model, folder):
    with pytest.raises(ValueError, match=r"'instances_val/989'.*classes"):
        evaluate(model, "lvis", data=folder, threads=1)


def test_classes_in_a_prompt_are_checked(model, folder):
    with pytest.raises(ValueError, match=r"classes_per_prompt.*task 'refcoco'"):
        evaluate(model, "refcoco", data=folder, classes_per_prompt=3)
    with pytest.raises(ValueError, match="classes_per_prompt is -1; expected 0 or more"):
        evaluate(model, "coco", data=folder, classes_per_prompt=-1)
