"""Masks of exported graphs against those of networks, in every engine and on the command line."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import fiber
import fiber.runtime
from fiber.cli import main
from fiber.inference.masks.class_vectors import ClassVectors
from fiber.models.heads import MissingHeadError
from fiber.ops.masks import resize_masks
from fiber.postprocess import masks as postprocess
from fiber.postprocess.masks import MaskSizes
from tests.models.xdecoder.small_model import CLASSES, PHRASES, some_images
from tests.runtime.drawings import drawings

#: As in `tests.export.test_agreement`.
TOLERANCE = 1e-4
IMAGES = some_images()[:4]
#: Share of pixels that rounding may move to another segment.
MOVED = 1e-3
LOW = {"score_threshold": 0.0, "overlap_threshold": 0.0}


@pytest.mark.parametrize(
    ("own", "size"), [((5, 7), (20, 11)), ((24, 40), (9, 40)), ((16, 16), (4, 2)), ((1, 3), (6, 1))]
)
def test_arrays_are_resized_as_tensors(own, size):
    torch.manual_seed(0)
    masks = torch.randn(2, 3, *own)
    expected = resize_masks(masks, size)
    found = resize_masks(masks.numpy(), size)
    assert found.dtype == np.float32
    # Torch computes places in float32.
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=5e-6)


def test_arrays_give_the_same_results_as_tensors():
    torch.manual_seed(1)
    masks, classes = 3 * torch.randn(9, 16, 24), 3 * torch.randn(9, 5)
    masks = resize_masks(masks[None], (8, 12))[0] * 4
    sizes, things = MaskSizes((32, 48), (30, 41), (57, 80)), (True, False, True, True)
    given = ((masks, classes), (masks.numpy(), classes.numpy()))
    options = {"score_threshold": 0.3, "overlap_threshold": 0.1}
    expected, found = (postprocess.final_panoptic(*own, sizes, things, **options) for own in given)
    assert len(expected.segments) > 2
    assert np.array_equal(found.ids, expected.ids.numpy())
    for ours, theirs in zip(found.segments, expected.segments, strict=True):
        assert ours[:3] == theirs[:3] and ours.score == pytest.approx(theirs.score, abs=1e-6)
    expected, found = (postprocess.final_semantic(*own, sizes) for own in given)
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5)
    expected, found = (
        postprocess.final_instances(*own, sizes, things, max_instances=12) for own in given
    )
    assert np.array_equal(found.labels, expected.labels.numpy())
    assert np.array_equal(found.masks, expected.masks.numpy())
    assert np.array_equal(found.boxes, expected.boxes.numpy())
    np.testing.assert_allclose(found.scores, expected.scores.numpy(), rtol=0, atol=1e-6)
    assert [array.dtype for array in found] == [np.float32, np.int64, bool, np.float32]


@pytest.fixture(scope="session")
def folder(exported):
    return exported("X-Decoder", "onnx")


@pytest.fixture(scope="session")
def network(folder):
    return fiber.load(folder.parent / "model", device="cpu")


@pytest.fixture(scope="session", params=["onnxruntime", "openvino"])
def graphs(folder, request):
    return fiber.runtime.load(folder, request.param, threads=1)


def same(ours, theirs):
    """Compare segmentations."""
    assert ours.labels == theirs.labels and ours.kind == theirs.kind
    assert [each.is_thing for each in ours.segments] == [each.is_thing for each in theirs.segments]
    np.testing.assert_allclose(ours.scores, theirs.scores, rtol=0, atol=TOLERANCE)
    assert (ours.masks != theirs.masks).mean() <= MOVED
    assert ours.ids.dtype == theirs.ids.dtype and ours.ids.shape == theirs.ids.shape


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"classes": CLASSES, "stuff": ["grass", "sky"], **LOW},
        {"kind": "semantic"},
        {"classes": CLASSES, "kind": "instance", "max_instances": 6},
        {"phrases": PHRASES},
        {"phrases": [PHRASES[:1], PHRASES, PHRASES[1:], PHRASES], "together": False},
    ],
    ids=["panoptic", "semantic", "instance", "phrases", "alone"],
)
def test_segment(graphs, network, options):
    found, expected = (model.segment(IMAGES, **options) for model in (graphs, network))
    assert sum(each.masks.any() for each in expected) > 1
    for ours, theirs in zip(found, expected, strict=True):
        same(ours, theirs)
        assert ours.draw().size == theirs.draw().size


@pytest.mark.slow
def test_class_vectors_are_exchanged(graphs, network, tmp_path):
    graphs.class_vectors(CLASSES).save(tmp_path / "own.safetensors")
    found = ClassVectors.load(tmp_path / "own.safetensors")
    np.testing.assert_allclose(
        found.vectors, network.class_vectors(CLASSES).vectors, rtol=0, atol=1e-5
    )
    same(network.segment(IMAGES[0], found, **LOW), graphs.segment(IMAGES[0], found, **LOW))
    other = ClassVectors(found.classes, found.vectors, "00000000")
    with pytest.raises(ValueError, match=r"checksum '00000000'; this one has"):
        graphs.segment(IMAGES[0], other)


@pytest.mark.slow
def test_search_and_texts(graphs, network):
    texts = ["the dog\u2019s &amp; \ufb01ne ball", *PHRASES]
    for method, given in (("embed_images", IMAGES), ("embed_texts", texts)):
        found, expected = (getattr(model, method)(given) for model in (graphs, network))
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    hits = [model.search(PHRASES[0], IMAGES, rerank=False) for model in (graphs, network)]
    assert [hit.index for hit in hits[0]] == [hit.index for hit in hits[1]]


@pytest.mark.slow
def test_what_graphs_lack(graphs):
    with pytest.raises(MissingHeadError, match=r"caption of a region needs the head 'caption'"):
        graphs.caption(IMAGES[0], region=np.ones(IMAGES[0].shape[:2], bool))
    with pytest.raises(ValueError, match="'dog' is there twice"):
        graphs.segment(IMAGES[0], ["dog", "dog"])
    with pytest.raises(ValueError, match=r"phrase '(a ){3,}.* tokens; expected at most 32"):
        graphs.segment(IMAGES[0], phrases=["a " * 60])


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_the_command(folder, tmp_path, monkeypatch, capsys, runtime):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(IMAGES[1]).save("photo.png")
    results = []
    for model, more in ((folder, ["--runtime", runtime]), (folder.parent / "model", [])):
        command = ["segment", "photo.png", "--phrases", "; ".join(PHRASES), "--model", str(model)]
        assert main([*command, *more]) == 0
        results.append(json.loads(capsys.readouterr().out)["segments"])
    assert [each["label"] for each in results[0]] == PHRASES
    for ours, theirs in zip(*results, strict=True):
        assert ours["score"] == pytest.approx(theirs["score"], abs=2 * TOLERANCE)
        assert abs(ours["area"] - theirs["area"]) <= MOVED * IMAGES[1].size


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_masks_of_boxes(exported, engine):
    folder = exported("fine two blocks", "onnx")
    models = [
        fiber.runtime.load(folder, engine, threads=1),
        fiber.load(folder.parent / "model", device="cpu"),
    ]
    phrases = ["the square", "a circle"]
    pixels = 0
    for found, expected in zip(
        *(model.ground(drawings(), phrases, masks=True) for model in models), strict=True
    ):
        assert found.masks.shape == expected.masks.shape and found.masks.dtype == bool
        np.testing.assert_allclose(found.boxes_xyxy, expected.boxes_xyxy, rtol=0, atol=1e-2)
        assert (found.masks != expected.masks).mean() <= MOVED
        pixels += int(expected.masks.sum())
    assert pixels > 100
    assert models[0].ground(drawings()[0], phrases).masks is None
