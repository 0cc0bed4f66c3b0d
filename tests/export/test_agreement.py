"""Every head of every family by its graphs, in every engine, at sizes that were not traced."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fiber.models.fiber.beam_search import beam_search
from fiber.postprocess import FoundBoxes, detect_boxes, ground_phrases
from fiber.runtime.graphs import Graphs
from tests.export import networks
from tests.export.chain import Chain

pytestmark = pytest.mark.slow
#: Largest difference of a logit.
TOLERANCE = 1e-4
#: Format of the folder, and the library that runs it.
ENGINES = (("onnx", "onnxruntime"), ("onnx", "openvino"), ("torch", "torch"))
#: Number of images, in batches of 1 and 3.
IMAGES, BATCHES = 20, (1, 3, 1, 3, 3, 3, 1, 1, 3, 1)


def texts(config, batch, number):
    """Draw texts of 3 to 32 tokens, padded to the longest one."""
    draw = np.random.default_rng(number)
    lengths = draw.integers(3, min(32, config.max_tokens) + 1, batch)
    lengths[0] = (3, 32, 4, 17)[number % 4]
    length = lengths.max()
    ids = draw.integers(3, config.vocab_size, (batch, length))
    mask = np.arange(length) < lengths[:, None]
    return {"token_ids": np.where(mask, ids, 1), "text_mask": mask}


def batches(config, sizes):
    """Draw images of several sizes in batches, and texts."""
    assert sum(BATCHES) == IMAGES
    for number, batch in enumerate(BATCHES):
        height, width = sizes[number % len(sizes)]
        images = torch.randn(
            batch, 3, height, width, generator=torch.Generator().manual_seed(number)
        )
        yield images, texts(config, batch, number)


def assert_same_boxes(ours, theirs):
    """Compare boxes one to one. Those whose scores differ by rounding may be in another order."""
    assert len(ours.scores) == len(theirs.scores)
    is_same = (
        (ours.label_indices[:, None] == theirs.label_indices)
        & (np.abs(ours.scores[:, None] - theirs.scores) <= TOLERANCE)
        # Pixels of the original image.
        & (np.abs(ours.boxes_xyxy[:, None] - theirs.boxes_xyxy) <= 100 * TOLERANCE).all(-1)
    )
    np.testing.assert_allclose(ours.scores, theirs.scores, rtol=0, atol=TOLERANCE)
    assert is_same.any(0).all()
    assert is_same.any(1).all()


def assert_same_mask_tensors(ours, theirs):
    """Compare what masks of boxes are computed from."""
    assert ours.stride == theirs.stride
    embeddings = torch.cat(theirs.embeddings, 1).numpy()
    assert embeddings.std() > 0.05
    np.testing.assert_allclose(
        np.concatenate(ours.embeddings, 1), embeddings, rtol=0, atol=TOLERANCE
    )
    np.testing.assert_allclose(ours.features, theirs.features.numpy(), rtol=0, atol=TOLERANCE)


def as_tensors(given):
    return [torch.from_numpy(given[name]) for name in ("token_ids", "text_mask")]


@pytest.mark.parametrize(("to", "engine"), ENGINES, ids=[engine for _, engine in ENGINES])
@pytest.mark.parametrize("name", ["coarse", "METER", "METER BERT", "METER Swin", "METER merged"])
def test_heads_on_images_and_texts(exported, name, to, engine):
    model = networks.network(name)
    config, chain = model.config, Chain(Graphs(exported(name, to), engine=engine, threads=1))
    worst = dict.fromkeys(set(config.heads) - {"caption"}, 0.0)
    assert len(worst) >= 5
    for images, given in batches(config, [(config.image_size,) * 2]):
        for head in worst:
            pictures = torch.stack([images, images.flip(0, 2)], 1) if head == "nlvr2" else images
            with torch.no_grad():
                expected = model(pictures, *as_tensors(given), head)
            if head == "itc":
                expected = expected * model.temperature.detach()
            found = chain.head(head, pictures.numpy(), given)
            assert found.shape == tuple(expected.shape)
            worst[head] = max(worst[head], float(np.abs(found - expected.numpy()).max()))
    assert all(difference <= TOLERANCE for difference in worst.values()), worst


@pytest.mark.parametrize(("to", "engine"), ENGINES, ids=[engine for _, engine in ENGINES])
def test_captions(exported, to, engine):
    model = networks.network("coarse")
    graphs = Graphs(exported("coarse", to), engine=engine, threads=1)
    for images, _ in batches(model.config, [(96, 96)]):
        with torch.no_grad():
            tokens = model.image_tokens(images)
            expected = beam_search(model, tokens, num_beams=4, max_tokens=14)
        found = Chain(graphs).captions(images.numpy(), 4, 14)
        np.testing.assert_array_equal(found.token_ids, expected.token_ids.numpy())
        np.testing.assert_allclose(found.scores, expected.scores.numpy(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_masks_of_classes_and_phrases(exported, engine):
    """At sizes, numbers of classes and of phrases that were not traced."""
    model = networks.network("X-Decoder")
    found = Chain(Graphs(exported("X-Decoder", "onnx"), engine=engine, threads=1)).network
    draw = torch.Generator().manual_seed(0)
    sizes = ((32, 64), (96, 160), (160, 64))
    for number, (images, given) in enumerate(batches(model.config, sizes)):
        classes = 2 + number * 3 % 5
        vectors = torch.randn(classes, model.config.width, generator=draw)
        vectors /= vectors.norm(dim=1, keepdim=True)
        with torch.no_grad():
            memory = model.read_image(images)
            expected = (
                *model.class_masks(memory, vectors),
                *model.find_phrases(memory, *as_tensors(given)),
                model.embed_images(images),
                model.embed_texts(*as_tensors(given)),
            )
        own = found.read_image(images.numpy())
        outputs = (
            *found.class_masks(own, vectors.numpy()),
            *found.find_phrases(own, **given),
            found.embed_images(images.numpy()),
            found.embed_texts(**given),
        )
        assert len(outputs) == len(expected) == 6
        for one, other in zip(outputs, expected, strict=True):
            # Attention follows thresholds of masks, which amplify rounding: of the largest value,
            # as in the check of an export.
            largest = max(1.0, float(other.abs().max()))
            np.testing.assert_allclose(one, other.numpy(), rtol=0, atol=TOLERANCE * largest)
        assert outputs[1].std() > 1


@pytest.mark.parametrize(("to", "engine"), ENGINES, ids=[engine for _, engine in ENGINES])
@pytest.mark.parametrize("name", ["fine", "fine two blocks"])
def test_detectors(exported, name, to, engine):
    model = networks.network(name)
    chain = Chain(Graphs(exported(name, to), engine=engine, threads=1))
    boxes = 0
    for images, given in batches(model.config, networks.SIZES):
        with torch.no_grad():
            expected = model(images, *as_tensors(given))
        found = chain.boxes(images.numpy(), given)
        names = ("token_logits", "box_deltas", "centerness_logits")
        for each in names:
            whole = torch.cat(getattr(expected, each), 1).numpy()
            assert whole.std() > 0.05
            own = np.concatenate(getattr(found, each), 1)
            np.testing.assert_allclose(own, whole, rtol=0, atol=TOLERANCE)
        for ours, theirs in zip(found.anchors, expected.anchors, strict=True):
            np.testing.assert_array_equal(ours, theirs.numpy())
        if name == "fine two blocks":
            assert_same_mask_tensors(found.masks, expected.masks)
        # Of a size within the padding, to another original size.
        sizes = [(side[0] - 5, side[1] - 9) for side in [images.shape[-2:]] * len(images)]
        # Labels of one token and of the rest.
        counts = given["text_mask"].sum(1)
        maps = [[[1], list(range(1, count))] for count in counts]
        for select in (detect_boxes, ground_phrases):
            settings = {"score_threshold": 0.0} | (
                {"boxes_per_phrase": 5} if select is ground_phrases else {}
            )
            both = (select(each, maps, sizes, [(300, 400)] * len(images), **settings)
                    for each in (found, expected))  # fmt: skip
            for ours, theirs in zip(*both, strict=True):
                boxes += len(theirs.scores)
                assert_same_boxes(ours, FoundBoxes(*(part.numpy() for part in theirs)))
    assert boxes > 100


def test_openvino_files(exported):
    graphs = Graphs(exported("METER merged", "openvino"))
    assert graphs.engine == "openvino"
    model = networks.network("METER merged")
    images, given = next(batches(model.config, [(model.config.image_size,) * 2]))
    with torch.no_grad():
        expected = model(images, *as_tensors(given), "vqa").numpy()
    found = Chain(graphs).head("vqa", images.numpy(), given)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", networks.NAMES)
def test_standard_domains_only(exported, name):
    import onnx

    paths = sorted(exported(name, "onnx").glob("*.onnx"))
    assert len(paths) >= 3
    for path in paths:
        model = onnx.load(path, load_external_data=False)
        assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}, path
        assert not model.functions
        assert [each.version for each in model.opset_import if not each.domain] == [20]
        onnx.checker.check_model(str(path))
