"""Class vectors are computed once for a vocabulary, saved, loaded, and not mixed up."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import fiber
from fiber.models.xdecoder.class_texts import class_texts, mean_vectors
from tests.models.xdecoder.small_model import CLASSES, PHRASES, small_model

LOW = {"score_threshold": 0.0, "overlap_threshold": 0.0}


def test_vectors_are_the_unit_means_over_templates(model):
    found = model.class_vectors(CLASSES)
    assert found.classes == tuple(CLASSES) and len(found) == 4
    expected = []
    for name in (*CLASSES, "background"):
        rows = []
        for text in class_texts(name):
            batch = model.inputs.texts([text])
            with torch.no_grad():
                rows.append(model.network.encode_text(batch.token_ids, batch.text_mask).vectors[0])
        expected.append(torch.stack(rows))
    expected = mean_vectors(torch.stack(expected))
    np.testing.assert_allclose(found.vectors, expected, rtol=0, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-6)


def test_texts_are_encoded_once_for_a_vocabulary(images, monkeypatch):
    model = small_model()
    calls = []
    encode = model.network.prompt_vectors
    monkeypatch.setattr(
        model.network, "prompt_vectors", lambda *texts: calls.append(1) or encode(*texts)
    )
    first = model.segment(images[0], CLASSES, **LOW)
    count = len(calls)
    assert count > 0
    again = model.segment(images[:2], CLASSES, kind="panoptic", **LOW)
    assert len(calls) == count and np.array_equal(first.ids, again[0].ids)
    before = model.class_vectors(CLASSES).vectors.copy()
    with torch.no_grad():
        model.network.text_projection.mul_(-1)
    after = model.class_vectors(CLASSES)
    assert len(calls) == 2 * count and not np.array_equal(after.vectors, before)
    model.segment(images[0], CLASSES[:2])
    assert len(calls) > 2 * count


def test_saved_vectors_give_the_same_masks_bit_for_bit(model, images, tmp_path):
    vectors = model.class_vectors(CLASSES)
    vectors.save(tmp_path / "classes.safetensors")
    loaded = fiber.ClassVectors.load(tmp_path / "classes.safetensors")
    assert np.array_equal(loaded.vectors, vectors.vectors)
    assert (loaded.classes, loaded.checksum) == (vectors.classes, vectors.checksum)
    # In another process, the model has the same weights.
    other = small_model()
    for kind in ("panoptic", "semantic", "instance"):
        options = {"kind": kind, **(LOW if kind == "panoptic" else {})}
        expected = model.segment(images[1], CLASSES, **options)
        found = other.segment(images[1], loaded, **options)
        assert found.segments == expected.segments
        assert np.array_equal(found.ids, expected.ids)
        assert np.array_equal(found.masks, expected.masks)
    with pytest.raises(ValueError, match="classes cannot be combined with phrases"):
        model.segment(images[1], loaded, phrases=PHRASES)


def test_vectors_of_another_model_are_refused(model, images):
    vectors = small_model(seed=1).class_vectors(CLASSES)
    with pytest.raises(ValueError, match=r"checksum .*; compute them|checksum .*: compute them"):
        model.segment(images[0], vectors)


def test_files_that_are_something_else(model, tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(FileNotFoundError, match=r"a\.safetensors do not exist"):
        fiber.ClassVectors.load(path)
    with pytest.raises(ValueError, match=r"a\.npz: .*\.safetensors"):
        model.class_vectors(CLASSES).save(tmp_path / "a.npz")
    good = np.zeros((3, 4), np.float32)
    metadata = {"classes": json.dumps(["a", "b"]), "text_weights": "00"}
    faults = [
        ({"other": good}, metadata, "no class vectors"),
        ({"class_vectors": good}, {}, "no class vectors"),
        ({"class_vectors": good}, metadata | {"classes": "{"}, "is not JSON"),
        ({"class_vectors": good}, metadata | {"classes": "[1, 2]"}, "no class vectors"),
        ({"class_vectors": good[:2]}, metadata, r"shape \(2, 4\), expected \(3, D\)"),
        ({"class_vectors": good * np.nan}, metadata, "NaN"),
    ]
    for tensors, own, message in faults:
        save_file(tensors, path, own)
        with pytest.raises(ValueError, match=rf"a\.safetensors.*{message}"):
            fiber.ClassVectors.load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"a\.safetensors"):
        fiber.ClassVectors.load(path)
