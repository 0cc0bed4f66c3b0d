"""`scenes_fine_masks` trains masks and leaves boxes as they are."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fiber
from fiber.checkpoints.model_dir import load_model
from fiber.config import preset
from fiber.data import DataLoader, ImageTransform, sources
from fiber.data.batch import unpack_masks
from fiber.metrics.regions import phrase_areas, phrase_mask_metrics
from fiber.ops.boxes import paired_giou
from fiber.ops.masks import masks_on_map
from fiber.tasks.grounding.fields import GroundingTask
from fiber.training.train import train

#: What a model of few steps changes in both recipes.
SMALL = {
    "model": preset("micro", stage="fine"),
    "model.max_tokens": 24,
    "data.batch_size": 8,
    "data.transform.shorter_sides": (64,),
    "data.transform.max_size": 96,
    "train.checkpoint_every": 0,
}
MASKS = {**SMALL, "model.detector.mask_width": 8}


@pytest.fixture(scope="module")
def runs(small_scenes, tmp_path_factory):
    """A detector of two steps, and masks on it of some more."""
    folder = tmp_path_factory.mktemp("masks")
    common = {"data": small_scenes, "device": "cpu", "threads": 1, "quiet": True}
    train("scenes_fine", output=folder / "fine", set={**SMALL, "train.steps": 2}, **common)
    changes = {**MASKS, "train.steps": 40, "optim.frozen": ("backbone", "stage_norms", "head")}
    changes["optim.frozen"] += ("pyramid", "tower")
    start = {"init": folder / "fine", "output": folder / "masks"}
    train("scenes_fine_masks", set=changes, **start, **common)
    return folder


def test_losses_fall_and_boxes_stay(runs, small_scenes):
    lines = (runs / "masks" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    losses = [step["losses"] for step in steps if "losses" in step]
    assert losses[-1]["mask_bce"] < 0.8 * losses[0]["mask_bce"]
    assert losses[-1]["mask_dice"] < 0.8 * losses[0]["mask_dice"]

    plain, masked = (load_model(runs / name).network.state_dict() for name in ("fine", "masks"))
    for name, tensor in plain.items():
        assert torch.equal(tensor, masked[name]), name


def test_masks_of_right_boxes_beat_the_boxes(runs, small_scenes):
    """A few steps suffice to see where a thing ends in its box."""
    network = load_model(runs / "masks").network.eval()
    model = fiber.load(runs / "masks", device="cpu")
    batches = DataLoader(
        sources.detection(small_scenes, "val", masks=True),
        "grounding_masks",
        tokenizer=model.tokenizer,
        transform=ImageTransform.shorter_side([64], 96),
        batch_size=12,
        max_tokens=24,
    )
    areas = {"mask": [], "box": []}
    for batch in batches:
        with torch.no_grad():
            output = network(batch.images, batch.token_ids, batch.text_mask, batch.image_sizes)
        anchors, starts = torch.cat(output.anchors), batch.boxes_per_image.cumsum(0).tolist()
        embeddings = torch.cat(output.masks.embeddings, dim=1)
        truths = unpack_masks(batch.box_masks, batch.images.shape[-1]).numpy()
        for box, (edges, true) in enumerate(zip(batch.boxes_xyxy, truths, strict=True)):
            image = next(row for row, end in enumerate(starts) if box < end)
            # The location whose anchor is like the box stands for one that has found it.
            place = paired_giou(anchors, edges.expand(len(anchors), -1)).argmax()
            features = output.masks.features[image]
            logits = masks_on_map(embeddings[image, place][None], features, anchors[place][None], 4)
            x0, y0, x1, y1 = edges.round().int().tolist()
            filled = np.zeros_like(true)
            filled[y0:y1, x0:x1] = True
            found = F.interpolate(logits[None], true.shape, mode="bilinear")[0, 0].numpy() > 0
            areas["mask"].append(phrase_areas(found & filled, true))
            areas["box"].append(phrase_areas(filled, true))
    ciou = {name: phrase_mask_metrics(own)["ciou"] for name, own in areas.items()}
    print(ciou)
    assert ciou["mask"] > ciou["box"]


@pytest.mark.parametrize("loss", ["mask_bce", "mask_dice"])
def test_one_loss_of_masks_is_enough(loss):
    assert not GroundingTask(share=1).reads_masks
    assert GroundingTask(share=1, **{loss: 1.0}).heads() == ("grounding", "grounding_mask")


def test_data_without_masks(small_scenes, tmp_path):
    records = list(sources.referring(small_scenes, "train"))
    options = {"data": records, "tokenizer": small_scenes / "tokenizer.json", "quiet": True}
    with pytest.raises(ValueError, match=r"'grounding'.*masks of boxes.*none"):
        train("scenes_fine_masks", output=tmp_path / "a", **options)


def test_a_model_without_the_head(small_scenes, tmp_path):
    changes = {"model.detector.mask_width": 0}
    with pytest.raises(ValueError, match="grounding_mask"):
        train("scenes_fine_masks", data=small_scenes, output=tmp_path / "a", set=changes)
