"""Models and records of the evaluation tests, and how their metrics are compared."""

import dataclasses

import numpy as np
import pytest
import torch

from fiber import _core
from fiber.checkpoints.model_dir import StoredModel
from fiber.config import preset
from fiber.data import load_image
from fiber.data.record import Record, TrueObjects
from fiber.evaluation.evaluate import evaluate
from fiber.models.registry import build_model, inference_transform
from fiber.tasks import find_evaluation
from tests.training.micro_runs import all_records, colour_of

ANSWERS = ("red", "green", "blue", "white", "grey")


def new_models(tokenizer):
    """A new coarse and a new fine model, by stage."""
    torch.manual_seed(0)
    made = {}
    for stage in ("coarse", "fine"):
        config = preset("micro", stage=stage).with_vocabulary(tokenizer.vocab_size)
        image_text = dataclasses.replace(config.image_text, num_answers=len(ANSWERS))
        made[stage] = StoredModel(
            network=build_model(dataclasses.replace(config, image_text=image_text)),
            tokenizer=tokenizer,
            answers=ANSWERS,
        )
    # Far apart, so that the last bits of a sum do not decide which box is best.
    for layer in (made["fine"].network.head.centerness, made["fine"].network.head.text_projection):
        torch.nn.init.normal_(layer.weight, std=0.5)
    return made


def records_for(task, pictures):
    records = all_records(pictures)
    if task == "winoground":
        return [
            Record(
                key=f"swap/{case}/{picture}/{text}",
                images=(str(pictures / f"{2 * case + picture}.png"),),
                text=f"a {colour_of(2 * case + text)} square",
                truth=picture == text,
                group="colour" if case % 2 else "",
            )
            for case in range(3)
            for picture in (0, 1)
            for text in (0, 1)
        ]
    kind = {"vqa": "question", "nlvr2": "reasoning"}.get(task, "image_text")
    return records["grounding" if task in ("refcoco", "flickr", "coco") else kind]


def detection_records(pictures):
    text, names = "square. circle", ("square", "circle")
    return [
        Record(
            key=f"instances/{number}",
            images=record.images,
            text=text,
            boxes_xyxy=record.boxes_xyxy,
            char_spans=(((0, 6),),),
            box_labels=(0,),
            labels=names,
            label_spans=(((0, 6),), ((8, 14),)),
            objects=TrueObjects(
                boxes_xyxy=record.boxes_xyxy,
                labels=(0,),
                areas=(100.0,),
                crowd=(False,),
                absent=frozenset({1}),
            ),
        )
        for number, record in enumerate(all_records(pictures)["grounding"])
    ]


def measure(task, models, pictures, **options):
    model = models["fine" if "grounding" in find_evaluation(task).heads else "coarse"]
    is_detection = find_evaluation(task).source == "detection"
    records = detection_records(pictures) if is_detection else records_for(task, pictures)
    return evaluate(model, task, data=records, rerank=False, threads=1, **options)


def assert_close(one, other):
    """Compare numbers with a tolerance: sums in batches of another size differ in the last bits."""
    if isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-3)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            # Boxes of equal scores may change places.
            if key != "boxes_xyxy":
                assert_close(value, other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_close(*pair)
    else:
        assert one == other


def pixels_of(path, model):
    pixels, _, _ = _core.apply_transform(load_image(path), inference_transform(model.config))
    return torch.from_numpy(np.asarray(pixels))[None]
