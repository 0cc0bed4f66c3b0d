"""Perceptual hashes: edits that nobody sees are near, others are not."""

import io

import numpy as np
import pytest
from PIL import Image

import fiber
from fiber.bulk.perceptual_hash import HASH_WIDTH, _of_crop, hash_images, near_pairs
from fiber.inference import Annotator


def drawing(seed, height=180, width=240):
    """An image of smooth random colors, with edges."""
    draws = np.random.default_rng(seed)
    small = Image.fromarray(draws.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    image = small.resize((width, height), Image.Resampling.BICUBIC)
    x, y = draws.integers(20, width - 80), draws.integers(20, height - 80)
    image.paste(
        tuple(draws.integers(0, 256, 3).tolist()), (int(x), int(y), int(x) + 60, int(y) + 50)
    )
    return image


def recompressed(image):
    image.save(file := io.BytesIO(), "jpeg", quality=30)
    return Image.open(file).convert("RGB")


def cropped(image, left=0.5, top=0.5):
    width, height = round(image.width * 0.95), round(image.height * 0.95)
    x, y = int((image.width - width) * left), int((image.height - height) * top)
    return image.crop((x, y, x + width, y + height))


def pairs_of(images, distance=0.11, **options):
    hashes = np.stack(hash_images([np.asarray(image) for image in images]))
    a, b, far, mirrored = near_pairs(hashes, distance, **options)
    return {
        (int(i), int(j)): (float(d), bool(m))
        for i, j, d, m in zip(a, b, far, mirrored, strict=True)
    }


def test_no_image():
    assert hash_images([]) == []
    assert all(len(each) == 0 for each in near_pairs(np.zeros((0, HASH_WIDTH), np.float32), 0.1))


def test_edits_are_near_and_other_images_are_not():
    image = drawing(0)
    edits = [
        recompressed(image),
        image.resize((90, 66)),
        cropped(image),
        cropped(image, 0, 1),
        cropped(image, 0.8, 0.3),
    ]
    others = [drawing(seed) for seed in range(1, 30)]
    found = pairs_of([image, *edits, *others])
    assert {pair for pair in found if pair[0] == 0} == {(0, n) for n in range(1, 6)}
    assert all(second < 6 for _, second in found)
    assert all(distance <= 0.11 for distance, _ in found.values())


def test_mirrored_images_are_near_only_with_flips():
    image = drawing(3)
    images = [image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), drawing(4)]
    assert pairs_of(images) == {}
    found = pairs_of(images, flips=True)
    assert list(found) == [(0, 1)]
    assert found[0, 1] == (pytest.approx(0, abs=1e-3), True)


def test_color_and_brightness_count():
    image = np.asarray(drawing(5))
    assert pairs_of([image, image[..., ::-1], image // 2]) == {}


def test_images_of_one_color_are_near_if_the_color_is():
    plain = [np.full((40, 50, 3), level, np.uint8) for level in (255, 255, 250)]
    assert list(pairs_of(plain)) == [(0, 1)]


def test_frequencies_of_a_crop_follow_from_those_of_the_image():
    """Up to the frequencies that hashes do not store."""
    draws = np.random.default_rng(6)
    colors = Image.fromarray(draws.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    image = colors.resize((400, 400), Image.Resampling.BICUBIC)
    whole = np.stack(hash_images([np.asarray(image)]))
    part = np.stack(hash_images([np.asarray(image.crop((10, 20, 390, 400)))]))
    expected, found = _of_crop(part, 0, 0, 1), _of_crop(whole, 0.05, 0.025, 0.95)
    assert np.abs(expected - found).max() < 0.05 * np.abs(expected[:, 1:64]).max()
    assert np.abs(expected - _of_crop(whole, 0, 0, 1)).max() > np.abs(expected - found).max() * 3


def test_transparent_pixels_are_white():
    opaque = np.asarray(drawing(7))
    alpha = np.full((*opaque.shape[:2], 1), 255, np.uint8)
    alpha[:, 120:] = 0
    white = opaque.copy()
    white[:, 120:] = 255
    hashes = hash_images([np.concatenate([opaque, alpha], 2), white])
    # In the two columns at the edge, color, alpha and the pixel of the other image are rounded to 8
    # bits, by half a level each. A coefficient is a mean of pixels times cosines of at most 2.
    np.testing.assert_allclose(hashes[0], hashes[1], rtol=0, atol=2 * 3 * 0.5 * 2 / 32)


def test_it_is_a_task_without_a_model(mixed_images, tmp_path):
    import pyarrow.dataset

    found = fiber.map(mixed_images, "hash", tmp_path / "hashes")
    assert found["total"] == {"rows": 20, "errors": 3, "truncated": 0}
    rows = pyarrow.dataset.dataset(tmp_path / "hashes" / "rows").to_table().to_pylist()
    single = hash_images([fiber.data.load_image(rows[4]["image"], keep_alpha=True)])[0]
    np.testing.assert_array_equal(np.float32(rows[4]["hash"]), single)
    with pytest.raises(TypeError, match="hash takes no model"):
        Annotator("scenes", "hash")
    with pytest.raises(TypeError, match="embed needs a model"):
        fiber.map(mixed_images, "embed", tmp_path / "vectors")


def test_command(mixed_images, tmp_path, capsys):
    from fiber.cli import main

    given = ["map", str(mixed_images), "--task", "hash", "--output", str(tmp_path / "hashes")]
    assert main(given) == 0
    assert '"rows": 20' in capsys.readouterr().out
    assert main([*given, "--device", "cpu"]) == 2
    assert "--device is not for --task hash" in capsys.readouterr().err
