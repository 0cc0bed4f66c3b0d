"""`ground(masks=True)`: boxes and masks of phrases in one pass."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import fiber
from fiber.cli import main
from fiber.config_io import replace_fields
from fiber.data import Rle, decode_masks, open_source
from fiber.inference import Model
from fiber.metrics.regions import phrase_areas, phrase_mask_metrics
from fiber.models.fiber.detector import FiberDetector
from fiber.ops.masks import enlarged_boxes
from fiber.postprocess import Detections

PHRASES = ["a red circle", "the square", "dog"]


@pytest.fixture(scope="module")
def masked(micro_models):
    plain = fiber.load(micro_models["fine"], device="cpu")
    torch.manual_seed(0)
    network = FiberDetector(replace_fields(plain.config, {"detector.mask_width": 8}))
    network.load_state_dict(plain.network.state_dict(), strict=False)
    # Random masks would be all or nothing: let the place decide where they end.
    with torch.no_grad():
        network.mask_head.embedding[2].bias[:5] = torch.tensor([0.3, 0, 0.2, -1, -1])
    return Model(network, plain.tokenizer)


@pytest.fixture(scope="module")
def some_pictures():
    draws = np.random.default_rng(0)
    sizes = [(64, 64), (70, 90), (90, 70)]
    return [draws.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def test_a_model_without_the_head(micro_models, some_pictures):
    plain = fiber.load(micro_models["fine"], device="cpu")
    with pytest.raises(fiber.MissingHeadError, match=r"'grounding_mask'.*scenes_fine_masks"):
        plain.ground(some_pictures[0], PHRASES, masks=True)
    with pytest.raises(TypeError, match="masks must be True or False, got 1"):
        plain.ground(some_pictures[0], PHRASES, masks=1)
    coarse = fiber.load(micro_models["coarse"], device="cpu")
    with pytest.raises(fiber.MissingHeadError, match="'grounding'"):
        coarse.ground(some_pictures[0], PHRASES, masks=True)


def test_no_picture(masked):
    assert masked.ground([], PHRASES, masks=True) == []


def test_boxes_are_the_same_and_masks_lie_in_them(masked, some_pictures):
    for picture in some_pictures:
        options = {"boxes_per_phrase": 3, "max_detections": 7}
        without = masked.ground(picture, PHRASES, **options)
        found = masked.ground(picture, PHRASES, **options, masks=True)
        assert without.masks is None
        assert found.labels == without.labels
        np.testing.assert_array_equal(found.boxes_xyxy, without.boxes_xyxy)
        np.testing.assert_array_equal(found.scores, without.scores)
        assert found.masks.dtype == bool
        assert found.masks.shape == (len(found), *picture.shape[:2])
        assert 0 < found.masks.mean() < 1
        boxes = enlarged_boxes(torch.from_numpy(found.boxes_xyxy)).numpy()
        for mask, (x0, y0, x1, y1) in zip(found.masks, boxes, strict=True):
            rows, columns = np.nonzero(mask)
            assert all((y0 <= rows + 0.5) & (rows + 0.5 < y1))
            assert all((x0 <= columns + 0.5) & (columns + 0.5 < x1))


def test_a_mask_belongs_to_its_box_and_not_to_the_other_pictures(masked, some_pictures):
    together = masked.ground(some_pictures, PHRASES, masks=True)
    for picture, found in zip(some_pictures, together, strict=True):
        for number, phrase in enumerate(PHRASES):
            alone = masked.ground(picture, [phrase], masks=True)
            (place,) = np.flatnonzero(found.indices == number)
            # Longer texts beside it change sums by a little.
            np.testing.assert_allclose(found.boxes_xyxy[place], alone.boxes_xyxy[0], atol=1e-3)
            assert (found.masks[place] != alone.masks[0]).mean() < 0.01


def test_results_are_drawn_and_written(masked, some_pictures, tmp_path):
    found = masked.ground(some_pictures[1], PHRASES, masks=True)
    entries = found.to_dict()["detections"]
    for entry, mask in zip(entries, found.masks, strict=True):
        rle = Rle(entry["segmentation"]["counts"], tuple(entry["segmentation"]["size"]))
        assert (decode_masks((rle,), 70, 90)[0] == mask).all()
        assert entry["area"] == mask.sum()
    without = masked.ground(some_pictures[1], PHRASES)
    assert all("segmentation" not in entry for entry in without.to_dict()["detections"])
    found.save(tmp_path / "found.png")
    without.save(tmp_path / "without.png")
    drawn, plain = (np.asarray(Image.open(tmp_path / f"{n}.png")) for n in ("found", "without"))
    assert drawn.shape == plain.shape
    assert (drawn != plain).any()


def test_masks_of_another_size(masked, some_pictures):
    found = masked.ground(some_pictures[1], PHRASES, masks=True)
    with pytest.raises(ValueError, match=r"masks have shape \(3, 90, 70\), expected \(3, 70, 90\)"):
        Detections(
            **{**vars(found), "masks": found.masks.transpose(0, 2, 1)},
        )


@pytest.mark.filterwarnings("ignore:text .* is truncated:UserWarning")
def test_masks_of_phrases_are_evaluated(masked, small_scenes):
    records = list(open_source("expression_masks", small_scenes, "val"))[:3]
    metrics = fiber.evaluate(masked, "refseg", records)
    areas = []
    for record in records:
        found = masked.ground(record.images[0], record.phrases, masks=True)
        masks = decode_masks(record.masks, *found.image_size)
        for number, own in enumerate(record.phrase_masks):
            (place,) = np.flatnonzero(found.indices == number)
            areas.append(phrase_areas(found.masks[place], masks[list(own)].any(0)))
    assert metrics == pytest.approx(phrase_mask_metrics(areas))
    assert 0 < metrics["ciou"] < 1


def test_a_model_without_masks_is_not_evaluated(micro_models, small_scenes):
    plain = fiber.load(micro_models["fine"], device="cpu")
    records = list(open_source("expression_masks", small_scenes, "val"))[:1]
    with pytest.raises(fiber.MissingHeadError, match="'mask'"):
        fiber.evaluate(plain, "refseg", records)


def test_the_command_writes_masks(masked, some_pictures, tmp_path, capsys):
    masked.save(tmp_path / "model")
    image = tmp_path / "a.png"
    Image.fromarray(some_pictures[1]).save(image)
    arguments = ["ground", str(image), "--phrases", "; ".join(PHRASES), "--json", "--device", "cpu"]
    arguments += ["--model", str(tmp_path / "model")]
    assert main([*arguments, "--masks"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = masked.ground(image, PHRASES, masks=True).to_dict()
    assert found["detections"] == expected["detections"]
