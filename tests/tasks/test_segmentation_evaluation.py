"""Evaluation of masks, with a network that tells them by their colors."""

import dataclasses
import math
import pickle
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from faster_coco_eval.core.mask import decode

from fiber.data import ImageTransform
from fiber.data.masks.codec import decode_masks
from fiber.data.record import Record
from fiber.evaluation.context import EvalContext
from fiber.evaluation.processes import EvalProcesses
from fiber.inference import tensor_inputs
from fiber.tasks import find_evaluation
from fiber.tasks.lazy import load
from tests.tasks.mask_stand_ins import COLORS, NAMES, SIDE, SMALL, TOKENIZER, packed, picture

#: Statistics that `ImageTransform` normalizes by.
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
IMAGES = 4
KINDS = ("panoptic", "semantic", "instance", "refseg")


class Memory(NamedTuple):
    images: torch.Tensor


class Oracle(torch.nn.Module):
    """Finds the masks of colors; texts are told by the color in them.

    `blind` is a class that it takes for the next one.
    """

    def __init__(self, blind: int | None = None) -> None:
        super().__init__()
        self.marker = torch.nn.Parameter(torch.zeros(1))
        self.config, self.blind = SMALL, blind

    def class_prompts(self, names):
        assert tuple(names) == NAMES
        return [(f"the {name} one",) for name in (*names, "nothing")]

    def _number(self, token_ids, text_mask):
        texts = [
            TOKENIZER.decode(ids[mask].tolist())
            for ids, mask in zip(token_ids, text_mask, strict=True)
        ]
        return [
            next((n for n, name in enumerate(NAMES) if name in text), len(NAMES)) for text in texts
        ]

    def prompt_vectors(self, token_ids, text_mask):
        return torch.eye(len(NAMES) + 1)[self._number(token_ids, text_mask)]

    def text_weights(self):
        yield self.marker

    def class_vectors(self, vectors):
        assert vectors.shape == (len(NAMES) + 1, 1, len(NAMES) + 1)
        return vectors[:, 0]

    def read_image(self, images):
        assert images.shape[0] == 1 and images.shape[-1] % SMALL.size_step == 0
        return Memory(images)

    def _masks(self, memory):
        pixels = memory.images[0] * STD[:, None, None] + MEAN[:, None, None]
        distance = (pixels[None] - COLORS[:, :, None, None] / 255).abs().sum(1)
        return torch.where(
            distance.argmin(0) == torch.arange(len(COLORS))[:, None, None], 9.0, -9.0
        )

    def class_masks(self, memory, class_vectors):
        logits = 20 * class_vectors.clone()
        if self.blind is not None:
            logits[self.blind] = logits[(self.blind + 1) % len(NAMES)]
        masks = self._masks(memory)
        # The background is no mask; a color that is not there has none.
        absent = ~(masks > 0).flatten(1).any(1)
        logits[absent] = 20 * class_vectors[-1]
        return logits[None], masks[None]

    def find_phrases(self, memory, token_ids, text_mask):
        rows = self._number(token_ids, text_mask)
        return torch.ones(1, len(rows)), self._masks(memory)[rows][None]


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch):
    monkeypatch.setattr(tensor_inputs, "check_tokenizer", lambda *_: None)
    monkeypatch.setattr(
        tensor_inputs, "inference_transform", lambda config, task: ImageTransform.squash(SIDE)
    )


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("images"), []
    for number in range(IMAGES):
        pixels, masks, labels = picture(np.random.default_rng((7, number)))
        path = folder / f"{number}.png"
        from PIL import Image

        Image.fromarray(pixels).save(path)
        found.append(
            Record(
                key=f"generated/{number}",
                images=(str(path),),
                text="",
                labels=NAMES,
                label_ids=(11, 12, 13),
                label_groups=("", "", "stuff"),
                masks=packed(masks),
                mask_labels=labels,
                phrases=tuple(f"the {NAMES[label]} one" for label in labels),
                phrase_masks=tuple((n,) for n in range(len(labels))),
            )
        )
    return found


def run(kind, records, network=None, **options):
    context = EvalContext(network=network or Oracle(), tokenizer=TOKENIZER, **options)
    with torch.no_grad():
        return load(find_evaluation(kind).run)(context, records)


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_that_sees_everything(kind, records):
    result = run(kind, records)
    chosen = find_evaluation(kind).chosen_by
    assert all(result.metrics[name] == pytest.approx(1.0, abs=1e-5) for name in chosen)
    if kind == "panoptic":
        assert result.metrics["pq_stuff"] == result.metrics["pq_things"] == pytest.approx(1.0)
    elif kind == "refseg":
        assert result.metrics["precision_at_0.9"] == 1.0


def test_a_class_that_is_taken_for_another(records):
    network, numbers = Oracle(blind=1), {}
    for kind in KINDS[:3]:
        numbers[kind] = run(kind, records, network).metrics
    # Green is never found; blue has its pixels.
    assert numbers["panoptic"]["pq"] < 0.75 and numbers["panoptic"]["pq_things"] == 0.5
    assert numbers["semantic"]["miou"] < 0.75
    # Its masks are found with a low score, beside those of other classes.
    assert 0.5 < numbers["instance"]["ap"] < 0.75


def test_predictions_are_those_of_official_formats(records):
    panoptic, semantic, instance, refseg = (run(kind, records).predictions for kind in KINDS)
    for number, record in enumerate(records):
        own = panoptic[number]
        assert own["image_id"] == number
        things = {
            (entry["category_id"], entry["isthing"]): decode(entry["segmentation"])
            for entry in own["segments_info"]
        }
        assert set(things) == {(11 + label, int(label < 2)) for label in record.mask_labels}
        masks = decode_masks(record.masks, SIDE, SIDE)
        for label, mask in zip(record.mask_labels, masks, strict=True):
            assert np.array_equal(things[11 + label, int(label < 2)], mask)
    assert len(refseg) == sum(len(record.phrases) for record in records)
    assert {entry["category_id"] for entry in instance} == {11, 12}
    assert {entry["image_id"] for entry in semantic} == set(range(IMAGES))


def test_crowds_do_not_count(records):
    crowd = [dataclasses.replace(records[0], mask_crowd=(True,) * len(records[0].mask_labels))]
    metrics = run("panoptic", crowd).metrics
    assert set(metrics) == {"pq"} and math.isnan(metrics["pq"])


class Waits(Exception):  # noqa: N818
    """Ends a process where it waits for the others, with its own results."""


def wait(own):
    raise Waits(own)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_have_the_metrics_of_one(kind, records):
    alone, shares = run(kind, records), []
    for rank in (0, 1):
        with pytest.raises(Waits) as waiting:
            run(kind, records, processes=EvalProcesses(rank, 2, wait))
        shares.append(pickle.loads(pickle.dumps(waiting.value.args[0])))
    assert [len(share) for share in shares] == [IMAGES // 2] * 2
    again = run(kind, records, processes=EvalProcesses(0, 2, lambda own: shares))
    assert again.metrics == pytest.approx(alone.metrics, nan_ok=True)
    assert again.predictions == alone.predictions


def test_options_of_classes(records):
    again = run("semantic", records, classes=list(NAMES))
    assert again.metrics == run("semantic", records).metrics
    network, asked = Oracle(), []
    network.class_prompts = lambda names: asked.append(names) or Oracle().class_prompts(NAMES)
    run("semantic", records, network, classes=["crimson", "green", "navy"])
    assert asked == [["crimson", "green", "navy"]]
    with pytest.raises(ValueError, match="got 1 classes that are names, expected 3"):
        run("panoptic", records, classes=["red"])
    with pytest.raises(ValueError, match="classes_per_prompt is 4"):
        run("panoptic", records, classes_per_prompt=4)


def test_bad_records_are_named(records):
    other = dataclasses.replace(records[1], labels=("a", "b", "c"))
    with pytest.raises(ValueError, match="'generated/0' and 'generated/1' have different labels"):
        run("panoptic", [records[0], other])
    silent = dataclasses.replace(records[0], phrases=(), phrase_masks=())
    with pytest.raises(ValueError, match="'generated/0' has no phrases"):
        run("refseg", [silent])
    with pytest.raises(Exception, match="an evaluation of masks"):
        run("refseg", records[:1], SimpleNamespace(config=SMALL))
